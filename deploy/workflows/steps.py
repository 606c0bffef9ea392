"""The steps from labelled history to a candidate that runs as a shadow. Every workflow here is made of this list.

Each step is a command of `stream-scorer`. All of them may run again with the same parameters: what is complete is kept.
This module needs only the standard library, because the environments of Prefect, Airflow and Kubeflow Pipelines do not
contain stream-scorer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

PROGRAM = "stream-scorer"
# Name of the workflow, in every orchestrator.
WORKFLOW = "stream-scorer-candidate"
DESCRIPTION = "Train a candidate on labelled history, evaluate and gate it, and let it run as a shadow."
# On Kubernetes, the Secret of the role `trainer` is mounted here. Its files have the addresses, and may end with a
# newline (docs/settings.md).
SECRETS = "/run/secrets/stream-scorer"
ADDRESS_FILES = {
    "STREAM_SCORER_KAFKA_BOOTSTRAP_FILE": f"{SECRETS}/kafka-bootstrap",
    "STREAM_SCORER_MLFLOW_URL_FILE": f"{SECRETS}/mlflow-url",
}
# Further variables come from the ConfigMap of the role, if it exists: paths of files with passwords and the key of
# hashed ids, and properties of secured services (docs/security.md). Argo reads all of its keys, Kubeflow these.
OPTIONAL_VARIABLES = (
    "STREAM_SCORER_SCORER_ID_KEY_FILE",
    "STREAM_SCORER_KAFKA_CLIENT_SECURITY_PROTOCOL",
    "STREAM_SCORER_KAFKA_CLIENT_SSL_CA_LOCATION",
    "STREAM_SCORER_KAFKA_CLIENT_SASL_MECHANISM",
    "STREAM_SCORER_KAFKA_CLIENT_SASL_USERNAME",
    "STREAM_SCORER_KAFKA_CLIENT_SASL_PASSWORD_FILE",
    "STREAM_SCORER_MLFLOW_USERNAME",
    "STREAM_SCORER_MLFLOW_PASSWORD_FILE",
    "STREAM_SCORER_MLFLOW_CA_FILE",
)
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Parameter:
    """A parameter of the workflow: its default, and what it is."""

    default: str
    help: str


PARAMETERS = {
    "work": Parameter("/data/candidate", "folder that the steps write to; two runs must not share it at the same time"),
    "spec": Parameter("/data/cards.yaml", "pipeline spec"),
    "transactions": Parameter("/data/history/transactions.parquet", "labelled history: transactions"),
    "labels": Parameter("/data/history/labels.parquet", "labelled history: labels"),
    "training": Parameter("default", "training spec, which may have grids"),
    "rules": Parameter("/data/gate.yaml", "rules of the gate"),
    "start": Parameter("2025-01-01", "time (UTC) at which the rows of training end, and those to evaluate on begin"),
    "jobs": Parameter("0", "fits at a time; 0: as many as the cores and the memory of the step allow"),
    "name": Parameter("cards", "registered name of the ensemble; NAME@champion must exist"),
    "reason": Parameter("scheduled training", "reason that the registry and the topic control keep"),
}

# What steps hand over: files and folders below `work`.
ARTIFACTS = {
    "training_set": "training-set.parquet",
    "selected": "selected.yaml",
    "ensemble": "ensemble",
    "evaluation": "evaluation",
    "report": "evaluation.html",
}
# What steps hand over without a file: a decision of the gate, a registered version, a shadow on `control`.
STATES = ("accepted", "registered", "shadow")


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        name: in every orchestrator.
        command: the words after `stream-scorer`, with parameters and artifacts in braces.
        inputs, outputs: artifacts and states; what another step makes must be complete before this one starts.
        cpu, memory: what the step gets on Kubernetes, as requests and limits; `jobs` follows them.
        retries: how often an orchestrator may repeat the step after a failure. 0 where a failure is a verdict.
    """

    name: str
    command: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    cpu: str = "1"
    memory: str = "4Gi"
    retries: int = 1

    @property
    def placeholders(self) -> set[str]:
        """The parameters and artifacts in the command."""
        return {name for word in self.command for name in _PLACEHOLDER.findall(word)}

    @property
    def parameters(self) -> list[str]:
        """The parameters that the command needs, artifacts included through `work`, in the order of `PARAMETERS`."""
        used = self.placeholders
        return [name for name in PARAMETERS if name in used or (name == "work" and used & ARTIFACTS.keys())]

    @property
    def after(self) -> list[str]:
        """The steps that make its inputs, in the order of `STEPS`."""
        return [step.name for step in STEPS if set(step.outputs) & set(self.inputs)]

    def words(self, values: Mapping[str, str]) -> list[str]:
        """The command with `values` of its parameters. Raises `KeyError` for a missing one."""
        known = {name: values[name] for name in self.parameters}
        known |= {name: f"{values['work']}/{path}" for name, path in ARTIFACTS.items() if name in self.placeholders}
        return [_PLACEHOLDER.sub(lambda match: known[match[1]], word) for word in self.command]


_HISTORY = ("--spec", "{spec}", "--transactions", "{transactions}", "--labels", "{labels}")
# Transactions from `start` on are for the evaluation and the gate, so that their labels have time to become complete.
_ROWS = (*_HISTORY, "--until", "{start}")
_CHAMPION = "{name}@champion"
# For steps that fit members; a fit needs up to three times the memory of the feature matrix (docs/training.md).
_FITS_CPU, _FITS_MEMORY = "2", "8Gi"

STEPS = (
    Step(
        "build-set",
        ("features", "export", *_ROWS, "--out", "{training_set}"),
        outputs=("training_set",),
    ),
    Step(
        "cv",
        ("cv", *_ROWS, "--training", "{training}", "--jobs", "{jobs}", "--select", "{selected}"),
        outputs=("selected",),
        cpu=_FITS_CPU,
        memory=_FITS_MEMORY,
    ),
    Step(
        "train",
        ("train", *_ROWS, "--training", "{selected}", "--jobs", "{jobs}", "--name", "{name}",
         "--out", "{ensemble}", "--keep"),
        inputs=("selected",),
        outputs=("ensemble",),
        cpu=_FITS_CPU,
        memory=_FITS_MEMORY,
    ),
    Step(
        "evaluate",
        ("evaluate", "{ensemble}", "--ensemble", _CHAMPION, *_HISTORY, "--start", "{start}", "--warm",
         "--out", "{evaluation}", "--html", "{report}"),
        inputs=("ensemble",),
        outputs=("evaluation", "report"),
    ),
    Step(
        "gate",
        ("gate", "{rules}", "{ensemble}", "--champion", _CHAMPION, *_HISTORY, "--start", "{start}",
         "--training-set", "{training_set}"),
        inputs=("training_set", "ensemble"),
        outputs=("accepted",),
        retries=0,
    ),
    Step(
        "register",
        ("ensemble", "register", "{ensemble}", "{name}", "--once", "--alias", "candidate", "--why", "{reason}"),
        inputs=("ensemble", "evaluation", "accepted"),
        outputs=("registered",),
    ),
    Step(
        "shadow",
        ("ensemble", "shadow", "{name}@candidate", "--why", "{reason}"),
        inputs=("registered",),
        outputs=("shadow",),
    ),
)  # fmt: skip
