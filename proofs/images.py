"""images: the commands of each image run in a virtual environment built from the image's requirement file.

There is no Docker here. The environment has the packages of the image and no others: `run` in that of the scorer,
`monitor` in that of the monitor, `replay` and `verify` in the third. Needs the package registry or its cache.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from proofs.kit import (
    CARDS_SPEC,
    ROOT,
    Context,
    Monitor,
    Result,
    Scorer,
    die_with_parent,
    read_topic,
    recomputes_all,
    services,
    train_cards,
    wait_drained,
    wait_until,
)
from stream_scorer.kafka.topics import Topics
from stream_scorer.stack import StackAddresses

N = 5_000
ROLES = ("scorer", "monitor", "replay")
WAIT_S, COMMAND_S = 240.0, 240.0


def run(context: Context) -> Result:
    """See the module. `n` is the number of transactions. With BREAK=1, all commands run in the scorer's environment."""
    n, folder, result, topics = context.n or N, context.folder, Result(), Topics()
    roles = ROLES[:1] if context.broken else ROLES
    built = {role: _environment(folder, role) for role in roles}
    context.say(f"{len(built)} environments are built")
    pythons = {role: built.get(role, built["scorer"]) for role in ROLES}
    train_cards(folder, seed=context.seed, transactions=30_000)
    data = folder / "data"
    start = (datetime.now(UTC) - timedelta(days=40)).strftime("%Y-%m-%d")
    simulate = ["simulate", "--transactions", str(n), "--customers", "500", "--seed", str(context.seed)]
    _run(sys.executable, [*simulate, "--start", start, "--out", str(data)])
    with services("kafka", "redis") as (_stack, at):
        files = ["--transactions", str(data / "transactions.parquet"), "--labels", str(data / "labels.parquet")]
        _run(sys.executable, ["data", "publish", *files, "--bootstrap", str(at.kafka), "--spec", str(CARDS_SPEC)])
        scorer = Scorer(folder, at, instance="scorer", ensemble=folder / "ensemble")
        monitor = Monitor(folder, at, folder / "ensemble", arguments=["--emit-every", "0.5"])
        try:
            for process, role in ((scorer, "scorer"), (monitor, "monitor")):
                process._command = _with_python(process._command, pythons[role])
                process.start()
            wait_drained(str(at.kafka), [scorer], timeout_s=WAIT_S)
            _watch(result, at, topics, monitor)
        finally:
            scorer.stop()
            monitor.stop(20) if monitor.running else None
        scored = len(read_topic(str(at.kafka), topics.scores))
        result.figures |= {"transactions": n, "scores": scored}
        result.check("the scorer's image scores every transaction", scored == n)
        common = [
            "--bootstrap",
            str(at.kafka),
            "--ensemble",
            str(folder / "ensemble"),
            "--cache",
            str(folder / "cache"),
        ]
        replay = ["replay", "--from-topics", "--out", str(folder / "replayed"), "--spec", str(CARDS_SPEC), *common]
        done = _run(pythons["replay"], replay, check=False)
        result.check("the third image replays", done.returncode == 0 and any((folder / "replayed").iterdir()))
        done = _run(pythons["replay"], ["verify", "--json", *common], check=False)
        verified = json.loads(done.stdout) if done.returncode == 0 else {}
        result.check("the third image verifies every score", recomputes_all(verified, scored))
        for each in (done,):
            if each.returncode != 0:
                context.say(each.stderr[-800:])
    return result


def _watch(result: Result, at: StackAddresses, topics: Topics, monitor: Monitor) -> None:
    def published() -> bool:
        return not monitor.running or len(read_topic(str(at.kafka), topics.monitor_metrics)) > 0

    wait_until("the monitor publishes windows", published, WAIT_S, 1.0)
    result.check("the monitor's image publishes windows", monitor.running)


def _environment(folder: Path, role: str) -> str:
    """Build the environment of an image and return its interpreter."""
    place = folder / "environments" / role
    uv = str(Path(sys.executable).with_name("uv"))
    python = str(place / "bin" / "python")
    requirements = str(ROOT / "requirements" / f"{role}.txt")
    for command in (
        [uv, "venv", "--quiet", "--python", sys.executable, str(place)],
        [uv, "pip", "install", "--quiet", "--python", python, "--require-hashes", "-r", requirements],
    ):
        subprocess.run(command, check=True, timeout=COMMAND_S * 2)
    return python


def _with_python(command: list[str], python: str) -> list[str]:
    """`command` of `die_with_parent`, whose inner command runs with another interpreter."""
    at = command.index("exec") + 1
    return [*command[:at], python, *command[at + 1 :]]


def _run(python: str, arguments: list[str], *, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = _with_python(die_with_parent([sys.executable, "-m", "stream_scorer.cli.main", *arguments]), python)
    done = subprocess.run(
        command, cwd=ROOT, env=dict(os.environ) | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=COMMAND_S, check=False,
    )  # fmt: skip
    assert not check or done.returncode == 0, f"{arguments[:2]}: {done.stderr[-1500:]}"
    return done
