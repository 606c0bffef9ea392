"""features-bench: what the feature path costs, by part, and how that grows with rows and with entities.

Two entities, four views of three windows, 256 a batch, one batch in flight, a real Redis. CPU of the scorer's side
(reading rows, kernel and overlay, applying) and of Redis. Measured in turns in this run: the plain case; rows beyond K
against rows of K; two million customers and as many terminals against a thousand each, at the same length of rows and
as many rows a batch: nobody comes twice in one. Of a thousand drawn at random an eighth does, which saves rows where
entities are few whatever the store does; what that makes of the ratio is printed beside. Then the whole scoring path of
the cards example, Kafka aside, for the share that features have of it. Ratios decide; microseconds are printed.
"""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path as FilePath
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proofs.feature_path import BATCH, HOUR_MS, SOURCE, START_MS, K, Path, made, path_spec
from proofs.kit import Context, Result, cards, load_ensemble, services, train_cards
from stream_scorer.clock import SystemClock
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.ensemble.lineup import Lineup
from stream_scorer.kafka.topics import Topics
from stream_scorer.observability.metrics import Metrics
from stream_scorer.pipeline.batch import MicroBatch
from stream_scorer.pipeline.decode import Decode
from stream_scorer.pipeline.publish import Publisher
from stream_scorer.pipeline.score import Scoring
from stream_scorer.positions import Span
from stream_scorer.serde.raw import RawRecords
from stream_scorer.simulate.config import SimulationConfig
from stream_scorer.simulate.encode import encode_keys, encode_values
from stream_scorer.simulate.generate import generate
from stream_scorer.state.client import connect
from stream_scorer.state.row_format import ENTRY_BYTES, pack
from stream_scorer.state.rows import WITNESS_PERIOD_MS

# Transactions a turn and kind. Many short turns: what the machine does to one case it does to its neighbour too.
N, TURNS = 10_240, 21
GROWN_BY = 300_000
SHIFTS = 64
FEW, MANY = 1_000, 2_000_000
MAX_BEYOND_K, MAX_FOR_ENTITIES = 1.5, 1.2
TARGET_US = 20.0
HORIZON_MS = 8 * 24 * HOUR_MS
# ARGV: bytes an entry, rows to choose from and those, then for each key which row, less how many bytes.
_SEED = """
local width, rows = tonumber(ARGV[1]), tonumber(ARGV[2])
for k = 1, #KEYS do
  local row, skipped = ARGV[2 + tonumber(ARGV[1 + rows + 2 * k])], tonumber(ARGV[2 + rows + 2 * k])
  redis.call('SET', KEYS[k], string.sub(row, skipped + 1, -1 - width))
  redis.call('APPEND', KEYS[k], string.sub(row, -width))
end
"""


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
        plain = _Case(Path(url, checked, "plain"), rng, entities=500, held=30)
        full = _Case(Path(url, checked, "full"), rng, entities=150, held=K - 8)
        beyond = _Case(Path(url, checked, "beyond"), rng, entities=150, held=4 * K)
        few = _Case(Path(url, checked, "few"), rng, entities=FEW, held=8, apart=True)
        at_random = _Case(Path(url, checked, "random"), rng, entities=FEW, held=8)
        many = _Case(Path(url, checked, "many"), rng, entities=MANY, held=8, apart=True)
        context.say(f"putting {2 * MANY:,} rows into Redis")
        for case in (few, at_random, many):
            case.seed()
        _grow_tables(connect(url))
        for case in (plain, full, beyond):
            case.fill()
        cases = {"plain": plain, "rows_of_k": full, "rows_beyond_k": beyond}
        cases |= {"few": few, "many": many, "few_at_random": at_random}
        spent: dict[str, list[Counter[str]]] = {name: [] for name in cases}
        for turn in range(TURNS):
            for name, case in cases.items():
                spent[name].append(case.turn(n))
            told = ", ".join(f"{name} {_whole(each[-1]):.1f}" for name, each in spent.items())
            context.say(f"turn {turn + 1}, us a transaction: {told}")
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


