"""Run many proofs, one after another: ``python -m proofs --all [--only a,b] [--skip a,b]`` (`make prove-all`).

Each proof is a process in a session of its own. Its output goes to ``.stream-scorer/prove-all/<slug>.log``. Proofs that
allow it (see `proofs/catalogue.py`) share one local stack, which ends before the first proof that measures, kills or
flushes. The last line is one JSON object; the exit code is the worst of all proofs.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Self

from proofs.catalogue import PROOFS, Proof
from proofs.kit import SHARED_STACK, WORK, DataMissing, die_with_parent
from stream_scorer.errors import StreamScorerError, UsageError
from stream_scorer.stack import SERVICES, LocalStack

LOGS = WORK / "prove-all"
# A proof may take this many times what it takes on idle cores, and at least this many seconds.
MAX_TIMES, MIN_LIMIT_S = 5, 900
# How long an interrupted proof has to end its processes, and a finished one's have to end by themselves.
INTERRUPTED_S, LEFT_S = 20.0, 15.0
POLL_S = 0.1
INTERRUPTED = 130
_PR_SET_CHILD_SUBREAPER = 36

Outcome = Literal["holds", "fails", "skipped"]


@dataclass(frozen=True, slots=True)
class Line:
    """How one proof ended. `code` is its exit code; `why` one line about a failure or a skip."""

    slug: str
    outcome: Outcome
    code: int
    seconds: float
    why: str = ""


def select(catalogue: Mapping[str, Proof], only: str = "", skip: str = "") -> list[str]:
    """Slugs to run, in the order of running: `only` (all if empty) without `skip`, both separated by commas.

    Proofs that share services, or need none, come first, then those with services of their own, then those that run
    this project's tests; within each of these the shortest first.

    Raises:
        UsageError: a slug is unknown, or none is left.
    """
    wanted, unwanted = _slugs(only), _slugs(skip)
    unknown = [slug for slug in (*wanted, *unwanted) if slug not in catalogue]
    if unknown:
        raise UsageError(f"no such proof: {', '.join(unknown)}", hint="`make prove` lists all proofs.")
    chosen = [slug for slug in catalogue if (not wanted or slug in wanted) and slug not in unwanted]
    if not chosen:
        raise UsageError("no proof is left to run", hint="SKIP= excludes everything that ONLY= selects.")
    proofs = catalogue
    return sorted(chosen, key=lambda s: (proofs[s].recurses, bool(proofs[s].own), proofs[s].seconds, s))


def worst(lines: Iterable[Line]) -> int:
    """The exit code of a whole run: the highest of a failed proof; else 0 if one holds; else that of a skipped one."""
    lines = list(lines)
    failed = [line.code for line in lines if line.outcome == "fails"]
    if failed:
        return max(failed)
    return 0 if any(line.outcome == "holds" for line in lines) else DataMissing.EXIT_CODE


def outcome_of(slug: str, code: int, seconds: float, log: Path, left: int = 0) -> Line:
    """Judge a proof that ended with `code` (negative: by that signal) and left `left` processes behind."""
    failed, verdict = _read(log)
    if code == DataMissing.EXIT_CODE and "skipped" in verdict:
        return Line(slug, "skipped", code, seconds, str(verdict["skipped"]))
    if code == 0 and verdict.get("ok") is True:
        if left:
            return Line(slug, "fails", 1, seconds, f"it left {left} processes behind")
        return Line(slug, "holds", 0, seconds)
    why = "; ".join(failed) or (f"ended by signal {-code}" if code < 0 else f"exit {code}")
    return Line(slug, "fails", 128 - code if code < 0 else max(code, 1), seconds, why)


def proof_command(slug: str) -> list[str]:
    """The command that runs one proof."""
    return [sys.executable, "-m", "proofs", slug]


class Runner:
    """Runs proofs in turn. A context manager; the shared services end with it.

    Args:
        catalogue: the proofs. slugs: those to run, in order. environment: of every proof. logs: folder of their logs.
        command: see `proof_command`. out: takes one line about each proof when it has ended.
    """

    def __init__(
        self,
        catalogue: Mapping[str, Proof],
        slugs: Sequence[str],
        environment: Mapping[str, str],
        logs: Path,
        out: Callable[[str], None],
        command: Callable[[str], list[str]] = proof_command,
    ) -> None:
        self._catalogue, self._slugs, self._environment = catalogue, slugs, dict(environment)
        self._logs, self._out, self._command = logs, out, command
        self._stack = _SharedStack({slug: catalogue[slug].shares for slug in slugs if catalogue[slug].shares})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._stack.close()

    def run(self) -> list[Line]:
        """Run all, whatever fails; an interrupt (Ctrl-C, SIGTERM) ends the proof that runs, and starts no other."""
        self._logs.mkdir(parents=True, exist_ok=True)
        # Orphans of a proof become children of this process, so that none escapes.
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        # SIGINT too: a shell starts background jobs with SIGINT ignored, which proofs would inherit.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _interrupt)
        lines: list[Line] = []
        for slug in self._slugs:
            began = time.monotonic()
            try:
                line = self._one(slug)
            except KeyboardInterrupt:
                line = Line(slug, "fails", INTERRUPTED, time.monotonic() - began, "interrupted")
            lines.append(line)
            self._out(shown(line, self._logs))
            if line.code == INTERRUPTED:
                break
        return lines

    def _one(self, slug: str) -> Line:
        log, began = self._logs / f"{slug}.log", time.monotonic()
        try:
            shared = self._stack.before(slug)
        except StreamScorerError as error:
            log.write_text(f"{error.message}\n")
            line = Line(slug, "fails", 1, time.monotonic() - began, f"no services: {error.message}")
        else:
            began = time.monotonic()  # the start of shared services is not part of the proof
            own, limit_s = _children(), max(MIN_LIMIT_S, MAX_TIMES * self._catalogue[slug].seconds)
            code = _wait(die_with_parent(self._command(slug)), self._environment | shared, log, limit_s, own)
            seconds = time.monotonic() - began
            if code is None:
                line = Line(slug, "fails", 124, seconds, f"stopped after {limit_s} s")
            else:
                line = outcome_of(slug, code, seconds, log, left=_end_left_behind(own, LEFT_S))
        self._stack.after(line)
        return line


def run_all(slugs: Sequence[str], environment: Mapping[str, str], out: Callable[[str], None]) -> int:
    """Run `slugs`, then write the counts, the total time and the JSON object to `out`; answers the exit code."""
    started = time.monotonic()
    with Runner(PROOFS, slugs, environment, LOGS, out) as runner:
        lines = runner.run()
    code, seconds = worst(lines), time.monotonic() - started
    out(f"{_counts(lines)} in {_duration(seconds)}")
    proofs = {
        line.slug: {"result": line.outcome, "seconds": round(line.seconds, 1)} | ({"why": line.why} if line.why else {})
        for line in lines
    }
    summary = {"proof": "all", "ok": code == 0, "seconds": round(seconds, 1), "logs": str(LOGS), "proofs": proofs}
    out(json.dumps(summary))
    return code


class _SharedStack:
    """The services that proofs share, `shares` by slug: started for the first of them, ended after the last."""

    def __init__(self, shares: dict[str, tuple[str, ...]]) -> None:
        self._waiting = set(shares)
        names = {name for services in shares.values() for name in services}
        self._services = tuple(name for name in SERVICES if name in names)
        self._stack: LocalStack | None = None

    def before(self, slug: str) -> dict[str, str]:
        """What to put into the environment of a proof that is about to run. Raises UnavailableError."""
        if slug not in self._waiting:
            return {}
        if self._stack is None:
            self._stack = LocalStack(self._services).start()
        at = self._stack.addresses
        return {SHARED_STACK: json.dumps({name: at.get(name) for name in self._services})}

    def after(self, line: Line) -> None:
        """A proof has ended. A failed one may have left the services in any state: the next one gets new ones."""
        self._waiting.discard(line.slug)
        if line.outcome == "fails" or not self._waiting:
            self.close()

    def close(self) -> None:
        """End the services, if they run."""
        if self._stack is not None:
            self._stack.close()
            self._stack = None


def _wait(command: list[str], environment: dict[str, str], log: Path, limit_s: float, own: set[int]) -> int | None:
    """Run `command` to its end and answer its exit code, None if it took too long."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True
        )
    deadline = time.monotonic() + limit_s
    try:
        while process.poll() is None and time.monotonic() < deadline:
            _reap_orphans(own | {process.pid})
            time.sleep(POLL_S)
        return process.returncode
    finally:
        if process.poll() is None:
            _stop(process)
            _end_left_behind(own, 0.0)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Interrupt a proof, as Ctrl-C does, so that it ends what it started; kill it if that takes too long."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(INTERRUPTED_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _children() -> set[int]:
    """Process ids of this process's own children."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it ended meanwhile
                continue
            if int(fields[1]) == os.getpid():
                found.add(int(entry.name))
    return found


def _end_left_behind(own: set[int], patience_s: float) -> int:
    """Wait for orphans of a proof to end, kill those that do not; answers how many did not. `own` are left alone."""
    deadline = time.monotonic() + patience_s
    while left := _reap(_children() - own):
        if time.monotonic() >= deadline:
            break
        time.sleep(0.1)
    killed = len(left)
    # Whoever is killed may have children, which then become ours.
    while left:
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
        left = _reap(_children() - own)
    return killed


def _reap_orphans(own: set[int]) -> None:
    """Collect orphans that have ended: a proof may wait until a process that it killed no longer exists."""
    peek = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while (ended := os.waitid(os.P_ALL, 0, peek)) is not None and ended.si_pid not in own:
        os.waitpid(ended.si_pid, 0)


def _reap(pids: set[int]) -> set[int]:
    """Collect those that have ended; answers those that run."""
    return {pid for pid in pids if os.waitpid(pid, os.WNOHANG)[0] == 0}


def _read(log: Path) -> tuple[list[str], dict[str, Any]]:
    """Failed checks, and the JSON object at the end, as far as the log has them."""
    lines = log.read_text(errors="replace").splitlines()
    failed = [text.strip().removeprefix("FAIL ") for text in lines if text.strip().startswith("FAIL ")]
    for text in reversed(lines):
        if text.startswith('{"proof"'):
            return failed, json.loads(text)
    return failed, {}


def shown(line: Line, logs: Path) -> str:
    """One line about a proof, and where its log is if it fails."""
    text = f"{line.outcome:8s} {line.slug:20s} {line.seconds:7.1f} s"
    if line.why:
        text += f"   {line.why}"
    return text + (f"\n{'':8s} see {logs / line.slug}.log" if line.outcome == "fails" else "")


def _counts(lines: Sequence[Line]) -> str:
    outcomes = [line.outcome for line in lines]
    return f"{outcomes.count('holds')} hold, {outcomes.count('fails')} fail, {outcomes.count('skipped')} skipped"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _slugs(text: str) -> list[str]:
    return [slug.strip() for slug in text.split(",") if slug.strip()]


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
