"""Whether an ensemble is due for another training: by the age of its training data, or by drift events since then."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

import msgspec

from stream_scorer.ensemble.manifest import Manifest
from stream_scorer.errors import UsageError
from stream_scorer.records import Incident

_DAY_MS = 86_400_000


class Reason(msgspec.Struct, frozen=True):
    """Why a training is due: `kind` is ``age`` or ``drift``, `incident` the id of the drift incident."""

    kind: str
    text: str
    incident: str | None = None


def training_due(
    manifest: Manifest, now_ms: int, max_age_ms: int | None, incidents: Iterable[Incident]
) -> list[Reason]:
    """The reasons to train again; none if it is not due.

    The age is that of the newest row of the training, because training today on old rows gives the members no newer
    data. A drift incident counts if it began after that row, open or closed: the members have not seen the changed
    traffic. `now_ms` is in epoch ms; without `max_age_ms`, age is no reason.

    Raises:
        UsageError: the members were trained elsewhere, and nobody declared until when.
    """
    newest = manifest.training.members_until
    if newest is None:
        raise UsageError(
            f"it is unknown until when the members of {manifest.name} were trained",
            hint="Declare `trained_until` in the file of `ensemble compose`, and compose it again.",
        )
    out = []
    if max_age_ms is not None and now_ms - newest > max_age_ms:
        out.append(
            Reason("age", f"its newest training row is of {_day(newest)}, {(now_ms - newest) // _DAY_MS} days old")
        )
    for incident in incidents:
        began = incident.opened if incident.opened_event is None else incident.opened_event
        if incident.kind == "drift" and began > newest:
            subject = f" of {incident.subject}" if incident.subject else ""
            out.append(Reason("drift", f"drift{subject} since {_day(began)}: {incident.why}", incident.id))
    return out


def _day(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1_000, UTC):%Y-%m-%d}"
