"""features-property: every aggregate equals a naive recomputation, whatever is odd about the events.

Worlds in memory (`proofs/memory_run.py`), each scored once from end to end by the real stages: late events, second
copies, many events at one instant, events ahead of their record's timestamp, labels before their transaction, repeated,
changed, and stating an earlier time than what they change; windows with and without the current event, with delay, with
conditions. Every view feature of every event is compared with plain loops over the log. Half of the worlds have rows
that are compacted early: there a feature of a long row may lack only what the panes at the edges of its window hold
(`proofs/compacted.py`). `N` is the number of worlds.
"""

from __future__ import annotations

import random
from dataclasses import fields

from proofs.kit import CARDS_SPEC, Context, Result
from proofs.memory_run import Verdict, make_parts, make_world, run_until_done, verify
from stream_scorer.spec.model import ViewFeature
from tests.support.failpoints import Failpoints

WORLDS, TRANSACTIONS = 60, 700
AGGREGATES = {
    "count", "sum", "mean", "min", "max", "std", "distinct", "since_last", "is_new", "label_rate", "label_count"
}  # fmt: skip


def run(context: Context) -> Result:
    """See the module."""
    worlds = context.n or WORLDS
    result, total = Result(), Verdict()
    parts = make_parts(context.folder, CARDS_SPEC)
    if context.broken:
        _break()
    for number in range(1, worlds + 1):
        seed = context.seed * 100_000 + 80_000 + number
        world = make_world(parts.in_turn(number), seed, TRANSACTIONS)
        run_until_done(world, "scorer", random.Random(seed), Failpoints)
        total.add(verify(world), f"seed {seed}")
    views: list[ViewFeature] = parts.checked.view_features
    result.figures |= {f.name: getattr(total, f.name) for f in fields(Verdict) if f.name != "example" or total.example}
    result.check("the spec has every aggregate", {f.aggregate for f in views} == AGGREGATES)
    result.check("the spec has conditions", any(f.view.where for f in views))
    result.check(
        "every feature equals the naive recomputation, or lacks what panes allow", not total.features_different
    )
    result.check("rows and outputs too", total.holds)
    result.check("late transactions are partial, and only they", not (total.late_called_fresh or total.partial_in_time))
    result.at_least("features_compared", total.features, worlds * TRANSACTIONS * len(views))
    for name in ("rows_compacted", "by_panes", "late", "partial", "tied", "duplicates", "label_changes"):
        result.at_least(name, getattr(total, name), worlds)
    return result


def _break() -> None:
    """Every window is a minute too long."""
    from stream_scorer.features import kernel

    scan = kernel.scan_windows

    def too_long(rows, events, windows, *others):  # type: ignore[no-untyped-def]
        return scan(rows, events, windows._replace(window_ms=windows.window_ms + 60_000), *others)

    kernel.scan_windows = too_long
