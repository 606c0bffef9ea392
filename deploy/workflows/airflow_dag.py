"""The candidate workflow as an Airflow DAG, for Airflow 3. See docs/workflows.md.

Copy it and steps.py into the DAG folder. Parameters reach the shell as quoted environment variables, so that bash never
parses a value as a command.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, Param
from steps import DESCRIPTION, PARAMETERS, PROGRAM, STEPS, WORKFLOW, Step


def make_operator(step: Step) -> BashOperator:
    """The task of a step."""
    words = step.words({name: f"${{{name.upper()}}}" for name in step.parameters})
    return BashOperator(
        task_id=step.name,
        bash_command=" ".join([PROGRAM, *(f'"{word}"' for word in words)]),
        env={name.upper(): f"{{{{ params.{name} }}}}" for name in step.parameters},
        append_env=True,
        retries=step.retries,
        retry_delay=timedelta(minutes=1),
    )


with DAG(
    dag_id=WORKFLOW,
    description=DESCRIPTION,
    # Started by hand or by a schedule of your own; runs share the folder `work`, so one at a time.
    schedule=None,
    max_active_runs=1,
    catchup=False,
    params={name: Param(each.default, type="string", description=each.help) for name, each in PARAMETERS.items()},
    tags=["stream-scorer"],
) as dag:
    tasks = {step.name: make_operator(step) for step in STEPS}
    for step in STEPS:
        for before in step.after:
            tasks[before] >> tasks[step.name]
