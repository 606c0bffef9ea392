"""usage: wrong usage gives one readable message that names the thing and the mend, and the contract's exit code."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from proofs.kit import CARDS_SPEC, ROOT, Context, Result, die_with_parent, services, train_cards
from stream_scorer.ensemble.registry import register

# A message may need a few lines (what, why, mend), never a page.
MAX_LINES = 6
TIMEOUT_S = 90
# Each case mostly imports.
PARALLEL = 2
# Cases that need a service, a model or a port. The unit tests of commands, specs and settings have such as the others.
SMALL = {"no broker", "wrong topic", "missing model", "port taken", "Redis down", "a command that cannot count"}


def run(context: Context) -> Result:
    """See the module. With `n` set only the cases of `SMALL` are tried, which need no registry (10 s to start)."""
    result = Result()
    folder = context.folder
    train_cards(folder, seed=context.seed, transactions=30_000)
    (folder / "bad.yaml").write_text("name: x\nversion: one\n")
    (folder / "broken.yaml").write_text("name: [x\n")
    (folder / "settings").mkdir()
    (folder / "settings" / "stream-scorer.toml").write_text('[kafka]\nbootstrop = "x"\n')
    wanted = ("kafka", "redis") if context.n else ("kafka", "redis", "mlflow")
    with services(*wanted) as (_stack, at), _Listening() as taken, _Closed() as closed:
        if at.mlflow:
            register(folder / "ensemble", "cards", at.mlflow, alias="champion")
        good = {
            "--bootstrap": str(at.kafka),
            "--redis": str(at.redis),
            "--mlflow": str(at.mlflow),
            "--spec": str(CARDS_SPEC),
            "--ensemble": str(folder / "ensemble"),
            "--metrics-port": "-1",
            "--cache": str(folder / "cache"),
        }
        # name: (flags that differ, exit code, words the message must hold)
        cases: dict[str, tuple[dict[str, str], int, list[str]]] = {
            "no broker": ({"--bootstrap": f"127.0.0.1:{closed}"}, 1, ["Kafka", str(closed), "kafka.bootstrap"]),
            "wrong topic": (
                {"--topic-prefix": "nobody.", "--group": "nobody"},
                2,
                ["nobody.transactions", "topics create"],
            ),
            "another installation's group": ({"--topic-prefix": "staging."}, 2, ["scorer.group", "topics.prefix"]),
            "missing model": ({"--ensemble": "./nowhere"}, 2, ["nowhere"]),
            "bad spec": ({"--spec": str(folder / "bad.yaml")}, 2, ["bad.yaml", "version"]),
            "broken YAML": ({"--spec": str(folder / "broken.yaml")}, 2, ["broken.yaml", "YAML"]),
            "missing spec": ({"--spec": str(folder / "none.yaml")}, 2, ["none.yaml"]),
            "port taken": ({"--metrics-port": str(taken)}, 2, [str(taken), "metrics.port"]),
            "bad number": ({"--batch": "0"}, 2, ["scorer.batch"]),
        }
        if at.mlflow:
            down = {"--ensemble": "cards@champion", "--mlflow": f"http://127.0.0.1:{closed}"}
            cases |= {
                "unknown name": ({"--ensemble": "cars@champion"}, 2, ["cars"]),
                "unknown alias": ({"--ensemble": "cards@chmpion"}, 2, ["chmpion", "champion"]),
                "registry down": (down, 1, [str(closed)]),
            }
        # A scorer starts without Redis and degrades; a command about features cannot.
        check = {k: good[k] for k in ("--bootstrap", "--spec")}
        check["--redis"] = f"redis://:secret@127.0.0.1:{closed}/0"
        command = ["ensemble", "rollback", "cards", "--bootstrap", str(at.kafka), "--mlflow", ""]
        runs: list[tuple[str, list[str], int, list[str], Path]] = [
            *((name, ["run", *_flags(good | more)], code, words, ROOT) for name, (more, code, words) in cases.items()),
            ("Redis down", ["features", "check", *_flags(check)], 1, ["Redis", str(closed)], ROOT),
            ("unknown flag", ["run", "--bootstrp", "x"], 2, ["bootstrp"], ROOT),
            ("unknown command", ["rum"], 2, ["rum"], ROOT),
            ("unknown setting", ["run"], 2, ["kafka.bootstrop"], folder / "settings"),
            ("nothing set", ["run", "--spec", str(CARDS_SPEC)], 2, ["kafka.bootstrap"], folder),
            ("a command without a reason", command, 2, ["--why"], ROOT),
            ("a command that cannot count", [*command, "--why", "so"], 1, ["refused", "no version"], ROOT),
        ]
        runs = [each for each in runs if not context.n or each[0] in SMALL]
        with ThreadPoolExecutor(PARALLEL) as pool:
            list(pool.map(lambda each: _try(context, result, *each), runs))
    result.at_least("cases", len(result.checks), len(SMALL) if context.n else 18)
    return result


def _try(
    context: Context,
    result: Result,
    name: str,
    arguments: list[str],
    code: int,
    words: list[str],
    cwd: Path,
) -> None:
    module = ["proofs.sabotage", "raw-errors"] if context.broken else ["stream_scorer.cli.main"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("STREAM_SCORER_")}
    started = time.monotonic()
    try:
        done = subprocess.run(
            die_with_parent([sys.executable, "-m", *module, *arguments]),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            cwd=cwd,
            env=environment | {"PYTHONPATH": str(ROOT)},
            check=False,
        )
    except subprocess.TimeoutExpired:
        result.check(f"{name}: it ends", False)
        return
    seconds = time.monotonic() - started
    # Logs of the way there are no part of the message; they carry a level.
    lines = [line for line in done.stderr.splitlines() if line.strip() and " INFO " not in line]
    faults = []
    if done.returncode != code:
        faults.append(f"exit {done.returncode}, not {code}")
    if "Traceback" in done.stderr:
        faults.append("a traceback")
    if not 1 <= len(lines) <= MAX_LINES:
        faults.append(f"{len(lines)} lines")
    faults += [f"no word of {word!r}" for word in words if word not in done.stderr]
    if "secret" in done.stderr:
        faults.append("the password is shown")
    context.say(f"{name}: exit {done.returncode} in {seconds:.1f} s: {lines[0] if lines else '(nothing)'}")
    result.check(f"{name}: exit {code}, one message" + (f" ({'; '.join(faults)})" if faults else ""), not faults)


def _flags(flags: dict[str, str]) -> list[str]:
    return [part for flag, value in flags.items() for part in (flag, value)]


class _Listening:
    """A port that is taken."""

    def __enter__(self) -> int:
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self._socket.listen()
        return int(self._socket.getsockname()[1])

    def __exit__(self, *_: object) -> None:
        self._socket.close()


class _Closed(_Listening):
    """A port where nobody answers: bound, not listening."""

    def __enter__(self) -> int:
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        return int(self._socket.getsockname()[1])
