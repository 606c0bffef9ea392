"""A faulty minor update: one member reads one input at a wrong scale, and a higher weight amplifies the error."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream_scorer.ensemble.compose import nullable, write_ensemble
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.ensemble.manifest import Manifest, preprocess_digest, read_manifest, read_members
from stream_scorer.ensemble.members import load_member

# Inputs that a wrong unit would affect, the factors of their scale, and the factors of the member's weight.
INPUTS = (
    "amount_to_mean_30d",
    "amount_log",
    "customer.count_1h",
    "amount_to_terminal_mean_7d",
    "device.count_1h",
)
SCALES = (0.8, 1.25, 0.65, 1.5, 0.5, 2.0, 0.35, 3.0, 0.25, 4.0)
AMPLIFIED = (2.0, 4.0)


@dataclass(frozen=True)
class Change:
    """`member` reads `input` at `scale` times its scale and has `amplified` times its weight."""

    member: str
    input: str
    scale: float
    amplified: float


def minor_update(
    source: Path,
    out: Path,
    features: NDArray[np.float64],
    changes: Iterable[Change],
    min_rise: float,
) -> tuple[Change, float] | None:
    """Write the ensemble in `source` to `out` with the first change that raises alerts by at least `min_rise`.

    Args:
        features: ``(n, n_features) float64``; alerts are counted on them. min_rise: rise of alerts, as a share.

    Returns:
        The change and the rise of alerts on `features`; None if no change raises alerts enough.
    """
    manifest = read_manifest(source)
    data = read_members(source, manifest)
    models = [load_member(m.format, blob, len(m.inputs)) for m, blob in zip(manifest.members, data, strict=True)]
    before = _alerts(Ensemble(manifest, models, version=""), features)

    def rise_of(change: Change) -> float:
        changed = Ensemble(_changed(manifest, change), models, version="")
        return _alerts(changed, features) / before - 1 if before else math.nan

    change = next((change for change in changes if rise_of(change) >= min_rise), None)
    if change is None:
        return None
    changed = _changed(manifest, change)
    scored = Ensemble(changed, models, version="").score(np.array(changed.self_test.features, dtype=np.float64))
    test = msgspec.structs.replace(
        changed.self_test, member_scores=nullable(scored.member_scores), score=nullable(scored.score)
    )
    out.mkdir(parents=True, exist_ok=True)
    write_ensemble(out, msgspec.structs.replace(changed, self_test=test), data)
    return change, rise_of(change)


def changes_of_heaviest_member(manifest: Manifest) -> Iterator[Change]:
    """Changes of the member with the highest weight, smallest first."""
    heaviest = max(manifest.members, key=lambda member: member.weight)
    for amplified, scale, name in itertools.product(AMPLIFIED, SCALES, INPUTS):
        if name in heaviest.inputs:
            yield Change(heaviest.name, name, scale, amplified)


def _changed(manifest: Manifest, change: Change) -> Manifest:
    place = manifest.member_names.index(change.member)
    member = manifest.members[place]
    number = member.inputs.index(change.input)
    preprocess = list(member.preprocess)
    preprocess[number] = msgspec.structs.replace(preprocess[number], scale=preprocess[number].scale * change.scale)
    drifted = msgspec.structs.replace(
        member,
        preprocess=preprocess,
        preprocess_sha256=preprocess_digest(preprocess),
        weight=member.weight * change.amplified,
    )
    members = [*manifest.members[:place], drifted, *manifest.members[place + 1 :]]
    return msgspec.structs.replace(manifest, members=members, created_at=manifest.created_at + 1)


def _alerts(ensemble: Ensemble, features: NDArray[np.float64]) -> int:
    return int((ensemble.score(features).score >= ensemble.manifest.thresholds.review).sum())
