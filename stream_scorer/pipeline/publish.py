"""Publish: every output record of a micro-batch, into one Kafka transaction (or a replay's files)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream_scorer import __version__
from stream_scorer.clock import Clock
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.kafka.topics import Topics
from stream_scorer.pipeline.batch import DeadLetter, Decided, MicroBatch, Sink
from stream_scorer.pipeline.summarise import Summariser
from stream_scorer.records import (
    DECISIONS,
    FEATURES_STALE,
    Alert,
    Contribution,
    DecisionSource,
    Mark,
    MemberContribution,
    Reason,
    Score,
    ShardMark,
    Source,
)
from stream_scorer.spec.model import CheckedSpec
from stream_scorer.state.rows import Marks

# A dead letter carries the original up to this size; beyond it, its head, length and digest (the topic takes 10 MB).
DEAD_LETTER_MAX_BYTES = 8_000_000
DEAD_LETTER_HEAD_BYTES = 65_536
# How many members an alert names.
ALERT_REASONS = 3
ARM = "champion"


class Publisher:
    """Writes scores, contributions, alerts, summaries and dead letters to a `Sink`."""

    def __init__(self, topics: Topics, ensemble: Ensemble, checked: CheckedSpec, clock: Clock) -> None:
        self._topics = topics
        self._ensemble = ensemble
        self._checked = checked
        self._clock = clock
        self._summariser = Summariser(ensemble, checked)
        self._encode = msgspec.json.Encoder().encode
        self._status_patterns: dict[bytes, msgspec.Raw] = {}

    def publish(self, batch: MicroBatch, sink: Sink) -> None:
        """Hand every record that `batch` yields to `sink`, each on the partition number of its input."""
        for letter in batch.dead:
            self._dead_letter(letter, sink)
        if batch.events is not None and len(batch.events.transactions):
            self._scores(batch, sink)
        for summary in self._summariser.summarise(batch, ARM):
            key = f"{summary.topic}-{summary.partition}".encode()
            sink.produce(self._topics.score_summaries, summary.partition, key, self._encode(summary))

    def _scores(self, batch: MicroBatch, sink: Sink) -> None:
        events, enriched, decided = batch.events, batch.enriched, batch.decided
        assert events is not None and enriched is not None and decided is not None
        transactions, scored, ensemble = events.transactions, decided.scored, self._ensemble
        encode, topics, raw = self._encode, self._topics, batch.transactions
        scores_topic, contributions_topic = topics.scores, topics.contributions
        name, version, policy = ensemble.name, ensemble.version, ensemble.manifest.thresholds.policy_version
        link, names = ensemble.manifest.link, ensemble.member_names
        feature_hash, spec_hash = self._checked.feature_hash, self._checked.sha256
        scored_at = self._clock.now_ms()
        # Encoded once: every record of the batch carries the same vector.
        marks: Any = msgspec.Raw(
            encode([Mark(s.topic, s.partition, offset) for s, offset in sorted(enriched.marks.next_offset.items())])
        )
        marks_ahead: Any = msgspec.Raw(encode(_ahead(enriched.marks)))
        degraded = self._degraded(batch, decided)
        statuses: list[list[Any]] = [["ok"] * len(names)] * len(scored.score)
        if scored.failures:
            statuses = [
                ["missing" if gone else "ok" for gone in row] for row in np.isnan(scored.member_scores).tolist()
            ]
        rows = transactions.row.tolist()
        columns: Iterable[tuple[Any, ...]] = zip(
            rows,
            transactions.event_id,
            transactions.event_time.tolist(),
            transactions.value.tolist(),
            decided.decision.tolist(),
            decided.member_alerts.tolist(),
            scored.score.tolist(),
            scored.z.tolist(),
            scored.base.tolist(),
            scored.coverage.tolist(),
            enriched.duplicate.tolist(),
            degraded,
            scored.member_scores.tolist(),
            scored.weights.tolist(),
            scored.contributions.tolist(),
            statuses,
            enriched.matrix.tolist(),
            self._statuses(enriched.status),
            enriched.ages.partitions.tolist(),
            enriched.ages.labels.tolist(),
            raw.partition[transactions.row].tolist(),
            raw.offset[transactions.row].tolist(),
            strict=True,
        )
        for place, (
            row, event_id, event_time, value, code, bits, score, z, base, coverage, duplicate, reasons,
            member_scores, weights, contributions, status, features, feature_status, partitions_age, labels_age,
            partition, offset,
        ) in enumerate(columns):  # fmt: skip
            key, headers = raw.key[row], raw.headers[row]
            decision = DECISIONS[code]
            source: DecisionSource = "model" if score == score else "fallback"
            record = Score(
                event_id, event_time, scored_at, score, decision, source, name, version, ARM, policy,
                coverage, duplicate, reasons, bits, value,
            )  # fmt: skip
            sink.produce(scores_topic, partition, key, encode(record), headers)
            members = list(map(MemberContribution, names, member_scores, weights, contributions, status))
            lineage = Contribution(
                event_id, name, version, ARM, link, base, z, score, members, [], features, feature_status,
                feature_hash, spec_hash, Source(raw.topic, partition, offset, place), marks, __version__,
                None if partitions_age < 0 else partitions_age, None if labels_age < 0 else labels_age,
                marks_ahead,
            )  # fmt: skip
            sink.produce(contributions_topic, partition, key, encode(lineage), headers)
            if code:
                alert = Alert(
                    event_id, event_time, scored_at, score, decision, source, name, version, ARM, policy,
                    coverage, duplicate, reasons, bits, value, base, z, _reasons(names, member_scores, contributions),
                )  # fmt: skip
                sink.produce(topics.alerts, partition, key, encode(alert), headers)

    def _statuses(self, status: NDArray[np.int8]) -> list[Any]:
        """Per row its statuses, encoded. Few patterns occur, so each is encoded once."""
        width, packed, known = status.shape[1], status.tobytes(), self._status_patterns
        out = []
        for start in range(0, len(packed), width):
            pattern = packed[start : start + width]
            encoded = known.get(pattern)
            if encoded is None:
                encoded = known[pattern] = msgspec.Raw(self._encode(list(pattern)))
            out.append(encoded)
        return out

    def _degraded(self, batch: MicroBatch, decided: Decided) -> list[list[str]]:
        assert batch.enriched is not None
        common = batch.enriched.degraded
        out = [common] * len(decided.decision)
        for row in np.flatnonzero(batch.enriched.stale).tolist():
            out[row] = [*common, FEATURES_STALE]
        if decided.scored.failures:
            missing = np.isnan(decided.scored.member_scores)
            names = self._ensemble.member_names
            for row in np.flatnonzero(missing.any(axis=1)).tolist():
                out[row] = out[row] + [f"member:{names[m]}" for m in np.flatnonzero(missing[row]).tolist()]
        return out

    def _dead_letter(self, letter: DeadLetter, sink: Sink) -> None:
        records, row, error = letter.records, letter.row, letter.error
        value = records.value[row]
        partition = int(records.partition[row])
        headers: list[tuple[str, bytes | None]] = list(records.headers[row] or ())
        headers += [
            ("error.code", error.code.encode()),
            ("error.message", error.message.encode()),
            ("error.path", error.path.encode()),
            ("source.topic", records.topic.encode()),
            ("source.partition", str(partition).encode()),
            ("source.offset", str(int(records.offset[row])).encode()),
            ("source.timestamp", str(int(records.timestamp[row])).encode()),
        ]
        if value is not None and len(value) > DEAD_LETTER_MAX_BYTES:
            headers += [
                ("value.length", str(len(value)).encode()),
                ("value.sha256", hashlib.sha256(value).hexdigest().encode()),
            ]
            value = value[:DEAD_LETTER_HEAD_BYTES]
        sink.produce(self._topics.dead_letters, partition, records.key[row], value, headers)


def _reasons(names: list[str], scores: list[float], contributions: list[float]) -> list[Reason]:
    strongest = sorted(range(len(names)), key=lambda m: -abs(contributions[m]))[:ALERT_REASONS]
    return [
        Reason(
            names[m],
            contributions[m],
            f"{names[m]} gave {scores[m]:.3f}: {'raised' if contributions[m] >= 0 else 'lowered'} the log-odds by "
            f"{abs(contributions[m]):.2f}",
        )
        for m in strongest
        if scores[m] == scores[m]
    ]


def _ahead(marks: Marks) -> list[ShardMark]:
    """Where a shard saw more than all of them did."""
    return [
        ShardMark(shard, source.topic, source.partition, offset)
        for shard, mine in enumerate(marks.by_shard)
        for source, offset in sorted(mine.next_offset.items())
        if offset > marks.next_offset[source]
    ]
