"""The proof workflows, scaled down: the files against the list of steps, and events, without an orchestrator."""

from __future__ import annotations

from pathlib import Path

import pytest

from proofs import workflows
from proofs.kit import Context
from proofs.workflow_files import load


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
