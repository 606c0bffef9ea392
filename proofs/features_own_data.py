"""features-own-data: two data sets of one's own, from CSV to scores, by the commands of docs/own-data.md.

One has no entities at all: seconds, numbers, an amount, a class. The other has ISO times, buyers and sellers, a
category, missing cells and decimal prices. For each: `data draft`, `data convert`, `train`, `topics create`,
`data publish`, and `run` on a real Kafka and Redis. Every row gets one score, no dead letter, and the scores know
fraud when they see it (the files have signal in them). `N` is the number of rows of each; with fewer than `SMALL` there
is the second data set only.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from proofs.kit import Context, Result, Scorer, die_with_parent, read_topic, services, wait_drained
from stream_scorer.kafka.topics import Topics
from stream_scorer.quality import roc_auc
from stream_scorer.records import Score
from stream_scorer.spec import load_spec

N, SMALL = 12_000, 6_000
MIN_AUC = 0.75
# Enough that a seventh of a small file still has the ten frauds that training asks for.
FRAUD_RATE = 0.06
COMMAND_S, DRAIN_S = 180, 180
# Rows of the end of each file, which no member was trained on (see `train.split`).
HELD_OUT = 0.14


def run(context: Context) -> Result:
    """See the module."""
    n = context.n or N
    result = Result()
    files = {"orders": _orders(context, n)}
    if n >= SMALL:
        files["numbers"] = _numbers(context, n)
    drafts = {
        "numbers": ["--time", "Time", "--value", "Amount", "--label", "Class"],
        "orders": [
            "--time", "ordered at", "--value", "Price (EUR)", "--id", "Order No.", "--label", "chargeback",
            "--entity", "buyer=Buyer", "--entity", "seller=Seller",
        ],
    }  # fmt: skip
    labels = {"numbers": ["--label", "Class"], "orders": ["--label", "chargeback", "--fraud", "yes"]}
    with services("kafka", "redis") as (_stack, at):
        for name, (path, fraud) in files.items():
            folder, prefix = context.folder / name, f"{name}."
            spec, data, ensemble = folder / "spec.yaml", folder / "data", folder / "ensemble"
            rows = ["--transactions", str(data / "transactions.parquet"), "--labels", str(data / "labels.parquet")]
            there = ["--bootstrap", str(at.kafka), "--topic-prefix", prefix]
            _command(context, ["data", "draft", str(path), *drafts[name], "--out", str(spec)])
            _command(context, ["data", "convert", str(path), "--spec", str(spec), *labels[name], "--out", str(data)])
            _command(context, ["train", "--spec", str(spec), *rows, "--out", str(ensemble)])
            _command(context, ["topics", "create", *there])
            if context.broken:
                _exchange_ids(data, spec, context.seed)
            _command(context, ["data", "publish", "--spec", str(spec), *there, *rows])
            scorer = Scorer(
                context.folder, at, instance=name, ensemble=ensemble, spec=spec,
                arguments=["--topic-prefix", prefix, "--group", name],
            )  # fmt: skip
            scorer.start()
            wait_drained(str(at.kafka), [scorer], group=name, topics=Topics(prefix), timeout_s=DRAIN_S)
            result.check(f"{name}: the scorer ends with exit 0", scorer.stop() == 0)
            _judge(result, name, str(at.kafka), fraud)
    return result


def _numbers(context: Context, n: int) -> tuple[Path, dict[str, bool]]:
    """Anonymous numbers, as the public credit-card data sets have them, rows without a name; the truth by id."""
    rng = np.random.default_rng(context.seed)
    fraud = rng.random(n) < FRAUD_RATE
    v = rng.normal(size=(n, 8))
    v[fraud, 0] += 2.0
    v[fraud, 3] -= 1.5
    seconds = np.sort(rng.integers(0, 20 * 86_400, n))
    amount = np.round(rng.lognormal(3, 1, n), 2)
    lines = ["Time," + ",".join(f"V{i + 1}" for i in range(v.shape[1])) + ",Amount,Class"]
    for row in range(n):
        numbers = ",".join(f"{value:.5f}" for value in v[row])
        lines.append(f"{seconds[row]},{numbers},{amount[row]:.2f},{int(fraud[row])}")
    return _write(context, "numbers", lines), {f"row-{i + 1}": bool(f) for i, f in enumerate(fraud)}


def _orders(context: Context, n: int) -> tuple[Path, dict[str, bool]]:
    """Orders of a market place, shuffled; fraud comes in bursts at few buyers."""
    rng = np.random.default_rng(context.seed + 1)
    when = np.datetime64("2025-03-01T00:00:00") + np.sort(rng.integers(0, 30 * 86_400, n)).astype("timedelta64[s]")
    fraud = rng.random(n) < FRAUD_RATE
    buyer = np.where(fraud, rng.integers(0, n // 200, n), rng.integers(n // 200, n // 5, n))
    price = np.round(np.where(fraud, rng.lognormal(4.5, 0.8, n), rng.lognormal(3, 1, n)), 2)
    ways = rng.choice(["card", "wallet", "invoice"], n)
    seller = rng.integers(0, 60, n)
    lines = ["Order No.,ordered at,Buyer,Seller,Price (EUR),paid by,items,express,chargeback"]
    for row in rng.permutation(n).tolist():
        items = "" if rng.random() < 0.1 else str(rng.integers(1, 9))
        way = "" if rng.random() < 0.05 else ways[row]
        lines.append(
            f"A-{row},{when[row]},b{buyer[row]},s{seller[row]},{price[row]:.2f},{way},{items},"
            f"{'true' if row % 7 == 0 else 'false'},{'yes' if fraud[row] else 'no'}"
        )
    return _write(context, "orders", lines), {f"A-{i}": bool(f) for i, f in enumerate(fraud)}


def _write(context: Context, name: str, lines: list[str]) -> Path:
    folder = context.folder / name
    folder.mkdir()
    path = folder / f"{name}.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def _command(context: Context, arguments: list[str]) -> None:
    done = subprocess.run(
        die_with_parent([sys.executable, "-m", "stream_scorer.cli.main", *arguments]),
        capture_output=True, text=True, timeout=COMMAND_S, check=False, cwd=context.folder,
    )  # fmt: skip
    context.say(f"stream-scorer {' '.join(arguments[:2])}: exit {done.returncode}")
    assert done.returncode == 0, f"{' '.join(arguments)}:\n{done.stderr[-1_500:]}"


def _exchange_ids(data: Path, spec: Path, seed: int) -> None:
    """Every row gets the id of another one, so scores have the ids of the wrong transactions."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = load_spec(spec).spec.transaction.id
    table = pq.read_table(data / "transactions.parquet")
    others = table.column(name).take(pa.array(np.random.default_rng(seed).permutation(len(table))))
    pq.write_table(table.set_column(table.schema.get_field_index(name), name, others), data / "transactions.parquet")


def _judge(result: Result, name: str, bootstrap: str, fraud: dict[str, bool]) -> None:
    topics = Topics(f"{name}.")
    scores = read_topic(bootstrap, topics.scores).decode(Score)
    dead = len(read_topic(bootstrap, topics.dead_letters))
    scores.sort(key=lambda s: s.event_time)
    last = scores[int(len(scores) * (1 - HELD_OUT)) :]
    once = len(scores) == len(fraud) and {s.event_id for s in scores} == fraud.keys()
    result.check(f"{name}: every row has one score and none is dead-lettered", once and dead == 0)
    truth = np.array([fraud[s.event_id] for s in last], dtype=np.bool_)
    auc = roc_auc(np.array([s.score for s in last], dtype=np.float64), truth) or 0.0
    result.figures[f"{name}_frauds_held_out"] = int(truth.sum())
    result.at_least(f"{name}_auc", round(auc, 4), MIN_AUC)
    result.at_least(f"{name}_scored", len(scores), len(fraud))
