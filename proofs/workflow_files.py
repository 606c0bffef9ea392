"""What each file in deploy/workflows would run: command and predecessors of every step, without an orchestrator.

The Prefect flow and the Airflow DAG are loaded with stand-ins for the few names that they import; bash expands the
commands of the DAG. Argo's and Kubeflow's files are read as YAML.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import click
import yaml

from stream_scorer.cli.main import cli

# Values that a shell, a template or a path would change if they were not quoted.
HOSTILE = {
    "work": "/tmp/a b",
    "spec": "/tmp/$HOME.yaml",
    "transactions": "/tmp/t;ls.parquet",
    "labels": "/tmp/'l'.parquet",
    "training": 'tr"aining',
    "rules": "/tmp/`id`.yaml",
    "start": "2025-01-01",
    "jobs": "2",
    "name": "cards",
    "reason": "$(touch pwned) & 'quoted' \"twice\" \\ {work}",
}
_BEFORE_WORDS = "stream-scorer() { printf '%s\\0' \"$@\"; }\n"


@dataclass(frozen=True)
class Planned:
    """The words after `stream-scorer`, and the steps that must be complete before."""

    words: list[str]
    after: list[str]


Plan = dict[str, Planned]


def load(path: Path, name: str | None = None) -> ModuleType:
    """The module in the file `path`, under `name`, which stays in `sys.modules` while a caller keeps it there."""
    specification = importlib.util.spec_from_file_location(name or path.stem, path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[module.__name__] = module
    specification.loader.exec_module(module)
    return module


@contextmanager
def _modules(**stand_ins: object) -> Iterator[None]:
    """Put modules in place (``a__b`` is ``a.b``), and restore what was there."""
    named = {name.replace("__", "."): module for name, module in stand_ins.items()}
    kept = {name: sys.modules.get(name) for name in (*named, "steps", "prefect_flow", "airflow_dag")}
    sys.modules.update(named)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name, module in kept.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module


def wanted(folder: Path, values: Mapping[str, str]) -> Plan:
    """The plan of the list of steps itself."""
    with _modules():
        return {step.name: Planned(step.words(values), step.after) for step in load(folder / "steps.py").STEPS}


def plan_of_prefect(folder: Path, values: Mapping[str, str]) -> Plan:
    """The tasks that the flow submits."""
    plan: Plan = {}

    class Task:
        def __init__(self, name: str) -> None:
            self.name = name

        def with_options(self, *, name: str, **_options: object) -> Task:
            return Task(name)

        def submit(self, words: list[str], *, wait_for: list[Task]) -> Task:
            plan[self.name] = Planned(words, [each.name for each in wait_for])
            return self

        def result(self) -> None:
            return None

    def flow(**_options: object) -> Callable[[Any], Any]:
        return lambda function: function

    prefect = SimpleNamespace(flow=flow, task=lambda function: Task(function.__name__))
    futures = SimpleNamespace(wait=lambda _futures: None)
    logging = SimpleNamespace(get_run_logger=lambda: None)
    with _modules(prefect=prefect, prefect__futures=futures, prefect__logging=logging):
        load(folder / "steps.py")
        load(folder / "prefect_flow.py").candidate(dict(values))
    return plan


def plan_of_airflow(folder: Path, values: Mapping[str, str]) -> Plan:
    """The tasks of the DAG; bash expands their commands with the variables that Airflow would render."""
    operators: dict[str, Any] = {}

    class Operator:
        def __init__(self, *, task_id: str, bash_command: str, env: dict[str, str], **_options: object) -> None:
            self.name, self.command, self.env, self.before = task_id, bash_command, env, []
            operators[task_id] = self

        def __rshift__(self, other: Operator) -> None:
            other.before.append(self.name)

    class Dag:
        def __init__(self, **_options: object) -> None: ...
        def __enter__(self) -> Dag:
            return self

        def __exit__(self, *_error: object) -> None: ...

    bash = SimpleNamespace(BashOperator=Operator)
    sdk = SimpleNamespace(DAG=Dag, Param=lambda *_a, **_k: None)
    with _modules(airflow__sdk=sdk, airflow__providers__standard__operators__bash=bash):
        load(folder / "steps.py")
        load(folder / "airflow_dag.py")
    plan = {}
    for name, operator in operators.items():
        rendered = {key: _fill(r"\{\{ params\.(\w+) \}\}", text, values) for key, text in operator.env.items()}
        out = subprocess.run(
            ["bash", "-c", _BEFORE_WORDS + operator.command], env=rendered, capture_output=True, check=True, text=True
        ).stdout
        plan[name] = Planned(out.split("\0")[:-1], operator.before)
    return plan


def plan_of_argo(folder: Path, values: Mapping[str, str]) -> Plan:
    """The tasks of the DAG template."""
    spec = yaml.safe_load((folder / "argo-workflow.yaml").read_text())["spec"]
    templates = {each["name"]: each for each in spec["templates"]}
    declared = {each["name"] for each in spec["arguments"]["parameters"]}
    plan = {}
    for task in templates[spec["entrypoint"]]["dag"]["tasks"]:
        words = templates[task["template"]]["container"]["args"]
        known = {name: value for name, value in values.items() if name in declared}
        filled = [_fill(r"\{\{workflow\.parameters\.(\w+)\}\}", word, known) for word in words]
        plan[task["name"]] = Planned(filled, task.get("dependencies", []))
    return plan


def plan_of_kubeflow(folder: Path, values: Mapping[str, str]) -> Plan:
    """The tasks of the compiled pipeline."""
    document = next(yaml.safe_load_all((folder / "kubeflow-pipeline.yaml").read_text()))
    executors = document["deploymentSpec"]["executors"]
    plan = {}
    for name, task in document["root"]["dag"]["tasks"].items():
        container = executors[document["components"][task["componentRef"]["name"]]["executorLabel"]]["container"]
        given = {key: values[each["componentInputParameter"]] for key, each in task["inputs"]["parameters"].items()}
        words = [_fill(r"\{\{\$\.inputs\.parameters\['(\w+)'\]\}\}", word, given) for word in container["args"]]
        plan[name] = Planned(words, task.get("dependentTasks", []))
    return plan


def _fill(pattern: str, text: str, values: Mapping[str, str]) -> str:
    return re.sub(pattern, lambda match: values[match[1]], text)


PLANS: dict[str, Callable[[Path, Mapping[str, str]], Plan]] = {
    "prefect_flow.py": plan_of_prefect,
    "airflow_dag.py": plan_of_airflow,
    "argo-workflow.yaml": plan_of_argo,
    "kubeflow-pipeline.yaml": plan_of_kubeflow,
}


def differences(folder: Path) -> dict[str, list[str]]:
    """By file, the steps that differ from steps.py in their command or their predecessors."""
    expected = wanted(folder, HOSTILE)
    found = {}
    for name, plan_of in PLANS.items():
        plan = plan_of(folder, HOSTILE)
        found[name] = [
            step
            for step in sorted(expected.keys() | plan.keys())
            if step not in plan
            or step not in expected
            or plan[step].words != expected[step].words
            or sorted(plan[step].after) != sorted(expected[step].after)
        ]
    return found


def refused_commands(folder: Path, place: Path) -> list[str]:
    """The steps whose command our command line does not accept; existing files are below `place`."""
    values = HOSTILE | {"work": str(place)}
    (place / "ensemble").mkdir(parents=True, exist_ok=True)
    refused = []
    for name, planned in wanted(folder, values).items():
        command: click.Command | None = cli
        words = list(planned.words)
        try:
            while isinstance(command, click.Group):
                command = command.get_command(click.Context(command), words.pop(0))
            assert command is not None
            command.make_context(name, words)
        except (click.UsageError, AssertionError) as error:
            refused.append(f"{name}: {error}")
    return refused
