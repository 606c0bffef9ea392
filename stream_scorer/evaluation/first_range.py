"""The offsets of the first start of an evaluation, which a later start of the same evaluation uses again.

Topics grow while an evaluation runs. Without the record, an evaluation that was interrupted would find other ends of
the partitions, be another evaluation, and start from the beginning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from stream_scorer.evaluation.store import exclusive, fingerprint_of, usable
from stream_scorer.positions import SourcePartition
from stream_scorer.records import Record

RANGE_FILE = "range.json"
FORMAT = 1

Bounds = dict[SourcePartition, tuple[int, int]]


class _Recorded(Record, frozen=True):
    """`fingerprint` of everything but the offsets that determines the evaluation; topic, partition, low and high."""

    format: int
    fingerprint: str
    bounds: list[tuple[str, int, int, int]]


class FirstRange:
    """The record in the folder of an evaluation.

    Args:
        facts: what else determines the evaluation: versions, spec and options. They must be JSON. If one differs from
            the record, the current offsets replace it.
        topic_ids: of the topics that the offsets belong to; also determine the evaluation.

    Attributes:
        newer: number of offsets after the recorded ends, which are left out.
        expired: whether the record was replaced because the topics no longer have its first records.
    """

    def __init__(self, folder: Path, facts: Mapping[str, object], topic_ids: Sequence[str] = ()) -> None:
        self._folder, self._facts, self.topic_ids = folder, facts, list(topic_ids)
        self.newer, self.expired = 0, False

    def resolve(self, current: Bounds, request: Mapping[str, object]) -> Bounds:
        """The recorded offsets ``[low, high)`` of each partition; those of now, which are recorded, at the first start.

        `request` is the range that was asked for. Raises `UsageError` if the folder cannot be used, or is in use.
        """
        fingerprint = fingerprint_of(dict(self._facts) | {"topics": self.topic_ids} | dict(request))
        path = self._folder / RANGE_FILE
        # An evaluation that runs there needs the record to continue after an interruption.
        with exclusive(self._folder), usable(self._folder):
            found = self._read(path, fingerprint)
            if found is not None and self._complete(found, current):
                self.newer = sum(max(high - found.get(source, (0, 0))[1], 0) for source, (_, high) in current.items())
                return found
            self.expired = found is not None
            bounds = [(source.topic, source.partition, low, high) for source, (low, high) in current.items()]
            unfinished = path.with_suffix(".unfinished")
            unfinished.write_bytes(msgspec.json.encode(_Recorded(FORMAT, fingerprint, bounds)))
            unfinished.replace(path)
        return current

    @staticmethod
    def _read(path: Path, fingerprint: str) -> Bounds | None:
        if not path.exists():
            return None
        try:
            found = msgspec.json.decode(path.read_bytes(), type=_Recorded)
        except msgspec.MsgspecError:
            return None
        if (found.format, found.fingerprint) != (FORMAT, fingerprint):
            return None
        return {SourcePartition(topic, partition): (low, high) for topic, partition, low, high in found.bounds}

    @staticmethod
    def _complete(found: Bounds, current: Bounds) -> bool:
        """Whether the topics still have all recorded offsets."""
        for source, (low, high) in found.items():
            now = current.get(source)
            if low < high and (now is None or now[0] > low or now[1] < high):
                return False
        return True
