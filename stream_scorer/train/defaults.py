"""The training spec `default`: the five members that `train` fits without a training spec."""

from __future__ import annotations

from pathlib import Path

from stream_scorer.spec.model import CheckedSpec
from stream_scorer.spec.training import (
    Algorithm,
    CheckedTraining,
    MemberTraining,
    TrainingSpec,
    check_training,
    load_training,
)
from stream_scorer.train.plan import Kind, plan_members

_ALGORITHMS: dict[Kind, Algorithm] = {
    "gbdt": "lightgbm",
    "xgb": "xgboost",
    "forest": "lightgbm-forest",
    "logistic": "logistic-regression",
    "neural": "neural-network",
}


def default_training(spec: CheckedSpec) -> CheckedTraining:
    """The five members over the feature sets of the pipeline spec, with the default folds."""
    members = [
        MemberTraining(name=plan.kind, algorithm=_ALGORITHMS[plan.kind], features=plan.feature_set)
        for plan in plan_members(spec)
    ]
    return check_training(TrainingSpec(members=members))


def find_training(name: Path, spec: CheckedSpec) -> CheckedTraining:
    """The training spec that `--training` names: a path, or ``default``. Raises `SpecError`."""
    return default_training(spec) if str(name) == "default" else load_training(name)
