"""The candidate workflow as a Kubeflow pipeline (KFP SDK 2). ``python kubeflow_pipeline.py FILE`` compiles it to YAML.

The steps share a claim, and read addresses and passwords from files of a mounted Secret. See docs/workflows.md.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

from kfp import compiler, dsl, kubernetes
from steps import (
    ADDRESS_FILES,
    DESCRIPTION,
    OPTIONAL_VARIABLES,
    PARAMETERS,
    PROGRAM,
    SECRETS,
    STEPS,
    WORKFLOW,
    Step,
)

IMAGE = "stream-scorer-train:0.1.0"
CLAIM, MOUNT = "stream-scorer-data", "/data"
# Of the Secret and of the ConfigMap.
ROLE = "stream-scorer-trainer"


def make_component(step: Step) -> Any:
    """The container component of a step; its inputs are the parameters that the command needs."""

    def component(*inputs: Any) -> dsl.ContainerSpec:
        values = {name: str(value) for name, value in zip(step.parameters, inputs, strict=True)}
        return dsl.ContainerSpec(image=IMAGE, command=[PROGRAM], args=step.words(values))

    _declare(component, step.name, dict.fromkeys(step.parameters))
    return dsl.container_component(component)


def _declare(function: Callable[..., Any], name: str, defaults: Mapping[str, str | None]) -> None:
    """Give `function` a name and string parameters with their defaults, which KFP reads from its signature."""
    function.__name__ = name.replace("-", "_")
    function.__qualname__ = function.__name__
    function.__annotations__ = dict.fromkeys(defaults, str) | {"return": inspect.signature(function).return_annotation}
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    empty = inspect.Parameter.empty
    function.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(each, kind, annotation=str, default=empty if default is None else default)
            for each, default in defaults.items()
        ]
    )


def make_pipeline() -> Any:
    """The pipeline with all steps."""
    components = {step.name: make_component(step) for step in STEPS}

    def candidate(*inputs: Any, **named: Any) -> None:
        parameters = dict(zip(PARAMETERS, inputs, strict=False)) | named
        tasks: dict[str, Any] = {}
        for step in STEPS:
            task = components[step.name](**{name: parameters[name] for name in step.parameters})
            task.set_display_name(step.name).set_caching_options(False)
            task.after(*(tasks[name] for name in step.after))
            if step.retries:
                task.set_retry(step.retries)
            task.set_cpu_request(step.cpu).set_cpu_limit(step.cpu)
            task.set_memory_request(step.memory).set_memory_limit(step.memory)
            kubernetes.mount_pvc(task, CLAIM, MOUNT)
            kubernetes.use_secret_as_volume(task, ROLE, SECRETS)
            for variable, path in ADDRESS_FILES.items():
                task.set_env_variable(variable, path)
            kubernetes.use_config_map_as_env(task, ROLE, {name: name for name in OPTIONAL_VARIABLES}, optional=True)
            tasks[step.name] = task

    _declare(candidate, "candidate", {name: each.default for name, each in PARAMETERS.items()})
    return dsl.pipeline(name=WORKFLOW, description=DESCRIPTION)(candidate)


if __name__ == "__main__":
    compiler.Compiler().compile(make_pipeline(), sys.argv[1])
