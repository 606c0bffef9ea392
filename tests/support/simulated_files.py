"""Files of the simulator, read back into its own types."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from stream_scorer.simulate.files import read_truth
from stream_scorer.simulate.labels import Labels
from stream_scorer.simulate.transactions import Transactions


def read_transactions(path: Path, truth: Path | None = None) -> Transactions:
    """The transactions in `path`, with the truth in `truth`; without it `fraud_kind` is 0 throughout."""
    table = pq.read_table(path)
    columns = {name: table.column(name).to_numpy() for name in table.column_names}
    kinds = np.zeros(table.num_rows, dtype=np.int8)
    if truth is not None:
        facts = read_truth(truth)
        np.testing.assert_array_equal(facts["event_id"], columns["event_id"])
        kinds = facts["fraud_kind"]
    return Transactions(**columns, fraud_kind=kinds)


def read_labels(path: Path) -> Labels:
    """The labels in `path`."""
    table = pq.read_table(path)
    columns = {each.name: table.column(each.name).to_numpy() for each in fields(Labels)}
    columns["review_probability"] = columns["review_probability"].astype(np.float64)
    return Labels(**columns)
