"""The proofs on simulated worlds, scaled down; they need no services."""

from __future__ import annotations

from pathlib import Path

import pytest

from proofs import gate, healthy, incidents
from proofs.kit import Context, Result, say


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
def test_the_gate_refuses_planted_faults_for_the_right_reason_and_passes_a_good_candidate(tmp_path: Path) -> None:
    assert failed(gate.run(context(tmp_path, 8_000))) == []
