"""The proofs on simulated worlds, scaled down; they need no services."""

from __future__ import annotations

from pathlib import Path

import pytest

from proofs import incidents
from proofs.kit import Context, say


def context(folder: Path, n: int, *, broken: bool = False) -> Context:
    return Context(1, n, broken, folder, say)


@pytest.mark.timeout(300)
def test_faulty_updates_are_rolled_back_and_the_member_is_named(tmp_path: Path) -> None:
    result = incidents.run(context(tmp_path, 30_000))
    assert result.ok, [name for name, holds in result.checks.items() if not holds]
