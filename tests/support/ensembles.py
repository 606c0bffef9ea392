"""A small ensemble of three logistic members, and rows to score with it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from stream_scorer.ensemble.compose import Draft, Outline, compose_ensemble
from stream_scorer.ensemble.manifest import (
    CombinerSpec,
    IncompleteCalibrator,
    Input,
    Isotonic,
    Link,
    Manifest,
    NoCalibrator,
    Platt,
    Thresholds,
    Training,
    WeightedMean,
)
from stream_scorer.ensemble.members.dense_json import Dense, Layer, encode_dense

FEATURES = ["customer.count_1h", "customer.mean_7d", "device.is_new", "amount_log"]
TRAINING = Training(0, 1_000, 100, 10, "run", "0" * 64, {"ensemble": {"average_precision": 0.5}})


def logistic(weights: list[float], bias: float) -> bytes:
    return encode_dense(Dense([Layer([[w] for w in weights], [bias], "logistic")]))


def reference(rows: int = 500, seed: int = 1) -> np.ndarray:
    random = np.random.default_rng(seed)
    values = np.column_stack(
        [
            random.poisson(3, rows).astype(float),
            random.normal(100, 20, rows),
            (random.random(rows) < 0.1).astype(float),
            random.normal(4, 1, rows),
        ]
    )
    values[random.random(rows) < 0.1, 1] = np.nan
    return values


def drafts() -> list[Draft]:
    impute = Input(impute=100.0, low=0.0, high=200.0, offset=100.0, scale=20.0)
    plain = Input(impute=0.0)
    return [
        Draft("one", "dense-json", logistic([0.5, -0.25], -1.0), FEATURES[:2], [plain, impute], Platt(0.8, -0.1), 0.5),
        Draft("two", "dense-json", logistic([1.5], -2.0), FEATURES[2:3], [plain], NoCalibrator(), 0.3),
        Draft(
            "three",
            "dense-json",
            logistic([0.3, 0.2], -1.5),
            [FEATURES[3], FEATURES[0]],
            [plain, plain],
            Isotonic([0.1, 0.5, 0.9], [0.02, 0.3, 0.95]),
            0.2,
        ),
    ]


def compose(
    directory: Path,
    made: list[Draft] | None = None,
    quorum: float = 0.4,
    combiner: CombinerSpec | None = None,
    link: Link = "logit",
    incomplete: IncompleteCalibrator = msgspec.UNSET,
) -> Manifest:
    outline = Outline(
        name="cards",
        created_at=1,
        spec_name="cards",
        spec_hash="a" * 64,
        feature_hash="b" * 64,
        features=FEATURES,
        final_calibrator=Platt(1.2, 0.3),
        thresholds=Thresholds("p1", 0.3, 0.8),
        quorum=quorum,
        training=TRAINING,
        combiner=combiner or WeightedMean(),
        link=link,
        incomplete_calibrator=incomplete,
    )
    return compose_ensemble(directory, outline, made or drafts(), reference())
