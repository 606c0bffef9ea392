"""Runs on the MLflow server that belong to no registered version, such as evaluations."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from stream_scorer.clock import Clock, SystemClock
from stream_scorer.ensemble.registry import connected
from stream_scorer.errors import ArtifactError

_DELETED = "deleted"


@dataclass(frozen=True)
class RunRecord:
    """What a run consists of: its name, parameters, metrics, files by name, and tags."""

    name: str
    parameters: Mapping[str, str]
    metrics: Mapping[str, float]
    files: Mapping[str, bytes]
    tags: Mapping[str, str] = field(default_factory=dict)


def open_experiment(tracking_uri: str, experiment: str) -> str:
    """The id of `experiment`, which is created if it does not exist.

    Callers open it before long work, so that a wrong address or password is found in seconds.

    Raises:
        RegistryUnavailable: the server does not answer. AccessDenied, ArtifactError: it refuses.
    """
    with connected(tracking_uri) as client:
        found = client.get_experiment_by_name(experiment)
        if found is None:
            return str(client.create_experiment(experiment))
        if found.lifecycle_stage == _DELETED:
            raise ArtifactError(
                f"the experiment {experiment!r} was deleted on the MLflow server",
                hint=f"Restore it (`mlflow experiments restore -x {found.experiment_id}`), or give another name.",
            )
        return str(found.experiment_id)


def log_run(tracking_uri: str, experiment_id: str, record: RunRecord, *, clock: Clock | None = None) -> str:
    """Log one finished run to an experiment; return the id of the run. If a part cannot be logged, the run is FAILED.

    Raises:
        RegistryUnavailable: the server does not answer. AccessDenied, ArtifactError: it refuses.
    """
    with connected(tracking_uri) as client:
        from mlflow.entities import Metric, Param

        now, status = (clock or SystemClock()).now_ms(), "FAILED"
        run = client.create_run(experiment_id, run_name=record.name, tags=dict(record.tags))
        run_id = str(run.info.run_id)
        try:
            client.log_batch(
                run_id,
                params=[Param(name, value) for name, value in record.parameters.items()],
                metrics=[Metric(name, value, now, 0) for name, value in record.metrics.items()],
            )
            with tempfile.TemporaryDirectory(prefix="stream-scorer-") as folder:
                for name, content in record.files.items():
                    path = Path(folder) / name
                    path.write_bytes(content)
                    client.log_artifact(run_id, str(path))
            status = "FINISHED"
        finally:
            client.set_terminated(run_id, status)
        return run_id
