"""The whole scorer on a broker and rows in memory: real stages, real processor, processes that die or are suspended.

`World` is one data set with everything in it that makes features hard: duplicates, late events, labels that come before
their transaction, twice, or change, offsets with holes, several partitions. `verify` compares the results with a
recomputation that shares no code with the features: plain loops over the log. With `Parts.compacting` rows are so short
that most are compacted; their features must be within the bounds of `proofs/compacted.py`.
"""

from __future__ import annotations

import itertools
import random
import statistics
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from proofs.compacted import LongRow, compacted_row_differs, is_compacted, plan_of
from stream_scorer.clock import SystemClock
from stream_scorer.ensemble.compose import Draft, Outline, compose_ensemble
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.ensemble.lineup import Lineup
from stream_scorer.ensemble.manifest import Input, NoCalibrator, Thresholds, Training
from stream_scorer.ensemble.members.dense_json import Dense, Layer, encode_dense
from stream_scorer.errors import StreamScorerError
from stream_scorer.features.engine import FeatureEngine
from stream_scorer.kafka.partitioner import partitions_of
from stream_scorer.kafka.topics import Topics
from stream_scorer.observability.metrics import Metrics
from stream_scorer.pipeline.accounting import Account
from stream_scorer.pipeline.apply import Apply
from stream_scorer.pipeline.availability import Availability
from stream_scorer.pipeline.catch_up import CatchUp
from stream_scorer.pipeline.commit import Commit
from stream_scorer.pipeline.committer import Committer, Turn
from stream_scorer.pipeline.cut import Inputs
from stream_scorer.pipeline.decode import Decode
from stream_scorer.pipeline.enrich import Enrich
from stream_scorer.pipeline.in_flight import InFlight
from stream_scorer.pipeline.note_committed import NoteCommitted
from stream_scorer.pipeline.probe import IdleCheck, WriteProbe
from stream_scorer.pipeline.processor import Pacing, Processor
from stream_scorer.pipeline.publish import OutputWriter, Publish
from stream_scorer.pipeline.score import Scoring
from stream_scorer.pipeline.starting_points import starting_points
from stream_scorer.pipeline.state_manager import OnProgress, StateManager
from stream_scorer.positions import SourcePartition
from stream_scorer.records import (
    DEFAULT,
    FEATURES_PARTIAL,
    FEATURES_STALE,
    MISSING,
    PARTIAL,
    Contribution,
    LineageRow,
    Score,
)
from stream_scorer.serde.lineage import LineageBatch
from stream_scorer.simulate.config import DAY_MS, HOUR_MS, MINUTE_MS, SimulationConfig
from stream_scorer.simulate.encode import encode_keys, encode_labels, encode_values
from stream_scorer.simulate.generate import generate
from stream_scorer.simulate.labeller import history_labels
from stream_scorer.simulate.transactions import Transactions
from stream_scorer.spec import CheckedSpec, load_spec
from stream_scorer.spec.model import View, duration_ms
from stream_scorer.state.row_format import TRANSACTION, VALUE, unpack
from stream_scorer.state.rows import AppliedRowStore, Sharding
from stream_scorer.state.shards import ShardedRows
from tests.support.broker import MemoryBroker, MemoryLog, MemoryProducers, MemoryReader
from tests.support.failpoints import Failpoints
from tests.support.rows import MemoryAppliedRows, MemoryServer

PARTITIONS = 3
# Small batches and small steps: many places to die in.
BATCH, ENTRIES_PER_CALL = 16, 24
# Rows are never compacted, or nearly always; the latter in worlds with fewer entities and more fraud.
WHOLE_ROWS, SHORT_ROWS, COMPACTING_SPEC = 8_192, 24, "compacting.yaml"
# A gap of more records is closed while scoring goes on. Probes of the store and checks of rows come after short pauses.
MAX_INLINE, PROBE_DELAY_S, IDLE_CHECK_S = 60, 0.005, 0.05
# What the cards spec does not ask for: conditions, and the spread of values.
_ONLY = "online"
_MORE_VIEWS = f"""
  - {{name: spread, entity: customer, windows: [1d, 7d], aggregates: [min, max, std, sum], current: exclude}}
  - {{name: places, entity: customer, windows: [1d, 7d], aggregates: [distinct], of: terminal_id}}
  - {{name: ways, entity: terminal, windows: [7d], aggregates: [distinct], of: channel, current: exclude}}
  - {{name: phones, entity: customer, windows: [7d], aggregates: [distinct], of: device_id, delay: 6h}}
  - {{name: known, entity: terminal, windows: [1d, 7d], delay: 6h, aggregates: [label_count]}}
  - {{name: far, entity: terminal, windows: [1d], aggregates: [count, sum, max], where: {{channel: {{in: [{_ONLY}]}}}}}}
"""
TOPICS = Topics()
INPUTS = [TOPICS.transactions, TOPICS.labels]


