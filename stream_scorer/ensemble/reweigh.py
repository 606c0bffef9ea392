"""Creates an ensemble with the same members and other weights: a change of weights is a new version."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np

from stream_scorer.ensemble.compose import nullable, write_ensemble
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.ensemble.manifest import Manifest, WeightedMean, check_manifest, read_manifest, read_members
from stream_scorer.ensemble.members import load_member
from stream_scorer.errors import ArtifactError, UsageError


def reweigh(source: Path, weights: Mapping[str, float], out: Path, created_at: int) -> Manifest:
    """Write the ensemble in `source` with other `weights` (by member; the rest keep theirs) to `out`.

    Members, calibrators, thresholds and the reference profile stay, so drift of the final score is measured against the
    score of the old weights. The self-test contains the scores of the new weights.

    Raises:
        UsageError: an unknown member, a weight below 0, no weight above 0, or a combiner that does not use weights.
        ArtifactError: no row of the self-test has a score with the new weights.
    """
    manifest = read_manifest(source)
    unknown = sorted(set(weights) - set(manifest.member_names))
    if unknown:
        raise UsageError(
            f"{manifest.name} has no member {', '.join(unknown)}",
            hint=f"Its members: {', '.join(manifest.member_names)}.",
        )
    if not isinstance(manifest.combiner, WeightedMean):
        raise UsageError(
            f"{manifest.name} is a {manifest.formula}: it does not use weights", hint="Train another ensemble."
        )
    members = [msgspec.structs.replace(m, weight=float(weights.get(m.name, m.weight))) for m in manifest.members]
    if any(not 0 <= m.weight < float("inf") for m in members) or not any(m.weight for m in members):
        raise UsageError("weights must be at least 0, and at least one must be above 0")
    changed = msgspec.structs.replace(manifest, members=members, created_at=created_at)
    data = read_members(source, manifest)
    models = [load_member(m.format, blob, len(m.inputs)) for m, blob in zip(members, data, strict=True)]
    rows = np.array(changed.self_test.features, dtype=np.float64)
    score = Ensemble(changed, models, version="").score(rows).score
    if np.isnan(score).all():
        raise ArtifactError("with these weights no row of the self-test has a score")
    changed = msgspec.structs.replace(
        changed, self_test=msgspec.structs.replace(changed.self_test, score=nullable(score))
    )
    check_manifest(changed)
    write_ensemble(out, changed, data)
    return changed
