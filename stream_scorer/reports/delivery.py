"""The exactly-once check: every input record has one score with its contribution, or one dead letter, never two."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stream_scorer.reports.recording import Places, Recording

# A message names at most this many places.
_NAMED = 3


@dataclass(frozen=True)
class Delivery:
    """Input records compared with the output records that a `read_committed` consumer read.

    Attributes:
        inputs, scored, dead: numbers of input records, contribution records and dead letters.
        lost: inputs without an output. doubled: outputs beyond an input's first. unexpected: outputs without an input.
        unpaired: number of positions at which `scores` and `contributions` have different event ids.
    """

    inputs: int
    scored: int
    dead: int
    lost: Places
    doubled: Places
    unexpected: Places
    unpaired: int

    @property
    def exact(self) -> bool:
        """Whether every input has exactly one output."""
        return not (len(self.lost) or len(self.doubled) or len(self.unexpected) or self.unpaired)

    @property
    def verdict(self) -> str:
        """The result as one line of text."""
        if self.exact:
            return f"{self.inputs:,} in = {self.scored:,} scored + {self.dead:,} dead-lettered; none lost, none doubled"
        counts = f"{self.inputs:,} in, {self.scored:,} scored, {self.dead:,} dead-lettered"
        faults = [
            f"{len(places):,} {word} ({_named(places)})"
            for word, places in (("lost", self.lost), ("doubled", self.doubled), ("without an input", self.unexpected))
            if len(places)
        ]
        if self.unpaired:
            faults.append(f"{self.unpaired:,} scores without their contributions")
        return f"{counts}: {', '.join(faults)}"


def check_delivery(inputs: Places, scored: Places, dead: Places, *, unpaired: int = 0) -> Delivery:
    """Compare the places of `inputs` with the source places in contributions and dead letters."""
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
        unexpected=_take(outputs, first[~known]),
        unpaired=unpaired,
    )


def delivery_of(recording: Recording) -> Delivery:
    """`check_delivery` of a recording; a score and its contributions must also be at the same position."""
    contributions, scores = recording.contributions, recording.scores
    unpaired = abs(len(contributions.event_id) - len(scores.event_id))
    unpaired += sum(
        a != b for a, b in zip(
            zip(contributions.partition.tolist(), contributions.event_id, strict=True),
            zip(scores.partition.tolist(), scores.event_id, strict=True),
            strict=False,
        )
    )  # fmt: skip
    return check_delivery(recording.inputs.places, contributions.source, recording.dead.places, unpaired=unpaired)


def _places(numbers: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Places:
    return Places(numbers >> 48, numbers & ((1 << 48) - 1))


def _take(places: Places, rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Places:
    return Places(places.partition[rows], places.offset[rows])


def _named(places: Places) -> str:
    pairs = zip(places.partition[:_NAMED].tolist(), places.offset[:_NAMED].tolist(), strict=True)
    more = ", ..." if len(places) > _NAMED else ""
    return ", ".join(f"partition {p} offset {o}" for p, o in pairs) + more
