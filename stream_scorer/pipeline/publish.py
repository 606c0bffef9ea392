"""Publish: every output record of a micro-batch, into one Kafka transaction (or the files of a replay)."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, repeat
from operator import itemgetter
from typing import Any, NamedTuple

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType
from msgspec.structs import astuple
from numpy.typing import NDArray

from stream_scorer.clock import Clock
from stream_scorer.ensemble.attribution import strongest
from stream_scorer.ensemble.ensemble import Ensemble, Scored
from stream_scorer.ensemble.lineup import DISABLED, Lineup
from stream_scorer.ensemble.manifest import Link
from stream_scorer.kafka.topics import Topics
from stream_scorer.pipeline.batch import BatchDecisions, DeadLetter, MicroBatch, Sink, VersionResult
from stream_scorer.pipeline.lineage import lineage_of
from stream_scorer.pipeline.ports import Producers
from stream_scorer.pipeline.summarise import Summariser, halve
from stream_scorer.records import (
    ARMS,
    CONTRIBUTION_DECIMALS,
    DECISIONS,
    FEATURES_PARTIAL,
    FEATURES_STALE,
    WEIGHT_DECIMALS,
    Alert,
    Alternative,
    Arm,
    Contribution,
    Decision,
    DecisionSource,
    FeatureReason,
    Members,
    MemberStatus,
    Reason,
    Score,
    ScoreSummary,
    Source,
)
from stream_scorer.serde.raw import MAX_ENVELOPE_BYTES, Headers, headers_size
from stream_scorer.spec.model import CheckedSpec

# A dead letter carries the original up to this size; beyond it, its head, length and digest (the topic takes 10 MB).
DEAD_LETTER_MAX_BYTES = 8_000_000
DEAD_LETTER_HEAD_BYTES = 65_536
# What a dead letter holds beside its value, at most.
DEAD_LETTER_MARGIN_BYTES = 2 * MAX_ENVELOPE_BYTES
# Kafka's default limit of a record is 1 MB.
SUMMARY_MAX_BYTES = 900_000
# How many members an alert names.
ALERT_REASONS = 3
# How many inputs of each member an alert names, if members explain alerts.
ALERT_FEATURES = 3
# What a contribution is a part of, by the link of the ensemble.
_UNITS: Mapping[Link, str] = {"logit": "log-odds", "probability": "probability", "rank": "rank"}

_log = logging.getLogger(__name__)
_Headers = Any
# Where an output record goes: place of its transaction, topic, partition, key, value, headers.
_Output = tuple[int, str, int, bytes | None, bytes, _Headers]


class _ScoreColumns(NamedTuple):
    """One column per field of `Score`, with the names of the fields and in their order."""

    event_id: Iterable[str]
    event_time: Iterable[int]
    scored_at: Iterable[int]
    score: Iterable[float]
    decision: Iterable[Decision]
    decision_source: Iterable[DecisionSource]
    ensemble: Iterable[str]
    version: Iterable[str]
    arm: Iterable[Arm]
    policy_version: Iterable[str]
    coverage: Iterable[float]
    duplicate: Iterable[bool]
    degraded: Iterable[list[str]]
    member_alerts: Iterable[int]
    value: Iterable[int]
    rule: Iterable[str | None]
    card_group: Iterable[int]
    review_propensity: Iterable[float | UnsetType]


class _Columns(NamedTuple):
    """What the records of the transactions that one version decided are made of; each column has one item for each.

    Attributes:
        place: in the micro-batch. row: of the input record. partition, offset: of the input record. code: of the
            decision. member_scores, contributions, status: one item per member; missing scores are NaN.
    """

    score: _ScoreColumns
    place: Iterable[int]
    row: Iterable[int]
    partition: Iterable[int]
    offset: Iterable[int]
    code: Iterable[int]
    z: Iterable[float]
    base: Iterable[float]
    alternatives: Iterable[list[Alternative]]
    member_scores: Iterable[list[Any]]
    contributions: Iterable[list[float]]
    status: Iterable[list[MemberStatus]]


class Publish:
    """The stage: writes a scored batch into the next Kafka transaction.

    Args:
        write: puts the records of a batch into a sink, see `OutputWriter`.
    """

    name = "publish"
    scoring_only = True

    def __init__(self, producers: Producers, write: Callable[[MicroBatch, Sink], None]) -> None:
        self._producers = producers
        self._write = write

    def process(self, batch: MicroBatch) -> None:
        """Set `batch.transaction`, begun and written. Raises `TransactionAborted`."""
        batch.transaction = self._producers.next()
        batch.transaction.begin()
        self._write(batch, batch.transaction)


class OutputWriter:
    """Writes scores, contributions, alerts, the review sample, summaries, lineage and dead letters to a `Sink`."""

    def __init__(
        self,
        topics: Topics,
        checked: CheckedSpec,
        clock: Clock,
        *,
        max_explained: int = 0,
        max_dead_letter: int = DEAD_LETTER_MAX_BYTES,
    ) -> None:
        """`max_explained` bounds the alerts per version and micro-batch for which members explain their inputs.

        `max_dead_letter` is the most bytes of a value that the topic of dead letters takes in whole.
        """
        self._max_explained = max_explained
        self._max_dead_letter = max(min(max_dead_letter, DEAD_LETTER_MAX_BYTES), DEAD_LETTER_HEAD_BYTES)
        self._topics = topics
        self._checked = checked
        self._clock = clock
        # By version and digest. Each holds its ensemble in memory, so only those of the last batch are kept.
        self._summarisers: dict[str, Summariser] = {}
        self._encode = msgspec.json.Encoder().encode

    def write(self, batch: MicroBatch, sink: Sink) -> None:
        """Hand every record that `batch` yields to `sink`, each on the partition number of its input."""
        for letter in batch.dead:
            self._dead_letter(letter, sink)
        if batch.events is not None and len(batch.events.transactions):
            produce = sink.produce
            for _, topic, partition, key, value, headers in self._in_order(batch):
                produce(topic, partition, key, value, headers)
            for record in lineage_of(batch, self._checked):
                name = f"{batch.transactions.topic}-{record.partition}".encode()
                sink.produce(self._topics.lineage, record.partition, name, record.value, record.headers)
        assert batch.decided is not None
        for version, summariser in enumerate(self._deciding(batch.decided.lineup)):
            for summary in summariser.summarise(batch, version):
                name = f"{summary.topic}-{summary.partition}".encode()
                for part in self._parts_of(summary):
                    sink.produce(self._topics.score_summaries, summary.partition, name, part)

    def _parts_of(self, summary: ScoreSummary) -> list[bytes]:
        """`summary` as one record, or as several that add up to it; the range of offsets is that of the first."""
        whole = self._encode(summary)
        halves = None if len(whole) <= SUMMARY_MAX_BYTES else halve(summary)
        return [whole] if halves is None else self._parts_of(halves[0]) + self._parts_of(halves[1])

    def _deciding(self, lineup: Lineup) -> list[Summariser]:
        """The summarisers of the versions that make decisions."""
        deciding = {f"{e.version} {e.digest}": e for e in lineup.versions[: lineup.deciding]}
        before = self._summarisers
        self._summarisers = {
            n: before.get(n) or Summariser(e, self._checked, encoded=True) for n, e in deciding.items()
        }
        return list(self._summarisers.values())

    def _in_order(self, batch: MicroBatch) -> Iterable[_Output]:
        """The records of every transaction, in the order of the transactions."""
        assert batch.decided is not None
        scored_at = self._clock.now_ms()
        if not batch.decided.arm.any():
            return self._of_version(_Part.of(batch, 0, None), scored_at)
        parts = [
            self._of_version(_Part.of(batch, version, batch.decided.rows_of(version)), scored_at)
            for version in range(batch.decided.lineup.deciding)
        ]
        return sorted(chain.from_iterable(parts), key=itemgetter(0))

    def _of_version(self, part: _Part, scored_at: int) -> Iterator[_Output]:
        """The records of those transactions that one version decided."""
        ensemble, topics, encode, raw = part.ensemble, self._topics, self._encode, part.batch.transactions
        scores_topic, contributions_topic = topics.scores, topics.contributions
        name, number, arm = ensemble.name, ensemble.version, part.arm
        inside = _inside(ensemble, part, self._max_explained)
        names, lineup, unit = ensemble.member_names, part.decided.lineup, _UNITS[ensemble.manifest.link]
        compared = {lineup.versions[other].version for other in lineup.compared_with(part.version)}
        # The members' names are the same in every record: encoded once.
        encoded_names: Any = msgspec.Raw(encode(names))
        columns, weights = self._columns(part, scored_at), _weights(part.result.scored, part, encode)
        keys = part.batch.output_keys
        for record, (place, row, partition, offset), (code, z, base, alternatives), members in zip(
            map(Score, *columns.score),
            zip(columns.place, columns.row, columns.partition, columns.offset, strict=True),
            zip(columns.code, columns.z, columns.base, columns.alternatives, strict=True),
            zip(columns.member_scores, weights, columns.contributions, columns.status, strict=True),
            strict=True,
        ):
            key, headers = keys[row], raw.headers[row]
            yield place, scores_topic, partition, key, encode(record), headers
            member_scores, weight, contributions, status = members
            contribution = Contribution(
                record.event_id, name, number, arm, base, z, record.score,
                Members(encoded_names, member_scores, weight, contributions, status),
                Source(raw.topic, partition, offset), alternatives, record.degraded,
            )  # fmt: skip
            yield place, contributions_topic, partition, key, encode(contribution), headers
            if code or record.review_propensity is not UNSET:
                alert = Alert(
                    *astuple(record),
                    base=base, z=z, reasons=_reasons(names, member_scores, contributions, inside.get(place), unit),
                    disagreement=[
                        each.version for each in alternatives
                        if code and each.version in compared and each.decision == "approve"
                    ],
                )  # fmt: skip
                yield place, topics.alerts if code else topics.review_sample, partition, key, encode(alert), headers

    def _columns(self, part: _Part, scored_at: int) -> _Columns:
        """What `_of_version` takes for each transaction."""
        batch, select, scored = part.batch, part.select, part.result.scored
        assert batch.enriched is not None and batch.events is not None
        names, rows = part.ensemble.member_names, select(batch.events.transactions.row)
        return _Columns(
            score=self._score_columns(part, scored_at),
            place=part.places,
            row=rows.tolist(),
            partition=batch.transactions.partition[rows].tolist(),
            offset=batch.transactions.offset[rows].tolist(),
            code=select(part.result.decision).tolist(),
            z=select(scored.z).tolist(),
            base=select(scored.base).tolist(),
            alternatives=_alternatives(part.decided, part.version, select),
            member_scores=select(scored.member_scores).tolist(),
            contributions=np.round(select(scored.contributions), CONTRIBUTION_DECIMALS).tolist(),
            status=_member_statuses(scored, names, select),
        )

    def _score_columns(self, part: _Part, scored_at: int) -> _ScoreColumns:
        """The fields of `Score` for each transaction."""
        batch, decided, select, scored = part.batch, part.decided, part.select, part.result.scored
        events, enriched, spec = batch.events, batch.enriched, self._checked.spec
        assert events is not None and enriched is not None
        ensemble, n, ids = part.ensemble, len(part.places), events.transactions.event_id
        own = ensemble.manifest.thresholds.policy_version
        rule, listed, policy_version = _ruled(decided, own, spec.policy.version, select)
        scores: list[float] = select(scored.score).tolist()
        source: list[DecisionSource] = [
            "list" if by_list else "model" if score == score else "fallback"
            for by_list, score in zip(listed, scores, strict=True)
        ]
        return _ScoreColumns(
            event_id=ids if part.chosen is None else [ids[place] for place in part.places],
            event_time=select(events.transactions.event_time).tolist(),
            scored_at=repeat(scored_at, n),
            score=scores,
            decision=[DECISIONS[code] for code in select(part.result.decision).tolist()],
            decision_source=source,
            ensemble=repeat(ensemble.name, n),
            version=repeat(ensemble.version, n),
            arm=repeat(part.arm, n),
            policy_version=policy_version,
            coverage=select(scored.coverage).tolist(),
            duplicate=select(enriched.duplicate).tolist(),
            degraded=_degraded(batch, scored, ensemble.member_names, part.places, select),
            member_alerts=select(part.result.member_alerts).tolist(),
            value=select(events.transactions.value).tolist(),
            rule=rule,
            card_group=select(decided.card_group).tolist(),
            review_propensity=_propensities(select(decided.sampled), spec.monitor.review_sample),
        )

    def _dead_letter(self, letter: DeadLetter, sink: Sink) -> None:
        records, row, error = letter.records, letter.row, letter.error
        value, key = records.value[row], records.key[row]
        partition = int(records.partition[row])
        headers = list(records.headers[row] or ())
        if len(key or b"") + headers_size(headers) > MAX_ENVELOPE_BYTES:
            key, headers = _cut_envelope(key, headers)
        headers += [
            ("error.code", error.code.encode()),
            ("error.message", error.message.encode()),
            ("error.path", error.path.encode()),
            ("source.topic", records.topic.encode()),
            ("source.partition", str(partition).encode()),
            ("source.offset", str(int(records.offset[row])).encode()),
            ("source.timestamp", str(int(records.timestamp[row])).encode()),
        ]
        if value is not None and len(value) > self._max_dead_letter:
            headers += [
                ("value.length", str(len(value)).encode()),
                ("value.sha256", hashlib.sha256(value).hexdigest().encode()),
            ]
            value = value[:DEAD_LETTER_HEAD_BYTES]
        sink.produce(self._topics.dead_letters, partition, key, value, headers)


def _cut_envelope(key: bytes | None, headers: Headers) -> tuple[bytes | None, list[tuple[str, bytes | None]]]:
    """Key and headers of a dead letter whose original ones are too large: headers say what is missing."""
    about_key: list[tuple[str, bytes | None]] = []
    kept: list[tuple[str, bytes | None]] = []
    if key is not None and len(key) > MAX_ENVELOPE_BYTES // 2:
        about_key = [
            ("key.length", str(len(key)).encode()),
            ("key.sha256", hashlib.sha256(key).hexdigest().encode()),
        ]
        key = None
    left = MAX_ENVELOPE_BYTES - len(key or b"")
    for name, value in headers:
        left -= headers_size([(name, value)])
        if left < 0:
            break
        kept.append((name, value))
    return key, [*about_key, *kept, ("headers.cut", str(len(headers) - len(kept)).encode())]


@dataclass(slots=True)
class _Part:
    """The transactions of a micro-batch that one version decided: `chosen` of them, or all (None)."""

    batch: MicroBatch
    decided: BatchDecisions
    version: int
    ensemble: Ensemble
    result: VersionResult
    chosen: NDArray[np.int64] | None
    places: list[int]

    @classmethod
    def of(cls, batch: MicroBatch, version: int, chosen: NDArray[np.int64] | None) -> _Part:
        """The part of `batch` that `version`, an index into the lineup, decided."""
        events, decided = batch.events, batch.decided
        assert events is not None and decided is not None
        places = list(range(len(events.transactions))) if chosen is None else chosen.tolist()
        return cls(batch, decided, version, decided.lineup.versions[version], decided.results[version], chosen, places)

    @property
    def arm(self) -> Arm:
        """The arm of the version."""
        return ARMS[self.version]

    def select(self, column: NDArray[Any]) -> NDArray[Any]:
        """The rows of `column` that belong to the part."""
        return column if self.chosen is None else column[self.chosen]


def _weights(scored: Scored, part: _Part, encode: Callable[[Any], bytes]) -> Iterable[Any]:
    """Per transaction its members' weights, rounded; where all rows have the same, they are encoded once."""
    weights = np.round(part.select(scored.weights), WEIGHT_DECIMALS)
    if len(weights) and (weights == weights[0]).all():
        return repeat(msgspec.Raw(encode(weights[0].tolist())), len(weights))
    rows: list[list[float]] = weights.tolist()
    return rows


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
    for flags, reason in ((batch.enriched.stale, FEATURES_STALE), (batch.enriched.partial, FEATURES_PARTIAL)):
        for row in np.flatnonzero(select(flags)).tolist():
            out[row] = [*out[row], reason]
    if scored.failures:
        missing = np.isnan(select(scored.member_scores))
        for row in np.flatnonzero(missing.any(axis=1)).tolist():
            out[row] = out[row] + [f"member:{names[m]}" for m in np.flatnonzero(missing[row]).tolist()]
    return out


