"""What there is to say about a trained ensemble: one line a member."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.ensemble.manifest import Manifest
from stream_scorer.spec.model import CheckedSpec
from stream_scorer.train.plan import feature_sets

# A usual micro-batch, and enough of them that one interruption does not decide the figure.
_ROWS = 256
_ROUNDS = 20


@dataclass(frozen=True, slots=True)
class MemberLine:
    """A member's line; figures are on the holdout, `microseconds` are wall-clock a row in batches of 256."""

    name: str
    format: str
    feature_set: str
    inputs: int
    average_precision: float
    roc_auc: float
    log_loss: float
    weight: float
    microseconds: float


def member_lines(directory: Path, spec: CheckedSpec) -> list[MemberLine]:
    """One line a member, and one for the ensemble as a whole. Raises `ArtifactError` if it does not load."""
    ensemble = Ensemble.load(directory, version="")
    manifest = ensemble.manifest
    sets = feature_sets(spec)
    costs = _microseconds(ensemble)
    total = sum(member.weight for member in manifest.members)
    lines = [
        MemberLine(
            member.name,
            member.format,
            next((name for name, inputs in sets.items() if inputs == member.inputs), "other"),
            len(member.inputs),
            **_figures(manifest, member.name),
            weight=member.weight / total,
            microseconds=costs[index],
        )
        for index, member in enumerate(manifest.members)
    ]
    whole = MemberLine(
        "ensemble",
        manifest.formula,
        "",
        len(manifest.features),
        **_figures(manifest, "ensemble"),
        weight=1.0,
        microseconds=costs[-1],
    )
    return [*lines, whole]


def _figures(manifest: Manifest, subject: str) -> dict[str, float]:
    figures = manifest.training.metrics.get(subject, {})
    return {name: figures.get(name, math.nan) for name in ("average_precision", "roc_auc", "log_loss")}


def _microseconds(ensemble: Ensemble) -> list[float]:
    """Fastest of `_ROUNDS` per member, then the sum: the cost without what else the machine was doing."""
    test = ensemble.manifest.self_test.features
    rows = np.array([[math.nan if value is None else value for value in row] for row in test], np.float64)
    rows = np.resize(rows, (_ROWS, rows.shape[1]))
    seconds = np.min([ensemble.score(rows).member_seconds for _ in range(_ROUNDS)], axis=0)
    each = [float(value) * 1e6 / _ROWS for value in seconds]
    return [*each, sum(each)]
