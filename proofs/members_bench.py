"""members-bench: what the members and the scoring stage cost in CPU, compared with the libraries that trained them.

The five default members, at 256 and at 1,024 transactions per batch. In turns, in one run: each member's preparation
and prediction by our code; each member's prediction by its own library on one thread, on inputs already prepared
(LightGBM, XGBoost, and numpy's matrix product for the linear and the neural member); and the whole stage (members
isolated in their own threads, calibration, combining, contributions, left-out scores, decisions, review sample, groups
of cards, metrics). CPU is that of all threads of the process. The medians of the turns' ratios decide. The sums of the
trees equal the library's to the last bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from proofs.kit import Context, Result, cards, load_ensemble, train_cards
from proofs.member_libraries import library_predictions
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

SIZES = (256, 1_024)
# Transactions, and how often all of them are scored.
N, TURNS = 10_240, 21
# Members: 3 us where the libraries need 10. Most of the stage is not prediction, and does not get faster with it.
MAX_MEMBERS, MAX_STAGE = 0.3, 0.8
SOURCE = SourcePartition("transactions", 0)

Prediction = tuple[Callable[[Any], Any], Any]


def run(context: Context) -> Result:
    """See the module. `n` transactions."""
    n = (context.n or N) // max(SIZES) * max(SIZES)
    result = Result()
    train_cards(context.folder, seed=context.seed, transactions=60_000)
    ensemble = load_ensemble(context.folder)
    libraries = library_predictions(context.folder / "ensemble", ensemble)
    if context.broken:
        for loaded in ensemble._members:
            member: Any = loaded.member
            if hasattr(member, "_trees"):  # the walk of all trees
                member._trees._bit_vectors = None
    result.figures |= {"threads": THREADS, "turns": TURNS, "members": ensemble.member_names}
    for size in SIZES:
        batches = _batches(context.seed, n, size)
        matrices = [batch.enriched.matrix for batch in batches if batch.enriched is not None]
        result.check(f"at {size} rows, the trees' sums equal the libraries'", _equal(ensemble, libraries, matrices))
        with threadpool_limits(1):  # numpy's matrix product
            _measure(result, size, batches, matrices, libraries, ensemble)
    return result


def _measure(
    result: Result,
    size: int,
    batches: list[MicroBatch],
    matrices: list[Any],
    libraries: list[Callable[[Any], Any]],
    ensemble: Ensemble,
) -> None:
    """Add the figures and the check of one batch size."""
    n = size * len(batches)
    lineup = Lineup.of(ensemble)
    stage = Scoring(lambda: lineup, cards(), Metrics(), Bulkhead(SystemClock(), budget_s=1.0))

    def whole() -> None:
        for batch in batches:
            stage.process(batch)

    def one_member(predictions: list[Prediction]) -> None:
        for predict, inputs in predictions:
            predict(inputs)

    inputs = [[loaded.preprocess.apply(matrix) for matrix in matrices] for loaded in ensemble._members]
    by_library = [[(library, x) for x in xs] for library, xs in zip(libraries, inputs, strict=True)]
    ours = [[(partial(_prepared, loaded), matrix) for matrix in matrices] for loaded in ensemble._members]
    turns = [
        (
            _us(whole, n),
            [_us(lambda p=p: one_member(p), n) for p in by_library],
            [_us(lambda p=p: one_member(p), n) for p in ours],
        )
        for _ in range(TURNS + 1)
    ][1:]
    library_us = [sum(turn[1]) for turn in turns]
    members = [sum(turn[2]) / us for turn, us in zip(turns, library_us, strict=True)]
    whole_stage = [turn[0] / us for turn, us in zip(turns, library_us, strict=True)]
    result.figures[f"at_{size}_rows"] = {
        "stage_cpu_us_per_transaction": round(median(turn[0] for turn in turns), 2),
        "members_cpu_us_per_transaction": round(median(sum(turn[2]) for turn in turns), 2),
        "libraries_cpu_us_per_transaction": round(median(library_us), 2),
        "members_ratio": round(median(members), 3),
        "stage_ratio": round(median(whole_stage), 3),
        "own_us": _by_member(ensemble, [turn[2] for turn in turns]),
        "library_us": _by_member(ensemble, [turn[1] for turn in turns]),
    }
    result.check(
        f"at {size} rows, members cost at most {MAX_MEMBERS} times the libraries", median(members) <= MAX_MEMBERS
    )
    result.check(f"at {size} rows, the stage costs at most {MAX_STAGE} times", median(whole_stage) <= MAX_STAGE)


def _prepared(loaded: Any, matrix: Any) -> Any:
    return loaded.member.predict(loaded.preprocess.apply(matrix))


def _by_member(ensemble: Ensemble, turns: list[list[float]]) -> dict[str, float]:
    return {name: round(median(turn[place] for turn in turns), 3) for place, name in enumerate(ensemble.member_names)}


def _equal(ensemble: Ensemble, libraries: list[Callable[[Any], Any]], matrices: list[Any]) -> bool:
    """Whether the sums of all members of trees equal those of their libraries."""
    compared = 0
    for loaded, spec, library in zip(ensemble._members, ensemble.manifest.members, libraries, strict=True):
        member: Any = loaded.member
        for matrix in matrices:
            inputs = loaded.preprocess.apply(matrix)
            if spec.format == "lightgbm-text":
                sums = member._trees.sums(inputs)
            elif spec.format == "xgboost-ubj":
                narrowed = inputs.astype(np.float32).astype(np.float64)
                sums = member._trees.sums(narrowed, member._base)
            else:
                continue
            if not np.array_equal(sums, library(inputs)):
                return False
            compared += len(inputs)
    return compared > 0


def _batches(seed: int, n: int, size: int) -> list[MicroBatch]:
    """Enriched micro-batches of the cards example."""
    checked = cards()
    config = SimulationConfig(seed=seed, customers=500, days=None, transactions=n)
    transactions = generate(config.starting(config.start_to_end_by(SystemClock().now_ms())))
    keys, values = encode_keys(transactions.customer_id), encode_values(transactions)
    store, decode = MemoryRowStore(), Decode(checked)
    enrich = EnrichInProcess(FeatureEngine(checked), store)
    out = []
    for low in range(0, n, size):
        raw = RawRecords(
            SOURCE.topic, np.zeros(size, np.int32), np.arange(low, low + size),
            np.full(size, SystemClock().now_ms()), keys[low : low + size], values[low : low + size], [None] * size,
        )  # fmt: skip
        batch = MicroBatch(raw, RawRecords.empty("labels"), [Span(SOURCE, low, low + size, -1)], None)
        decode.process(batch)
        enrich.process(batch)
        assert batch.enriched is not None
        store.apply(batch.enriched.update)
        out.append(batch)
    return out


def _us(work: Callable[[], None], transactions: int) -> float:
    """CPU of all threads, in us per transaction."""
    started = time.process_time()
    work()
    return 1e6 * (time.process_time() - started) / transactions
