"""The suites of `tests/contract` are the same on both sides, and find the faults that are put into in-memory parts."""

from __future__ import annotations

import pytest

from proofs.contract import SUITES
from tests.support.faults import FAULTS, Fault, run_suites, run_with


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.part.__name__}: {fault.title}")
def test_a_fault_is_found(fault: Fault) -> None:
    outcome = run_with(fault)
    assert outcome.first_failed, outcome.output


def test_both_sides_have_the_same_cases() -> None:
    memory, real = (run_suites(*SUITES, real=real, collect_only=True).collected for real in (False, True))
    assert memory == real
    assert len(memory) >= 60
