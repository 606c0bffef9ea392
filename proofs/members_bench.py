"""members-bench: what the scoring stage costs beside the bare predictions of its members.

The five default members, 256 transactions a batch. In turns, in one run: the whole stage (members apart in their own
threads, preparation, calibration, combining, contributions, left-out scores, decisions, metrics), and each member's
`predict` alone on inputs already prepared. The median of the turns' ratios of elapsed times decides; beside it the same
with all members on one thread, which is nearer to what the stage costs in CPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import numpy as np

from proofs.kit import Context, Result, cards, load_ensemble, train_cards
from stream_scorer.clock import SystemClock
from stream_scorer.ensemble.bulkhead import THREADS, Bulkhead
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.ensemble.lineup import Lineup
from stream_scorer.features.engine import FeatureEngine
from stream_scorer.observability.metrics import Metrics
from stream_scorer.pipeline.batch import MicroBatch
from stream_scorer.pipeline.decode import Decode
from stream_scorer.pipeline.enrich import EnrichInProcess
from stream_scorer.pipeline.score import Scoring
from stream_scorer.positions import SourcePartition, Span
from stream_scorer.serde.raw import RawRecords
from stream_scorer.simulate.config import SimulationConfig
from stream_scorer.simulate.encode import encode_keys, encode_values
from stream_scorer.simulate.generate import generate
from stream_scorer.state.rows import MemoryRowStore

BATCH = 256
# Batches, and how often all of them are scored.
N, TURNS = 40, 41
MOST = 1.2
SOURCE = SourcePartition("transactions", 0)


def run(context: Context) -> Result:
    """See the module. `n` batches."""
    n = context.n or N
    result = Result()
    train_cards(context.folder, seed=context.seed, transactions=60_000)
    ensemble, checked = load_ensemble(context.folder), cards()
    batches = _batches(context.seed, n)
    lineup = Lineup.of(ensemble)
    guard = None if context.broken else Bulkhead(SystemClock(), budget_s=1.0)
    stage = Scoring(lambda: lineup, checked, Metrics(), guard)
    lone = Scoring(lambda: lineup, checked, Metrics(), Bulkhead(SystemClock(), budget_s=1.0, threads=1))
    bare = [_bare(ensemble, batch.enriched.matrix) for batch in batches if batch.enriched is not None]

    def whole() -> None:
        for batch in batches:
            stage.process(batch)
            if context.broken:  # all of it twice
                stage.process(batch)

    def alone() -> None:
        for predictions in bare:
            for predict, inputs in predictions:
                predict(inputs)

    def one_thread() -> None:
        for batch in batches:
            lone.process(batch)

    whole(), alone(), one_thread()
    turns = [(_us(whole, n), _us(alone, n), _us(one_thread, n)) for _ in range(TURNS)]
    ratios = [stage_us / bare_us for stage_us, bare_us, _ in turns]
    result.figures |= {
        "stage_us_a_transaction": round(median(turn[0] for turn in turns), 2),
        "bare_us_a_transaction": round(median(turn[1] for turn in turns), 2),
        "times_bare": round(median(ratios), 3),
        "quartiles": [round(float(q), 3) for q in np.percentile(ratios, [25, 75])],
        "times_bare_on_one_thread": round(median(turn[2] / turn[1] for turn in turns), 3),
        "threads": THREADS,
        "turns": TURNS,
        "members": ensemble.member_names,
    }
    result.check(f"the stage costs at most {MOST} times the bare predictions", median(ratios) <= MOST)
    return result


def _batches(seed: int, n: int) -> list[MicroBatch]:
    """Enriched micro-batches of the cards example."""
    checked = cards()
    config = SimulationConfig(seed=seed, customers=500, days=None, transactions=n * BATCH)
    transactions = generate(config.starting(config.start_to_end_by(SystemClock().now_ms())))
    keys, values = encode_keys(transactions.customer_id), encode_values(transactions)
    store, decode = MemoryRowStore(), Decode(checked)
    enrich = EnrichInProcess(FeatureEngine(checked), store)
    out = []
    for low in range(0, n * BATCH, BATCH):
        raw = RawRecords(
            SOURCE.topic, np.zeros(BATCH, np.int32), np.arange(low, low + BATCH),
            np.full(BATCH, SystemClock().now_ms()), keys[low : low + BATCH], values[low : low + BATCH], [None] * BATCH,
        )  # fmt: skip
        batch = MicroBatch(raw, RawRecords.empty("labels"), [Span(SOURCE, low, low + BATCH, -1)], None)
        decode.process(batch)
        enrich.process(batch)
        assert batch.enriched is not None
        store.apply(batch.enriched.update)
        out.append(batch)
    return out


def _bare(ensemble: Ensemble, matrix: np.ndarray) -> list[tuple[Callable[[np.ndarray], np.ndarray], np.ndarray]]:
    """Each member's own prediction, and its inputs."""
    return [(loaded.member.predict, loaded.preprocess.apply(matrix)) for loaded in ensemble._members]


def _us(work: Callable[[], None], batches: int) -> float:
    started = time.perf_counter()
    work()
    return 1e6 * (time.perf_counter() - started) / batches / BATCH
