"""The proofs of the evaluation, scaled down, with members that need no training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from proofs import versions
from proofs.kit import Context, Result, cards, say
from stream_scorer.ensemble.compose import Draft, Outline, compose_ensemble
from stream_scorer.ensemble.manifest import Input, NoCalibrator, Platt, Thresholds, Training
from stream_scorer.ensemble.members.dense_json import Dense, Layer, encode_dense

MEMBERS = ("gbdt", "xgb", "forest", "logistic", "neural")


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Path:
    checked, folder = cards(), tmp_path_factory.mktemp("dense")
    k, drafts = len(checked.features), []
    for seed, name in enumerate(MEMBERS):
        weights = np.random.default_rng(seed).normal(0, 0.3, (k, 1)).tolist()
        inputs = [Input(impute=0.0, low=0.0, high=5.0)] * k
        data = encode_dense(Dense([Layer(weights, [-1.0], "logistic")]))
        drafts.append(Draft(name, "dense-json", data, checked.features, inputs, NoCalibrator(), 0.2))
    outline = Outline(
        "cards", 1, "cards", checked.sha256, checked.feature_hash, checked.features, Platt(1.0, 0.0),
        Thresholds("p", 0.6, 0.9), 0.5, Training(0, 1, 2, 1, "run", "0" * 64, {}),
    )  # fmt: skip
    compose_ensemble(folder / "ensemble", outline, drafts, np.random.default_rng(1).normal(1, 1, (100, k)))
    return folder / "ensemble"


def failed(result: Result) -> list[str]:
    return [name for name, holds in result.checks.items() if not holds]


def test_versions_in_one_pass_score_as_alone(ensemble: Path, tmp_path: Path) -> None:
    result = versions.run_proof(Context(1, None, False, tmp_path, say), ensemble, 2_000)
    assert failed(result) == []