def _member_statuses(
    scored: Scored, names: list[str], select: Callable[[NDArray[Any]], NDArray[Any]]
) -> Iterable[list[MemberStatus]]:
    """Per transaction its members' statuses; empty where all are ok."""
    if not scored.failures:
        return [[]] * len(select(scored.score))
    gone: list[MemberStatus] = ["disabled" if scored.failures.get(name) == DISABLED else "missing" for name in names]
    return [
        [absent if nan else "ok" for absent, nan in zip(gone, row, strict=True)] if any(row) else []
        for row in np.isnan(select(scored.member_scores)).tolist()
    ]


def _propensities(sampled: NDArray[np.bool_], share: float) -> list[float | UnsetType]:
    """Per transaction the probability with which the review sample drew it; UNSET outside of the sample."""
    out: list[float | UnsetType] = [UNSET] * len(sampled)
    for row in np.flatnonzero(sampled).tolist():
        out[row] = share
    return out


def _ruled(
    decided: BatchDecisions, own: str, version: str, select: Callable[[NDArray[Any]], NDArray[Any]]
) -> tuple[Iterable[str | None], Iterable[bool], Iterable[str]]:
    """Per transaction: the rule it falls under, whether a list decided it, and the policy's version."""
    rules, n = decided.rules, len(select(decided.arm))
    if rules is None:
        return [None] * n, [False] * n, [own] * n
    rule = select(rules.rule).tolist()
    return (
        [None if index < 0 else rules.names[index] for index in rule],
        (select(rules.listed) >= 0).tolist(),
        [own if index < 0 else version for index in rule],
    )


