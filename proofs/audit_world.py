"""Topics in memory as scorers would leave them: three versions, two promotions, a canary, dead letters, markers.

Scores come from real ensembles and are encoded as on the topics. Offsets have gaps where Kafka has transaction markers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from stream_scorer.ensemble.compose import Draft
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.ensemble.manifest import manifest_digest
from stream_scorer.ensemble.registry import local_version
from stream_scorer.errors import UsageError
from stream_scorer.kafka.topics import Topics
from stream_scorer.positions import SourcePartition
from stream_scorer.records import (
    CONTRIBUTION_DECIMALS,
    DECISIONS,
    WEIGHT_DECIMALS,
    Command,
    Contribution,
    Members,
    Score,
    ServedVersion,
    Source,
)
from stream_scorer.serde.lineage import LineageColumns, LineageHeader, LineageVersion, encode_lineage
from stream_scorer.serde.raw import Headers, RawRecords
from tests.support.ensembles import compose, drafts, reference

START_MS = 1_700_000_000_000
BATCH = 50
_RECORD_MS = 10


@dataclass(slots=True)
class MemoryTopics:
    """`replay.recorded.TimedRanges` over records in memory."""

    records: dict[SourcePartition, list[tuple[int, int, bytes | None, bytes | None, Headers | None]]] = field(
        default_factory=dict
    )
    next_offset: dict[SourcePartition, int] = field(default_factory=dict)

    def append(
        self,
        topic: str,
        partition: int,
        timestamp: int,
        key: bytes | None,
        value: bytes | None,
        headers: Headers | None = None,
    ) -> int:
        """Append a record and return its offset."""
        source = SourcePartition(topic, partition)
        offset = self.next_offset.get(source, 0)
        self.records.setdefault(source, []).append((offset, timestamp, key, value, headers))
        self.next_offset[source] = offset + 1
        return offset

    def mark(self, topic: str, partition: int) -> None:
        """A transaction marker: an offset without a record."""
        source = SourcePartition(topic, partition)
        self.next_offset[source] = self.next_offset.get(source, 0) + 1

    def bounds(self, topic: str) -> dict[SourcePartition, tuple[int, int]]:
        """See `kafka.range_reader.RangeReader`."""
        found = {s: (0, self.next_offset[s]) for s in sorted(self.records) if s.topic == topic}
        if not found:
            raise UsageError(f"there is no topic {topic}")
        return found

    def read(self, source: SourcePartition, start: int, stop: int) -> Iterator[RawRecords]:
        """See `kafka.range_reader.RangeReader`."""
        rows = [row for row in self.records[source] if start <= row[0] < stop]
        for low in range(0, len(rows), 70):
            offset, timestamp, key, value, headers = map(list, zip(*rows[low : low + 70], strict=True))
            n = len(offset)
            yield RawRecords(
                source.topic, np.full(n, source.partition, np.int32), np.array(offset, np.int64),
                np.array(timestamp, np.int64), key, value, headers,
            )  # fmt: skip

    def offset_at(self, source: SourcePartition, timestamp_ms: int) -> int:
        """See `kafka.range_reader.RangeReader`."""
        return next((row[0] for row in self.records[source] if row[1] >= timestamp_ms), self.next_offset[source])


@dataclass(slots=True)
class World:
    """The topics, and the folders of the versions by manifest digest."""

    topics: MemoryTopics
    folders: dict[str, Path]


def make(folder: Path, seed: int, batches: int, *, partitions: int = 2, broken: bool = False) -> World:
    """A world of `batches` micro-batches of `BATCH` transactions per partition; one in `BATCH` is a dead letter.

    `broken`: one contribution is off by a millionth.
    """
    random, topics, names = np.random.default_rng(seed), MemoryTopics(), Topics()
    versions, folders = _versions(folder)
    served = {digest: ServedVersion(local_version(digest), digest) for digest in folders}
    digests = list(folders)
    steps: dict[int, dict[str, Any]] = {
        0: {"action": "promote", "version": served[digests[0]], "author": "scorer", "who": "scorer-1"},
        batches // 3: {"action": "canary", "version": served[digests[1]], "share": 0.2},
        batches // 2: {"action": "promote", "version": served[digests[1]], "who": "ben"},
        batches // 2 + 1: {"action": "confirm", "author": "monitor", "who": "monitor"},
        3 * batches // 4: {"action": "promote", "version": served[digests[2]]},
    }
    champion, canary, control = digests[0], "", -1
    for number in range(batches):
        now = START_MS + number * BATCH * _RECORD_MS
        step = steps.get(number)
        if step is not None:
            control = _command(topics, names, now, step)
            if step["action"] == "promote":
                champion, canary = step["version"].manifest_sha256, ""
            elif step["action"] == "canary":
                canary = step["version"].manifest_sha256
        for partition in range(partitions):
            _Batch(
                topics, names, random, partition, now, control, [versions[d] for d in (champion, canary) if d]
            ).write(bent=broken and number == 1)
    topics.append(names.incidents, 0, START_MS + 5, b"i", b'{"id":"i","ensemble":"cards","opened":0,"why":"drift"}')
    return World(topics, folders)


def _versions(folder: Path) -> tuple[dict[str, Ensemble], dict[str, Path]]:
    ensembles, folders = {}, {}
    for number, weight in enumerate((0.5, 0.7, 0.9)):
        path = folder / f"v{number}"
        first, *rest = drafts()
        made = [Draft(**{name: getattr(first, name) for name in first.__slots__} | {"weight": weight}), *rest]
        digest = manifest_digest(compose(path, made))
        ensembles[digest], folders[digest] = Ensemble.load(path, version=local_version(digest)), path
    return ensembles, folders


def _command(topics: MemoryTopics, names: Topics, now: int, more: dict[str, Any]) -> int:
    offset = topics.next_offset.get(SourcePartition(names.control, 0), 0)
    command = Command(
        **{"ensemble": "cards", "who": "ann", "why": "evaluated", "at": now, "expected_offset": offset} | more
    )
    return topics.append(names.control, 0, now, b"cards", msgspec.json.encode(command))


@dataclass(slots=True)
class _Batch:
    """One micro-batch of one partition: the champion, and perhaps a canary for every fifth transaction."""

    topics: MemoryTopics
    names: Topics
    random: np.random.Generator
    partition: int
    now: int
    control: int
    versions: list[Ensemble]

    def write(self, *, bent: bool) -> None:
        """Write inputs and outputs."""
        source = SourcePartition(self.names.transactions, self.partition)
        first = self.topics.next_offset.get(source, 0)
        for place in range(BATCH):
            event = f"e{self.partition}-{first + place}".encode()
            self.topics.append(source.topic, self.partition, self.now, b"c1", b'{"event_id":"%s"}' % event)
        bad = int(self.random.integers(BATCH))
        offsets = first + np.delete(np.arange(BATCH), bad)
        self._letter(first + bad)
        features = reference(len(offsets), int(self.random.integers(1_000_000)))
        arm = (np.arange(len(offsets)) % 5 == 0).astype(np.int8) * (len(self.versions) - 1)
        scored = [version.score(features) for version in self.versions]
        for row, offset in enumerate(offsets.tolist()):
            self._decision(row, offset, int(arm[row]), scored, bent=bent and row == 0)
        self._lineage(offsets, features, arm)
        for topic in (self.names.scores, self.names.contributions, self.names.lineage, self.names.dead_letters):
            self.topics.mark(topic, self.partition)

    def _letter(self, offset: int) -> None:
        headers = [
            ("tenant", b"a secret of the user"),
            ("error.code", b"bad_json"),
            ("error.path", b"$"),
            ("source.topic", self.names.transactions.encode()),
            ("source.partition", b"%d" % self.partition),
            ("source.offset", b"%d" % offset),
        ]
        self.topics.append(self.names.dead_letters, self.partition, self.now, b"card 4111", b"4111 1111", headers)

    def _decision(self, row: int, offset: int, arm: int, scored: list[Any], *, bent: bool) -> None:
        ensemble, one = self.versions[arm], scored[arm]
        score, thresholds = float(one.score[row]), ensemble.manifest.thresholds
        decision = DECISIONS[2 if score >= thresholds.block else 1 if score >= thresholds.review else 0]
        event, name = f"e{self.partition}-{offset}", ("champion", "canary")[arm]
        common = (event, "cards", ensemble.version, name)
        contributions = np.round(one.contributions[row], CONTRIBUTION_DECIMALS)
        contributions[0] += 1e-6 * bent
        weights = np.round(one.weights[row], WEIGHT_DECIMALS)
        members = Members(
            ensemble.member_names, one.member_scores[row].tolist(), weights.tolist(), contributions.tolist()
        )
        alerts = sum(1 << i for i, own in enumerate(one.member_scores[row].tolist()) if own >= thresholds.review)
        record = Score(
            event, self.now, self.now + 20, score, decision, "model", *common[1:], "p1", float(one.coverage[row]),
            False, [], alerts, 100,
        )  # fmt: skip
        source = Source(self.names.transactions, self.partition, offset)
        contribution = Contribution(*common, float(one.base[row]), float(one.z[row]), score, members, source)
        headers = [("tenant", b"a secret of the user")]
        for topic, value in ((self.names.scores, record), (self.names.contributions, contribution)):
            self.topics.append(topic, self.partition, self.now + 20, b"c1", msgspec.json.encode(value), headers)

    def _lineage(self, offsets: Any, features: Any, arm: Any) -> None:
        own, n = self.versions[0].manifest, len(offsets)
        versions = [
            LineageVersion("cards", v.version, name, v.manifest.link, v.digest, "p1", v.manifest.thresholds.review,
                           v.manifest.thresholds.block)
            for v, name in zip(self.versions, ("champion", "canary"), strict=False)
        ]  # fmt: skip
        header = LineageHeader(
            self.names.transactions, own.feature_hash, "s" * 64, "0.1.0", versions, self.control,
            {self.names.transactions: offsets[:1].tolist()}, [], self.versions[0].feature_names,
        )  # fmt: skip
        unknown, none = np.full(n, -1, np.int64), np.full(n, np.nan)
        columns = LineageColumns(
            np.full(n, self.partition, np.int32), offsets, [f"e{self.partition}-{o}" for o in offsets.tolist()],
            arm, features, np.zeros(features.shape, np.int8), unknown, unknown, none, none,
        )  # fmt: skip
        for record in encode_lineage(header, columns):
            name = b"transactions-%d" % self.partition
            self.topics.append(self.names.lineage, self.partition, self.now + 20, name, record.value, record.headers)
