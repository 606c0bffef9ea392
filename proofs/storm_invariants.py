"""What must hold after a storm, computed from the topics: outputs, order, features, rows, control, windows, scores."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
from confluent_kafka import Consumer, KafkaException, TopicPartition

from proofs.control_race import Answer, Books
from proofs.kit import ROOT, TopicContent, log_ends, read_lineage, read_topic, recomputes_all, wait_until
from proofs.memory_run import Event, FeatureInputs, LabelChange, ahead_of, differences, features_of, long_rows, read_log
from proofs.monitor_recompute import Logs, SubjectKey, recompute_all, verdicts, wrong_figures
from proofs.storm_traffic import BAD
from proofs.storm_world import ABSENT, VERSIONS, WINDOWS, World
from stream_scorer.ensemble.manifest import manifest_digest, read_manifest
from stream_scorer.ensemble.registry import local_version
from stream_scorer.kafka.config import consumer_config
from stream_scorer.kafka.topics import Topics
from stream_scorer.positions import SourcePartition
from stream_scorer.records import (
    FEATURES_PARTIAL,
    FEATURES_STALE,
    MISSING,
    PARTIAL,
    Alert,
    Contribution,
    LineageRow,
    MonitorMetric,
    Outcome,
    Score,
    ScoreSummary,
    ServingState,
)
from stream_scorer.spec.model import duration_ms

# Scores per second of the schedule whose features are recomputed in plain Python, about 2 ms each; at most a sixth of
# them are of the rounds after the faults.
COMPARED_PER_S = 40
_EXAMPLES = 3
_COMMAND_S = 300


@dataclass(slots=True)
class Findings:
    """What was checked, and what was wrong."""

    counts: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    def require(self, holds: bool, what: str) -> None:
        """Note a violation unless it holds."""
        if not holds:
            self.violations.append(what)


class OutputWatch:
    """Follows `contributions` during a run: in each partition source offsets ascend, so none comes twice."""

    def __init__(self, bootstrap: str, partitions: int) -> None:
        self._consumer = Consumer(consumer_config(bootstrap, "storm-watch", "storm-watch"))
        self._consumer.assign([TopicPartition(Topics().contributions, p, 0) for p in range(partitions)])
        self._last: dict[int, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self.seen = 0
        self.violations: list[str] = []
        self._thread.start()

    def close(self) -> None:
        """End it."""
        self._stop.set()
        self._thread.join(30)
        self._consumer.close()

    def _run(self) -> None:
        decode = msgspec.json.Decoder(Contribution).decode
        while not self._stop.is_set():
            messages = []
            with suppress(KafkaException):
                messages = self._consumer.consume(5_000, 0.5)
            for message in messages:
                if message.error() is None:
                    self._see(message.partition(), decode(message.value() or b"").source.offset)

    def _see(self, partition: int, offset: int) -> None:
        self.seen += 1
        if offset <= self._last.get(partition, -1):
            self.violations.append(f"order: offset {offset} follows {self._last[partition]} of partition {partition}")
        self._last[partition] = max(offset, self._last.get(partition, -1))


@dataclass(slots=True)
class Published:
    """The content of all topics, in the order of partition and offset."""

    transactions: TopicContent
    labels: TopicContent
    dead: TopicContent
    scores: list[Score]
    contributions: list[Contribution]
    lineage: list[LineageRow]
    places: list[int]
    alerts: list[Alert]
    review_sample: list[Alert]
    summaries: list[ScoreSummary]

    @classmethod
    def read(cls, bootstrap: str) -> Published:
        """Read everything."""
        topics = Topics()
        contributions = read_topic(bootstrap, topics.contributions)
        return cls(
            read_topic(bootstrap, topics.transactions),
            read_topic(bootstrap, topics.labels),
            read_topic(bootstrap, topics.dead_letters),
            read_topic(bootstrap, topics.scores).decode(Score),
            contributions.decode(Contribution),
            read_lineage(bootstrap, topics),
            contributions.partition,
            read_topic(bootstrap, topics.alerts).decode(Alert),
            read_topic(bootstrap, topics.review_sample).decode(Alert),
            read_topic(bootstrap, topics.score_summaries).decode(ScoreSummary),
        )


def check_outputs(found: Findings, published: Published) -> None:
    """One output per input, in the order of the inputs."""
    topics = Topics()
    good, bad = _coordinates(published.transactions, topics.transactions)
    good_labels, bad_labels = _coordinates(published.labels, topics.labels)
    scored = Counter((topics.transactions, c.source.partition, c.source.offset) for c in published.contributions)
    dead = Counter(_source(headers) for headers in published.dead.headers)
    found.counts.update(
        transactions=len(good) + len(bad),
        labels=len(good_labels) + len(bad_labels),
        scores=len(published.scores),
        dead_letters=len(published.dead),
    )
    for name, outputs, wanted in (("scores", scored, good), ("dead letters", dead, bad | bad_labels)):
        _compare(found, name, outputs, wanted)
    same = [s.event_id for s in published.scores] == [c.event_id for c in published.contributions]
    rows = [(row.event_id, row.source) for row in published.lineage]
    same = same and rows == [(c.event_id, c.source) for c in published.contributions]
    found.require(same, "outputs: scores, contributions and lineage have different events or another order")
    alerted = [s.event_id for s in published.scores if s.decision != "approve"]
    found.require([a.event_id for a in published.alerts] == alerted, "outputs: alerts do not follow from the scores")
    drawn = [s.event_id for s in published.scores if s.review_propensity is not msgspec.UNSET]
    same = [a.event_id for a in published.review_sample] == drawn
    found.require(same, "outputs: the review sample does not follow from the scores")
    summed = Counter[tuple[str, str]]()
    for summary in published.summaries:
        summed[summary.version, summary.arm] += sum(pane.rows for pane in summary.panes)
    decided = Counter((s.version, s.arm) for s in published.scores)
    found.require(summed == decided, f"outputs: summaries have other rows than scores: {summed - decided}")
    places = [(place, c.source.partition, c.source.offset) for place, c in _placed(published)]
    found.require(places == sorted(places), "order: scores are not in the order of their inputs")
    found.require(all(a == b for a, b, _ in places), "order: a score is on another partition than its input")
    sources = list(map(_source, published.dead.headers))
    by_partition = [
        [source for source in sources if source[:2] == (topic, partition)]
        for topic, partition in {source[:2] for source in sources}
    ]
    found.require(all(p == sorted(p) for p in by_partition), "order: dead letters are not in the order of their inputs")


def _placed(published: Published) -> Iterator[tuple[int, Contribution]]:
    return zip(published.places, published.contributions, strict=True)


def _coordinates(content: TopicContent, topic: str) -> tuple[set[Any], set[Any]]:
    """Places of the good and of the bad records."""
    good, bad = set(), set()
    for partition, offset, key in zip(content.partition, content.offset, content.key, strict=True):
        (bad if (key or b"").startswith(BAD) else good).add((topic, partition, offset))
    return good, bad


def _source(headers: dict[str, bytes | None]) -> tuple[str, int, int]:
    return (
        (headers["source.topic"] or b"").decode(),
        int(headers["source.partition"] or b"-1"),
        int(headers["source.offset"] or b"-1"),
    )


def _compare(found: Findings, name: str, outputs: Counter[Any], wanted: set[Any]) -> None:
    lost, strange = wanted - outputs.keys(), outputs.keys() - wanted
    doubled = [place for place, count in outputs.items() if count > 1]
    for what, places in (("lost", lost), ("doubled", doubled), ("of other inputs", strange)):
        found.require(not places, f"outputs: {len(places)} {name} {what}, such as {sorted(places)[:_EXAMPLES]}")


def check_features(found: Findings, world: World, published: Published, first_round: str, last_round: str) -> None:
    """Features of scores that are not degraded equal a recomputation from the log up to their applied offsets.

    Scores with ids that begin with `first_round` or `last_round` were made when everything was healed; those of the
    last round must have features. All others count as those in faults.
    """
    events, labels = _log(world, published)
    by_place = {(e.source.partition, e.offset): e for e in events}
    names = [f.name for f in world.parts.checked.view_features]
    whole: list[tuple[Score, LineageRow]] = []
    healed: list[tuple[Score, LineageRow]] = []
    for score, row in zip(published.scores, published.lineage, strict=True):
        missing = sum(status == MISSING for status in row.feature_status[: len(names)])
        in_faults = not score.event_id.startswith((first_round, last_round))
        found.counts["scores_in_faults"] += in_faults
        if _lacks_features(score):
            found.counts["degraded"] += 1
            found.require(
                missing == len(names), f"features: {score.event_id} has features and degraded={score.degraded}"
            )
            late = score.event_id.startswith(last_round)
            found.require(not late, f"features: {score.event_id} lacks them after the end of all faults")
            continue
        found.require(missing == 0, f"features: {score.event_id} lacks features and is not marked as degraded")
        event = by_place[row.source.partition, row.source.offset]
        right = score.duplicate == event.duplicate
        found.require(right, f"features: {score.event_id} at {row.source} has duplicate={score.duplicate}")
        (whole if in_faults else healed).append((score, row))
    found.counts["with_features_in_faults"] += len(whole)
    most, rng = int(COMPARED_PER_S * world.seconds), random.Random(0)
    healed = rng.sample(healed, min(most // 6, len(healed)))
    whole = rng.sample(whole, min(most - len(healed), len(whole)))
    compare = _Comparison(found, world, (events, labels), by_place, _batches(published))
    found.counts["scores_compared"] += len(whole) + len(healed)
    found.counts["feature_values_compared"] += compare.scores(whole)
    found.counts["feature_values_compared_after_faults"] += compare.scores(healed)


def _lacks_features(score: Score) -> bool:
    reasons = set(score.degraded) - {FEATURES_STALE, FEATURES_PARTIAL}
    return any(reason.startswith("features") for reason in reasons)


def _log(world: World, published: Published) -> tuple[list[Event], list[LabelChange]]:
    topics = Topics()
    records = [
        (SourcePartition(topic, partition), offset, value or b"")
        for topic, content in ((topics.transactions, published.transactions), (topics.labels, published.labels))
        for partition, offset, key, value in zip(
            content.partition, content.offset, content.key, content.value, strict=True
        )
        if not (key or b"").startswith(BAD)
    ]
    return read_log(world.parts.checked, records)


def _batches(published: Published) -> dict[tuple[int, int], list[LineageRow]]:
    """The rows of each micro-batch, by place of its rows; batches that cannot be distinguished are left out.

    The rows of a batch share applied offsets and the time of scoring.
    """
    found: dict[tuple[Any, int], list[LineageRow]] = {}
    vectors: dict[int, tuple[Any, ...]] = {}
    for score, row in zip(published.scores, published.lineage, strict=True):
        vector = vectors.get(id(row.applied_offsets))
        if vector is None:
            vector = tuple((a.topic, a.partition, a.next_offset) for a in row.applied_offsets)
            vectors[id(row.applied_offsets)] = vector
        found.setdefault((vector, score.scored_at), []).append(row)
    out = {}
    for rows in found.values():
        rows.sort(key=lambda row: row.place)
        if [row.place for row in rows] == list(range(len(rows))):
            out.update({(row.source.partition, row.source.offset): rows for row in rows})
    return out


class _Comparison:
    """Compares features with the log."""

    def __init__(
        self,
        found: Findings,
        world: World,
        log: tuple[list[Event], list[LabelChange]],
        by_place: dict[tuple[int, int], Event],
        batches: dict[tuple[int, int], list[LineageRow]],
    ) -> None:
        self._found, self._world, self._by_place, self._batches = found, world, by_place, batches
        entities = world.parts.checked.spec.entities
        self._events: dict[str, dict[str, list[Event]]] = {name: defaultdict(list) for name in entities}
        self._changes: dict[str, dict[str, list[LabelChange]]] = {name: defaultdict(list) for name in entities}
        for name in entities:
            for event in log[0]:
                self._events[name][str(event.entity[name])].append(event)
            for label in log[1]:
                self._changes[name][str(label.entity[name])].append(label)

    def scores(self, chosen: Sequence[tuple[Score, LineageRow]]) -> int:
        """Note where features of `chosen` differ; returns the number of values that were compared."""
        found, names = self._found, [f.name for f in self._world.parts.checked.view_features]
        compared, different = 0, Counter[str]()
        for _, row in chosen:
            batch = self._batches.get((row.source.partition, row.source.offset))
            if batch is None:
                found.counts["scores_of_unclear_batches"] += 1
                continue
            event = self._by_place[row.source.partition, row.source.offset]
            compared += len(names)
            wanted, rows = self._wanted(event, row, batch)
            for place, allowed in differences(self._world.parts.checked, wanted, row.features, rows):
                if allowed:
                    found.counts["feature_values_by_panes"] += 1
                    continue
                name = names[place]
                different[name] += 1
                if len(different) <= _EXAMPLES and different[name] == 1:
                    found.violations.append(
                        f"features: {name} of {event.event_id} at {row.source}: {row.features[place]}, "
                        f"by the log {wanted[place]}"
                    )
        total = different.total()
        found.require(not total, f"features: {total} values differ from the log: {dict(different.most_common(8))}")
        return compared

    def _wanted(self, event: Event, row: LineageRow, batch: list[LineageRow]) -> tuple[list[float | None], Any]:
        """The features by the log, and a call that gives those of `long_rows`."""
        world = self._world
        applied: dict[SourcePartition, int] = defaultdict(int)
        applied |= {SourcePartition(a.topic, a.partition): a.next_offset for a in row.applied_offsets}
        by_entity = {
            name: applied | ahead_of(world.sharding, world.parts.engine, row, name, owner)
            for name, owner in event.entity.items()
        }
        earlier = {(r.source.partition, r.source.offset) for r in batch[: row.place]}
        inputs = FeatureInputs(world.parts.checked, event, by_entity, earlier, self._events, self._changes)
        return features_of(inputs), partial(long_rows, inputs, PARTIAL in row.feature_status)


def check_control(found: Findings, world: World, instance: str, settled: int) -> None:
    """One history: every author got the right answer, and serving states and the scorer's lineup follow from the log.

    The monitor must have ended, so that no command follows.
    """
    topics = Topics()
    raw = read_topic(world.bootstrap, topics.control)
    status = _wait_status(world, instance, settled)
    unloadable = frozenset({ABSENT.version, world.operator.versions[VERSIONS + 1].version})
    books, pages, right = Books(unloadable=unloadable), {}, {}
    for offset, value in zip(raw.offset, raw.value, strict=True):
        right[offset] = books.enter(offset, msgspec.json.decode(value or b""))
        pages[books.offset] = msgspec.json.encode(_page(books))
    found.counts["commands"] = len(raw)
    found.counts["commands_that_count"] = sum(right.values())
    check_answers(found, world.operator.answers)
    wrong = [a for a in world.operator.answers if right.get(a.offset) != a.counts]
    found.require(not wrong, f"control: authors got answers that do not follow from the log: {wrong[:_EXAMPLES]}")
    states = read_topic(world.bootstrap, topics.serving_state).decode(ServingState)
    strange = [s for s in states if pages.get(s.control_offset) != msgspec.json.encode(_page(Books.of(s)))]
    found.counts["serving_states"] = len(states)
    found.require(not strange, f"control: a serving state does not follow from the log: {strange[:1]}")
    last = states[-1].control_offset if states else -1
    found.require(last == books.offset, f"control: the last serving state is of {last}, the log's of {books.offset}")
    found.require(
        status.get("in_play") == books.in_play() and status.get("wanted_offset", -1) >= settled,
        f"control: the scorer has {status.get('in_play')} in play, the log asks for {books.in_play()}",
    )


def _wait_status(world: World, instance: str, settled: int) -> dict[str, Any]:
    """The scorer's newest status; waits for one that is newer than now."""
    status: dict[str, Any] = {}
    now = time.time_ns() // 1_000_000

    def newest() -> bool:
        content = read_topic(world.bootstrap, Topics().scorer_status)
        mine = [v for k, v in zip(content.key, content.value, strict=True) if k == instance.encode() and v]
        status.update(msgspec.json.decode(mine[-1]) if mine else {})
        return bool(status.get("at", 0) > now + 1_000 and status["wanted_offset"] >= settled)

    wait_until("the scorer reports its lineup", newest, 60, 1.0)
    return status


