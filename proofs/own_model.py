"""own-model: three models, trained in a script that does not import this project, become a shadow on real parts.

The commands are those of docs/own-models.md, taken from the page. They train a scikit-learn pipeline, LightGBM and
CatBoost in an environment that does not contain this project, and compose, register and shadow the ensemble next to a
champion on a real Kafka, Redis and MLflow. Then: every live transaction has one score of the champion, and the shadow's
score of it equals the one recomputed from the recorded features; `stream-scorer verify` recomputes all of them.

`N` is the number of transactions of the history. With BREAK=1 two columns of the ONNX model are exchanged in own.yaml,
which the model file cannot show, because it has no column names.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from proofs.kit import (
    ROOT,
    WORK,
    Context,
    Result,
    die_with_parent,
    read_lineage,
    read_topic,
    recomputes_all,
    services,
    wait_until,
)
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.kafka.topics import Topics
from stream_scorer.records import Contribution, ScorerStatus
from stream_scorer.stack import StackAddresses

DOCUMENT = ROOT / "docs" / "own-models.md"
REQUIREMENTS = ROOT / "requirements" / "own-models.txt"
BASH = shutil.which("bash") or "/bin/bash"
N = 60_000
# The history that the document simulates, and its transactions per customer.
DOCUMENTED, PER_CUSTOMER = "--transactions 60000 --customers 2000", 30
TARGET_S = 600
COMMAND_S, INSTALL_S, WAIT_S = 900, 1_800, 240
MIN_SHADOWED = 1_000
MIN_AUC = 0.6
MEMBERS = ["pipeline", "boosted", "catboost"]


def run(context: Context) -> Result:
    """See the module."""
    result = Result()
    python = _environment(context)
    alone = subprocess.run([python, "-c", "import stream_scorer"], capture_output=True, cwd=context.folder, check=False)
    result.check("the environment of the models does not contain this project", alone.returncode != 0)
    with services("kafka", "redis", "mlflow") as (_stack, at):
        commands = Commands(context, at, python)
        try:
            started = time.monotonic()
            for command in documented_commands():
                commands.run(command)
            result.figures |= {
                "seconds_of_the_document": round(time.monotonic() - started, 1),
                "target_s": TARGET_S,
                "commands": commands.count,
            }
            _judge(context, result, at, commands)
        finally:
            commands.close()
    return result


def documented_commands() -> list[str]:
    """The commands of the page: the lines of its code blocks without a language."""
    blocks = re.findall(r"^```\n(.*?)^```", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


class Commands:
    """Runs the commands of the page in one folder and one environment, as a shell would."""

    def __init__(self, context: Context, at: StackAddresses, python: str) -> None:
        self._context = context
        self.folder = context.folder / "work"
        self.folder.mkdir()
        self.count = 0
        self._running: list[subprocess.Popen[bytes]] = []
        self.environment = dict(os.environ) | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "STREAM_SCORER_SOURCE": str(ROOT),
            "OWN_MODELS_PYTHON": python,
            "STREAM_SCORER_KAFKA_BOOTSTRAP": str(at.kafka),
            "STREAM_SCORER_REDIS_URL": str(at.redis),
            "STREAM_SCORER_MLFLOW_URL": str(at.mlflow),
            "STREAM_SCORER_CACHE_DIR": str(context.folder / "cache"),
        }

    def run(self, command: str) -> str:
        """Run one line of the page; returns what it printed."""
        if command == "stream-scorer stack up":
            return ""  # the services of the proof are set as addresses
        self.count += 1
        command = self._scaled(command)
        started = time.monotonic()
        if found := re.fullmatch(r"export (\w+)=(.*)", command):
            self.environment[found[1]] = self._shell(f"printf %s {found[2]}")
        elif command.endswith(" &"):
            self._start(command.removesuffix(" &"))
        else:
            if "ensemble compose" in command and self._context.broken:
                _exchange_columns(self.folder / "own.yaml")
            out = self._shell(command)
            self._context.say(f"{command[:76]}: {time.monotonic() - started:.1f} s")
            return out
        return ""

    def close(self) -> None:
        """End the processes that still run."""
        for process in self._running:
            process.terminate()
        for process in self._running:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _scaled(self, command: str) -> str:
        n = self._context.n or N
        return command.replace(DOCUMENTED, f"--transactions {n} --customers {n // PER_CUSTOMER}")

    def _shell(self, command: str) -> str:
        done = subprocess.run(
            die_with_parent([BASH, "-c", command]), capture_output=True, text=True, timeout=COMMAND_S, check=False,
            cwd=self.folder, env=self.environment,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stderr[-1_500:]}"
        return done.stdout

    def _start(self, command: str) -> None:
        """Start a command of the page that keeps running, and wait until its scorer serves."""
        with (self._context.folder / "scorer.log").open("wb") as log:
            process = subprocess.Popen(
                die_with_parent([BASH, "-c", f"exec {command}"]), stdout=log, stderr=log, cwd=self.folder,
                env=self.environment,
            )  # fmt: skip
        self._running.append(process)
        bootstrap = self.environment["STREAM_SCORER_KAFKA_BOOTSTRAP"]

        def serves() -> bool:
            assert process.poll() is None, (self._context.folder / "scorer.log").read_text()[-1_500:]
            return len(read_topic(bootstrap, Topics().control)) > 0

        wait_until("the champion serves", serves, WAIT_S, 1.0)


def _exchange_columns(path: Path) -> None:
    """Exchange the first two columns of the ONNX model."""
    text = path.read_text()
    first, second = re.findall(r"^ {6}- (\S+)$", text, re.MULTILINE)[:2]
    path.write_text(text.replace(f"- {first}\n      - {second}\n", f"- {second}\n      - {first}\n"))


def _environment(context: Context) -> str:
    """Build the environment of the models once per requirement file, and return its interpreter."""
    digest = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:12]
    place = WORK / "environments" / f"own-models-{digest}"
    python = place / "bin" / "python"
    if (place / "complete").exists():
        return str(python)
    uv = str(Path(sys.executable).with_name("uv"))
    context.say("building the environment of the models (once)")
    for command in (
        [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(place)],
        [uv, "pip", "install", "--quiet", "--python", str(python), "--require-hashes", "-r", str(REQUIREMENTS)],
    ):
        subprocess.run(command, check=True, timeout=INSTALL_S)
    (place / "complete").touch()
    return str(python)


def _judge(context: Context, result: Result, at: StackAddresses, commands: Commands) -> None:
    bootstrap, topics = str(at.kafka), Topics()
    sent = len(read_topic(bootstrap, topics.transactions))
    wait_until("every transaction is scored", lambda: len(read_topic(bootstrap, topics.scores)) >= sent, WAIT_S, 1.0)
    shown: dict[str, Any] = json.loads(commands.run("stream-scorer ensemble show cards:2 --json"))
    result.check("the registered ensemble has the three models", [m["name"] for m in shown["members"]] == MEMBERS)
    auc = shown["training"]["metrics"]["ensemble"]["roc_auc"]
    result.at_least("auc_of_the_holdout", round(auc, 4), MIN_AUC)
    statuses = read_topic(bootstrap, topics.scorer_status).decode(ScorerStatus)
    result.check("the scorer has both versions in play", {"1", "2"} <= set(statuses[-1].in_play))
    contributions = read_topic(bootstrap, topics.contributions).decode(Contribution)
    ids = [record.event_id for record in contributions]
    result.check("every transaction has one score", len(ids) == sent == len(set(ids)))
    result.check("the champion decided them all", {record.version for record in contributions} == {"1"})
    features = {row.event_id: row.features for row in read_lineage(bootstrap, topics)}
    shadowed = [(r.event_id, r.alternatives[0]) for r in contributions if r.alternatives]
    own = Ensemble.load(commands.folder / "own", version="2")
    matrix = np.array([features[event_id] for event_id, _ in shadowed], dtype=np.float64)
    expected = own.score(matrix).z if len(matrix) else np.empty(0)
    got = np.array([np.nan if a.z is None else a.z for _, a in shadowed], dtype=np.float64)
    result.check("the shadow scored by version 2", {a.version for _, a in shadowed} == {"2"})
    result.check("its scores equal a recomputation from the recorded features", bool(np.array_equal(got, expected)))
    result.at_least("shadowed", len(shadowed), MIN_SHADOWED)
    result.figures |= {"distinct_shadow_scores": len(np.unique(got)), "live_transactions": sent}
    result.check("shadow scores differ by transaction", len(np.unique(got)) > len(got) // 4)
    verified = commands.run("stream-scorer verify --json --ensemble cards@champion")
    result.check("verify recomputes every score", recomputes_all(json.loads(verified), len(ids)))
    took = result.figures["seconds_of_the_document"]
    context.say(f"the commands of the document took {took:.0f} s; the target is {TARGET_S} s")
