"""Reads an archive like topics, so that `verify`, `explain` and `ensemble at` need no broker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from stream_scorer.audit.parts import read_part
from stream_scorer.audit.seal import ArchivedVersion, Part, Seal, read_seal
from stream_scorer.errors import UsageError
from stream_scorer.kafka.topics import Topics
from stream_scorer.positions import SourcePartition
from stream_scorer.serde.raw import RawRecords

MODELS = "ensembles"


class Archive:
    """The archive in a folder, as `replay.recorded.TimedRanges`. It does not check the seal; `audit verify` does.

    Attributes:
        seal: what the archive contains. stored: its file. topics: the names of its topics.
    """

    def __init__(self, folder: Path) -> None:
        """Raises `UsageError` if there is no archive, and `CheckFailed` if its seal is malformed."""
        self.folder = folder
        self.stored = read_seal(folder)
        self.seal: Seal = self.stored.seal
        self._parts = {SourcePartition(part.name, part.partition): part for part in self.seal.parts}
        self.topics = Topics(names={part.topic: part.name for part in self.seal.parts})

    def bounds(self, topic: str) -> dict[SourcePartition, tuple[int, int]]:
        """First offset and end offset of each archived partition of `topic`, which has whole records here.

        Raises:
            UsageError: the archive does not contain the topic.
        """
        found = {
            source: (part.start, part.stop)
            for source, part in self._parts.items()
            if source.topic == topic and part.content == "records"
        }
        if not found:
            raise UsageError(f"the archive {self.folder} does not contain the topic {topic}")
        return found

    def read(self, source: SourcePartition, start: int, stop: int) -> Iterator[RawRecords]:
        """The records of `source` with offsets in ``[start, stop)``, by block. Raises `UsageError` if unreadable."""
        part = self._parts.get(source)
        if part is None or start >= stop:
            return
        first = next((i for i, block in enumerate(part.blocks) if block.last_offset >= start), len(part.blocks))
        for records in read_part(self.folder, part, first):
            inside = np.flatnonzero((records.offset >= start) & (records.offset < stop))
            if len(inside):
                yield records if len(inside) == len(records) else records.take(inside)
            if len(records) and records.offset[-1] >= stop:
                return

    def offset_at(self, source: SourcePartition, timestamp_ms: int) -> int:
        """The first offset of `source` with a timestamp at or after `timestamp_ms`, or the end of the part."""
        part = self._parts[source]
        for place, block in enumerate(part.blocks):
            if block.newest >= timestamp_ms:
                for records in read_part(self.folder, part, place):
                    late = np.flatnonzero(records.timestamp >= timestamp_ms)
                    if len(late):
                        return int(records.offset[late[0]])
        return part.stop

    def part(self, topic: str, partition: int) -> Part | None:
        """The part of the topic with the key `topic`; None without one."""
        return next((p for p in self.seal.parts if (p.topic, p.partition) == (topic, partition)), None)

    def versions(self, ensemble: str, version: str) -> list[ArchivedVersion]:
        """The versions of this number that decided: several if a registry was created again."""
        return [v for v in self.seal.versions if (v.ensemble, v.version) == (ensemble, version)]

    def model_folder(self, version: ArchivedVersion) -> Path | None:
        """The folder with the models of a version that decided; None if the archive has no models of it."""
        return self.folder / MODELS / version.manifest_sha256 if len(version.files) > 1 else None