class _Case:
    """Uniform traffic on as many customers as terminals, at a pace that keeps `held` entries in their rows' horizon.

    `apart`: nobody comes twice in a batch.
    """

    def __init__(self, path: Path, rng: np.random.Generator, *, entities: int, held: int, apart: bool = False) -> None:
        self._path, self._rng, self._entities, self._held = path, rng, entities, held
        self._apart = apart
        self._now, self._made = START_MS, 0
        self._step_ms = HORIZON_MS / (entities * held)

    def turn(self, n: int) -> Counter[str]:
        """`n` more transactions, measured."""
        at = self._now + np.sort(self._rng.uniform(0, n * self._step_ms, n)).astype(np.int64)
        self._now += int(n * self._step_ms)
        who, where = (self._drawn(n).tolist() for _ in range(2))
        checked = path_spec()
        transactions = made(checked, [f"c{i}" for i in who], [f"t{i}" for i in where], at, self._made)
        self._made += n
        return self._path.measure(transactions)

    def _drawn(self, n: int) -> NDArray[np.int64]:
        if not self._apart:
            return self._rng.integers(0, self._entities, n)
        batches = [self._rng.choice(self._entities, BATCH, replace=False, shuffle=False) for _ in range(-(-n // BATCH))]
        return np.concatenate(batches)[:n]

    def fill(self) -> None:
        """Until rows are as long as they stay."""
        for _ in range(2):
            self.turn(int(1.1 * self._entities * self._held))

    def seed(self) -> None:
        """Rows as they stay, written directly: two million would take too long to grow.

        They hold from `held` entries to just before they are trimmed again, in even parts, each row shifted in time by
        less than a step, the last entry appended: as in live rows there is room for another. The clock is put where as
        many rows as in a steady stream are the first of their witness period.
        """
        step = HORIZON_MS // self._held
        first_of_period = step / WITNESS_PERIOD_MS * (1 - math.exp(-WITNESS_PERIOD_MS / step))
        self._now = START_MS // WITNESS_PERIOD_MS * WITNESS_PERIOD_MS + int(step * (1 - first_of_period))
        client = connect(self._path.url)
        write = client.register_script(_SEED)
        most = 2 * self._held - 1
        ids = np.arange(most, dtype=np.int64)
        shifts = np.arange(SHIFTS, dtype=np.int64) * step // SHIFTS
        rows = [pack(self._now - step * (most - 1 - ids) - shift, 100 + ids, ids).tobytes() for shift in shifts]
        prefix = self._path.row_prefix
        for entity, letter in enumerate("ct"):
            for low in range(0, self._entities, 5_000):
                n = min(5_000, self._entities - low)
                keys = [prefix + b"%d:%s%d" % (entity, letter.encode(), i) for i in range(low, low + n)]
                skipped = self._rng.integers(0, self._held, n) * ENTRY_BYTES
                shift = self._rng.integers(0, SHIFTS, n) + 1
                write(keys, [ENTRY_BYTES, SHIFTS, *rows, *np.column_stack([shift, skipped]).ravel().tolist()])

    def row_length(self) -> float:
        """Entries in a row, as a mean of some."""
        ids = self._rng.integers(0, self._entities, 200).tolist()
        rows, _ = self._path.store.read(
            [b"%d:%s%d" % (e, letter, i) for e, letter in enumerate((b"c", b"t")) for i in ids]
        )
        return round(float(np.mean([len(row or b"") / ENTRY_BYTES for row in rows])), 1)


def _grow_tables(client: Any) -> None:
    """Make Redis double its hash tables now: four million keys are just below 2^22, where it would do so in a turn.

    While it does, every command of whichever case pays for moving a bucket of all keys.
    """
    names = [b"grow-%d" % i for i in range(GROWN_BY)]
    write = client.register_script(_SEED)
    for low in range(0, GROWN_BY, 5_000):
        write(names[low : low + 5_000], [1, 1, b"row", *[1, 0] * 5_000])
    while b"rehashing" in client.execute_command("DEBUG", "HTSTATS", 0):
        client.mget(names[:10_000])
    for low in range(0, GROWN_BY, 10_000):
        client.delete(*names[low : low + 10_000])


def _whole(spent: Counter[str]) -> float:
    return sum(spent.values())


def _times(some: list[Counter[str]], others: list[Counter[str]]) -> float:
    """What one case costs of another, as the median over turns: both stand side by side in each."""
    return round(median(_whole(one) / _whole(other) for one, other in zip(some, others, strict=True)), 3)


def _on_huge_pages(pid: int) -> int | None:
    """Megabytes; None where the system does not say."""
    try:
        told = FilePath(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return None
    found = re.search(r"AnonHugePages: +(\d+) kB", told)
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
    publisher = Publisher(Topics(), checked, SystemClock())
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
        timed("publish", lambda batch=batch: publisher.publish(batch, Nowhere()))
        timed("apply", lambda batch=batch: path.store.apply(batch.enriched.update))
    spent["redis"] = path.redis_cpu() - redis
    us = {name: round(1e6 * seconds / len(keys), 2) for name, seconds in spent.items()}
    features = us["enrich"] + us["apply"] + us["redis"]
    return us | {"features_share": round(features / sum(us.values()), 3)}


def _break() -> None:
    """Rows are never folded, and read whole."""
    from stream_scorer.features.entity_rows import EntityRows

    EntityRows.compactions = lambda *_: {}  # type: ignore[assignment, method-assign]
