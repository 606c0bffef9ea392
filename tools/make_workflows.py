"""Write deploy/workflows/argo-workflow.yaml from the list of steps; `--check` compares it.

The Kubeflow pipeline next to it is compiled by its own SDK: `python kubeflow_pipeline.py kubeflow-pipeline.yaml`, in an
environment of requirements/workflows-kfp.txt.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "deploy" / "workflows"
ARGO = FOLDER / "argo-workflow.yaml"
IMAGE = "stream-scorer-train:0.1.0"
CLAIM, MOUNT = "stream-scorer-data", "/data"
# Of the Secret and of the ConfigMap.
ROLE = "stream-scorer-trainer"
HEADER = """\
# The candidate workflow as an Argo WorkflowTemplate; see docs/workflows.md. Written by tools/make_workflows.py from
# steps.py: change the steps there, and run `make schemas`.
"""


def load_steps() -> ModuleType:
    """The module deploy/workflows/steps.py, which is not in a package."""
    name = "steps"
    if name not in sys.modules:
        specification = importlib.util.spec_from_file_location(name, FOLDER / "steps.py")
        assert specification is not None and specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        # Before it runs: dataclasses look their module up.
        sys.modules[name] = module
        specification.loader.exec_module(module)
    return sys.modules[name]


def make_argo(steps: ModuleType) -> dict[str, Any]:
    """The WorkflowTemplate: a DAG with one container template per step."""
    values = {name: f"{{{{workflow.parameters.{name}}}}}" for name in steps.PARAMETERS}
    tasks, templates = [], []
    for step in steps.STEPS:
        task = {"name": step.name, "template": step.name}
        tasks.append(task | ({"dependencies": step.after} if step.after else {}))
        template: dict[str, Any] = {
            "name": step.name,
            "container": {
                "image": IMAGE,
                "command": [steps.PROGRAM],
                "args": step.words(values),
                "envFrom": [{"configMapRef": {"name": ROLE, "optional": True}}],
                "env": [{"name": name, "value": path} for name, path in steps.ADDRESS_FILES.items()],
                "resources": {
                    "requests": {"cpu": step.cpu, "memory": step.memory},
                    "limits": {"cpu": step.cpu, "memory": step.memory},
                },
                "volumeMounts": [
                    {"name": "data", "mountPath": MOUNT},
                    {"name": "secrets", "mountPath": steps.SECRETS, "readOnly": True},
                ],
            },
        }
        if step.retries:
            template["retryStrategy"] = {"limit": str(step.retries), "retryPolicy": "Always"}
        templates.append(template)
    parameters = [
        {"name": name, "value": each.default, "description": each.help} for name, each in steps.PARAMETERS.items()
    ]
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "WorkflowTemplate",
        "metadata": {"name": steps.WORKFLOW, "annotations": {"workflows.argoproj.io/description": steps.DESCRIPTION}},
        "spec": {
            "entrypoint": "candidate",
            "arguments": {"parameters": parameters},
            # Runs share the folder `work`.
            "synchronization": {"mutexes": [{"name": steps.WORKFLOW}]},
            "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "fsGroup": 10001},
            "volumes": [
                {"name": "data", "persistentVolumeClaim": {"claimName": CLAIM}},
                {"name": "secrets", "secret": {"secretName": ROLE, "defaultMode": 0o440}},
            ],
            "templates": [{"name": "candidate", "dag": {"tasks": tasks}}, *templates],
        },
    }


def render() -> str:
    """The text of argo-workflow.yaml."""
    document: str = yaml.safe_dump(make_argo(load_steps()), sort_keys=False, width=1_000)
    return HEADER + document


def main(arguments: list[str]) -> int:
    """Write the file, or with ``--check`` return 3 if it differs."""
    text = render()
    if "--check" not in arguments:
        ARGO.write_text(text, encoding="utf-8")
        return 0
    if ARGO.exists() and ARGO.read_text(encoding="utf-8") == text:
        return 0
    sys.stderr.write(f"{ARGO.relative_to(ROOT)} differs from steps.py: run 'make schemas'\n")
    return 3


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