def _alternatives(
    decided: BatchDecisions, version: int, select: Callable[[NDArray[Any]], NDArray[Any]]
) -> Iterable[list[Alternative]]:
    """Per transaction what the versions said that did not decide it."""
    others = [
        (ensemble.version, result)
        for index, (ensemble, result) in enumerate(zip(decided.lineup.versions, decided.results, strict=True))
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


def _inside(ensemble: Ensemble, part: _Part, max_explained: int) -> dict[int, list[list[FeatureReason]]]:
    """By place: the strongest inputs of each member, for the `max_explained` alerts with the highest scores."""
    if ensemble.explainer is None or max_explained == 0:
        return {}
    assert part.batch.enriched is not None
    matrix, result, chosen = part.batch.enriched.matrix, part.result, part.chosen
    alerts = np.flatnonzero(result.decision > 0) if chosen is None else chosen[result.decision[chosen] > 0]
    rows = alerts[np.argsort(-np.nan_to_num(result.scored.score[alerts]), kind="stable")[:max_explained]]
    if not len(rows):
        return {}
    explainer, column = ensemble.explainer, {name: place for place, name in enumerate(ensemble.feature_names)}
    out: dict[int, list[list[FeatureReason]]] = {row: [] for row in rows.tolist()}
    for member, inputs in enumerate(explainer.inputs):
        try:
            parts, _ = explainer.attribute(member, matrix[rows])
        except Exception:  # a score does not wait for its explanation
            _log.exception("explaining member %s failed", explainer.names[member])
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
    names: list[str],
    scores: list[float],
    contributions: list[float],
    inside: list[list[FeatureReason]] | None,
    unit: str,
) -> list[Reason]:
    strongest = sorted(range(len(names)), key=lambda m: -abs(contributions[m]))[:ALERT_REASONS]
    return [
        Reason(
            names[m],
            contributions[m],
            f"{names[m]} gave {scores[m]:.3f}: {'raised' if contributions[m] >= 0 else 'lowered'} the {unit} by "
            f"{abs(contributions[m]):.2f}",
            inside[m] if inside else [],
        )
        for m in strongest
        if scores[m] == scores[m]
    ]
