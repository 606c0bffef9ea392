"""The record of a training in the manifest: which rows, and ids that equal trainings share."""

from __future__ import annotations

import hashlib

import numpy as np

from stream_scorer.ensemble.manifest import Training
from stream_scorer.train.recipe import TrainingSet


def describe_training(data: TrainingSet, identity: str, metrics: dict[str, dict[str, float]]) -> Training:
    """`identity` names what determines the result besides the rows, such as digests of specs and the seed."""
    data_sha256 = set_digest(data)
    return Training(
        first_event_time=int(data.event_time.min()),
        last_event_time=int(data.event_time.max()),
        rows=len(data.label),
        positives=int(data.label.sum()),
        run_id=hashlib.sha256(f"{data_sha256} {identity}".encode()).hexdigest()[:16],
        data_sha256=data_sha256,
        metrics=metrics,
    )


def set_digest(data: TrainingSet) -> str:
    """The sha256 of the rows of a training set: `Training.data_sha256`."""
    digest = hashlib.sha256()
    for column in (data.features, data.label, data.event_time):
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()
