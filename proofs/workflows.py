"""workflows: the Prefect flow and the Airflow DAG lead from a simulated history to a shadow; other files are valid.

1. Without an orchestrator: each file in deploy/workflows runs exactly the commands of steps.py, in their order,
   whatever the values of the parameters contain; our command line accepts all of them. Events of a run are valid, and a
   server that does not answer fails nothing.
2. Kubeflow Pipelines and Argo Workflows: the pipeline is compiled by its SDK and parsed again; the WorkflowTemplate
   passes the models of Argo's API. Argo's own `argo lint` is not run: its Go module cannot be had here.
3. On a real Kafka, Redis and MLflow with a scorer: Airflow runs the DAG by its LocalExecutor, with an API server on
   loopback and SQLite; the candidate becomes a shadow. Prefect runs the flow on its temporary server: rules that refuse
   the candidate stop it before the registry; with other rules, the same folder leads to a second shadow, and the
   training is kept. Running register and shadow again changes nothing.
4. Train, evaluate and promote send OpenLineage events to a local HTTP server. All are valid by the client's own model;
   datasets have the digests of the files and manifests.

`N` is the number of transactions; 0 runs part 1 only. ORCHESTRATORS=airflow,prefect names those to run; one that does
not install here is reported as not run. With BREAK=1, `register` no longer waits for the gate.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from proofs.kit import CARDS_SPEC, ROOT, Context, Result, Scorer, die_with_parent, read_topic, services, wait_until
from proofs.peer_environments import NotInstalled, environment
from proofs.workflow_events import Receiver, problem_of, receiver
from proofs.workflow_files import PLANS, differences, refused_commands
from stream_scorer.ensemble.manifest import manifest_digest, read_manifest
from stream_scorer.kafka.topics import Topics
from stream_scorer.observability import openlineage
from stream_scorer.observability.openlineage import Dataset, lineage_run
from stream_scorer.simulate.config import SimulationConfig
from stream_scorer.simulate.export import export
from stream_scorer.simulate.labeller import LabellerConfig
from stream_scorer.stack import StackAddresses

N = 9_000
WORKFLOWS = ROOT / "deploy" / "workflows"
PROGRAMS = ROOT / "proofs" / "orchestrators"
OURS = str(Path(sys.executable).with_name("stream-scorer"))
STEPS = ["build-set", "cv", "train", "evaluate", "gate", "register", "shadow"]
COMMAND_S, RUN_S, WAIT_S = 600, 1_800, 300
MIN_ROWS = 1_500
TRAINING = """
seed: {seed}
folds: {{count: 2}}
members:
  - {{name: boosted, algorithm: lightgbm, {grid}parameters: {{trees: 20}}}}
  - {{name: linear, algorithm: logistic-regression, features: [customer.*, amount_log]}}