def _page(books: Books) -> dict[str, Any]:
    """What two books must have in common."""
    names = ("champion", "last_good", "probation", "canary", "shadows", "withdrawn", "retired", "held", "offset")
    return {name: getattr(books, name) for name in names} | {"disabled": sorted(books.disabled)}


def expected_windows(world: World) -> dict[SubjectKey, Any]:
    """Every figure of every window, by version and arm, recomputed from the topics."""
    # Without a registry, the monitor has the profile of the version that it was started with only.
    first = local_version(manifest_digest(read_manifest(world.ensemble)))
    manifests = {p.name: json.loads((p / "manifest.json").read_text()) for p in (world.cache / "ensembles").iterdir()}
    logs = Logs.read(world.bootstrap, Topics(), next(iter(manifests.values())), world.parts.checked.spec, BAD)
    return recompute_all(logs, manifests, WINDOWS, first)


def compare_windows(world: World, expected: dict[SubjectKey, Any]) -> dict[str, list[str]]:
    """Figures that differ from `expected`, by metric, with what the monitor published last."""
    records = read_topic(world.bootstrap, Topics().monitor_metrics).decode(MonitorMetric)
    return wrong_figures(expected, records, duration_ms(world.parts.checked.spec.labels.horizon))


def explain_windows(world: World, expected: dict[SubjectKey, Any]) -> list[str]:
    """Where counts differ: what committed and aborted summaries have, by version, arm and pane."""
    pane_ms = duration_ms(world.parts.checked.spec.monitor.pane)
    wanted = {
        (version, arm, key[0]): row[0]
        for (_, version, arm, key), row in expected.items()
        if key[1:3] == (pane_ms, "transactions")
    }
    topic, out = Topics().score_summaries, []
    committed, written = read_topic(world.bootstrap, topic), read_topic(world.bootstrap, topic, uncommitted=True)
    places = set(zip(committed.partition, committed.offset, strict=True))
    rows: Counter[tuple[str, str, int]] = Counter()
    aborted: dict[tuple[str, str, int], list[str]] = {}
    for partition, offset, summary in zip(written.partition, written.offset, written.decode(ScoreSummary), strict=True):
        for pane in summary.panes:
            key = summary.version, summary.arm, pane.pane
            if (partition, offset) in places:
                rows[key] += pane.rows
            else:
                aborted.setdefault(key, []).append(f"{pane.rows} rows at {partition}@{offset}")
    for key in sorted(wanted.keys() | rows.keys()):
        if rows[key] != wanted.get(key, 0):
            out.append(f"summaries of {key} have {rows[key]} rows, scores {wanted.get(key, 0)}")
    head = world.redis.client().hgetall(next(iter(world.redis.client().scan_iter(match="*:head", count=10_000)), "x"))
    applied = {name.decode(): int(at) for name, at in head.items() if name.startswith(b"m:")}
    ends = log_ends(world.bootstrap, [topic, Topics().outcomes])
    return [*out, *_explain_labels(world), f"aborted: {aborted}", f"ends: {ends}", f"applied: {applied}"]


