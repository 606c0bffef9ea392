"""flat: CPU time per transaction over the number of entities, partitions, views and members.

Four curves, each measured in one run, its sizes in turns:

- entities: 1,000 to 10 million rows in a real Redis, as many customers as terminals. The feature path: reading rows,
  kernel, applying, and Redis itself.
- partitions: 1 to 64 that one scorer owns, 1,024 transactions per micro-batch, in memory. Publishing, which writes one
  lineage record and one summary per partition.
- views: 1 to 12, of three windows each, over two entities. The feature path with a real Redis.
- members: 1 to 20 of equal size, boosted trees that are trained with different seeds. The scoring stage.

The number of entities must hardly matter. Publishing may cost up to `MAX_FOR_PARTITIONS` times as much with the most
partitions, where a record covers 16 transactions. The cost of views and members may grow in proportion to their number,
not faster: from the middle of the curve to its end. Ratios of neighbouring turns decide; microseconds are printed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from proofs.feature_path import SPEC, Path, path_spec
from proofs.feature_traffic import Traffic, grow_tables
from proofs.kit import Context, Result, cards, load_ensemble, services, train_cards
from proofs.lineage import Nowhere, scored_batches
from stream_scorer.clock import SystemClock
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.ensemble.lineup import Lineup
from stream_scorer.features.engine import FeatureEngine
from stream_scorer.kafka.topics import Topics
from stream_scorer.observability.metrics import Metrics
from stream_scorer.pipeline.batch import MicroBatch
from stream_scorer.pipeline.publish import OutputWriter
from stream_scorer.pipeline.score import Scoring
from stream_scorer.simulate.config import SimulationConfig
from stream_scorer.simulate.export import export
from stream_scorer.simulate.labeller import LabellerConfig
from stream_scorer.spec import parse_spec
from stream_scorer.spec.model import CheckedSpec
from stream_scorer.spec.training import Folds, MemberTraining, TrainingSpec, check_training
from stream_scorer.state.client import connect
from stream_scorer.train.dataset import read_training_set
from stream_scorer.train.from_spec import Options, train_from_spec
from stream_scorer.train.parallel import available_cores
from stream_scorer.train.recipe import TrainingSet

# Size of the largest number of entities, of both kinds together.
N = 10_000_000
TURNS, TRANSACTIONS = 9, 5_120
PARTITIONS = (1, 4, 16, 64)
VIEWS = (1, 2, 4, 8, 12)
MEMBERS = (1, 2, 5, 10, 20)
# Entries in a row.
HELD = 4
MAX_FOR_ENTITIES, MAX_FOR_PARTITIONS = 1.25, 4.0
# Cost may grow by this factor more than the size.
MAX_BEYOND_PROPORTION = 1.1
TREES, HISTORY = 50, 20_000
# Micro-batches of 1,024 transactions in a turn of partitions and of members.
BATCHES = 4
# So many that a micro-batch covers about an hour of event time, so that few panes are counted, as in live traffic.
CUSTOMERS = 50_000

Curve = dict[int, list[float]]


def run(context: Context) -> Result:
    """See the module. `n` is the largest number of entities."""
    n = context.n or N
    turns = TURNS if n == N else 5
    sizes = [size for size in (1_000, 10_000, 100_000, 1_000_000) if size < n] + [n]
    result = Result()
    with services("redis") as (_stack, addresses):
        url = str(addresses.redis)
        curves = {"views": _views(context, url, turns), "entities": _entities(context, url, sizes, turns)}
    curves |= {"partitions": _partitions(context, turns), "members": _members(context, turns)}
    _show(curves)
    for name, curve in curves.items():
        result.figures[f"us by {name}"] = {str(size): round(median(us), 2) for size, us in curve.items()}
    for name, most in (("entities", MAX_FOR_ENTITIES), ("partitions", MAX_FOR_PARTITIONS)):
        first, last = min(curves[name]), max(curves[name])
        times = _times(curves[name], first, last)
        result.figures[f"times for {name}"] = times
        result.check(f"{last:,} {name} cost at most {most} times {first:,}", times <= most)
    for name in ("views", "members"):
        middle, last = sorted(curves[name])[2], max(curves[name])
        times, most = _times(curves[name], middle, last), MAX_BEYOND_PROPORTION * last / middle
        result.figures[f"times for {name}"] = times
        result.check(f"{last} {name} cost at most {most:.1f} times {middle}", times <= most)
    return result


def _entities(context: Context, url: str, sizes: list[int], turns: int) -> Curve:
    rng = np.random.default_rng(context.seed)
    checked = path_spec()
    cases = {}
    for size in sizes:
        context.say(f"putting {size:,} rows into Redis")
        path = Path(url, checked, f"entities-{size}")
        cases[size] = Traffic(path, rng, entities=size // 2, held=HELD, apart=True)
        cases[size].seed()
    grow_tables(connect(url))
    work = {size: lambda case=case: sum(case.turn(TRANSACTIONS).values()) for size, case in cases.items()}
    return _in_turns(context, "entities", work, turns)


def _views(context: Context, url: str, turns: int) -> Curve:
    rng = np.random.default_rng(context.seed)
    work: dict[int, Callable[[], float]] = {}
    for count in VIEWS:
        path = Path(url, _spec_with_views(count), f"views-{count}")
        case = Traffic(path, rng, entities=500, held=30)
        case.fill()
        if context.broken:
            _compute_features_again(path.engine, count**2 // 8)
        work[count] = lambda case=case: sum(case.turn(TRANSACTIONS).values())
    return _in_turns(context, "views", work, turns)


def _spec_with_views(count: int) -> CheckedSpec:
    """The spec of the feature path with `count` views of three windows each."""
    entities = list(path_spec().spec.entities)
    lines = [
        f"  - {{name: v{i}, entity: {entities[i % 2]}, windows: [{i + 1}h, {i + 25}h, 7d], aggregates: [count, mean]}}"
        for i in range(count)
    ]
    head, rest = SPEC.split("views:\n")
    return parse_spec(f"{head}views:\n" + "\n".join(lines) + "\n" + rest[rest.index("policy:") :])


def _compute_features_again(engine: FeatureEngine, times: int) -> None:
    """Break the promise: compute features `times` times more."""
    enrich = engine.enrich

    def again(*arguments: Any) -> Any:
        for _ in range(times):
            enrich(*arguments)
        return enrich(*arguments)

    engine.enrich = again  # type: ignore[method-assign]


def _partitions(context: Context, turns: int) -> Curve:
    train_cards(context.folder, seed=context.seed, transactions=30_000)
    ensemble, checked = load_ensemble(context.folder), cards()
    batches = {count: scored_batches(context.seed, ensemble, BATCHES, count, count, CUSTOMERS) for count in PARTITIONS}
    writer, sink = OutputWriter(Topics(), checked, SystemClock()), Nowhere()
    work = {
        count: lambda some=some: _cpu_us(some, lambda batch: writer.write(batch, sink))
        for count, some in batches.items()
    }
    return _in_turns(context, "partitions", work, turns)


def _members(context: Context, turns: int) -> Curve:
    checked = cards()
    data = _history(context)
    batches = scored_batches(context.seed, load_ensemble(context.folder), BATCHES, 4, 4, CUSTOMERS)
    work: dict[int, Callable[[], float]] = {}
    for count in MEMBERS:
        context.say(f"training an ensemble of {count} members")
        members = [
            MemberTraining(name=f"m{i}", algorithm="lightgbm", features="all", seed=i, parameters={"trees": TREES})
            for i in range(count)
        ]
        training = check_training(TrainingSpec(seed=context.seed, folds=Folds(count=2), members=members))
        folder = context.folder / f"members-{count}"
        train_from_spec(data, checked, training, folder, Options(available_cores()))
        lineup = Lineup.of(Ensemble.load(folder, version=f"members-{count}"))
        stage = Scoring(lambda lineup=lineup: lineup, checked, Metrics())
        work[count] = lambda stage=stage: _cpu_us(batches, stage.process)
    return _in_turns(context, "members", work, turns)


def _history(context: Context) -> TrainingSet:
    """A simulated history with the features of the cards example."""
    folder = context.folder / "history"
    config = SimulationConfig(seed=context.seed, customers=800, days=None, transactions=HISTORY, fraud_rate=0.03)
    export(config, folder, labels=LabellerConfig())
    return read_training_set(folder / "transactions.parquet", folder / "labels.parquet", cards())


def _cpu_us(batches: list[MicroBatch], process: Callable[[MicroBatch], Any]) -> float:
    started = time.process_time()
    for batch in batches:
        process(batch)
    return 1e6 * (time.process_time() - started) / sum(len(batch) for batch in batches)


def _in_turns(context: Context, name: str, work: dict[int, Callable[[], float]], turns: int) -> Curve:
    """Microseconds per transaction and turn, by size; a first turn warms up."""
    curve: Curve = {size: [] for size in work}
    for turn in range(turns + 1):
        for size, measured in work.items():
            us = measured()
            if turn:
                curve[size].append(us)
    medians = ", ".join(f"{size:,}: {median(us):.1f}" for size, us in curve.items())
    context.say(f"us per transaction by {name}: {medians}")
    return curve


def _times(curve: Curve, size: int, larger: int) -> float:
    """The cost of a larger size relative to that of `size`: the median over turns."""
    return round(median(b / a for a, b in zip(curve[size], curve[larger], strict=True)), 3)


def _show(curves: dict[str, Curve]) -> None:
    """Print one table per curve: microseconds, and multiples of the first size."""
    console = Console(file=sys.stderr)
    for name, curve in curves.items():
        table = Table(name, "us per transaction", "times the first", title=f"cost by {name}")
        first = median(curve[min(curve)])
        for size, us in sorted(curve.items()):
            table.add_row(f"{size:,}", f"{median(us):.1f}", f"{median(us) / first:.2f}")
        console.print(table)