@dataclass(frozen=True, slots=True)
class Parts:
    """What all worlds share."""

    checked: CheckedSpec
    ensemble: Ensemble
    engine: FeatureEngine
    metrics: Metrics
    folder: Path

    @property
    def compacts(self) -> bool:
        """Whether rows of its worlds are compacted."""
        return self.checked.spec.limits.row_entries < WHOLE_ROWS

    def compacting(self) -> Parts:
        """These parts with rows that are compacted early."""
        spec = self.folder / COMPACTING_SPEC
        entries = f"row_entries: {WHOLE_ROWS}", f"row_entries: {SHORT_ROWS}"
        spec.write_text((self.folder / "cards.yaml").read_text().replace(*entries))
        checked = load_spec(spec)
        assert checked.spec.limits.row_entries == SHORT_ROWS
        engine = FeatureEngine(checked)
        engine.warm()
        return replace(self, checked=checked, engine=engine)

    def in_turn(self, number: int) -> Parts:
        """The parts of world `number`: half of the worlds, in shards or not, have rows that are compacted early."""
        return self.compacting() if number % 4 in (0, 1) else self


class _Clock:
    def now_ms(self) -> int:
        return 0

    def monotonic(self) -> float:
        return 0.0


@dataclass(slots=True)
class World:
    """One data set on a broker, and the rows it leads to."""

    parts: Parts
    broker: MemoryBroker
    servers: list[MemoryServer] = field(default_factory=lambda: [MemoryServer()])
    sharding: Sharding | None = None
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def rows(self) -> dict[bytes, bytes]:
        """The rows of all shards."""
        return {key: row for server in self.servers for key, row in server.rows.items()}

    def server_of(self, key: bytes) -> MemoryServer:
        """Where the row at `key` lies."""
        return self.servers[self.sharding.of(key) if self.sharding else 0]

    def store(self, life: Failpoints) -> AppliedRowStore:
        """The rows as one scorer uses them."""
        parts = [MemoryAppliedRows(s, self.broker.inputs, life, per_call=ENTRIES_PER_CALL) for s in self.servers]
        return ShardedRows(parts, self.sharding) if self.sharding else parts[0]

    def scorer(self, name: str, life: Failpoints, rng: random.Random) -> Processor:
        """A scorer of this world, as `app.make_scorer` wires it."""
        parts, broker, sources = self.parts, self.broker, self.broker.inputs
        store = self.store(life)
        lineup = Lineup.of(parts.ensemble)

        def idle() -> None:
            if broker.drained() and all(server.holds(broker.offsets) for server in self.servers):
                self.stop.set()

        availability, in_flight = Availability(parts.metrics), InFlight()

        def start_catch_up(committed: dict[SourcePartition, int], on_progress: OnProgress) -> CatchUp:
            rows, log = self.store(life), MemoryLog(broker, life)
            topic = TOPICS.transactions
            return CatchUp(parts.checked, parts.engine, rows, log, committed, topic, on_progress, piece=BATCH)

        state = StateManager(
            availability,
            in_flight,
            WriteProbe(store.probe_write, PROBE_DELAY_S),
            IdleCheck(lambda: store.read([]), IDLE_CHECK_S),
            lambda reader, owned, scored: starting_points(
                reader, store, owned, sources, "earliest", MAX_INLINE, scored=scored
            ),
            start_catch_up,
            parts.metrics,
        )
        producers = MemoryProducers(broker, name, life)
        committer = Committer(
            [
                Commit(parts.metrics, SystemClock()),
                Apply(store, in_flight),
                NoteCommitted(state.note_committed),
                Account(parts.metrics, parts.checked),
            ]
        )
        return Processor(
            make_reader=lambda assigned, revoked, _stopping: MemoryReader(
                broker, name, life, rng, idle, on_assigned=assigned, on_revoked=revoked
            ),
            producers=producers,
            stages=[
                Decode(parts.checked),
                Enrich(parts.engine, store, availability, in_flight),
                Scoring(lambda: lineup, parts.checked, parts.metrics),
                Turn(committer),
                Publish(producers, OutputWriter(TOPICS, parts.checked, _Clock()).write),
            ],
            committer=committer,
            state=state,
            inputs=Inputs(TOPICS.transactions, TOPICS.labels),
            pacing=Pacing(BATCH, 0.0),
            metrics=parts.metrics,
        )


