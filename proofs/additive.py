"""additive: what the contributions topic says adds up, and is what the members say, recomputed from outside.

The recomputation shares no code with the scorer beyond the records: the manifest is read as plain JSON, trees are
evaluated by LightGBM's and XGBoost's own predict, linear and neural members by a few lines of numpy.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import xgboost

from proofs.kit import Context, Result, Scorer, publish, read_lineage, read_topic, services, train_cards, wait_drained
from stream_scorer.clock import SystemClock
from stream_scorer.kafka.topics import Topics
from stream_scorer.records import Contribution, LineageRow, Score
from stream_scorer.simulate.config import SimulationConfig
from stream_scorer.simulate.encode import encode_keys, encode_labels, encode_values
from stream_scorer.simulate.generate import generate
from stream_scorer.simulate.labeller import history_labels

N = 20_000
TOLERANCE = 1e-9


def run(context: Context) -> Result:
    """See the module."""
    n = context.n or N
    result = Result()
    train_cards(context.folder, seed=context.seed, transactions=30_000)
    config = SimulationConfig(seed=context.seed, customers=max(n // 40, 50), days=None, transactions=n, fraud_rate=0.03)
    transactions = generate(config.starting(config.start_to_end_by(SystemClock().now_ms())))
    labels = history_labels(transactions, int(transactions.event_time[-1]))
    topics = Topics()
    with services("kafka", "redis") as (_stack, at):
        bootstrap = str(at.kafka)
        publish(bootstrap, topics.labels, encode_keys(labels.customer_id), encode_labels(labels))
        publish(bootstrap, topics.transactions, encode_keys(transactions.customer_id), encode_values(transactions))
        scorer = Scorer(
            context.folder,
            at,
            instance="scorer",
            ensemble=context.folder / "ensemble",
            sabotage="bend-contributions" if context.broken else None,
        )
        scorer.start()
        wait_drained(bootstrap, [scorer], timeout_s=120)
        scorer.stop()
        records = read_topic(bootstrap, topics.contributions).decode(Contribution)
        lineage = read_lineage(bootstrap, topics)
        scores = read_topic(bootstrap, topics.scores).decode(Score)
    result.check("lineage names the events of contributions", [r.event_id for r in lineage] == [
        c.event_id for c in records
    ])  # fmt: skip
    _compare(result, context.folder / "ensemble", lineage, records, scores)
    result.at_least("n", len(records), n)
    return result


def _compare(
    result: Result, folder: Path, lineage: list[LineageRow], records: list[Contribution], scores: list[Score]
) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    x = np.array([[np.nan if v is None else v for v in r.features] for r in lineage])
    published = np.array([r.members.score for r in records], dtype=float)
    weights = np.array([r.members.weight for r in records])
    contributions = np.array([r.members.contribution for r in records])
    base, z, score = (np.array([getattr(r, name) for r in records], dtype=float) for name in ("base", "z", "score"))

    members = np.column_stack([_member(folder, member, manifest["features"], x) for member in manifest["members"]])
    given = np.array([m["weight"] for m in manifest["members"]])
    means = np.array([m["baseline"] for m in manifest["members"]])
    share = given / given.sum()
    logits = np.log(members / (1 - members))
    final = _calibrate(manifest["final_calibrator"], 1 / (1 + np.exp(-z)))

    def worst(a: Any, b: Any) -> float:
        return float(np.max(np.abs(a - b)))

    figures = {
        "additivity": worst(base + contributions.sum(axis=1), z),
        "score_from_z": worst(final, score),
        "member_scores": worst(members, published),
        "contributions": worst(share * (logits - means), contributions),
        "weights": worst(share, weights),
        "base": worst(np.full(len(records), (share * means).sum()), base),
        "score_topic": worst(np.array([s.score for s in scores], dtype=float), score),
    }
    result.figures |= {f"largest_error_{name}": value for name, value in figures.items()}
    result.figures["rows_with_label_features"] = int(
        (np.nan_to_num(x[:, [i for i, f in enumerate(manifest["features"]) if "label_rate" in f]]) > 0)
        .any(axis=1)
        .sum()
    )
    for name, value in figures.items():
        result.check(f"{name} within {TOLERANCE:g}", value <= TOLERANCE)
    result.check("five members", len(manifest["members"]) == 5)
    result.check("scores vary", float(score.std()) > 1e-3)


def _member(folder: Path, member: dict[str, Any], features: list[str], x: Any) -> Any:
    """Calibrated and clipped scores (n,) of one member, by its own library."""
    columns = []
    for name, step in zip(member["inputs"], member["preprocess"], strict=True):
        column = x[:, features.index(name)].copy()
        if step.get("impute") is not None:
            column[np.isnan(column)] = step["impute"]
        low, high = step.get("low"), step.get("high")
        column = np.clip(column, -np.inf if low is None else low, np.inf if high is None else high)
        columns.append((column - step.get("offset", 0.0)) / step.get("scale", 1.0))
    inputs = np.column_stack(columns)
    path = folder / member["path"]
    if member["format"] == "lightgbm-text":
        raw = lightgbm.Booster(model_file=str(path)).predict(inputs)
    elif member["format"] == "xgboost-ubj":
        booster = xgboost.Booster(model_file=str(path))
        matrix = xgboost.DMatrix(inputs.astype(np.float32), missing=np.nan)
        # From the library's margin: its probability is a float32, good to 6e-8 only.
        margin = booster.predict(matrix, output_margin=True, validate_features=False).astype(float)
        raw = 1 / (1 + np.exp(-margin))
        assert np.allclose(raw, booster.predict(matrix, validate_features=False), atol=1e-6, rtol=0)
    else:
        raw = inputs
        for layer in json.loads(path.read_text())["layers"]:
            raw = raw @ np.array(layer["weights"]) + np.array(layer["bias"])
            raw = {  # type: ignore[operator]
                "relu": lambda v: np.maximum(v, 0),
                "logistic": lambda v: 1 / (1 + np.exp(-v)),
                "tanh": np.tanh,
                "identity": lambda v: v,
            }[layer["activation"]](raw)
        raw = raw[:, 0]
    return np.clip(_calibrate(member["calibrator"], raw), 1e-6, 1 - 1e-6)


def _calibrate(calibrator: dict[str, Any], p: Any) -> Any:
    if calibrator["kind"] == "none":
        return p
    assert calibrator["kind"] == "platt", calibrator["kind"]
    p = np.clip(p, 1e-6, 1 - 1e-6)
    return 1 / (1 + np.exp(-(calibrator["slope"] * np.log(p / (1 - p)) + calibrator["intercept"])))
