"""`make prove-all`: which proofs run and in what order, what a run of several comes to, and that no process is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from proofs.__main__ import main
from proofs.catalogue import PROOFS, Proof
from proofs.kit import ROOT, DataMissing
from proofs.replay_thin import _touched
from proofs.run_all import Line, outcome_of, select, worst
from stream_scorer.errors import UsageError

CATALOGUE = {
    "tests": Proof("runs the tests", 1, own="recurses", recurses=True),
    "kills": Proof("kills", 2, own="kills"),
    "long": Proof("takes long", 30),
    "short": Proof("is short", 3, shares=("redis",)),
}


def test_short_proofs_run_first_then_those_apart_then_those_that_run_the_tests() -> None:
    assert select(CATALOGUE) == ["short", "long", "kills", "tests"]


@pytest.mark.parametrize(
    ("only", "skip", "expected"),
    [
        ("long,short", "", ["short", "long"]),
        (" long , kills ,", "", ["long", "kills"]),
        ("", "tests,long", ["short", "kills"]),
        ("long,short", "short", ["long"]),
    ],
)
def test_only_and_skip_select(only: str, skip: str, expected: list[str]) -> None:
    assert select(CATALOGUE, only, skip) == expected


@pytest.mark.parametrize(("only", "skip"), [("shrot", ""), ("", "shrot"), ("long", "shrot")])
def test_an_unknown_slug_is_named(only: str, skip: str) -> None:
    with pytest.raises(UsageError, match="shrot"):
        select(CATALOGUE, only, skip)


def test_a_selection_of_nothing_is_an_error() -> None:
    with pytest.raises(UsageError, match="no proof is left"):
        select(CATALOGUE, "long", "long")


def test_wrong_usage_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--all", "--only", "shrot"]) == 2
    assert "no such proof: shrot" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("codes", "expected"), [([0, 0], 0), ([0, 1, 0], 1), ([1, 137, 0], 137), ([0, 77], 0), ([77], 77), ([1, 77], 1)]
)
def test_the_exit_code_is_the_worst(codes: list[int], expected: int) -> None:
    outcomes = {0: "holds", DataMissing.EXIT_CODE: "skipped"}
    assert worst(Line("x", outcomes.get(code, "fails"), code, 1.0) for code in codes) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "text", "expected"),
    [
        (0, '{"proof": "x", "ok": true}', ("holds", 0, "")),
        (1, '  FAIL one thing\n  ok   two\n{"proof": "x", "ok": false}', ("fails", 1, "one thing")),
        (0, "no verdict", ("fails", 1, "exit 0")),
        (-9, "", ("fails", 137, "ended by signal 9")),
        (77, '{"proof": "x", "ok": false, "skipped": "no data"}', ("skipped", 77, "no data")),
        (77, "something else that exits with 77", ("fails", 77, "exit 77")),
    ],
)
def test_a_proof_holds_only_if_it_says_so(tmp_path: Path, code: int, text: str, expected: tuple[str, int, str]) -> None:
    (tmp_path / "x.log").write_text(text)
    line = outcome_of("x", code, 1.0, tmp_path / "x.log")
    assert (line.outcome, line.code, line.why) == expected


def test_a_proof_that_leaves_a_process_fails(tmp_path: Path) -> None:
    (tmp_path / "x.log").write_text('{"proof": "x", "ok": true}')
    assert outcome_of("x", 0, 1.0, tmp_path / "x.log", left=2).outcome == "fails"


# Runs proofs that are a few lines of Python each: a program of its own, for it changes signals and adopts orphans.
RUNNER = """
import os, sys
from pathlib import Path
import proofs.run_all as run_all
from proofs.catalogue import Proof
run_all.LEFT_S = 1.0
BODIES = {
    "fails": "print('  FAIL it'); raise SystemExit(1)",
    "leaves": "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'],"
              " start_new_session=True); print('left', p.pid); print('{\\"proof\\": \\"leaves\\", \\"ok\\": true}')",
    "sleeps": "import os, time; print('pid', os.getpid(), flush=True); time.sleep(300)",
    "holds": "print('{\\"proof\\": \\"holds\\", \\"ok\\": true}')",
}
slugs = sys.argv[2].split(",")
catalogue = {slug: Proof("", 1) for slug in slugs}
command = lambda slug: [sys.executable, "-c", BODIES[slug]]
out = lambda text: print(text, flush=True)
with run_all.Runner(catalogue, slugs, os.environ, Path(sys.argv[1]), out, command) as runner:
    sys.exit(run_all.worst(runner.run()))
"""


def test_it_goes_on_after_a_failure_and_ends_what_a_proof_leaves(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RUNNER, str(tmp_path), "fails,leaves,holds"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=120)
    results = [line.split()[:2] for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert results == [["fails", "fails"], ["fails", "leaves"], ["holds", "holds"]], done.stderr
    assert done.returncode == 1
    assert str(tmp_path / "fails.log") in done.stdout
    left = int((tmp_path / "leaves.log").read_text().split()[1])
    assert not Path(f"/proc/{left}").exists()


def test_an_interrupt_ends_the_proof_that_runs_and_starts_no_other(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RUNNER, str(tmp_path), "sleeps,holds"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    log, deadline = tmp_path / "sleeps.log", time.monotonic() + 90
    while not (log.exists() and "pid" in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in output
    assert "holds    holds" not in output
    with pytest.raises(ProcessLookupError):
        os.kill(int(log.read_text().split()[1]), 0)


def test_each_proof_is_documented_with_its_time() -> None:
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in (ROOT / "docs" / "proofs.md").read_text().splitlines()
        if line.startswith("| `")
    ]
    times = {row[0].strip("`"): row[2] for row in rows}
    assert times.keys() == PROOFS.keys()
    # A dash stands for a time that has not been measured.
    assert all(time in ("\u2013", _minutes(PROOFS[slug].seconds)) for slug, time in times.items())


@pytest.mark.parametrize("slug", PROOFS)
def test_each_proof_says_what_it_shares_or_why_not(slug: str) -> None:
    proof = PROOFS[slug]
    source = (ROOT / "proofs" / f"{proof.module or slug.replace('-', '_')}.py").read_text()
    assert not (proof.shares and proof.own)
    assert ("services(" in source) <= bool(proof.shares or proof.own)


def test_a_changed_key_is_found_and_an_expired_one_is_not() -> None:
    before = {b"row": (b"1", False), b"turn": (b"", True), b"gone": (b"2", False)}
    after = {b"row": (b"3", False), b"new": (b"4", True)}
    assert _touched(before, after) == {b"row": "has another value", b"gone": "is gone", b"new": "is new"}
    assert not _touched(before, {key: value for key, value in before.items() if key != b"turn"})


def _minutes(seconds: int) -> str:
    return f"{seconds} s" if seconds < 120 else f"{round(seconds / 60)} min"


def test_the_summary_is_one_json_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proofs.run_all.Runner.run", lambda _self: [Line("sticky", "holds", 0, 1.23)])
    from proofs.run_all import run_all

    lines: list[str] = []
    assert run_all(["sticky"], {}, lines.append) == 0
    summary = json.loads(lines[-1])
    assert summary["ok"] is True
    assert summary["proofs"] == {"sticky": {"result": "holds", "seconds": 1.2}}
