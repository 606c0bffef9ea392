"""The record of a training in the manifest: which rows, and ids that equal trainings share."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.ensemble.manifest import MANIFEST_FILE, Manifest, Stacking, Training
from stream_scorer.errors import ArtifactError
from stream_scorer.train.recipe import TrainingSet


def describe_training(data: TrainingSet, identity: str, metrics: dict[str, dict[str, float]]) -> Training:
    """`identity` names what determines the result besides the rows, such as digests of specs and the seed."""
    data_sha256 = set_digest(data)
    return Training(
        first_event_time=int(data.event_time.min()),
        last_event_time=int(data.event_time.max()),
        rows=len(data.label),
        positives=int(data.label.sum()),
        run_id=_run_id(data, data_sha256, identity),
        data_sha256=data_sha256,
        metrics=metrics,
    )


def _run_id(data: TrainingSet, data_sha256: str, identity: str) -> str:
    return hashlib.sha256(f"{data_sha256} {_known_digest(data)} {identity}".encode()).hexdigest()[:16]


def _known_digest(data: TrainingSet) -> str:
    """The sha256 of what folds depend on besides the rows: when labels were given, and which rows have one entity."""
    digest = hashlib.sha256()
    if data.labelled_at is not None:
        digest.update(b"labelled_at" + np.ascontiguousarray(data.labelled_at).tobytes())
    if data.entity is not None:
        # By first row: the numbers of entities may differ from run to run.
        _, first, number = np.unique(data.entity, return_index=True, return_inverse=True)
        digest.update(b"entity" + np.ascontiguousarray(first[number]).tobytes())
    return digest.hexdigest()


def find_trained(folder: Path, data: TrainingSet, identity: str) -> Manifest | None:
    """The manifest in `folder` if it has the `run_id` of this training and its files are complete, else None.

    A stacked ensemble of an earlier release lacks `incomplete_calibrator` and is trained again.
    """
    if not (folder / MANIFEST_FILE).is_file():
        return None
    try:
        manifest = Ensemble.load(folder, version="").manifest
    except ArtifactError:
        return None
    if isinstance(manifest.combiner, Stacking) and not manifest.incomplete_calibrator:
        return None
    return manifest if manifest.training.run_id == _run_id(data, set_digest(data), identity) else None


def set_digest(data: TrainingSet) -> str:
    """The sha256 of the rows of a training set: `Training.data_sha256`."""
    digest = hashlib.sha256()
    for column in (data.features, data.label, data.event_time):
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()