def _explain_labels(world: World) -> list[str]:
    """Events whose outcomes do not lead to the label that holds by the log, with all that the topics have of them."""
    topics, labels_of = Topics(), world.parts.checked.spec.labels
    scores = read_topic(world.bootstrap, topics.scores)
    decoded, labels = scores.decode(Score), read_topic(world.bootstrap, topics.labels)
    holds = verdicts(decoded, labels, labels_of.source_rank, 2 * duration_ms(labels_of.horizon), BAD).verdict
    outcomes, committed = read_topic(world.bootstrap, topics.outcomes, uncommitted=True), set[tuple[int, int]]()
    content = read_topic(world.bootstrap, topics.outcomes)
    committed.update(zip(content.partition, content.offset, strict=True))
    published: dict[str, list[str]] = defaultdict(list)
    last: dict[str, tuple[str | None, bool]] = {}
    for partition, offset, outcome in zip(outcomes.partition, outcomes.offset, outcomes.decode(Outcome), strict=True):
        known = (partition, offset) in committed
        published[outcome.event_id].append(
            f"outcomes[{partition}]@{offset}{'' if known else ' aborted'}: {outcome.previous_label} to {outcome.label}"
        )
        if known:
            before, follows = last.get(outcome.event_id, (None, True))
            last[outcome.event_id] = outcome.label, follows and outcome.previous_label == before
    out, seen = [], set[str]()
    for row, score in enumerate(decoded):
        if score.duplicate or score.event_id in seen:
            continue
        seen.add(score.event_id)
        wanted = None if holds[row] < 0 else ("genuine", "fraud")[holds[row]]
        if last.get(score.event_id, (None, True)) != (wanted, True) and len(out) < _EXAMPLES:
            given = [
                f"labels[{p}]@{o}: {(v or b'').decode()}"
                for p, o, v in zip(labels.partition, labels.offset, labels.value, strict=True)
                if score.event_id.encode() in (v or b"")
            ]
            at = [
                f"scores[{scores.partition[i]}]@{scores.offset[i]} duplicate={other.duplicate} {other.version}"
                for i, other in enumerate(decoded)
                if other.event_id == score.event_id
            ]
            out.append(f"{score.event_id} is {wanted} by the log: {given}; {at}; {published[score.event_id]}")
    return out


