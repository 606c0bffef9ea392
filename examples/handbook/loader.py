"""Read the Handbook's transactions from a Parquet file that you have.

Columns: `t_seconds` since 2018-04-01 UTC, `customer_id`, `terminal_id`, `amount_cents`, and `fraud_scenario`, of which
anything above 0 is fraud.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream_scorer.errors import UsageError

START_MS = 1_522_540_800_000  # 2018-04-01T00:00:00Z
DAY_MS = 86_400_000
# Frauds are known a week later.
LABEL_DELAY_MS = 7 * DAY_MS
SPEC = Path(__file__).parent / "handbook.yaml"
_COLUMNS = ("t_seconds", "customer_id", "terminal_id", "amount_cents", "fraud_scenario")


@dataclass(frozen=True, slots=True)
class Handbook:
    """Transactions in order of time: each column (n,); `day` counts from 2018-04-01, `fraud` is bool."""

    event_time: NDArray[np.int64]
    day: NDArray[np.int64]
    customer: NDArray[np.int64]
    terminal: NDArray[np.int64]
    amount: NDArray[np.int64]
    fraud: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.event_time)

    def transactions(self, rows: NDArray[np.int64]) -> tuple[list[bytes], list[bytes]]:
        """Keys and JSON values of the transactions at `rows`."""
        fields = self._fields(rows)
        return [f["customer_id"].encode() for f in fields], [msgspec.json.encode(f) for f in fields]

    def labels(self, rows: NDArray[np.int64]) -> tuple[list[bytes], list[bytes]]:
        """Keys and JSON values of fraud labels for the transactions at `rows`, given a week after each."""
        keys, values = [], []
        for f in self._fields(rows):
            given = {"label": "fraud", "labelled_at": f["event_time"] + LABEL_DELAY_MS, "source": "handbook"}
            del f["amount"]
            keys.append(f["customer_id"].encode())
            values.append(msgspec.json.encode(f | given))
        return keys, values

    def columns(self) -> dict[str, Any]:
        """Columns by the spec's field names."""
        return {
            "event_id": [f"e{i}" for i in range(len(self))],
            "event_time": self.event_time,
            "customer_id": [f"c{i}" for i in self.customer.tolist()],
            "terminal_id": [f"t{i}" for i in self.terminal.tolist()],
            "amount": self.amount,
        }

    def label_columns(self, rows: NDArray[np.int64]) -> dict[str, Any]:
        """The labels of `labels`, as columns."""
        index = rows.tolist()
        return {
            "event_id": [f"e{i}" for i in index],
            "event_time": self.event_time[rows],
            "label": ["fraud"] * len(index),
            "labelled_at": self.event_time[rows] + LABEL_DELAY_MS,
            "customer_id": [f"c{i}" for i in self.customer[rows].tolist()],
            "terminal_id": [f"t{i}" for i in self.terminal[rows].tolist()],
        }

    def _fields(self, rows: NDArray[np.int64]) -> list[dict[str, Any]]:
        return [
            {
                "event_id": f"e{row}",
                "event_time": at,
                "customer_id": f"c{customer}",
                "terminal_id": f"t{terminal}",
                "amount": amount,
            }
            for row, at, customer, terminal, amount in zip(
                rows.tolist(),
                self.event_time[rows].tolist(),
                self.customer[rows].tolist(),
                self.terminal[rows].tolist(),
                self.amount[rows].tolist(),
                strict=True,
            )
        ]


def load(path: Path, *, days: int) -> Handbook:
    """The first `days` days of the data set at `path`. Raises `UsageError` if it is missing or of another shape."""
    import pyarrow.parquet as parquet

    if not path.exists():
        raise UsageError(f"no file {path}", mend="Set STREAM_SCORER_HANDBOOK to the path of your copy.")
    table = parquet.read_table(path)
    missing = [name for name in _COLUMNS if name not in table.column_names]
    if missing:
        raise UsageError(f"{path} has no column {missing[0]}")
    seconds, customer, terminal, amount, scenario = (table[name].to_numpy().astype(np.int64) for name in _COLUMNS)
    order = np.argsort(seconds, kind="stable")
    order = order[seconds[order] < days * 86_400]
    at = seconds[order]
    return Handbook(
        START_MS + at * 1_000, at // 86_400, customer[order], terminal[order], amount[order], scenario[order] > 0
    )
