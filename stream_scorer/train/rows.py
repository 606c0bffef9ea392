"""Which transactions of a history become training rows."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from stream_scorer.arrays import Bools, Ints
from stream_scorer.errors import UsageError
from stream_scorer.features.history import History
from stream_scorer.features.plan import make_plan, reaches_ms
from stream_scorer.spec.model import LABELLED, CheckedSpec
from stream_scorer.state.rows import Beginning

# Above this share of rows with incomplete windows, training says that the history is short.
_MANY = 0.2

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Period:
    """The declared times of the training rows, epoch ms: ``[since, until)``; None for no bound.

    Without `since`, rows begin where all windows are complete, if the beginning of the log was deleted.
    """

    since: int | None = None
    until: int | None = None


ALL_TIMES = Period()


@dataclass(frozen=True, slots=True)
class Chosen:
    """`keep` ``(n,)``: the training rows. The others are counts.

    Attributes:
        outside: usable rows that are not in the period. blocked: blocked ones without a label.
        incomplete: training rows with a window that begins before the history.
    """

    keep: Bools
    outside: int
    blocked: int
    incomplete: int


def choose_rows(
    source: str,
    spec: CheckedSpec,
    history: History,
    usable: Bools,
    blocked: Bools,
    beginning: Beginning,
    period: Period,
) -> Chosen:
    """Choose among the `usable` rows ``(n,)`` of a history. `blocked` ``(n,)``: blocked, without a label.

    Raises:
        UsageError: none is left.
    """
    time = history.event_time
    first = _complete_from(spec, beginning) if period.since is None else period.since
    inside = time >= first
    if period.until is not None:
        inside &= time < period.until
    keep = usable & inside & ~blocked
    if not keep.any():
        raise _no_row(source, first, period, time)
    reach = int(reaches_ms(make_plan(spec)).max(initial=0))
    incomplete = int((time[keep] - reach < time[0]).sum()) if reach else 0
    if incomplete > _MANY * keep.sum():
        _log.warning(
            "%s: %.0f %% of the training rows have features that look back to before the first transaction (up to %.0f "
            "days): their counts are too small. Give an earlier history, and --train-from to leave such rows out.",
            source, 100 * incomplete / keep.sum(), reach / 86_400_000,
        )  # fmt: skip
    return Chosen(keep, int((usable & ~inside).sum()), int((usable & inside & blocked).sum()), incomplete)


def _complete_from(spec: CheckedSpec, beginning: Beginning) -> int:
    """From when on no window reaches back to what the topics have lost; 0 if they have lost nothing."""
    if not any(beginning):
        return 0
    labelled = np.array([feature.aggregate in LABELLED for feature in spec.view_features], np.bool_)
    known = np.where(labelled, max(beginning), beginning.transactions)
    reach = reaches_ms(make_plan(spec))
    return int(np.where(known > 0, known + reach, 0).max(initial=0))


def _no_row(source: str, first: int, period: Period, time: Ints) -> UsageError:
    end = f" and end before {_time(period.until)}" if period.until is not None else ""
    hint = f"The history has transactions from {_time(int(time[0]))} to {_time(int(time[-1]))}."
    if period.since is None and first:
        hint += (
            " The topics have lost their beginning, and features look further back: keep the topics longer, or give "
            "--train-from to use rows with incomplete windows."
        )
    return UsageError(f"{source}: no training row is left: they begin at {_time(first)}{end}", hint=hint)


def _time(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1_000, UTC):%Y-%m-%d %H:%M}"
