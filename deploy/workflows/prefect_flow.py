"""The candidate workflow as a Prefect flow. See docs/workflows.md.

As a program, it runs the flow once: ``python prefect_flow.py work=/tmp/candidate transactions=...``.
"""

from __future__ import annotations

import subprocess
import sys

from prefect import flow, task
from prefect.futures import wait
from prefect.logging import get_run_logger
from steps import DESCRIPTION, PARAMETERS, PROGRAM, STEPS, WORKFLOW


@task
def run_step(words: list[str]) -> None:
    """Run one command; its output goes to the log of the task. Raises `RuntimeError` if the command fails."""
    logger = get_run_logger()
    with subprocess.Popen([PROGRAM, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            logger.info(line.rstrip())
    if process.returncode != 0:
        raise RuntimeError(f"{PROGRAM} {words[0]} ended with exit code {process.returncode}")


@flow(name=WORKFLOW, description=DESCRIPTION)
def candidate(parameters: dict[str, str]) -> None:
    """Run all steps, each as soon as its inputs are complete. Parameters that are not given have their defaults."""
    unknown = parameters.keys() - PARAMETERS.keys()
    if unknown:
        raise ValueError(f"unknown parameters: {', '.join(sorted(unknown))}; there are {', '.join(PARAMETERS)}")
    values = {name: parameter.default for name, parameter in PARAMETERS.items()} | parameters
    futures = {}
    for step in STEPS:
        started = run_step.with_options(name=step.name, task_run_name=step.name, retries=step.retries)
        futures[step.name] = started.submit(step.words(values), wait_for=[futures[name] for name in step.after])
    wait(list(futures.values()))
    for future in futures.values():
        future.result()


if __name__ == "__main__":
    candidate(dict(argument.split("=", 1) for argument in sys.argv[1:]))
