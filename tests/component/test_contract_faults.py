"""The suites can fail: each finds the faults put into the in-memory part that it is for."""

from __future__ import annotations

import pytest

from tests.support.faults import FAULTS, Fault, run_with


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.part.__name__}: {fault.title}")
def test_a_fault_is_found(fault: Fault) -> None:
    outcome = run_with(fault)
    assert outcome.first_failed, outcome.output
