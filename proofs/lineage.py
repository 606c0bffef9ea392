"""lineage: bytes and CPU of contributions and lineage, compared with the old record; verify and explain work with them.

On real parts at four partitions: `N` transactions are scored; bytes per transaction (key, value and headers, before
Kafka's own compression) are counted on every output topic, and the old contribution record of the same transactions is
encoded to count what it took. `verify` computes all scores again and `explain` explains some by event id, both through
`lineage`; their times are figures.

In memory, through the real stages with a sink that counts, because 500 partitions are too much for a broker on two
cores: a scorer that owns four partitions, of 4 and of 500 (the positions of all 500 go into its features). Old and new
publishing take turns on the same micro-batches, and the ratio of their CPU times decides. A scorer that owns all of 500
partitions is measured too and does not decide: its micro-batches leave two to four rows for each lineage record and
each summary.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np

from proofs.fat_publisher import FatWriter, fat_record
from proofs.kit import (
    ROOT,
    Context,
    Result,
    Scorer,
    TopicContent,
    cards,
    load_ensemble,
    publish,
    read_lineage,
    read_topic,
    recomputes_all,
    services,
    train_cards,
    wait_drained,
)
from stream_scorer.clock import SystemClock
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.ensemble.lineup import Lineup
from stream_scorer.features.engine import FeatureEngine
from stream_scorer.kafka.partitioner import partitions_of
from stream_scorer.kafka.topics import Topics
from stream_scorer.observability.metrics import Metrics
from stream_scorer.pipeline.batch import MicroBatch
from stream_scorer.pipeline.decode import Decode
from stream_scorer.pipeline.enrich import EnrichInProcess
from stream_scorer.pipeline.publish import OutputWriter
from stream_scorer.pipeline.score import Scoring
from stream_scorer.positions import SourcePartition, Span
from stream_scorer.records import Contribution, LineageRow, Score
from stream_scorer.serde.lineage import LineageBatch
from stream_scorer.serde.raw import RawRecords
from stream_scorer.simulate.config import SimulationConfig
from stream_scorer.simulate.encode import encode_keys, encode_values
from stream_scorer.simulate.generate import generate
from stream_scorer.stack import StackAddresses
from stream_scorer.state.rows import AppliedOffsets, MemoryRowStore

N = 100_000
BATCH = 1_024
# Micro-batches measured in memory, and how often each writer takes its turn.
BATCHES, SMALL_BATCHES, TURNS = 24, 6, 9
FEW, MANY = 4, 500
MOST_BYTES, MOST_OF_BEFORE, MOST_GROWTH = 600, 0.60, 1.05
TOPICS = Topics()
OUTPUTS = [TOPICS.scores, TOPICS.contributions, TOPICS.lineage, TOPICS.alerts, TOPICS.score_summaries]
EXPLAINED = 3


def run(context: Context) -> Result:
    """See the module. `n` transactions on real parts."""
    n = context.n or N
    result = Result()
    train_cards(context.folder, seed=context.seed, transactions=30_000)
    _in_memory(context, result, BATCHES if n >= N else SMALL_BATCHES)
    _on_real_parts(context, result, n)
    return result


class _Counted:
    """A `Sink` that counts bytes by topic and keeps contributions and lineage."""

    def __init__(self) -> None:
        self.bytes: Counter[str] = Counter()
        self.contributions: list[bytes] = []
        self.lineage: list[bytes] = []

    def produce(self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: Any = None) -> None:
        """See `Sink.produce`."""
        self.bytes[topic] += _size(key, value, headers)
        if topic == TOPICS.contributions:
            self.contributions.append(value or b"")
        elif topic == TOPICS.lineage:
            self.lineage.append(value or b"")


class Nowhere:
    """A sink that drops everything."""

    def produce(self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: Any = None) -> None:
        """See `Sink.produce`."""


def _size(key: bytes | None, value: bytes | None, headers: Any) -> int:
    return len(key or b"") + len(value or b"") + sum(len(name) + len(v or b"") for name, v in headers or ())


def _in_memory(context: Context, result: Result, batches: int) -> None:
    ensemble = load_ensemble(context.folder)
    kind = FatWriter if context.broken else OutputWriter
    totals: dict[str, float] = {}
    cases = [("4", FEW, FEW), ("500", FEW, MANY)]
    if batches == BATCHES:
        cases += [("500 owned by one scorer", MANY, MANY)]
    for name, owned, partitions in cases:
        made = scored_batches(context.seed, ensemble, batches, owned, partitions)
        rows = sum(len(batch) for batch in made)
        sink = _Counted()
        for batch in made:
            kind(TOPICS, cards(), SystemClock()).write(batch, sink)
        after = {topic: sink.bytes[topic] / rows for topic in OUTPUTS}
        before = after | {TOPICS.lineage: 0.0, TOPICS.contributions: _fat_bytes(made, rows)}
        totals[name] = sum(after.values())
        old, new = _publish_us(made, kind, rows, TURNS if batches == BATCHES else 1)
        result.figures[f"in memory, partitions: {name}"] = {
            "bytes_before": _rounded(before), "bytes_after": _rounded(after),
            "rows_per_lineage_record": round(rows / max(len(sink.lineage), 1), 1),
            "of_before": round(totals[name] / sum(before.values()), 4),
            "publish_us_before": round(median(old), 2), "publish_us_after": round(median(new), 2),
            "publish_times_before": round(median(b / a for a, b in zip(old, new, strict=True)), 3),
        }  # fmt: skip
        context.say(f"partitions {name}: {sum(before.values()):,.0f} bytes before, {totals[name]:,.0f} after")
        if name == "500 owned by one scorer":
            continue
        what = f"{name} partitions"
        result.check(f"{what}: contributions <= {MOST_BYTES} bytes", after[TOPICS.contributions] <= MOST_BYTES)
        result.check(f"{what}: outputs <= 60 % of before", totals[name] <= MOST_OF_BEFORE * sum(before.values()))
        faster = median(b / a for a, b in zip(old, new, strict=True)) < 1
        if batches == BATCHES:  # on a small scale, and a busy machine, the ratio means little
            result.check(f"{what}: publishing takes less CPU than before", faster)
    growth = totals["500"] / totals["4"]
    result.figures["growth_at_500"] = round(growth, 4)
    result.check("outputs grow by less than 5 % at 500 partitions", growth < MOST_GROWTH)


def scored_batches(
    seed: int, ensemble: Ensemble, batches: int, owned: int, partitions: int, customers: int | None = None
) -> list[MicroBatch]:
    """Scored micro-batches of a scorer that owns `owned` of `partitions`, all with positions and some history.

    The more `customers`, the shorter the range of event time.
    """
    checked, n = cards(), batches * BATCH
    now = SystemClock().now_ms()
    config = SimulationConfig(seed=seed, customers=customers or max(n // 40, 500), days=None, transactions=n)
    made = generate(config.starting(config.start_to_end_by(now)))
    keys, values = encode_keys(made.customer_id), encode_values(made)
    partition = partitions_of(keys, owned).astype(np.int32)
    first = np.random.default_rng(seed).integers(2_000_000, 9_000_000, partitions)
    offset = np.zeros(n, np.int64)
    for one in range(owned):
        mine = np.flatnonzero(partition == one)
        offset[mine] = first[one] + np.arange(len(mine))
    sources = [SourcePartition(topic, p) for topic in (TOPICS.transactions, TOPICS.labels) for p in range(partitions)]
    applied = {source: int(first[source.partition]) for source in sources}
    watermarks = dict.fromkeys(sources, 0)
    store = MemoryRowStore(AppliedOffsets(applied, watermarks))
    lineup = Lineup.of(ensemble)
    stages = [Decode(checked), EnrichInProcess(FeatureEngine(checked), store),
              Scoring(lambda: lineup, checked, Metrics())]  # fmt: skip
    out = []
    for low in range(0, n, BATCH):
        rows = slice(low, low + BATCH)
        # No partition lags, and no transaction is late: every record would note it.
        watermarks |= dict.fromkeys(sources, int(made.event_time[low]))
        raw = RawRecords(
            TOPICS.transactions, partition[rows], offset[rows], np.full(BATCH, now), keys[rows], values[rows],
            [None] * BATCH,
        )  # fmt: skip
        spans = [
            Span(SourcePartition(raw.topic, p), int(o[0]), int(o[-1]) + 1, -1)
            for p in np.unique(raw.partition).tolist()
            if len(o := raw.offset[raw.partition == p])
        ]
        batch = MicroBatch(raw, RawRecords.empty(TOPICS.labels), spans, None)
        for stage in stages:
            stage.process(batch)  # type: ignore[attr-defined]
        assert batch.enriched is not None
        # The store moves its offsets in place: each batch keeps those that it saw.
        seen = batch.enriched.applied
        batch.enriched.applied = AppliedOffsets(dict(seen.next_offset), dict(seen.watermark))
        store.apply(batch.enriched.update)
        out.append(batch)
    return out


def _fat_bytes(batches: list[MicroBatch], rows: int) -> float:
    sink = _Counted()
    writer = FatWriter(TOPICS, cards(), SystemClock())
    for batch in batches:
        writer.write(batch, sink)
    return sink.bytes[TOPICS.contributions] / rows


def _publish_us(
    batches: list[MicroBatch], kind: type[OutputWriter], rows: int, turns: int
) -> tuple[list[float], list[float]]:
    """CPU of publishing per transaction, as it was and as it is, in turns."""
    writers = FatWriter(TOPICS, cards(), SystemClock()), kind(TOPICS, cards(), SystemClock())
    sink, taken = Nowhere(), ([], [])
    for turn in range(turns + 1):
        for writer, times in zip(writers, taken, strict=True):
            started = time.process_time()
            for batch in batches:
                writer.write(batch, sink)
            if turn:  # the first turn fills caches
                times.append(1e6 * (time.process_time() - started) / rows)
    return taken


def _on_real_parts(context: Context, result: Result, n: int) -> None:
    config = SimulationConfig(seed=context.seed, customers=max(n // 40, 50), days=None, transactions=n)
    made = generate(config.starting(config.start_to_end_by(SystemClock().now_ms())))
    with services("kafka", "redis", partitions=FEW) as (_stack, at):
        bootstrap = str(at.kafka)
        publish(bootstrap, TOPICS.transactions, encode_keys(made.customer_id), encode_values(made))
        sabotage = "bend-contributions" if context.broken else None
        scorer = Scorer(context.folder, at, instance="scorer", ensemble=context.folder / "ensemble", sabotage=sabotage)
        scorer.start()
        try:
            wait_drained(bootstrap, [scorer], timeout_s=180)
            scorer.stop()
        finally:
            scorer.close()
        content = {topic: read_topic(bootstrap, topic) for topic in OUTPUTS}
        contributions = content[TOPICS.contributions].decode(Contribution)
        lineage = read_lineage(bootstrap, TOPICS)
        result.at_least("n", len(contributions), n)
        result.check("a row of lineage for each contribution", [c.source for c in contributions] == [
            row.source for row in lineage
        ])  # fmt: skip
        _check_headers(result, content[TOPICS.lineage])
        _count(context, result, content, contributions, lineage)
        _verify(context, result, at, n)
        _explain(context, result, at, content[TOPICS.scores].decode(Score))


def _check_headers(result: Result, lineage: TopicContent) -> None:
    """A record's headers and key show which inputs it covers, without its value."""
    wrong = 0
    for partition, key, value, headers in zip(
        lineage.partition, lineage.key, lineage.value, lineage.headers, strict=True
    ):
        batch = LineageBatch(value or b"")
        stated = int(headers["source.first_offset"] or b""), int(headers["source.next_offset"] or b"")
        wrong += stated != (batch.offset[0], batch.offset[-1] + 1)
        wrong += key != f"{batch.header.topic}-{batch.partition}".encode() or batch.partition != partition
    result.figures["lineage_records"] = len(lineage)
    result.check("key, partition and headers of every lineage record are right", wrong == 0 and len(lineage) > 0)