def check_commands(found: Findings, world: World) -> None:
    """`features check` and `verify` find nothing; the scorers have ended."""
    done = _run(
        "features", "check", "--json", "--redis", world.redis.url, *world.shards, "--spec", str(world.spec), world=world
    )
    report = json.loads(done.stdout) if done.stdout.strip() else {}
    found.counts["rows"] = report.get("rows", 0)
    shown = "; ".join(report.get("examples", [])[:_EXAMPLES]) or done.stderr.strip()[-300:]
    found.require(done.returncode == 0, f"rows: features check exits with {done.returncode}: {shown}")
    more = ("--tolerance", "0", "--cache", str(world.cache), "--ensemble", str(world.ensemble))
    done = _run("verify", "--json", *more, world=world)
    report = json.loads(done.stdout) if done.stdout.strip() else {}
    found.counts["scores_verified"] = report.get("scores", 0)
    shown = str(report.get("by_what") or done.stderr.strip()[-300:])
    found.require(done.returncode == 0, f"verify exits with {done.returncode}: {shown}")
    if done.returncode == 0:
        scores = found.counts["scores"]
        found.require(recomputes_all(report, scores), f"verify recomputes other scores than all {scores}: {report}")


def _run(*arguments: str, world: World) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stream_scorer.cli.main", *arguments, "--bootstrap", world.bootstrap]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=_COMMAND_S, check=False)


def check_answers(found: Findings, answers: list[Answer]) -> None:
    """No two commands got the same offset in the log."""
    found.require(len({a.offset for a in answers}) == len(answers), "control: two commands got the same offset")