def make_parts(folder: Path, spec: Path, row_entries: int = WHOLE_ROWS) -> Parts:
    """The cards spec with rows that are compacted beyond `row_entries`, and three small members, in `folder`."""
    text = spec.read_text().replace("row_entries: 128", f"row_entries: {row_entries}")
    text = text.replace("\nderived:", _MORE_VIEWS + "\nderived:")
    (folder / "cards.yaml").write_text(text)
    checked = load_spec(folder / "cards.yaml")
    assert checked.spec.limits.row_entries == row_entries

    def member(name: str, feature: str, weight: float) -> Draft:
        data = encode_dense(Dense([Layer([[weight]], [-3.0], "logistic")]))
        return Draft(name, "dense-json", data, [feature], [Input(impute=0.0)], NoCalibrator(), 1.0)

    outline = Outline(
        "cards", 1, "cards", checked.sha256, checked.feature_hash, checked.features, NoCalibrator(),
        Thresholds("p", 0.12, 0.3), 0.5, Training(0, 1, 1, 1, "r", "0" * 64, {}),
    )  # fmt: skip
    reference = np.abs(np.random.default_rng(1).normal(2, 1, (200, len(checked.features))))
    drafts = [member("a", "customer.count_1d", 0.4), member("b", "amount_log", 0.3), member("c", "is_night", 2.0)]
    compose_ensemble(folder / "small", outline, drafts, reference)
    engine = FeatureEngine(checked)
    engine.warm()
    return Parts(checked, Ensemble.load(folder / "small", version="1"), engine, Metrics(), folder)


class LogEvent(NamedTuple):
    """A record for the log, and its place in it: the time (ms) at which it arrives."""

    at: float
    topic: str
    key: bytes
    value: bytes
    timestamp: int


def disturbed_events(made: Transactions, rng: np.random.Generator) -> list[LogEvent]:
    """`made` and its labels as they arrive, with what goes wrong with both, in the order of arrival."""
    transactions = len(made.event_time)
    # A label is known after days; a world is shorter, so its labels are brought forward.
    labels = history_labels(made, int(made.event_time[-1]) + 10 * DAY_MS)
    given = labels.event_time + rng.integers(HOUR_MS, 12 * HOUR_MS, len(labels.event_time))
    document = msgspec.json.Decoder().decode
    encode = msgspec.json.Encoder().encode
    # By place in the log: an event's time, for some delayed.
    events: list[LogEvent] = []
    keys, values = encode_keys(made.customer_id), encode_values(made)
    late = np.where(rng.random(transactions) < 0.1, rng.integers(0, 2 * HOUR_MS, transactions), 0)
    for row in range(transactions):
        now = int(made.event_time[row])
        odd = rng.random()
        if odd < 0.2:  # many at one instant, or somewhat ahead of the record's own timestamp
            record = document(values[row])
            record["event_time"] = now // (10 * MINUTE_MS) * 10 * MINUTE_MS if odd < 0.15 else now + 4 * MINUTE_MS
            values[row] = encode(record)
        events.append(LogEvent(now + int(late[row]), TOPICS.transactions, keys[row], values[row], now))
        if rng.random() < 0.15:
            again = now + int(rng.integers(0, 3 * HOUR_MS))
            events.append(LogEvent(again, TOPICS.transactions, keys[row], values[row], now))
    label_keys, label_values = encode_keys(labels.customer_id), encode_labels(labels)
    for row, when in enumerate(given.tolist()):
        record = document(label_values[row]) | {"labelled_at": when}
        events.append(LogEvent(when, TOPICS.labels, label_keys[row], encode(record), when))
        what = rng.random()
        if what < 0.1:  # the same again
            events.append(LogEvent(when + HOUR_MS, TOPICS.labels, label_keys[row], encode(record), when))
        elif what < 0.3:  # a change of mind
            later = when + int(rng.integers(1, 6 * HOUR_MS))
            # Some say that they were given before the label they change.
            claimed = later if rng.random() < 0.7 else when - HOUR_MS // 2
            other = record | {"labelled_at": claimed, "label": "genuine" if record["label"] == "fraud" else "fraud"}
            if rng.random() < 0.3:  # by another clock
                other["event_time"] -= 4 * MINUTE_MS
            events.append(LogEvent(later, TOPICS.labels, label_keys[row], encode(other), later))
        elif what < 0.4:  # known before the transaction arrives
            early = record | {"labelled_at": int(labels.event_time[row]) + 1}
            at = float(labels.event_time[row] - 1)
            events[-1] = LogEvent(at, TOPICS.labels, label_keys[row], encode(early), when)
    return sorted(events, key=lambda event: event.at)


