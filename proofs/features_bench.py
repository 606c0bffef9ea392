"""features-bench: what the feature path costs, by part, and how that grows with rows and with entities.

Two entities, four views of three windows, 256 transactions per micro-batch, one micro-batch in flight, a real Redis.
The proof measures the CPU time of the scorer (reading rows, kernel and overlay, applying) and of Redis, in turns
within one run: the plain case; rows beyond K against rows of K; 2,000,000 customers and as many terminals against
1,000 of each, with rows of the same length. In these two cases no entity occurs twice in a micro-batch, so they read
equally many rows. If 1,000 entities are drawn at random, an eighth occurs twice and fewer rows are read, whatever the
store does; that case is printed as well. Last, all stages of the cards example without Kafka show the share of
features in the whole. Ratios decide; microseconds are printed.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path as FilePath
from statistics import median
from typing import Any

import numpy as np

from proofs.feature_path import BATCH, SOURCE, K, Path, path_spec
from proofs.feature_traffic import Traffic, grow_tables
from proofs.kit import Context, Result, cards, load_ensemble, services, train_cards
from stream_scorer.clock import SystemClock
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.ensemble.lineup import Lineup
from stream_scorer.kafka.topics import Topics
from stream_scorer.observability.metrics import Metrics
from stream_scorer.pipeline.batch import MicroBatch
from stream_scorer.pipeline.decode import Decode
from stream_scorer.pipeline.publish import OutputWriter
from stream_scorer.pipeline.score import Scoring
from stream_scorer.positions import Span
from stream_scorer.serde.raw import RawRecords
from stream_scorer.simulate.config import SimulationConfig
from stream_scorer.simulate.encode import encode_keys, encode_values
from stream_scorer.simulate.generate import generate
from stream_scorer.state.client import connect

# Transactions a turn and kind. Many short turns: what the machine does to one case it does to its neighbour too.
N, TURNS = 10_240, 21
FEW, MANY = 1_000, 2_000_000
MAX_BEYOND_K, MAX_FOR_ENTITIES = 1.5, 1.2
TARGET_US = 20.0


def run(context: Context) -> Result:
    """See the module. `n` transactions a turn."""
    n = context.n or N
    result = Result()
    checked = path_spec()
    rng = np.random.default_rng(context.seed)
    with services("redis") as (_stack, addresses):
        url = str(addresses.redis)
        if context.broken:
            _break()
        # Rows of 30 entries in the longest window; of about K; of four times K.
        plain = Traffic(Path(url, checked, "plain"), rng, entities=500, held=30)
        full = Traffic(Path(url, checked, "full"), rng, entities=150, held=K - 8)
        beyond = Traffic(Path(url, checked, "beyond"), rng, entities=150, held=4 * K)
        few = Traffic(Path(url, checked, "few"), rng, entities=FEW, held=8, apart=True)
        at_random = Traffic(Path(url, checked, "random"), rng, entities=FEW, held=8)
        many = Traffic(Path(url, checked, "many"), rng, entities=MANY, held=8, apart=True)
        context.say(f"putting {2 * MANY:,} rows into Redis")
        for case in (few, at_random, many):
            case.seed()
        grow_tables(connect(url))
        for case in (plain, full, beyond):
            case.fill()
        cases = {"plain": plain, "rows_of_k": full, "rows_beyond_k": beyond}
        cases |= {"few": few, "many": many, "few_at_random": at_random}
        spent: dict[str, list[Counter[str]]] = {name: [] for name in cases}
        for turn in range(TURNS):
            for name, case in cases.items():
                spent[name].append(case.turn(n))
            costs = ", ".join(f"{name} {_whole(each[-1]):.1f}" for name, each in spent.items())
            context.say(f"turn {turn + 1}, us per transaction: {costs}")
        for name, case in cases.items():
            result.figures[name] = _median(spent[name]) | {"entries_a_row": case.row_length()}
        redis = connect(url).info()
        result.figures["redis_megabytes"] = round(redis["used_memory"] / 1e6)
        result.figures["redis_megabytes_on_huge_pages"] = _on_huge_pages(redis["process_id"])
        if not context.broken:
            result.figures["whole_path"] = _whole_path(context, url)
    result.figures |= {
        "times_beyond_k": _times(spent["rows_beyond_k"], spent["rows_of_k"]),
        "times_for_entities": _times(spent["many"], spent["few"]),
        "times_for_entities_at_random": _times(spent["many"], spent["few_at_random"]),
        "target_us": TARGET_US,
        "target_reached": result.figures["plain"]["whole"] <= TARGET_US,
    }
    result.check(
        f"rows beyond K cost at most {MAX_BEYOND_K} times rows of K", result.figures["times_beyond_k"] <= MAX_BEYOND_K
    )
    result.check(
        f"{MANY:,} entities of a kind cost at most {MAX_FOR_ENTITIES} times {FEW:,}",
        result.figures["times_for_entities"] <= MAX_FOR_ENTITIES,
    )
    return result


def _whole(spent: Counter[str]) -> float:
    return sum(spent.values())


def _times(some: list[Counter[str]], others: list[Counter[str]]) -> float:
    """What one case costs of another, as the median over turns: both stand side by side in each."""
    return round(median(_whole(one) / _whole(other) for one, other in zip(some, others, strict=True)), 3)


def _on_huge_pages(pid: int) -> int | None:
    """Megabytes; None where the system does not report them."""
    try:
        text = FilePath(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return None
    found = re.search(r"AnonHugePages: +(\d+) kB", text)
    return round(int(found[1]) / 1024) if found else None


def _median(spent: list[Counter[str]]) -> dict[str, Any]:
    parts = {part: round(median(each[part] for each in spent), 2) for part in ("read", "kernel", "apply", "redis")}
    whole = round(median(_whole(each) for each in spent), 2)
    share = {f"{part}_share": round(us / whole, 3) for part, us in parts.items()}
    return parts | share | {"whole": whole}


def _whole_path(context: Context, url: str) -> dict[str, Any]:
    """CPU microseconds a transaction of every stage of the cards example but Kafka, and what features are of it."""
    train_cards(context.folder, seed=context.seed, transactions=30_000)
    checked, ensemble = cards(), load_ensemble(context.folder)
    n = 60_000
    config = SimulationConfig(seed=context.seed, customers=2_000, terminals=400, days=None, transactions=n)
    transactions = generate(config.starting(config.start_to_end_by(SystemClock().now_ms())))
    keys, values = encode_keys(transactions.customer_id), encode_values(transactions)
    path = Path(url, checked, "cards")
    return _stages(path, checked, ensemble, keys, values)


def _stages(path: Path, checked: Any, ensemble: Ensemble, keys: list[bytes], values: list[bytes]) -> dict[str, Any]:
    class Nowhere:
        def produce(self, topic: str, partition: int, key: Any, value: Any, headers: Any = None) -> None:
            """What would go to Kafka."""

    lineup = Lineup.of(ensemble)
    decode, scoring = Decode(checked), Scoring(lambda: lineup, checked, Metrics())
    writer = OutputWriter(Topics(), checked, SystemClock())
    now, spent = SystemClock().now_ms(), Counter[str]()

    def timed(name: str, work: Callable[[], Any]) -> Any:
        started = time.thread_time()
        found = work()
        spent[name] += time.thread_time() - started
        return found

    redis = path.redis_cpu()
    for low in range(0, len(keys), BATCH):
        n = min(BATCH, len(keys) - low)
        raw = RawRecords(
            SOURCE.topic, np.zeros(n, np.int32), np.arange(low, low + n), np.full(n, now),
            list(keys[low : low + n]), list(values[low : low + n]), [None] * n,
        )  # fmt: skip
        batch = MicroBatch(raw, RawRecords.empty("labels"), [Span(SOURCE, low, low + n, -1)], None)
        timed("decode", lambda batch=batch: decode.process(batch))
        batch.enriched = timed("enrich", lambda batch=batch: path.engine.enrich(batch.events, path.store))
        timed("score", lambda batch=batch: scoring.process(batch))
        timed("publish", lambda batch=batch: writer.write(batch, Nowhere()))
        timed("apply", lambda batch=batch: path.store.apply(batch.enriched.update))
    spent["redis"] = path.redis_cpu() - redis
    us = {name: round(1e6 * seconds / len(keys), 2) for name, seconds in spent.items()}
    features = us["enrich"] + us["apply"] + us["redis"]
    return us | {"features_share": round(features / sum(us.values()), 3)}


def _break() -> None:
    """Rows are never folded, and read whole."""
    from stream_scorer.features import engine

    engine.compactions = lambda *_: {}  # type: ignore[attr-defined]
