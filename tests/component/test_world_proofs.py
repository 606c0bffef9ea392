"""The proofs on simulated worlds, scaled down; they need no services."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from proofs import gate, healthy, incidents
from proofs.kit import CARDS_SPEC, Context, Result, say
from stream_scorer.cli.main import cli
from stream_scorer.errors import CheckFailed


def context(folder: Path, n: int) -> Context:
    return Context(1, n, False, folder, say)


def failed(result: Result) -> list[str]:
    return [name for name, holds in result.checks.items() if not holds]


@pytest.mark.timeout(900)
def test_faulty_updates_and_faults_upstream_are_detected_and_named(tmp_path: Path) -> None:
    assert failed(incidents.run(context(tmp_path, 30_000))) == []


@pytest.mark.timeout(900)
def test_healthy_days_and_healthy_updates_raise_no_alarm(tmp_path: Path) -> None:
    assert failed(healthy.run(context(tmp_path, 21))) == []


@pytest.mark.timeout(300)
def test_the_gate_refuses_planted_faults_for_the_right_reason_and_passes_a_good_candidate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert failed(gate.run(context(tmp_path, 8_000))) == []
    check_command(tmp_path / "world", monkeypatch)


def check_command(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`stream-scorer gate` on the files of the proof: exit code, report and messages."""
    monkeypatch.chdir(world)
    (world / "few.yaml").write_text(
        "version: 1\ncost: {max_ratio: 2}\nfairness: [{segment: channel, max_ratio: 1000}]\n"
    )
    command = ["gate", "few.yaml", "./good", "--spec", str(CARDS_SPEC)]
    files = ["--transactions", "transactions.parquet", "--labels", "labels.parquet"]
    passed = CliRunner().invoke(cli, [*command, *files, "--champion", "./champion", "--json"])
    assert passed.exit_code == 0, passed.stderr
    report = json.loads(passed.stdout)
    assert [(rule["rule"], rule["verdict"]) for rule in report["rules"]] == [
        ("self_test", "pass"), ("cost.ratio", "pass"), ("fairness.channel", "pass")
    ]  # fmt: skip
    # By default, the range begins after the training data; the transactions of the label horizon are in it.
    assert 2_800 < report["transactions"] < 4_000
    refused = CliRunner().invoke(cli, [*command, *files])
    assert isinstance(refused.exception, CheckFailed)
    lines = refused.stdout.splitlines()
    assert lines[1].split() == ["rule", "measured", "limit", "verdict", "reason"]
    assert [line.split()[:4] for line in lines if "cost.ratio" in line] == [["cost.ratio", "-", "2", "refuse"]]
    assert CliRunner().invoke(cli, command).exit_code == 2
    assert CliRunner().invoke(cli, [*command, "--from-topics", "--labels", "labels.parquet"]).exit_code == 2
