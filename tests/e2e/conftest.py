"""What end-to-end tests share: one trained ensemble."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from proofs.kit import Context, train_cards


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose ``ensemble`` holds five trained members."""
    folder = tmp_path_factory.mktemp("trained")
    train_cards(folder, seed=1, transactions=30_000)
    return folder


@pytest.fixture
def context(trained: Path, tmp_path: Path) -> Callable[..., Context]:
    """Makes a proof's context of a given size, with the trained ensemble in its folder."""

    def make(n: int, *, seed: int = 1) -> Context:
        shutil.copytree(trained / "ensemble", tmp_path / "ensemble")
        return Context(seed, n, False, tmp_path, print)

    return make
