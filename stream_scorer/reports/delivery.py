"""The exactly-once check: every input record has one score with its lineage, or one dead letter, never two."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stream_scorer.reports.recording import Places, Recording

# How many places a message names.
_NAMED = 3


@dataclass(frozen=True)
class Delivery:
    """What went in against what came out, under `read_committed`.

    Attributes:
        inputs, scored, dead: records in, with a lineage record, and with a dead letter.
        lost: inputs with neither. doubled: outputs beyond an input's first. strange: outputs of no input.
        unpaired: positions at which `scores` and `contributions` do not name the same event.
    """

    inputs: int
    scored: int
    dead: int
    lost: Places
    doubled: Places
    strange: Places
    unpaired: int

    @property
    def exact(self) -> bool:
        """Whether every input has exactly one output."""
        return not (len(self.lost) or len(self.doubled) or len(self.strange) or self.unpaired)

    @property
    def verdict(self) -> str:
        """One sentence."""
        told = f"{self.inputs:,} in = {self.scored:,} scored + {self.dead:,} dead-lettered"
        if self.exact:
            return f"{told}; none lost, none doubled"
        told = f"{self.inputs:,} in, {self.scored:,} scored, {self.dead:,} dead-lettered"
        faults = [
            f"{len(places):,} {word} ({_named(places)})"
            for word, places in (("lost", self.lost), ("doubled", self.doubled), ("of no input", self.strange))
            if len(places)
        ]
        if self.unpaired:
            faults.append(f"{self.unpaired:,} scores without their contributions")
        return f"{told}: {', '.join(faults)}"


def check_delivery(inputs: Places, scored: Places, dead: Places, *, unpaired: int = 0) -> Delivery:
    """Compare the places of `inputs` with those that scores' lineages and dead letters say they came from."""
    wanted = np.unique(inputs.number)
    found, first, counts = np.unique(
        np.concatenate([scored.number, dead.number]), return_index=True, return_counts=True
    )
    known = np.isin(found, wanted)
    outputs = Places(np.concatenate([scored.partition, dead.partition]), np.concatenate([scored.offset, dead.offset]))
    repeated = np.repeat(first[counts > 1], counts[counts > 1] - 1)
    return Delivery(
        inputs=len(inputs),
        scored=len(scored),
        dead=len(dead),
        lost=_places(wanted[~np.isin(wanted, found)]),
        doubled=_take(outputs, repeated),
        strange=_take(outputs, first[~known]),
        unpaired=unpaired,
    )


def delivery_of(recording: Recording) -> Delivery:
    """`check_delivery` of a recording; a score and its contributions must also stand at the same position."""
    lineages, scores = recording.lineages, recording.scores
    unpaired = abs(len(lineages.event_id) - len(scores.event_id))
    unpaired += sum(
        a != b for a, b in zip(
            zip(lineages.partition.tolist(), lineages.event_id, strict=True),
            zip(scores.partition.tolist(), scores.event_id, strict=True),
            strict=False,
        )
    )  # fmt: skip
    return check_delivery(recording.inputs.places, lineages.source, recording.dead.places, unpaired=unpaired)


def _places(numbers: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Places:
    return Places(numbers >> 48, numbers & ((1 << 48) - 1))


def _take(places: Places, rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Places:
    return Places(places.partition[rows], places.offset[rows])


def _named(places: Places) -> str:
    pairs = zip(places.partition[:_NAMED].tolist(), places.offset[:_NAMED].tolist(), strict=True)
    more = ", ..." if len(places) > _NAMED else ""
    return ", ".join(f"partition {p} offset {o}" for p, o in pairs) + more
