"""Publish: every output record of a micro-batch, into one Kafka transaction (or a replay's files)."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from operator import itemgetter
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream_scorer import __version__
from stream_scorer.clock import Clock
from stream_scorer.ensemble.attribution import strongest
from stream_scorer.ensemble.ensemble import Ensemble, Scored
from stream_scorer.ensemble.lineup import DISABLED
from stream_scorer.kafka.topics import Topics
from stream_scorer.pipeline.batch import BatchDecisions, DeadLetter, MicroBatch, Sink, VersionResult
from stream_scorer.pipeline.summarise import Summariser
from stream_scorer.records import (
    ARMS,
    DECISIONS,
    FEATURES_STALE,
    Alert,
    Alternative,
    Contribution,
    DecisionSource,
    FeatureReason,
    Mark,
    MemberContribution,
    MemberStatus,
    Reason,
    Score,
    SegmentThresholds,
    ShardMark,
    Source,
)
from stream_scorer.spec.model import CheckedSpec
from stream_scorer.state.rows import AppliedOffsets

# A dead letter carries the original up to this size; beyond it, its head, length and digest (the topic takes 10 MB).
DEAD_LETTER_MAX_BYTES = 8_000_000
DEAD_LETTER_HEAD_BYTES = 65_536
# How many members an alert names.
ALERT_REASONS = 3
# And how many inputs of each, where they are looked for.
ALERT_FEATURES = 3

_log = logging.getLogger(__name__)
_Headers = Any
# Where an output record goes: place of its transaction, topic, partition, key, value, headers.
_Output = tuple[int, str, int, bytes | None, bytes, _Headers]


class Publisher:
    """Writes scores, contributions, alerts, summaries and dead letters to a `Sink`."""

    def __init__(self, topics: Topics, checked: CheckedSpec, clock: Clock, *, looked_into: int = 0) -> None:
        """`looked_into` is the most alerts of one version in a micro-batch whose members are looked into."""
        self._looked_into = looked_into
        self._topics = topics
        self._checked = checked
        self._clock = clock
        self._summarisers: dict[str, Summariser] = {}
        self._encode = msgspec.json.Encoder().encode
        self._status_patterns: dict[bytes, msgspec.Raw] = {}

    def publish(self, batch: MicroBatch, sink: Sink) -> None:
        """Hand every record that `batch` yields to `sink`, each on the partition number of its input."""
        for letter in batch.dead:
            self._dead_letter(letter, sink)
        if batch.events is not None and len(batch.events.transactions):
            for _, topic, partition, key, value, headers in self._in_order(batch):
                sink.produce(topic, partition, key, value, headers)
        assert batch.decided is not None
        for version in range(batch.decided.lineup.deciding):
            for summary in self._summariser(batch.decided.lineup.versions[version]).summarise(batch, version):
                name = f"{summary.topic}-{summary.partition}".encode()
                sink.produce(self._topics.score_summaries, summary.partition, name, self._encode(summary))

    def _summariser(self, ensemble: Ensemble) -> Summariser:
        name = f"{ensemble.version} {ensemble.digest}"
        if name not in self._summarisers:
            self._summarisers[name] = Summariser(ensemble, self._checked)
        return self._summarisers[name]

    def _in_order(self, batch: MicroBatch) -> Iterable[_Output]:
        """The records of every transaction, in the order of the transactions whoever decided them."""
        assert batch.decided is not None
        if not batch.decided.arm.any():
            return self._of_version(batch, 0, None)
        scored_at = self._clock.now_ms()
        parts = [
            self._of_version(batch, version, batch.decided.rows_of(version), scored_at)
            for version in range(batch.decided.lineup.deciding)
        ]
        return sorted(chain.from_iterable(parts), key=itemgetter(0))

    def _of_version(
        self, batch: MicroBatch, version: int, chosen: NDArray[np.int64] | None, scored_at: int | None = None
    ) -> Iterator[_Output]:
        """The records of those transactions that a version decided: `chosen`, or all of them."""
        events, enriched, decided = batch.events, batch.enriched, batch.decided
        assert events is not None and enriched is not None and decided is not None
        transactions, verdict, lineup = events.transactions, decided.verdicts[version], decided.lineup
        scored, ensemble = verdict.scored, lineup.versions[version]
        encode, topics, raw = self._encode, self._topics, batch.transactions
        scores_topic, contributions_topic = topics.scores, topics.contributions
        name, number, policy = ensemble.name, ensemble.version, ensemble.manifest.thresholds.policy_version
        arm, link, names = ARMS[version], ensemble.manifest.link, ensemble.member_names
        feature_hash, spec_hash = self._checked.feature_hash, self._checked.sha256
        offset_of_control = lineup.control_offset
        scored_at = self._clock.now_ms() if scored_at is None else scored_at
        # Encoded once: every record of the batch carries the same vector.
        marks: Any = msgspec.Raw(
            encode([Mark(s.topic, s.partition, offset) for s, offset in sorted(enriched.applied.next_offset.items())])
        )
        marks_ahead: Any = msgspec.Raw(encode(_ahead(enriched.applied)))

        def select(column: NDArray[Any]) -> NDArray[Any]:
            return column if chosen is None else column[chosen]

        inside = _inside(ensemble, enriched.matrix, verdict, chosen, self._looked_into)
        places = select(np.arange(len(transactions))).tolist()
        rows = select(transactions.row)
        event_ids = transactions.event_id
        status_of = self._statuses(select(enriched.status))
        columns: Iterable[tuple[Any, ...]] = zip(
            places,
            rows.tolist(),
            event_ids if chosen is None else [event_ids[place] for place in places],
            select(transactions.event_time).tolist(),
            select(transactions.value).tolist(),
            select(verdict.decision).tolist(),
            select(verdict.member_alerts).tolist(),
            select(scored.score).tolist(),
            select(scored.z).tolist(),
            select(scored.base).tolist(),
            select(scored.coverage).tolist(),
            select(enriched.duplicate).tolist(),
            _degraded(batch, scored, names, places, select),
            select(scored.member_scores).tolist(),
            select(scored.weights).tolist(),
            select(scored.contributions).tolist(),
            _member_statuses(scored, names, select),
            _alternatives(decided, version, select),
            *_ruled(decided, policy, self._checked.spec.policy.version, select),
            select(enriched.matrix).tolist(),
            status_of,
            select(enriched.ages.partitions).tolist(),
            select(enriched.ages.labels).tolist(),
            raw.partition[rows].tolist(),
            raw.offset[rows].tolist(),
            strict=True,
        )
        for (
            place, row, event_id, event_time, value, code, bits, score, z, base, coverage, duplicate, reasons,
            member_scores, weights, contributions, status, alternatives, rule, listed, policy_version, thresholds,
            features, feature_status, partitions_age, labels_age, partition, offset,
        ) in columns:  # fmt: skip
            key, headers = raw.key[row], raw.headers[row]
            decision = DECISIONS[code]
            source: DecisionSource = "list" if listed else "model" if score == score else "fallback"
            record = Score(
                event_id, event_time, scored_at, score, decision, source, name, number, arm, policy_version,
                coverage, duplicate, reasons, bits, value, rule,
            )  # fmt: skip
            yield place, scores_topic, partition, key, encode(record), headers
            members = list(map(MemberContribution, names, member_scores, weights, contributions, status))
            lineage = Contribution(
                event_id, name, number, arm, link, base, z, score, members, alternatives, features, feature_status,
                feature_hash, spec_hash, Source(raw.topic, partition, offset, place), marks, __version__,
                None if partitions_age < 0 else partitions_age, None if labels_age < 0 else labels_age,
                marks_ahead, offset_of_control, thresholds,
            )  # fmt: skip
            yield place, contributions_topic, partition, key, encode(lineage), headers
            if code:
                alert = Alert(
                    event_id, event_time, scored_at, score, decision, source, name, number, arm, policy_version,
                    coverage, duplicate, reasons, bits, value, rule,
                    base=base, z=z, reasons=_reasons(names, member_scores, contributions, inside.get(place)),
                )  # fmt: skip
                yield place, topics.alerts, partition, key, encode(alert), headers

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


def _degraded(
    batch: MicroBatch,
    scored: Scored,
    names: list[str],
    places: list[int],
    select: Callable[[NDArray[Any]], NDArray[Any]],
) -> list[list[str]]:
    assert batch.enriched is not None
    common = batch.enriched.degraded
    out = [common] * len(places)
    for row in np.flatnonzero(select(batch.enriched.stale)).tolist():
        out[row] = [*common, FEATURES_STALE]
    if scored.failures:
        missing = np.isnan(select(scored.member_scores))
        for row in np.flatnonzero(missing.any(axis=1)).tolist():
            out[row] = out[row] + [f"member:{names[m]}" for m in np.flatnonzero(missing[row]).tolist()]
    return out


def _member_statuses(
    scored: Scored, names: list[str], select: Callable[[NDArray[Any]], NDArray[Any]]
) -> Iterable[list[MemberStatus]]:
    if not scored.failures:
        return [["ok"] * len(names)] * len(select(scored.score))
    gone: list[MemberStatus] = ["disabled" if scored.failures.get(name) == DISABLED else "missing" for name in names]
    return [
        [absent if nan else "ok" for absent, nan in zip(gone, row, strict=True)]
        for row in np.isnan(select(scored.member_scores)).tolist()
    ]


def _ruled(
    decided: BatchDecisions, own: str, version: str, select: Callable[[NDArray[Any]], NDArray[Any]]
) -> tuple[Iterable[str | None], Iterable[bool], Iterable[str], Iterable[SegmentThresholds | None]]:
    """Per transaction: the rule it falls under, whether a list decided it, the policy's version, its own thresholds."""
    rules, n = decided.rules, len(select(decided.arm))
    if rules is None:
        return [None] * n, [False] * n, [own] * n, [None] * n
    rule, review, block = select(rules.rule).tolist(), select(rules.review).tolist(), select(rules.block).tolist()
    return (
        [None if index < 0 else rules.names[index] for index in rule],
        (select(rules.listed) >= 0).tolist(),
        [own if index < 0 else version for index in rule],
        [None if low != low else SegmentThresholds(low, high) for low, high in zip(review, block, strict=True)],
    )


