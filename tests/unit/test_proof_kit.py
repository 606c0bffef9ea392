"""What proofs share: trained ensembles, results, and what `verify` must have recomputed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


def test_a_broken_property_that_a_named_check_does_not_notice_is_no_failure_of_the_proof() -> None:
    result = kit.Result()
    result.must_fail("one", "two")
    assert not result.ok
    result.check("one", False)
    result.check("two", True)
    assert (result.ok, result.unnoticed) == (True, ["two"])
    result.check("two", False)
    assert (result.ok, result.unnoticed) == (False, [])


@pytest.mark.parametrize(
    ("change", "holds"),
    [
        ({}, True), ({"scores": 9}, False), ({"different": 1}, False), ({"skipped": 1}, False),
        ({"unavailable": {"2": 1}}, False),
    ],
)  # fmt: skip
def test_verify_must_have_recomputed_every_published_score(change: dict[str, Any], holds: bool) -> None:
    report = {"scores": 10, "different": 0, "skipped": 0, "unavailable": {}}
    assert kit.recomputes_all(report | change, 10) is holds
    assert not kit.recomputes_all({}, 10) and not kit.recomputes_all(report | {"scores": 0}, 0)
