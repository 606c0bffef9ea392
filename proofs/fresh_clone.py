"""fresh-clone: a clone runs `make demo` and `make test`, each twice, and leaves no process and no untracked file.

The clone installs its own `.venv` from the locks; nothing of this checkout's environment reaches it. Downloads may come
from the caches of the user. `n` is the number of rounds.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from proofs.kit import PARENT_DEATH, ROOT, Context, Result

ROUNDS = 2
# Several times what each takes on two idle cores, the first installation included.
TIMEOUT_S = {"demo": 1_200, "test": 3_600}
# What the contract allows once installed; printed with the measurement, which depends on the machine.
DEMO_TARGET_S = 300
GONE_S = 10.0
_BROKEN_TEST = '''"""A test that fails."""


def test_that_fails() -> None:
    assert not __name__
'''
# These would lead the clone's commands into this checkout's environment, or change what they do.
_LEFT_OUT = ("STREAM_SCORER_", "PROOF_", "PYTHON", "VIRTUAL_ENV", "MAKE", "MFLAGS", "SEED", "BREAK", "N=", "P=")


def run(context: Context) -> Result:
    """See the module. With `broken` the clone has a failing test, and only the tests are run, once."""
    result = Result()
    clone = (context.folder / "clone").resolve()
    _git(["clone", "--quiet", "--no-hardlinks", str(ROOT), str(clone)], ROOT)
    result.figures["commit"] = _git(["rev-parse", "--short", "HEAD"], clone)
    rounds = context.n or ROUNDS
    targets = ["demo", "test"]
    if context.broken:
        rounds, targets = 1, ["test"]
        _commit_failing_test(clone)
    for number in range(1, rounds + 1):
        for target in targets:
            _make(context, result, clone, target, number)
    result.check("no untracked or changed file", not _git(["status", "--porcelain"], clone))
    result.figures["demo_target_seconds"] = DEMO_TARGET_S
    return result


def _make(context: Context, result: Result, clone: Path, target: str, number: int) -> None:
    name = f"{target}_{number}"
    log = context.folder / f"{name}.log"
    started = time.monotonic()
    code = _run([_program("make"), target], clone, log, TIMEOUT_S[target])
    seconds = round(time.monotonic() - started, 1)
    result.figures[f"{name}_seconds"] = seconds
    context.say(f"make {target}, round {number}: exit {code} in {seconds:.0f} s")
    if code != 0:
        for line in log.read_text(errors="replace").splitlines()[-25:]:
            context.say(f"  | {line}")
    result.check(f"make {target}, round {number}, exits 0", code == 0)
    left = _left_behind(clone)
    for pid, command in left.items():
        context.say(f"  left behind: {pid} {command[:150]}")
    result.check(f"make {target}, round {number}, leaves no process", not left)
    if target == "demo":
        page = clone / "demo-report" / "index.html"
        fresh = page.exists() and page.stat().st_mtime >= time.time() - seconds
        result.check(f"make demo, round {number}, writes its report", fresh)


def _run(command: Sequence[str], clone: Path, log: Path, timeout_s: float) -> int:
    environment = {k: v for k, v in os.environ.items() if not f"{k}=".startswith(_LEFT_OUT)}
    with log.open("wb") as output:
        # A session of its own, so that what is still running after a timeout can be ended as one group.
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(PARENT_DEATH), str(os.getpid()), "exec", *command],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=clone, env=environment, start_new_session=True,
        )  # fmt: skip
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return 124
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(GONE_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise AssertionError(f"{name} is not installed")
    return found


def _left_behind(clone: Path) -> dict[int, str]:
    """Processes that work in the clone or name it, once the kernel has had its moment to reap."""
    deadline = time.monotonic() + GONE_S
    while (found := _processes_of(clone)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def _processes_of(clone: Path) -> dict[int, str]:
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            inside = (entry / "cwd").resolve().is_relative_to(clone)
        except OSError:  # it ended while it was looked at
            continue
        # A zombie has no command line: it has ended.
        if command and (inside or str(clone) in command):
            found[int(entry.name)] = command
    return found


def _commit_failing_test(clone: Path) -> None:
    (clone / "tests" / "unit" / "test_that_fails.py").write_text(_BROKEN_TEST)
    _git(["add", "tests/unit/test_that_fails.py"], clone)
    author = ["-c", "user.name=proof", "-c", "user.email=proof@localhost"]
    _git([*author, "commit", "--quiet", "-m", "A test that fails"], clone)


def _git(arguments: Sequence[str], folder: Path) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise AssertionError(f"git {arguments[0]}: {done.stderr.strip()}")
    return done.stdout.strip()
