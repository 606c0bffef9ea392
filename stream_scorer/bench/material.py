"""Input of a benchmark: five trained members and simulated card transactions, the same for the same seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import stream_scorer.simulate
from stream_scorer.clock import Clock
from stream_scorer.simulate.config import SimulationConfig
from stream_scorer.simulate.encode import encode_keys, encode_values
from stream_scorer.simulate.generate import generate
from stream_scorer.spec import load_spec

CARDS_SPEC = Path(stream_scorer.simulate.__file__).with_name("cards.yaml")


@dataclass(frozen=True, slots=True)
class Records:
    """Keys and values of the transactions topic, with the event id of each."""

    ids: list[str]
    keys: list[bytes]
    values: list[bytes]

    def __len__(self) -> int:
        return len(self.ids)

    def slice(self, start: int, stop: int) -> Records:
        """Records ``[start, stop)``."""
        return Records(self.ids[start:stop], self.keys[start:stop], self.values[start:stop])

    def write(self, path: Path) -> None:
        """Write one line per record: event id, key and value, separated by tabs (JSON contains no tab or newline)."""
        rows = zip(map(str.encode, self.ids), self.keys, self.values, strict=True)
        path.write_bytes(b"".join(b"\t".join(row) + b"\n" for row in rows))


def simulate_records(transactions: int, seed: int, clock: Clock) -> Records:
    """Card transactions whose event time ends about now, so that the decoder accepts the broker's timestamps."""
    config = SimulationConfig(seed=seed, days=None, transactions=transactions)
    generated = generate(config.starting(config.start_to_end_by(clock.now_ms())))
    return Records(generated.event_id.tolist(), encode_keys(generated.customer_id), encode_values(generated))


def train_cards_ensemble(folder: Path, *, seed: int, transactions: int) -> Path:
    """Simulate a labelled history, train the five default members on it, and return the folder of the ensemble.

    The history begins at the simulator's fixed date, so that the members do not depend on the day of training.

    Raises:
        SettingsError: pyarrow or scikit-learn is missing.
    """
    from stream_scorer.simulate.export import export
    from stream_scorer.simulate.labeller import LabellerConfig
    from stream_scorer.train.dataset import read_training_set
    from stream_scorer.train.recipe import Recipe
    from stream_scorer.train.train import train_ensemble

    checked = load_spec(CARDS_SPEC)
    # The fraud rate is higher than in reality, so that few rows contain enough frauds to train and calibrate on.
    config = SimulationConfig(seed=seed + 1_000, customers=2_500, days=None, transactions=transactions, fraud_rate=0.03)
    export(config, folder, labels=LabellerConfig())
    data = read_training_set(folder / "transactions.parquet", folder / "labels.parquet", checked)
    out = folder / "ensemble"
    train_ensemble(data, checked, out, Recipe(seed))
    return out
