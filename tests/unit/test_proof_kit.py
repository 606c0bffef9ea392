"""Trained ensembles are shared between processes that name the same folder, and each is trained once."""

from __future__ import annotations

from pathlib import Path

import pytest

from proofs import kit


def test_an_ensemble_is_trained_once_for_each_seed_and_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[tuple[int, int]] = []

    def train(folder: Path, *, seed: int, transactions: int) -> Path:
        trained.append((seed, transactions))
        if len(trained) == 1:
            (folder / "ensemble").mkdir(parents=True)
            raise KeyboardInterrupt
        (folder / "ensemble").mkdir(parents=True)
        (folder / "ensemble" / "manifest.json").write_text(f"{seed}-{transactions}")
        return folder / "ensemble"

    monkeypatch.setattr(kit, "train_cards_ensemble", train)
    monkeypatch.setattr(kit, "read_manifest", lambda folder: (folder / "manifest.json").read_text())
    monkeypatch.setenv(kit.TRAINED, str(tmp_path / "kept"))
    with pytest.raises(KeyboardInterrupt):
        kit.train_cards(tmp_path / "one", seed=1, transactions=10)
    read = [
        kit.train_cards(tmp_path / name, seed=seed, transactions=10)
        for name, seed in (("one", 1), ("two", 1), ("three", 2), ("three", 2))
    ]
    assert read == ["1-10", "1-10", "2-10", "2-10"]
    assert trained == [(1, 10), (1, 10), (2, 10)]
