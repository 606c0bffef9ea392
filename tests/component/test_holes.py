"""The tests of the audit's defects can fail: each does without its fix. The proof also runs those with services."""

from __future__ import annotations

import pytest

from proofs.reverted_fixes import HOLES, run_tests


@pytest.mark.timeout(400)
def test_every_test_of_a_defect_fails_without_its_fix() -> None:
    holes = [hole for hole in HOLES if not hole.needs_services]
    outcome = run_tests(holes, reverting=True)
    assert {hole.test: outcome.result(hole) for hole in holes} == dict.fromkeys((h.test for h in holes), "failed")
