"""Compile the Kubeflow pipeline and check it and Argo's file with the models of their own SDKs.

``python check_compiled.py FOLDER OUT``: FOLDER has the files of deploy/workflows. OUT gets a JSON object.
"""

from __future__ import annotations

import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import yaml
from hera.workflows.models import WorkflowTemplate
from kfp import compiler, components


def kubeflow(folder: Path) -> dict[str, object]:
    """Compile the pipeline, compare it with the file, and let the SDK parse that file."""
    sys.path.insert(0, str(folder))
    import kubeflow_pipeline

    kept = folder / "kubeflow-pipeline.yaml"
    with tempfile.TemporaryDirectory() as place:
        compiled = Path(place) / "pipeline.yaml"
        compiler.Compiler().compile(kubeflow_pipeline.make_pipeline(), str(compiled))
        same = list(yaml.safe_load_all(compiled.read_text())) == list(yaml.safe_load_all(kept.read_text()))
    parsed = components.load_component_from_file(str(kept)).pipeline_spec
    return {"same": same, "tasks": sorted(parsed.root.dag.tasks)}


def argo(folder: Path) -> dict[str, object]:
    """Whether the models, which are made from Argo's published API, keep every field of the file.

    They ignore a field that they do not have, so that it is missing from what they write again.
    """
    document = yaml.safe_load((folder / "argo-workflow.yaml").read_text())
    again = WorkflowTemplate.model_validate(document).model_dump(mode="json", by_alias=True, exclude_none=True)
    misspelled = json.loads(json.dumps(document).replace('"dependencies"', '"dependecies"'))
    broken = WorkflowTemplate.model_validate(misspelled).model_dump(mode="json", by_alias=True, exclude_none=True)
    return {"kept": again == document, "finds_a_misspelled_field": broken != misspelled}


if __name__ == "__main__":
    packages = [f"{name} {version(name)}" for name in ("kfp", "kfp-kubernetes", "hera")]
    found = {"packages": packages, "kubeflow": kubeflow(Path(sys.argv[1])), "argo": argo(Path(sys.argv[1]))}
    Path(sys.argv[2]).write_text(json.dumps(found))
