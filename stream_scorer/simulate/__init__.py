"""Simulated card transactions with hidden truth, their labels in a closed loop, and live traffic on Kafka.

The core (`generate`, `labeller`) does no I/O; `files` reads and writes Parquet, `live` uses Kafka. Nothing here scores.
"""

from stream_scorer.simulate.config import Life, SimulationConfig
from stream_scorer.simulate.encode import encode_keys, encode_labels, encode_values
from stream_scorer.simulate.fraud import FRAUD_KINDS
from stream_scorer.simulate.generate import generate, generate_days
from stream_scorer.simulate.labeller import Labeller, LabellerConfig, history_labels
from stream_scorer.simulate.labels import Labels
from stream_scorer.simulate.transactions import Transactions

__all__ = [
    "FRAUD_KINDS",
    "Labeller",
    "LabellerConfig",
    "Labels",
    "Life",
    "SimulationConfig",
    "Transactions",
    "encode_keys",
    "encode_labels",
    "encode_values",
    "generate",
    "generate_days",
    "history_labels",
]