def make_world(parts: Parts, seed: int, transactions: int, shards: int = 1, *, many_labels: bool = True) -> World:
    """A world of `transactions` distinct transactions, their labels, and what goes wrong with both.

    With `many_labels`, labels of compacted rows are compacted too. A label that changes after many others of its
    entity counts as new then, and how many others there are depends on the order in which partitions are applied: a
    world whose rows are rebuilt has few.
    """
    rng = np.random.default_rng(seed)
    config = SimulationConfig(
        seed=seed, customers=max(transactions // (60 if parts.compacts else 25), 5),
        terminals=10 if parts.compacts else 12, days=None, transactions=transactions,
        fraud_rate=0.1 if not parts.compacts else 0.2 if many_labels else 0.02,
    )  # fmt: skip
    events = disturbed_events(generate(config), rng)
    topics = dict.fromkeys(TOPICS.all(), PARTITIONS)
    broker = MemoryBroker(topics, INPUTS)
    for partition, (_, topic, key, value, timestamp) in zip(
        partitions_of([event.key for event in events], PARTITIONS).tolist(), events, strict=True
    ):
        source = SourcePartition(topic, partition)
        if rng.random() < 0.03:
            broker.append_hole(source)
        broker.append(source, key, value, timestamp)
    if shards == 1:
        return World(parts, broker)
    sharding = parts.engine.sharding(shards)
    return World(parts, broker, [MemoryServer() for _ in range(len(sharding))], sharding)


@dataclass(slots=True)
class Verdict:
    """What `verify` found; everything but the counts of what was compared should be 0.

    `partial` counts the transactions that were scored as late, and `partial_in_time` those of them that were not late.
    `late_called_fresh` counts late ones that were not marked. Only an update that a crash cut in the middle may lead to
    some: watermarks, also those for compaction, cover only what left entries. `by_panes` counts the features of long
    rows that differ from the log as panes allow.
    """

    inputs: int = 0
    lost: int = 0
    doubled: int = 0
    rows: int = 0
    rows_different: int = 0
    rows_compacted: int = 0
    features: int = 0
    late: int = 0
    tied: int = 0
    label_changes: int = 0
    features_different: int = 0
    by_panes: int = 0
    duplicates: int = 0
    duplicates_unlike: int = 0
    degraded: int = 0
    called_fresh: int = 0
    ages_too_young: int = 0
    partial: int = 0
    partial_in_time: int = 0
    late_called_fresh: int = 0
    example: str = ""

    def add(self, other: Verdict, where: str) -> None:
        """Count `other`, found at `where`, too."""
        for item in fields(Verdict):
            if item.name == "example":
                self.example = self.example or (f"{where}: {other.example}" if other.example else "")
            else:
                setattr(self, item.name, getattr(self, item.name) + getattr(other, item.name))

    @property
    def holds(self) -> bool:
        """Whether nothing is wrong."""
        return not (
            self.lost
            or self.doubled
            or self.ages_too_young
            or self.partial_in_time
            or self.rows_different
            or self.features_different
            or self.duplicates_unlike
            or self.called_fresh
        )


@dataclass(slots=True)
class Event:
    """A transaction of the log; `duplicate`: its id occurred before."""

    source: SourcePartition
    offset: int
    event_id: str
    time: int
    amount: int
    entity: dict[str, str | None]
    channel: str
    duplicate: bool = False


@dataclass(slots=True)
class LabelChange:
    """A label that changed what is known of a transaction; `given`: since when."""

    source: SourcePartition
    offset: int
    event_id: str
    time: int
    given: int
    fraud: bool
    entity: dict[str, str | None]


@dataclass(frozen=True, slots=True)
class FeatureInputs:
    """What the features of `event` follow from.

    Attributes:
        applied: the applied offsets of its rows, by entity.
        earlier: partition and offset of the events before it in its micro-batch.
        events, changes: those of the whole log, by entity and its id.
    """

    checked: CheckedSpec
    event: Event
    applied: dict[str, dict[SourcePartition, int]]
    earlier: set[tuple[int, int]]
    events: dict[str, dict[str, list[Event]]]
    changes: dict[str, dict[str, list[LabelChange]]]


def verify(world: World) -> Verdict:
    """Outputs, rows and features against the log."""
    verdict = Verdict()
    events, labels = _log(world)
    verdict.inputs = len(events)
    by_place = {(e.source.partition, e.offset): e for e in events}
    contributions = _published(world, TOPICS.contributions, Contribution)
    lineage = _lineage(world)
    verdict.doubled += [c.event_id for _, c in contributions] != [row.event_id for _, row in lineage]
    scores = _published(world, TOPICS.scores, Score)
    seen = Counter((c.source.partition, c.source.offset) for _, c in contributions)
    verdict.lost = len(by_place.keys() - seen.keys())
    verdict.doubled += sum(count - 1 for count in seen.values()) + abs(len(scores) - len(contributions))
    verdict.duplicates = sum(e.duplicate for e in events)
    names = [f.name for f in world.parts.checked.view_features]
    whole = []
    for (number, c), (_, score) in zip(lineage, scores, strict=True):
        event = by_place[c.source.partition, c.source.offset]
        if lacks_features(score):
            # Scored while features were gone: none of them may be marked as present.
            verdict.degraded += 1
            verdict.called_fresh += sum(s != MISSING for s in c.feature_status[: len(names)])
        else:
            whole.append((number, c))
            verdict.duplicates_unlike += score.duplicate != event.duplicate
    newest: dict[SourcePartition, int] = {}
    for e in events:
        verdict.late += e.time < newest.get(e.source, 0)
        newest[e.source] = max(newest.get(e.source, 0), e.time)
    verdict.tied = len(events) - len({e.time for e in events}) - verdict.duplicates
    verdict.label_changes = len(labels) - len({label.event_id for label in labels})
    _verify_rows(world, verdict, events, labels)
    batches: dict[int, list[tuple[int, Event]]] = {}
    for number, c in lineage:
        event = by_place[c.source.partition, c.source.offset]
        batches.setdefault(number, []).append((c.place, event))
    spec = world.parts.checked
    by_id: dict[str, dict[str, list[Event]]] = {name: {} for name in spec.spec.entities}
    changes: dict[str, dict[str, list[LabelChange]]] = {name: {} for name in spec.spec.entities}
    for name in spec.spec.entities:
        for e in events:
            by_id[name].setdefault(str(e.entity[name]), []).append(e)
        for label in labels:
            changes[name].setdefault(str(label.entity[name]), []).append(label)
    for number, c in whole:
        event = by_place[c.source.partition, c.source.offset]
        applied = {SourcePartition(m.topic, m.partition): m.next_offset for m in c.applied_offsets}
        earlier = {(e.source.partition, e.offset) for place, e in batches[number] if place < c.place}
        reached = _reached(applied, [by_place[e] for e in earlier], events)
        _verify_progress(verdict, event, c, reached, duration_ms(spec.spec.time.allowed_lateness), len(names))
        by_entity = {
            name: applied | ahead_of(world.sharding, world.parts.engine, c, name, owner)
            for name, owner in event.entity.items()
        }
        inputs = FeatureInputs(spec, event, by_entity, earlier, by_id, changes)
        wanted = features_of(inputs)
        got = c.features[: len(names)]
        verdict.features += len(names)
        late = PARTIAL in c.feature_status
        unlike = differences(spec, wanted, got, partial(long_rows, inputs, late))
        verdict.by_panes += sum(allowed for _, allowed in unlike)
        for place in [place for place, allowed in unlike if not allowed]:
            verdict.features_different += 1
            verdict.example = verdict.example or (
                f"{names[place]} of {event.event_id}: {got[place]}, by the log {wanted[place]}"
            )
    return verdict


def ahead_of(
    sharding: Sharding | None, engine: FeatureEngine, c: LineageRow, entity: str, owner: str | None
) -> dict[SourcePartition, int]:
    """Where the shard that holds the entity's rows was ahead of others."""
    if sharding is None or owner is None:
        return {}
    shard = sharding.of(engine.row_keys(entity, owner)[0])
    return {SourcePartition(m.topic, m.partition): m.next_offset for m in c.applied_offsets_ahead if m.shard == shard}


def lacks_features(score: Score) -> bool:
    """Whether it was scored while features were gone; stale and partial ones are there."""
    return bool(set(score.degraded) - {FEATURES_STALE, FEATURES_PARTIAL})


def _reached(applied: dict[SourcePartition, int], earlier: list[Event], log: list[Event]) -> dict[SourcePartition, int]:
    """The newest event time per partition, of what lies below the applied offsets or came earlier in the batch."""
    reached: dict[SourcePartition, int] = {}
    for other in [e for e in log if e.offset < applied.get(e.source, 0)] + earlier:
        reached[other.source] = max(reached.get(other.source, 0), other.time)
    return reached


def _verify_progress(
    verdict: Verdict, event: Event, row: LineageRow, reached: dict[SourcePartition, int], lateness_ms: int, views: int
) -> None:
    """The age of other partitions, and the status of late transactions, by how far each partition had `reached`."""
    age = max(event.time - min((w for s, w in reached.items() if s != event.source), default=event.time), 0)
    # Older is possible: of an update that a crash cut in the middle, watermarks cover only what left entries.
    verdict.ages_too_young += row.partitions_age is None or row.partitions_age < age
    late = event.source in reached and event.time < min(reached.values()) - lateness_ms
    partial = PARTIAL in row.feature_status and set(row.feature_status[:views]) <= {PARTIAL, DEFAULT}
    verdict.partial += partial
    verdict.partial_in_time += not late and PARTIAL in row.feature_status
    verdict.late_called_fresh += late and not partial


def same_value(name: str, wanted: float | None, got: float | None) -> bool:
    """Equal; a standard deviation to 1e-12, because its root and quotient round."""
    if ".std_" in name and wanted is not None and got is not None:
        return abs(wanted - got) <= 1e-12 * max(abs(wanted), 1.0)
    return wanted == got


def differences(
    checked: CheckedSpec,
    wanted: list[float | None],
    got: list[float | None],
    rows: Callable[[], Callable[[View], LongRow | None]],
) -> list[tuple[int, bool]]:
    """Places of features that differ from the log, and whether panes explain it; `rows` gives those of `long_rows`."""
    features = checked.view_features
    unlike = [i for i, f in enumerate(features) if not same_value(f.name, wanted[i], got[i])]
    if not unlike:
        return []
    row_of, plans = rows(), plan_of(checked)
    counts = {(f.view.name, f.window_ms): got[i] for i, f in enumerate(features) if f.aggregate == "count"}
    out = []
    for i in unlike:
        view = features[i].view
        row, plan = row_of(view), plans[view.entity, bool(view.where), view.of]
        counted = counts.get((view.name, features[i].window_ms))
        out.append((i, row is not None and row.holds(features[i], got[i], counted, plan)))
    return out


def long_rows(inputs: FeatureInputs, late: bool) -> Callable[[View], LongRow | None]:
    """The row of a view as the event sees it; None if everything in it counts exactly. `late`: the event is late."""
    checked, event, applied = inputs.checked, inputs.event, inputs.applied
    limit = checked.spec.limits.row_entries

    def row_of(view: View) -> LongRow | None:
        name, only = view.entity, bool(view.where)
        owner = event.entity[name]
        if owner is None:
            return None

        def value(e: Event) -> Any:
            counts = not e.duplicate and (e.channel == _ONLY or not only)
            return (e.amount if view.of is None else _field(e, view.of)) if counts else None

        own = name == checked.spec.partition_entity
        row = [e for e in inputs.events[name][owner] if value(e) is not None and _in_row(e, inputs, name)]
        row.sort(key=lambda e: e.offset)
        labels = [
            (label.time, label.given, 1 if label.fraud else -1)
            for label in inputs.changes[name].get(owner, [])
            if label.offset < applied[name][label.source] and not only and view.of is None
        ]
        most_old = max(len(row) - limit, 0)
        if not most_old and len(labels) <= limit:
            return None
        old = [i < most_old or (not own and most_old > 0) for i in range(len(row))]
        return LongRow(
            event.time, [e.time for e in row], [value(e) for e in row], old, most_old, value(event), labels,
            old_labels=len(labels) > limit, panes_dropped=late, order_known=own,
        )  # fmt: skip

    return row_of


def _in_row(e: Event, inputs: FeatureInputs, name: str) -> bool:
    """Whether `e` is in the row of entity `name` that the event sees.

    For the partition entity, the order of the log decides; for others, the applied offsets and the micro-batch.
    """
    event = inputs.event
    if e.source == event.source and e.offset >= event.offset:
        return False
    if name == inputs.checked.spec.partition_entity:
        return e.offset < event.offset
    return e.offset < inputs.applied[name][e.source] or (e.source.partition, e.offset) in inputs.earlier


def _log(world: World) -> tuple[list[Event], list[LabelChange]]:
    """Transactions and labels of the broker."""
    records = (
        (source, offset, entry.value or b"")
        for source in world.broker.inputs
        for offset, entry in enumerate(world.broker.log[source])
        if not entry.control
    )
    return read_log(world.parts.checked, records)


def read_log(
    checked: CheckedSpec, records: Iterable[tuple[SourcePartition, int, bytes]]
) -> tuple[list[Event], list[LabelChange]]:
    """Transactions and changes of labels from `records`, which are valid and in the order of offsets per partition.

    An id that is among the customer's newest transactions, as many as count exactly, is a duplicate.
    """
    document = msgspec.json.Decoder().decode
    entities = checked.spec.entities
    events, labels = [], []
    known: dict[tuple[SourcePartition, str], deque[str]] = {}
    changed: dict[tuple[SourcePartition, str], tuple[bool, int, int]] = {}
    for source, offset, value in records:
        record = document(value)
        entity = {name: record.get(e.field) for name, e in entities.items()}
        if source.topic == TOPICS.labels:
            # A label that repeats what is known changes nothing. One that reverses another does so at the other's time,
            # and not before it.
            was, time, since = changed.get((source, record["event_id"]), (False, 0, 0))
            fraud = record["label"] == "fraud"
            if fraud != was:
                time, since = time if was else record["event_time"], max(since, record["labelled_at"])
                changed[source, record["event_id"]] = fraud, time, since
                labels.append(LabelChange(source, offset, record["event_id"], time, since, fraud, entity))
            continue
        newest = known.setdefault((source, record["customer_id"]), deque(maxlen=checked.spec.limits.row_entries))
        duplicate = record["event_id"] in newest
        events.append(
            Event(
                source, offset, record["event_id"], record["event_time"], record["amount"], entity, record["channel"],
                duplicate,
            )
        )  # fmt: skip
        newest.extend([] if duplicate else [record["event_id"]])
    return events, labels


def _published(world: World, topic: str, kind: type[Any]) -> list[tuple[int, Any]]:
    decode = msgspec.json.Decoder(kind).decode
    out = []
    for partition in range(PARTITIONS):
        entries = world.broker.read_committed(SourcePartition(topic, partition), 0, 1 << 40)
        out += [(entry.transaction, decode(entry.value or b"")) for _, entry in entries]
    return out


def _lineage(world: World) -> list[tuple[int, LineageRow]]:
    out = []
    for partition in range(PARTITIONS):
        for _, entry in world.broker.read_committed(SourcePartition(TOPICS.lineage, partition), 0, 1 << 40):
            out += [(entry.transaction, row) for row in LineageBatch(entry.value or b"").rows()]
    return out


def _verify_rows(world: World, verdict: Verdict, events: list[Event], labels: list[LabelChange]) -> None:
    """The transactions and the changes of labels in every row: exactly, or as panes of the log, if it is compacted."""
    wanted: dict[bytes, tuple[Counter[tuple[int, int]], Counter[tuple[int, int]]]] = {}
    plans = world.parts.engine.plan.entities
    for index, plan in enumerate(plans):
        name, of = plan.name, plan.of
        for e in events:
            counts = e.entity[name] is not None and not e.duplicate and (e.channel == _ONLY or not plan.where)
            if counts and (of is None or _field(e, of) is not None):
                key = f"{index}:{e.entity[name]}".encode()
                # Rows of another field hold a hash of it, which the features themselves show to be right.
                wanted.setdefault(key, (Counter(), Counter()))[0][e.time, e.amount if of is None else 0] += 1
        for label in labels if plan.takes_labels else ():
            if label.entity[name] is not None:
                key = f"{index}:{label.entity[name]}".encode()
                wanted.setdefault(key, (Counter(), Counter()))[1][label.time, 1 if label.fraud else -1] += 1
    rows, newest = world.rows, max(e.time for e in events)
    verdict.rows = len(rows.keys() | wanted.keys())
    for key in rows.keys() | wanted.keys():
        plan = plans[int(key.partition(b":")[0])]
        entries = unpack(rows.get(key, b"")).copy()
        if plan.of is not None:
            entries[int(is_compacted(entries)) :, VALUE] = 0
        transactions, changes = wanted.get(key, (Counter(), Counter()))
        if is_compacted(entries):
            verdict.rows_compacted += 1
            limit = world.parts.checked.spec.limits.row_entries
            unlike = compacted_row_differs(entries, plan, (transactions, changes), limit, newest)
        else:
            held = Counter((t, v) for t, v, _, kind in entries.tolist() if kind == TRANSACTION)
            given = Counter((t, v) for t, v, _, kind in entries.tolist() if kind > TRANSACTION)
            unlike = "" if (held, given) == (transactions, changes) else f"{len(entries)} entries"
        if unlike:
            verdict.rows_different += 1
            verdict.example = verdict.example or f"row {key!r}: {unlike}"


def features_of(inputs: FeatureInputs) -> list[float | None]:
    """The view features of an event from the log, the applied offsets and its batch alone; see docs/features.md."""
    checked, event = inputs.checked, inputs.event
    seen: dict[str, tuple[list[Event], list[LabelChange]]] = {}
    for name, owner in event.entity.items():
        if owner is None:
            continue
        seen[name] = (
            [
                e
                for e in inputs.events[name][owner]
                if not e.duplicate and e.time <= event.time and _in_row(e, inputs, name)
            ],
            [
                label
                for label in inputs.changes[name].get(owner, [])
                if label.offset < inputs.applied[name][label.source] and label.given <= event.time
            ],
        )
    out: list[float | None] = []
    horizons: dict[tuple[str, bool], int] = {}
    for feature in checked.view_features:
        long = feature.window_ms + feature.delay_ms if feature.window_ms else 0
        rows = feature.view.entity, bool(feature.view.where)
        horizons[rows] = max(horizons.get(rows, 0), long)
    for feature in checked.view_features:
        name = feature.view.entity
        if name not in seen:
            out.append(None)
            continue
        only = bool(feature.view.where)
        horizon = horizons[name, only] or duration_ms("30d")
        before, known = seen[name]
        before = [e for e in before if e.time > event.time - horizon and (e.channel == _ONLY or not only)]
        kind = feature.aggregate
        if kind == "is_new":
            out.append(float(not before))
            continue
        if kind == "since_last":
            out.append((event.time - max(e.time for e in before)) / 1_000.0 if before else None)
            continue
        high = event.time - feature.delay_ms
        low = high - feature.window_ms
        amounts = [e.amount for e in before if low < e.time <= high]
        others = {_field(e, feature.view.of) for e in before if low < e.time <= high}
        counts = not event.duplicate and (event.channel == _ONLY or not only)
        if feature.view.current == "include" and not feature.delay_ms and counts:
            amounts.append(event.amount)
            others.add(_field(event, feature.view.of))
        verdicts = {label.event_id: label.fraud for label in known if low < label.time <= high}
        frauds = sum(verdicts.values())
        count = len(amounts)
        values: dict[str, Callable[[], float | None]] = {
            "count": lambda n=count: float(n),
            "sum": lambda a=amounts: float(sum(a)),
            "mean": lambda a=amounts: sum(a) / len(a) if a else None,
            "min": lambda a=amounts: float(min(a)) if a else None,
            "max": lambda a=amounts: float(max(a)) if a else None,
            "std": lambda a=amounts: float(statistics.pstdev(a)) if a else None,
            "distinct": lambda o=others: float(len(o - {None})),
            "label_count": lambda f=frauds: float(f),
            "label_rate": lambda f=frauds, n=count: f / n if n else 0.0,
        }
        out.append(values[kind]())
    return out


def _field(event: Event, name: str | None) -> str | None:
    """The value of a field of the cards spec that a view counts distinct values of."""
    return event.channel if name == "channel" else event.entity.get((name or "").removesuffix("_id"))


def run_until_done(world: World, name: str, rng: random.Random, life_of: Callable[[], Failpoints]) -> None:
    """Scorers of one name, each started when the last one died, until the input is drained. Other errors are raised."""
    from tests.support.failpoints import Crash

    for _ in itertools.count():
        life = life_of()
        try:
            world.scorer(name, life, rng).run(world.stop, beat=lambda: None)
            return
        except Crash:
            continue
        except StreamScorerError as error:
            raise AssertionError(f"{name}: {error.message}") from error
