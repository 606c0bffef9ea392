"""The versions that proofs on simulated worlds promote: trained on a simulated history, and again with another seed."""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

from proofs.kit import TRAINED
from proofs.updates import Version
from stream_scorer.bench.material import CARDS_SPEC
from stream_scorer.simulate.config import SimulationConfig
from stream_scorer.simulate.export import export
from stream_scorer.simulate.labeller import LabellerConfig
from stream_scorer.spec import CheckedSpec, load_spec
from stream_scorer.train.dataset import read_training_set
from stream_scorer.train.recipe import Recipe
from stream_scorer.train.train import train_ensemble


@dataclass(frozen=True)
class Training:
    """The size of the training history, in transactions."""

    transactions: int


# The country of a card, as far as the simulator has one.
_COUNTRY = "  - {name: currency_code, function: code, of: [currency]}\n"


def spec_with_country(folder: Path) -> CheckedSpec:
    """The cards spec with the currency as a further input, for the members that read the device set."""
    text = CARDS_SPEC.read_text()
    for place, more in (("  - {name: has_device,", _COUNTRY), ("has_device, amount_log", "currency_code, ")):
        assert text.count(place) == 1, place
        text = text.replace(place, more + place)
    (folder / "cards.yaml").write_text(text)
    return load_spec(folder / "cards.yaml")


def train(folder: Path, seed: int, training: Training) -> tuple[CheckedSpec, Version, Version]:
    """An ensemble trained on a simulated history, and the same with every member trained again with another seed.

    Both are kept in the folder that `kit.TRAINED` names, if it names one.
    """
    kept = Path(os.environ.get(TRAINED) or folder) / f"worlds-{seed}-{training.transactions}"
    kept.mkdir(parents=True, exist_ok=True)
    checked = spec_with_country(kept)
    with (kept / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (kept / "done").exists():
            # Two weeks, of which the last two days are too young for labels.
            n = training.transactions
            config = SimulationConfig(
                seed=seed + 1_000, customers=n // 20, terminals=n // 60, days=None, transactions=n, fraud_rate=0.03
            )
            export(config, kept, labels=LabellerConfig())
            data = read_training_set(kept / "transactions.parquet", kept / "labels.parquet", checked)
            for number in (1, 2):
                train_ensemble(data, checked, kept / str(number), Recipe(10 * seed + number))
            (kept / "done").touch()
    return checked, Version.read(kept / "1"), Version.read(kept / "2")
