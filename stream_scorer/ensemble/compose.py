"""Create an ensemble's folder from members and reference rows: digests, baselines, reference profile and self-test.

The last step loads the folder like a scorer does. If it does not load, the files in the target folder stay as they are.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream_scorer.ensemble.combine import Combiner
from stream_scorer.ensemble.ensemble import Ensemble, MemberOutput, Scored
from stream_scorer.ensemble.manifest import (
    MANIFEST_FILE,
    MAX_RANKS,
    MAX_SELF_TEST_ROWS,
    Calibrator,
    CombinerSpec,
    IncompleteCalibrator,
    Input,
    Link,
    Manifest,
    MemberFormat,
    MemberSpec,
    NoCalibrator,
    Platt,
    SelfTest,
    Series,
    Thresholds,
    Training,
    WeightedMean,
    check_combiner,
    check_manifest,
    manifest_bytes,
    preprocess_digest,
    series_names,
    sha256_hex,
)
from stream_scorer.ensemble.members import load_member
from stream_scorer.ensemble.profile import build_profile, profile_matrix
from stream_scorer.errors import ArtifactError

_SUFFIX: dict[MemberFormat, str] = {
    "lightgbm-text": "txt",
    "xgboost-ubj": "ubj",
    "dense-json": "json",
    "onnx": "onnx",
    "skops": "skops",
}
# A quarter of the self-test rows are those with most missing values, because imputation is error-prone.
_SPARSE_ROWS = MAX_SELF_TEST_ROWS // 4


@dataclass(frozen=True, slots=True)
class Draft:
    """A member before composition; fields as in `MemberSpec`, and `data` is the content of the model file."""

    name: str
    format: MemberFormat
    data: bytes
    inputs: Sequence[str]
    preprocess: Sequence[Input]
    calibrator: Calibrator
    weight: float


@dataclass(frozen=True, slots=True)
class Outline:
    """The properties of the whole ensemble; fields as in `Manifest`."""

    name: str
    created_at: int
    spec_name: str
    spec_hash: str
    feature_hash: str
    features: Sequence[str]
    final_calibrator: NoCalibrator | Platt
    thresholds: Thresholds
    quorum: float
    training: Training
    combiner: CombinerSpec = field(default_factory=WeightedMean)
    link: Link = "logit"
    incomplete_calibrator: IncompleteCalibrator = msgspec.UNSET


def compose_ensemble(
    directory: Path,
    outline: Outline,
    drafts: Sequence[Draft],
    reference: NDArray[np.float64],
    out_of_fold: NDArray[np.float64] | None = None,
) -> Manifest:
    """Write the ensemble to `directory` and return its manifest.

    `reference` ``(n, n_features)`` are the rows for baselines, reference profile and self-test. They should be recent
    and not part of the members' training data; if they are, `out_of_fold` ``(n, m)`` has the probabilities of members
    that were fitted without them, and baselines and profile come from these. An existing ensemble in `directory` is
    replaced.

    Raises:
        ArtifactError: a member is malformed, or predicts none of the reference rows.
    """
    members = [load_member(draft.format, draft.data, len(draft.inputs)) for draft in drafts]
    manifest = Manifest(
        name=outline.name,
        created_at=outline.created_at,
        spec_name=outline.spec_name,
        spec_hash=outline.spec_hash,
        feature_hash=outline.feature_hash,
        features=list(outline.features),
        members=[_member_spec(draft) for draft in drafts],
        final_calibrator=outline.final_calibrator,
        incomplete_calibrator=outline.incomplete_calibrator,
        thresholds=outline.thresholds,
        quorum=outline.quorum,
        reference_profile={},
        self_test=SelfTest([], [], []),
        training=outline.training,
    )
    # Member scores do not depend on the combiner: compute the baselines from them first, then the combined scores.
    plain = _reference_scores(Ensemble(manifest, members, version=""), reference, out_of_fold)
    manifest = _with_baselines(msgspec.structs.replace(manifest, combiner=outline.combiner, link=outline.link), plain)
    check_combiner(manifest)
    ensemble = Ensemble(manifest, members, version="")
    manifest = msgspec.structs.replace(
        manifest,
        reference_profile=_profile(manifest, reference, _reference_scores(ensemble, reference, out_of_fold)),
        self_test=_self_test(reference, ensemble.score(reference)),
    )
    check_manifest(manifest)
    write_ensemble(directory, manifest, [draft.data for draft in drafts])
    return manifest


def _reference_scores(
    ensemble: Ensemble, reference: NDArray[np.float64], out_of_fold: NDArray[np.float64] | None
) -> Scored:
    if out_of_fold is None:
        return ensemble.score(reference)
    return ensemble.combine([MemberOutput(np.ascontiguousarray(column), "", 0.0) for column in out_of_fold.T])


def _member_spec(draft: Draft) -> MemberSpec:
    # Encode and decode once: an integer in place of a float would have another canonical form and so another digest.
    preprocess = msgspec.json.decode(msgspec.json.encode(list(draft.preprocess)), type=list[Input])
    return MemberSpec(
        name=draft.name,
        format=draft.format,
        path=f"{draft.name}.{_SUFFIX[draft.format]}",
        sha256=sha256_hex(draft.data),
        size=len(draft.data),
        inputs=list(draft.inputs),
        preprocess=preprocess,
        preprocess_sha256=preprocess_digest(preprocess),
        calibrator=draft.calibrator,
        weight=draft.weight,
        baseline=0.0,
    )


def _with_baselines(manifest: Manifest, scored: Scored) -> Manifest:
    out = []
    for index, spec in enumerate(manifest.members):
        scores = scored.member_scores[:, index]
        present = scores[~np.isnan(scores)]
        if len(present) == 0:
            reason = scored.failures.get(spec.name, "there are no reference rows")
            raise ArtifactError(f"member {spec.name!r} predicts none of the reference rows: {reason}")
        out.append(msgspec.structs.replace(spec, ranks=choose_ranks(present) if manifest.link == "rank" else []))
    manifest = msgspec.structs.replace(manifest, members=out)
    means = np.nanmean(Combiner.of(manifest).linked(scored.member_scores), axis=0).tolist()
    members = [msgspec.structs.replace(spec, baseline=mean) for spec, mean in zip(out, means, strict=True)]
    return msgspec.structs.replace(manifest, members=members)


def choose_ranks(scores: NDArray[np.float64]) -> list[float]:
    """The sample of a member's calibrated scores ``(n,)`` that `MemberSpec.ranks` stores."""
    ordered = np.sort(scores)
    chosen = np.linspace(0, len(ordered) - 1, min(len(ordered), MAX_RANKS)).round().astype(np.int64)
    return [float(value) for value in ordered[chosen]]


