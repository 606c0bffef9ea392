"""Load a folder of DAGs and run one of them by the configured executor.

``python airflow_run.py FOLDER DAG CONF OUT``: FOLDER is AIRFLOW__CORE__DAGS_FOLDER, CONF a JSON object of parameters.
OUT gets a JSON object: the errors of the import, the executor, the state of the run and of every task.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

from airflow.dag_processing.dagbag import BundleDagBag
from airflow.executors.executor_loader import ExecutorLoader


def main(folder: str, dag_id: str, conf: str, out: str) -> None:
    """See the module."""
    # As the DAG processor loads it: modules next to the DAG can be imported.
    bag = BundleDagBag(dag_folder=folder, bundle_path=Path(folder), bundle_name="dags-folder")
    result = {
        "airflow": version("apache-airflow-core"),
        "import_errors": dict(bag.import_errors),
        "state": "not loaded",
        "tasks": {},
    }
    dag = bag.dags.get(dag_id)
    if dag is not None:
        run = dag.test(run_conf=json.loads(conf), use_executor=True)
        result |= {
            "executor": type(ExecutorLoader.get_default_executor()).__name__,
            "state": str(run.state),
            "tasks": {each.task_id: str(each.state) for each in run.get_task_instances()},
        }
    Path(out).write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
