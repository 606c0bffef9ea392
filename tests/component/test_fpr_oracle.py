"""The proof fpr-oracle, scaled down."""

from __future__ import annotations

from pathlib import Path

import pytest

from proofs import fpr_oracle
from proofs.kit import Context

SMALL = 60_000


@pytest.mark.parametrize("broken", [False, True])
def test_rates_equal_a_recomputation_and_contain_the_truth(tmp_path: Path, broken: bool) -> None:
    result = fpr_oracle.run(Context(3, SMALL, broken, tmp_path, lambda _text: None))
    failed = [name for name, holds in result.checks.items() if not holds]
    if broken:
        assert "value of every mature window equal the recomputation" in failed
        assert any("intervals cover" in name for name in failed)
    else:
        assert failed == []