def _profile(manifest: Manifest, reference: NDArray[np.float64], scored: Scored) -> dict[str, Series]:
    return build_profile(series_names(manifest), profile_matrix(reference, scored.member_scores, scored.score))


def _self_test(reference: NDArray[np.float64], scored: Scored) -> SelfTest:
    sparse = np.argsort(-np.isnan(reference).sum(axis=1), kind="stable")[:_SPARSE_ROWS]
    by_score = np.argsort(scored.score, kind="stable")
    spread = by_score[np.linspace(0, len(by_score) - 1, MAX_SELF_TEST_ROWS - _SPARSE_ROWS).astype(np.int64)]
    rows = np.unique(np.concatenate([sparse, spread]))
    rows = rows[~np.isinf(reference[rows]).any(axis=1)]  # JSON has no infinity
    return SelfTest(nullable(reference[rows]), nullable(scored.member_scores[rows]), nullable(scored.score[rows]))


def nullable(values: NDArray[np.float64]) -> Any:
    """Nested lists with None for NaN, as in a manifest."""
    nested = values.astype(object)
    nested[np.isnan(values)] = None
    return nested.tolist()


def write_ensemble(directory: Path, manifest: Manifest, members: Sequence[bytes]) -> None:
    """Write a manifest and the files of its members, in manifest order; an existing ensemble is replaced.

    Raises:
        ArtifactError: the ensemble does not load, a write fails, or another process writes to `directory` too.
    """
    files = {spec.path: data for spec, data in zip(manifest.members, members, strict=True)}
    # The manifest is replaced last: until then the digests do not match, so that a mixture is never served.
    files[MANIFEST_FILE] = manifest_bytes(manifest)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        try:
            _replace_files(directory, files)
        finally:
            with contextlib.suppress(OSError):  # not empty
                directory.rmdir()
        mixed = any((directory / name).read_bytes() != data for name, data in files.items())
    except OSError as error:
        raise ArtifactError(f"cannot write the ensemble to {directory}: {error}") from None
    if mixed:
        raise ArtifactError(f"another process writes an ensemble to {directory} too", hint="Use a folder of its own.")


def _replace_files(directory: Path, files: dict[str, bytes]) -> None:
    # Inside the folder, which may be a mount point: a file cannot be renamed to another file system.
    with tempfile.TemporaryDirectory(dir=directory, prefix=".new-") as temporary:
        for name, data in files.items():
            (Path(temporary) / name).write_bytes(data)
        Ensemble.load(Path(temporary), version="")
        for name in files:
            (Path(temporary) / name).replace(directory / name)
