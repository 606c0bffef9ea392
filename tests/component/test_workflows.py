"""The proof workflows, scaled down: the files against the list of steps, and events, without an orchestrator."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from proofs import workflows
from proofs.kit import Context
from proofs.workflow_files import load
from stream_scorer.settings import CATALOGUE


@pytest.mark.parametrize("broken", [False, True])
def test_every_file_runs_the_steps_and_events_fail_nothing(tmp_path: Path, broken: bool) -> None:
    result = workflows.run(Context(1, 0, broken, tmp_path, lambda _text: None))
    failed = [name for name, holds in result.checks.items() if not holds]
    # Argo's file and Kubeflow's were written from the whole list of steps.
    files = ["argo-workflow.yaml", "kubeflow-pipeline.yaml"] if broken else []
    assert failed == [f"{name} runs the steps of steps.py" for name in files]


def test_the_order_of_the_steps_follows_from_their_inputs() -> None:
    steps = load(workflows.WORKFLOWS / "steps.py", "steps_of_the_test")
    names = [step.name for step in steps.STEPS]
    made = {name for step in steps.STEPS for name in step.outputs}
    assert names == workflows.STEPS
    assert made == steps.ARTIFACTS.keys() | set(steps.STATES)
    for step in steps.STEPS:
        assert set(step.inputs) <= made
        # A command names an artifact only if the step makes it, or waits for it.
        assert step.placeholders & steps.ARTIFACTS.keys() <= {*step.inputs, *step.outputs}
        assert all(names.index(before) < names.index(step.name) for before in step.after)


def test_every_step_reads_addresses_from_files_and_further_variables_only_if_they_exist() -> None:
    steps = load(workflows.WORKFLOWS / "steps.py", "steps_of_the_test")
    ours = {setting.variable for setting in CATALOGUE}
    for name in (*steps.ADDRESS_FILES, *steps.OPTIONAL_VARIABLES):
        assert {name, name.removesuffix("_FILE")} & ours or name.startswith("STREAM_SCORER_KAFKA_CLIENT_")
    planned = {step.name: step for step in steps.STEPS}
    role, wanted = "stream-scorer-trainer", [{"name": n, "value": v} for n, v in steps.ADDRESS_FILES.items()]

    argo = yaml.safe_load((workflows.WORKFLOWS / "argo-workflow.yaml").read_text())["spec"]
    assert {v["secret"]["secretName"] for v in argo["volumes"] if "secret" in v} == {role}
    for template in argo["templates"][1:]:
        container, step = template["container"], planned[template["name"]]
        expected = {"cpu": step.cpu, "memory": step.memory}
        assert container["resources"] == {"requests": expected, "limits": expected}
        assert container["env"] == wanted
        assert container["envFrom"] == [{"configMapRef": {"name": role, "optional": True}}]
        assert steps.SECRETS in {mount["mountPath"] for mount in container["volumeMounts"]}

    pipeline, platform = yaml.safe_load_all((workflows.WORKFLOWS / "kubeflow-pipeline.yaml").read_text())
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert executors.keys() == pipeline["deploymentSpec"]["executors"].keys()
    for name, executor in executors.items():
        assert pipeline["deploymentSpec"]["executors"][name]["container"]["env"] == wanted
        resources = pipeline["deploymentSpec"]["executors"][name]["container"]["resources"]
        step = planned[name.removeprefix("exec-")]
        assert (resources["resourceCpuLimit"], resources["resourceMemoryLimit"]) == (step.cpu, step.memory)
        (secret,), (more,) = executor["secretAsVolume"], executor["configMapAsEnv"]
        assert (secret["secretName"], secret["mountPath"]) == (role, steps.SECRETS)
        assert (more["configMapName"], more["optional"]) == (role, True)
        assert {each["envVar"] for each in more["keyToEnv"]} == set(steps.OPTIONAL_VARIABLES)
