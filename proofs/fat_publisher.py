"""The contribution record as it was before topic `lineage` (commit 1e575f0), kept as a baseline.

`FatWriter` publishes as that commit did: one record per transaction with the whole lineage in it. `fat_record`
builds the same record from what is published today, to count its bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
import numpy as np

from stream_scorer import __version__
from stream_scorer.pipeline import publish
from stream_scorer.pipeline.batch import MicroBatch, Sink
from stream_scorer.records import Alert, AppliedOffset, Contribution, LineageRow, Score


class _Member(msgspec.Struct):
    name: str
    score: float | None
    weight: float
    contribution: float
    status: str


class _Source(msgspec.Struct):
    topic: str
    partition: int
    offset: int
    place: int


class _Fat(msgspec.Struct):
    event_id: str
    ensemble: str
    version: str
    arm: str
    link: str
    base: float | None
    z: float | None
    score: float | None
    members: list[_Member]
    alternatives: list[Any]
    features: list[float | None]
    feature_status: Any
    feature_hash: str
    spec_hash: str
    source: _Source
    marks: Any
    code_version: str
    partitions_age: int | None
    labels_age: int | None
    marks_ahead: Any
    control_offset: int | None
    thresholds: Any


def fat_record(contribution: Contribution, row: LineageRow, marks: msgspec.Raw) -> bytes:
    """The old record of one transaction; `marks` are its applied offsets, encoded once for all rows that share them."""
    members = [_Member(m.name, m.score, m.weight, m.contribution, m.status) for m in contribution.members.rows()]
    source = _Source(row.source.topic, row.source.partition, row.source.offset, row.place)
    return msgspec.json.encode(
        _Fat(
            row.event_id, row.ensemble, row.version, row.arm, row.link, contribution.base, contribution.z,
            contribution.score, members, contribution.alternatives, row.features, row.feature_status, row.feature_hash,
            row.spec_hash, source, marks, row.code_version, row.partitions_age, row.labels_age,
            row.applied_offsets_ahead, row.control_offset, row.thresholds,
        )
    )  # fmt: skip


class FatWriter(publish.OutputWriter):
    """Publishes scores, fat contributions, alerts and summaries; no lineage."""

    _patterns: dict[bytes, msgspec.Raw]

    def write(self, batch: MicroBatch, sink: Sink) -> None:
        """See `OutputWriter.write`."""
        assert batch.decided is not None
        for _, topic, partition, key, value, headers in self._in_order(batch):
            sink.produce(topic, partition, key, value, headers)
        for version, summariser in enumerate(self._deciding(batch.decided.lineup)):
            for summary in summariser.summarise(batch, version):
                name = f"{summary.topic}-{summary.partition}".encode()
                sink.produce(self._topics.score_summaries, summary.partition, name, self._encode(summary))

    def _of_version(self, part: Any, scored_at: int) -> Iterator[Any]:
        """As it was: every record encodes all that its batch has in common."""
        batch, ensemble, scored, encode, topics = (
            part.batch, part.ensemble, part.result.scored, self._encode, self._topics,
        )  # fmt: skip
        enriched, raw, select = batch.enriched, batch.transactions, part.select
        marks = msgspec.Raw(
            encode([AppliedOffset(*s, offset) for s, offset in sorted(enriched.applied.next_offset.items())])  # type: ignore[call-arg]
        )
        ahead = msgspec.Raw(encode([]))
        name, number, arm, names = ensemble.name, ensemble.version, part.arm, ensemble.member_names
        link, feature_hash, spec_hash = ensemble.manifest.link, self._checked.feature_hash, self._checked.sha256
        control_offset = part.decided.lineup.control_offset
        columns = self._columns(part, scored_at)
        ok = ["ok"] * len(names)
        for (
            fields, place, row, partition, offset, code, z, base, alternatives, member_scores, contributions, status,
            weights, features, feature_status, partitions_age, labels_age,
        ) in zip(
            zip(*columns.score, strict=True),
            *columns[1:],
            select(scored.weights).tolist(),
            select(enriched.matrix).tolist(),
            self._statuses(select(enriched.status)),
            select(enriched.ages.partitions).tolist(),
            select(enriched.ages.labels).tolist(),
            strict=True,
        ):  # fmt: skip
            key, headers = raw.key[row], raw.headers[row]
            # The fields at that commit: without `card_group` and `review_propensity`.
            record = Score(*fields[:16])
            yield place, topics.scores, partition, key, encode(record), headers
            members = list(map(_Member, names, member_scores, weights, contributions, status or ok))
            fat = _Fat(
                record.event_id, name, number, arm, link, base, z, record.score, members, alternatives, features,
                feature_status, feature_hash, spec_hash, _Source(raw.topic, partition, offset, place), marks,
                __version__, None if partitions_age < 0 else partitions_age, None if labels_age < 0 else labels_age,
                ahead, control_offset, None,
            )  # fmt: skip
            yield place, topics.contributions, partition, key, encode(fat), headers
            if code:
                alert = Alert(
                    *fields[:16],
                    base=base, z=z, reasons=publish._reasons(names, member_scores, contributions, None, "log-odds"),
                )  # fmt: skip
                yield place, topics.alerts, partition, key, encode(alert), headers

    def _statuses(self, status: np.ndarray) -> Iterable[Any]:
        """Per row its statuses, encoded. Few patterns occur, so each is encoded once."""
        known = self.__dict__.setdefault("_patterns", {})
        width, packed = status.shape[1], status.tobytes()
        out = []
        for start in range(0, len(packed), width):
            pattern = packed[start : start + width]
            if pattern not in known:
                known[pattern] = msgspec.Raw(self._encode(list(pattern)))
            out.append(known[pattern])
        return out
