"""The proof that compares drift detectors, scaled down to our side of it: no other library, no services."""

from __future__ import annotations

from pathlib import Path

import pytest

from proofs import drift_peers
from proofs.kit import Context, Result, say


def run(folder: Path, *, broken: bool) -> Result:
    return drift_peers.run(Context(1, 0, broken, folder, say))


@pytest.mark.timeout(900)
def test_our_side_of_the_comparison_of_drift_detectors(tmp_path: Path) -> None:
    result = run(tmp_path, broken=False)
    assert [name for name, holds in result.checks.items() if not holds] == []