def _count(
    context: Context,
    result: Result,
    content: dict[str, TopicContent],
    contributions: list[Contribution],
    lineage: list[LineageRow],
) -> None:
    n = len(contributions)
    after = {
        topic: sum(_size(*record) for record in zip(c.key, c.value, ([*h.items()] for h in c.headers), strict=True)) / n
        for topic, c in content.items()
    }
    keys = sum(len(key or b"") for key in content[TOPICS.contributions].key)
    applied: dict[int, msgspec.Raw] = {}
    fat = 0
    for contribution, row in zip(contributions, lineage, strict=True):
        shared = id(row.applied_offsets)
        if shared not in applied:
            applied[shared] = msgspec.Raw(msgspec.json.encode(row.applied_offsets))
        fat += len(fat_record(contribution, row, applied[shared]))
    before = after | {TOPICS.contributions: (fat + keys) / n, TOPICS.lineage: 0.0}
    share = sum(after.values()) / sum(before.values())
    result.figures["on Kafka, 4 partitions"] = {
        "bytes_before": _rounded(before), "bytes_after": _rounded(after), "of_before": round(share, 4),
    }  # fmt: skip
    context.say(f"on Kafka: {sum(before.values()):,.0f} bytes before, {sum(after.values()):,.0f} after")
    result.check(f"on Kafka: contributions <= {MOST_BYTES} bytes", after[TOPICS.contributions] <= MOST_BYTES)
    if n >= N:  # a short run has small micro-batches
        result.check("on Kafka: outputs <= 60 % of before", share <= MOST_OF_BEFORE)