def _alternatives(
    decided: BatchDecisions, version: int, select: Callable[[NDArray[Any]], NDArray[Any]]
) -> Iterable[list[Alternative]]:
    """Per transaction what the versions said that did not decide it."""
    others = [
        (ensemble.version, verdict)
        for index, (ensemble, verdict) in enumerate(zip(decided.lineup.versions, decided.verdicts, strict=True))
        if index != version
    ]
    if not others:
        return [[]] * len(select(decided.arm))
    columns = [
        [
            Alternative(name, z, DECISIONS[code])
            for z, code in zip(select(v.scored.z).tolist(), select(v.decision).tolist(), strict=True)
        ]
        for name, v in others
    ]
    return list(map(list, zip(*columns, strict=True)))


def _inside(
    ensemble: Ensemble,
    matrix: NDArray[np.float64],
    verdict: VersionResult,
    chosen: NDArray[np.int64] | None,
    most: int,
) -> dict[int, list[list[FeatureReason]]]:
    """By place, of the `most` alerts with the highest scores, each member's strongest inputs."""
    if ensemble.insight is None or most == 0:
        return {}
    alerts = np.flatnonzero(verdict.decision > 0) if chosen is None else chosen[verdict.decision[chosen] > 0]
    rows = alerts[np.argsort(-np.nan_to_num(verdict.scored.score[alerts]), kind="stable")[:most]]
    if not len(rows):
        return {}
    insight, column = ensemble.insight, {name: place for place, name in enumerate(ensemble.feature_names)}
    out: dict[int, list[list[FeatureReason]]] = {row: [] for row in rows.tolist()}
    for member, inputs in enumerate(insight.inputs):
        try:
            parts, _ = insight.look(member, matrix[rows])
        except Exception:  # a score does not wait for its explanation
            _log.exception("looking into member %s", insight.names[member])
            parts = np.zeros((len(rows), 0))
        for row, mine in zip(rows.tolist(), parts, strict=True):
            out[row].append(
                [
                    FeatureReason(inputs[k], float(matrix[row, column[inputs[k]]]), float(mine[k]))
                    for k in strongest(mine, ALERT_FEATURES)
                ]
            )
    return out


def _reasons(
    names: list[str], scores: list[float], contributions: list[float], inside: list[list[FeatureReason]] | None
) -> list[Reason]:
    strongest = sorted(range(len(names)), key=lambda m: -abs(contributions[m]))[:ALERT_REASONS]
    return [
        Reason(
            names[m],
            contributions[m],
            f"{names[m]} gave {scores[m]:.3f}: {'raised' if contributions[m] >= 0 else 'lowered'} the log-odds by "
            f"{abs(contributions[m]):.2f}",
            inside[m] if inside else [],
        )
        for m in strongest
        if scores[m] == scores[m]
    ]


def _ahead(marks: AppliedOffsets) -> list[ShardMark]:
    """Where a shard saw more than all of them did."""
    return [
        ShardMark(shard, source.topic, source.partition, offset)
        for shard, mine in enumerate(marks.by_shard)
        for source, offset in sorted(mine.next_offset.items())
        if offset > marks.next_offset[source]
    ]
