"""A small spec, a history for it as Parquet files, and ensembles without training: for tests of evaluation and gate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stream_scorer.ensemble.compose import Draft, Outline, compose_ensemble
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.ensemble.manifest import Input, NoCalibrator, Platt, Thresholds, Training
from stream_scorer.ensemble.members.dense_json import Dense, Layer, encode_dense
from stream_scorer.spec import CheckedSpec
from tests.support.specs import entities_spec

SPEC_TEXT = entities_spec(
    """views:
  - {name: who, entity: who, windows: [20ms, 90ms], aggregates: [count, mean]}
  - {name: risk, entity: where, windows: [30ms, 60ms], delay: 5ms, aggregates: [count, label_rate]}
derived: [{name: ratio, function: ratio, of: [amount, who.mean_90ms]}]
policy: {version: p, review: 0.3, block: 0.6}
labels: {horizon: 1s, source_rank: {analyst: 1, bank: 2}}
limits: {row_entries: 16}
""",
    amount="integer, max: 1000",
    channel="category, values: [web, shop], optional: true",
)


def small_ensemble(folder: Path, checked: CheckedSpec, version: str, members: dict[str, int]) -> Ensemble:
    """An ensemble of dense members with random weights, one seed per member, in `folder`/`version`."""
    k, drafts = len(checked.features), []
    for name, seed in members.items():
        rng = np.random.default_rng(seed)
        layer = Layer(rng.normal(0, 0.7, (k, 1)).tolist(), [-0.5], "logistic")
        inputs = [Input(impute=1.0, low=0.0, high=500.0, scale=100.0 if "mean" in f else 2.0) for f in checked.features]
        drafts.append(
            Draft(name, "dense-json", encode_dense(Dense([layer])), checked.features, inputs, NoCalibrator(), 0.5)
        )
    outline = Outline(
        "small", 1, "small", checked.sha256, checked.feature_hash, checked.features, Platt(1.0, 0.0),
        Thresholds("p", 0.3, 0.6), 0.5, Training(0, 1, 2, 1, "run", "0" * 64, {}),
    )  # fmt: skip
    rows = np.abs(np.random.default_rng(9).normal(1.0, 2.0, (100, k)))
    compose_ensemble(folder / version, outline, drafts, rows)
    return Ensemble.load(folder / version, version=version)


def write_history(folder: Path, n: int = 1_200, seed: int = 1) -> tuple[Path, Path]:
    """Transactions with late ones, copies and rejected ones; labels, some late, some changed. As Parquet files."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    labels: list[tuple[int, dict[str, Any]]] = []
    for i in range(n):
        at = 1_000 + 2 * i - int(rng.integers(0, 12) * (rng.random() < 0.2))
        row = {
            "id": f"e{i}", "at": at, "amount": int(rng.integers(1, 500)), "who": f"c{rng.integers(0, 40)}",
            "where": f"t{rng.integers(0, 6)}" if rng.random() < 0.9 else None,
            "channel": str(rng.choice(["web", "shop"])) if rng.random() < 0.9 else None,
        }  # fmt: skip
        rows.append(row)
        if rng.random() < 0.05:
            rows.append(dict(row))
        if rng.random() < 0.01:
            rows.append(dict(row) | {"id": f"bad{i}", "amount": 5_000})
        for source in ("analyst", "bank"):
            if rng.random() < 0.3:
                given = at + int(rng.integers(1, 400))
                label = {
                    "event_id": f"e{i}", "event_time": at, "label": str(rng.choice(["fraud", "genuine"], p=[0.3, 0.7])),
                    "labelled_at": given, "source": source, "who": row["who"], "where": row["where"],
                }  # fmt: skip
                labels.append((given + int(rng.integers(0, 30) * (rng.random() < 0.1)), label))
    labels.sort(key=lambda each: each[0])
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "t.parquet")
    pq.write_table(pa.Table.from_pylist([label for _, label in labels]), folder / "l.parquet")
    return folder / "t.parquet", folder / "l.parquet"