def _rounded(by_topic: dict[str, float]) -> dict[str, float]:
    return {topic: round(size, 1) for topic, size in by_topic.items()} | {"all": round(sum(by_topic.values()), 1)}


def _command(at: StackAddresses, ensemble: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], float]:
    command = [sys.executable, "-m", "stream_scorer.cli.main", *arguments, "--bootstrap", str(at.kafka)]
    command += ["--ensemble", str(ensemble), "--json"]
    started = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    return done, round(time.monotonic() - started, 1)


def _verify(context: Context, result: Result, at: StackAddresses, n: int) -> None:
    done, seconds = _command(at, context.folder / "ensemble", "verify", "--tolerance", "0")
    report = msgspec.json.decode(done.stdout) if done.stdout else {}
    result.figures |= {"verified": report.get("scores"), "verify_seconds": seconds}
    context.say(f"verify: {report.get('scores'):,} scores in {seconds} s")
    holds = done.returncode == 0 and recomputes_all(report, n)
    result.check("verify computes every score again through lineage, 0 differ", holds)


def _explain(context: Context, result: Result, at: StackAddresses, scores: list[Score]) -> None:
    times = []
    explained = EXPLAINED if len(scores) >= N else 1
    for score in scores[:: max(len(scores) // explained, 1)][:explained]:
        done, seconds = _command(at, context.folder / "ensemble", "explain", score.event_id)
        times.append(seconds)
        output = msgspec.json.decode(done.stdout) if done.returncode == 0 else {}
        found = output.get("lineage", {}).get("event_id") == output.get("score", {}).get("event_id") == score.event_id
        result.check(f"explain finds event {len(times)} through lineage", found)
    result.figures["explain_seconds"] = times
