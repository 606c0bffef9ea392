"""The report on a trained ensemble: one line per member."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from stream_scorer.ensemble.cost import member_microseconds
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.ensemble.manifest import Manifest
from stream_scorer.spec.model import CheckedSpec
from stream_scorer.train.plan import feature_sets


@dataclass(frozen=True, slots=True)
class MemberLine:
    """A member's line; metrics are on the holdout, and `microseconds` are wall-clock time per row in batches of 256."""

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
    """One line per member and one for the whole ensemble. Raises `ArtifactError` if the ensemble does not load."""
    ensemble = Ensemble.load(directory, version="")
    manifest = ensemble.manifest
    sets = feature_sets(spec)
    costs = member_microseconds(ensemble)
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
        microseconds=sum(costs),
    )
    return [*lines, whole]


def _figures(manifest: Manifest, subject: str) -> dict[str, float]:
    figures = manifest.training.metrics.get(subject, {})
    return {name: figures.get(name, math.nan) for name in ("average_precision", "roc_auc", "log_loss")}