thresholds: {{review_rate: 0.02, block_rate: 0.005}}
"""
GRID = "grid: {num_leaves: [7, 15]}, "
RULES = "version: 1\nleak: {{rows: 1000}}\ncost: {{max_bytes: {bytes}}}\n"


def run(context: Context) -> Result:
    """See the module."""
    result, files = Result(), context.folder / "workflows"
    shutil.copytree(WORKFLOWS, files, ignore=shutil.ignore_patterns("__pycache__"))
    if context.broken:
        steps = files / "steps.py"
        text = steps.read_text()
        steps.write_text(text.replace('outputs=("accepted",)', "outputs=()"))
        assert steps.read_text() != text
    _files_agree(context, result, files)
    _events_without_a_server(result)
    if context.n != 0:
        _compiled_files_are_valid(context, result, files)
        _reach_a_shadow(context, result, files)
    return result


def _files_agree(context: Context, result: Result, files: Path) -> None:
    """Part 1: the files against the list of steps, and the list against our command line."""
    for name, steps in differences(files).items():
        result.check(f"{name} runs the steps of steps.py", not steps)
        if steps:
            context.say(f"{name} differs in {', '.join(steps)}")
    refused = refused_commands(files, context.folder / "place")
    result.check("our command line accepts every step", not refused)
    result.figures |= {"files": list(PLANS), "refused_commands": refused}


def _events_without_a_server(result: Result) -> None:
    """A run with events, without configuration, and with a server that is not there."""
    before = {name: os.environ.pop(name, None) for name in list(os.environ) if name.startswith("OPENLINEAGE")}
    warnings = _Warnings()
    logger = logging.getLogger(openlineage.__name__)
    logger.addHandler(warnings)
    try:
        with lineage_run("train", lambda: [Dataset("file", "/none")]) as silent:
            pass
        result.check("without configuration no event is made", silent is None)
        with receiver() as got:
            _set_server(got.url)
            with lineage_run("train", lambda: [Dataset("file", "/set", "12")]) as lineage:
                assert lineage is not None
                lineage.add(outputs=[Dataset("file", "/ensemble", "34")])
        result.check("events are valid", [problem_of(event) for event in got.events] == ["", ""])
        result.check("START, then COMPLETE", got.kinds("train") == [["START", "COMPLETE"]])
        result.check("no warning while a server answers", not warnings.records)
        with lineage_run("train", list):
            pass
        result.check("a server that is not there costs one warning", len(warnings.records) == 1)
    finally:
        logger.removeHandler(warnings)
        _set_server(None)
        os.environ.update({name: value for name, value in before.items() if value is not None})


class _Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def _set_server(url: str | None) -> None:
    """Configure the client for `url`, without the variables that it derives from an earlier one, and few retries."""
    for name in [name for name in os.environ if name.startswith("OPENLINEAGE")]:
        del os.environ[name]
    if url is not None:
        transport = {"type": "http", "url": url, "retry": {"total": 0}}
        os.environ["OPENLINEAGE__TRANSPORT"] = json.dumps(transport)


def _compiled_files_are_valid(context: Context, result: Result, files: Path) -> None:
    """Part 2."""
    try:
        python = environment("workflows-kfp")
    except NotInstalled as error:
        result.figures["not_run"] = {"kubeflow and argo": str(error)}
        return
    out = context.folder / "compiled.json"
    subprocess.run([python, str(PROGRAMS / "check_compiled.py"), str(files), str(out)], check=True, timeout=COMMAND_S)
    found = json.loads(out.read_text())
    context.say(f"compiled and parsed by {', '.join(found['packages'])}")
    result.figures["sdks"] = found["packages"]
    result.check("kubeflow-pipeline.yaml is what the SDK compiles", found["kubeflow"]["same"])
    result.check("the SDK parses it with all steps", found["kubeflow"]["tasks"] == sorted(STEPS))
    result.check("Argo's API has every field of argo-workflow.yaml", found["argo"]["kept"])
    result.check("the check finds a misspelled field", found["argo"]["finds_a_misspelled_field"])


def _reach_a_shadow(context: Context, result: Result, files: Path) -> None:
    """Parts 3 and 4."""
    wanted = [name for name in os.environ.get("ORCHESTRATORS", "airflow,prefect").split(",") if name]
    pythons: dict[str, str] = {}
    for name in wanted:
        try:
            pythons[name] = environment(f"workflows-{name}")
        except NotInstalled as error:
            result.figures.setdefault("not_run", {})[name] = str(error)
            context.say(f"{name} is not run: {error}")
    with services("kafka", "redis", "mlflow") as (_stack, at), receiver() as got:
        world = World(context, at, got.url)
        try:
            world.begin(result)
            version = 1
            for number, name in enumerate(sorted(pythons), start=1):
                started = time.monotonic()
                orchestrator = (_airflow if name == "airflow" else _prefect)(
                    world, result, files, pythons[name], number
                )
                version += 1
                _is_shadow(world, result, orchestrator, str(version), number)
                result.figures[f"{name}_s"] = round(time.monotonic() - started)
            _again(world, result, version)
            _events(world, result, got, len(pythons))
        finally:
            world.close()
    result.check("every selected orchestrator ran", len(pythons) == len(wanted))


class World:
    """The history, the champion and its scorer, and how commands are run."""

    def __init__(self, context: Context, at: StackAddresses, events: str) -> None:
        self.context, self.at, self.folder = context, at, context.folder
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("OPENLINEAGE", "PYTHONPATH"))
        } | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "STREAM_SCORER_KAFKA_BOOTSTRAP": str(at.kafka),
            "STREAM_SCORER_MLFLOW_URL": str(at.mlflow),
            "STREAM_SCORER_CACHE_DIR": str(context.folder / "cache"),
            "OPENLINEAGE_URL": events,
            "DO_NOT_TRACK": "1",
        }
        self.start = 0
        self.scorer = Scorer(context.folder, at, instance="scorer", ensemble="cards@champion",
                             environment=self.environment)  # fmt: skip

    def begin(self, result: Result) -> None:
        """Simulate the history; train, register and serve the champion."""
        n = self.context.n or N
        config = SimulationConfig(
            seed=self.context.seed, customers=max(n // 60, 1), terminals=max(n // 100, 10), days=None, transactions=n,
            fraud_rate=0.08,
        )  # fmt: skip
        export(config, self.folder, labels=LabellerConfig())
        for name, limit in (("rules", 50_000_000), ("refusing", 1)):
            (self.folder / f"{name}.yaml").write_text(RULES.format(bytes=limit))
        champion = self.folder / "champion"
        history = [f"--{name}={self.folder / name}.parquet" for name in ("transactions", "labels")]
        (self.folder / "champion.yaml").write_text(TRAINING.format(seed=self.context.seed, grid=""))
        self.run("train", *history, "--spec", str(CARDS_SPEC), "--training", str(self.folder / "champion.yaml"),
                 "--name", "cards", "--out", str(champion), "--register", "cards",
                 "--alias", "champion", events=False)  # fmt: skip
        training = read_manifest(champion).training
        result.at_least("training_rows", training.rows, MIN_ROWS)
        self.start = training.last_event_time + 1
        self.scorer.start()
        wait_until("the champion serves", self._serves, WAIT_S, 1.0)
        self.context.say("the champion serves")

    def _serves(self) -> bool:
        self.scorer.require_running()
        return len(read_topic(str(self.at.kafka), Topics().control)) > 0

    def parameters(self, number: int, rules: str = "rules") -> dict[str, str]:
        """The parameters of a workflow whose folder and seed have this number."""
        training = self.folder / f"training-{number}.yaml"
        training.write_text(TRAINING.format(seed=self.context.seed + number, grid=GRID))
        return {
            "work": str(self.work(number)),
            "spec": str(CARDS_SPEC),
            "transactions": str(self.folder / "transactions.parquet"),
            "labels": str(self.folder / "labels.parquet"),
            "training": str(training),
            "rules": str(self.folder / f"{rules}.yaml"),
            "start": str(self.start),
            "name": "cards",
            "reason": f"proof {number}: \"quoted\" and 'quoted'",
        }

    def work(self, number: int) -> Path:
        """The folder of a workflow."""
        return self.folder / f"work-{number}"

    def run(self, *words: str, events: bool = True, expected: int = 0) -> str:
        """Run one command of ours; returns its standard output."""
        environ = {k: v for k, v in self.environment.items() if events or not k.startswith("OPENLINEAGE")}
        done = subprocess.run(die_with_parent([OURS, *words]), capture_output=True, text=True, check=False,
                              env=environ, cwd=self.folder, timeout=COMMAND_S)  # fmt: skip
        assert done.returncode == expected, f"{words[:2]}: exit {done.returncode}\n{done.stderr[-1_500:]}"
        return done.stdout

    def status(self) -> dict[str, Any]:
        """`ensemble status`."""
        return dict(json.loads(self.run("ensemble", "status", "cards", "--json", events=False)))

    def versions(self) -> list[str]:
        """The registered versions, newest first."""
        return [each["version"] for each in json.loads(self.run("ensemble", "list", "--json", events=False))]

    def close(self) -> None:
        """Stop the scorer."""
        self.scorer.close()


def _airflow(world: World, result: Result, files: Path, python: str, number: int) -> str:
    """Load the DAG and run it by the LocalExecutor, with an API server on loopback."""
    home, out, port = world.folder / "airflow", world.folder / "airflow.json", _free_port()
    dags = home / "dags"
    dags.mkdir(parents=True)
    for name in ("steps.py", "airflow_dag.py"):
        shutil.copy(files / name, dags)
    settings = {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": "2",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
        # Its first answer takes long on busy cores.
        "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "120",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__API_AUTH__JWT_SECRET": hashlib.sha256(f"{port}".encode()).hexdigest(),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
    }
    environ = world.environment | settings
    program = str(Path(python).with_name("airflow"))
    _program(world, "airflow-migrate", [program, "db", "migrate"], environ)
    server = [program, "api-server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with (world.folder / "airflow-server.log").open("wb") as log:
        process = subprocess.Popen(die_with_parent(server), env=environ, stdout=log, stderr=log)
        try:
            wait_until("Airflow's API server answers", lambda: _answers(f"http://127.0.0.1:{port}/execution/health"),
                       WAIT_S, 1.0)  # fmt: skip
            conf = json.dumps(world.parameters(number))
            run = [python, str(PROGRAMS / "airflow_run.py"), str(dags), "stream-scorer-candidate", conf, str(out)]
            _program(world, "airflow-run", run, environ)
        finally:
            process.terminate()
            process.wait(60)
    found = json.loads(out.read_text())
    result.figures["airflow"] = {key: found[key] for key in ("airflow", "executor", "state") if key in found}
    result.check("Airflow loads the DAG without an error", not found["import_errors"])
    result.check("its LocalExecutor runs every step", found["tasks"] == dict.fromkeys(STEPS, "success"))
    return "Airflow"


def _prefect(world: World, result: Result, files: Path, python: str, number: int) -> str:
    """Run the flow twice: with rules that refuse the candidate, and with rules that it meets."""
    settings = {
        "PREFECT_HOME": str(world.folder / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # Its first start creates a database.
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": str(WAIT_S),
    }
    environ = world.environment | settings
    before = world.versions()
    command = [python, str(files / "prefect_flow.py")]
    refused = _program(
        world, "prefect-refused", [*command, *_assignments(world.parameters(number, "refusing"))], environ, check=False
    )
    result.check("a candidate that the gate refuses fails the flow", refused != 0)
    result.check("and is not registered", world.versions() == before)
    log = (world.folder / "prefect-refused.log").read_text()
    result.check("the log has the reason", "cost.bytes" in log and "the gate refuses" in log)
    trained = (world.work(number) / "ensemble" / "manifest.json").read_bytes()
    done = _program(world, "prefect-run", [*command, *_assignments(world.parameters(number))], environ, check=False)
    result.check("Prefect runs every step", done == 0)
    again = (world.work(number) / "ensemble" / "manifest.json").read_bytes()
    result.check("a second run keeps what was trained", trained == again)
    return "Prefect"


def _assignments(values: Mapping[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in values.items()]


def _program(world: World, name: str, command: Sequence[str], environ: Mapping[str, str], *, check: bool = True) -> int:
    """Run a program of an orchestrator and return its exit code; its output is in ``<name>.log``."""
    started = time.monotonic()
    log = world.folder / f"{name}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(die_with_parent(list(command)), env=dict(environ), stdout=out, stderr=out,
                                   cwd=world.folder, start_new_session=True)  # fmt: skip
        try:
            code = process.wait(RUN_S)
        finally:
            # Its workers too: they would wait for work after their executor has died.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    world.context.say(f"{name}: exit {code}, {time.monotonic() - started:.0f} s")
    if check and code != 0:
        raise AssertionError(f"{name} ended with {code}:\n{log.read_text()[-3_000:]}")
    return code


def _is_shadow(world: World, result: Result, orchestrator: str, version: str, number: int) -> None:
    """The candidate of a workflow is the newest shadow on `control`, and the scorer has it in play."""
    manifest = read_manifest(world.work(number) / "ensemble")
    status = world.status()
    shadows = {each["version"]: each["manifest_sha256"] for each in status["states"][0]["shadows"]}
    result.check(f"{orchestrator} leads to a shadow: version {version}",
                 shadows.get(version) == manifest_digest(manifest))  # fmt: skip
    result.check(f"the scorer has version {version} in play",
                 any(version in scorer["in_play"] for scorer in status["scorers"]))  # fmt: skip


def _again(world: World, result: Result, version: int) -> None:
    """The last two steps once more."""
    before = world.versions(), world.status()["states"]
    if version > 1:
        folder = str(world.work(version - 1) / "ensemble")
        world.run("ensemble", "register", folder, "cards", "--once", "--alias", "candidate", "--why", "again")
        world.run("ensemble", "shadow", "cards@candidate", "--why", "again")
    result.check("the last steps again change nothing", (world.versions(), world.status()["states"]) == before)


def _events(world: World, result: Result, got: Receiver, workflows: int) -> None:
    """Part 4: the events of all workflows, of a promotion, and of a training that fails."""
    world.run("ensemble", "promote", "cards@candidate", "--why", "proof", "--wait", "60")
    world.run("train", "--transactions", "none.parquet", "--labels", "none.parquet", "--spec", str(CARDS_SPEC),
              "--out", "none", expected=2)  # fmt: skip
    problems = [problem for problem in map(problem_of, got.events) if problem]
    result.figures |= {"events": len(got.events), "event_problems": problems[:3]}
    result.check("every event is valid", not problems)
    whole = ["START", "COMPLETE"]
    result.check("trainings send START and COMPLETE, or FAIL", sorted(got.kinds("train"))
                 == sorted([*[whole] * (len(got.kinds("train")) - 1), ["START", "FAIL"]]))  # fmt: skip
    result.at_least("complete_trainings", got.kinds("train").count(whole), workflows)
    evaluations = got.kinds("evaluate")
    result.check("evaluations send START and COMPLETE", evaluations.count(whole) == len(evaluations) >= workflows)
    result.check("the promotion sends START and COMPLETE", got.kinds("promote") == [whole])
    digest = hashlib.sha256((world.folder / "transactions.parquet").read_bytes()).hexdigest()
    trained = [event for event in got.of("train") if event["eventType"] == "COMPLETE"][-1]
    promoted = got.of("promote")[-1]
    result.check("the training read the history", digest in _versions(trained["inputs"]))
    result.check("the promoted version is what the training wrote",
                 _versions(promoted["inputs"]) <= _versions(trained["outputs"]))  # fmt: skip


def _versions(datasets: Sequence[Mapping[str, Any]]) -> set[str]:
    return {each["facets"]["version"]["datasetVersion"] for each in datasets if "version" in each["facets"]}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=60):
            return True
    except OSError:
        return False
