"""Converts the Handbook's transactions to this project's formats: columns, Parquet files, or records for the topics.

``python examples/handbook/load.py SOURCE OUT`` writes ``OUT/transactions.parquet`` and ``OUT/labels.parquet``.
SOURCE is a Parquet file with the columns ``t_seconds`` (since 2018-04-01 UTC), ``customer_id``, ``terminal_id``,
``amount_cents`` and ``fraud_scenario`` (above 0 is fraud); see the README in this folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream_scorer.arrays import Bools, Ints
from stream_scorer.errors import UsageError

SPEC = Path(__file__).resolve().parent / "handbook.yaml"
DAY_MS = 86_400_000
# 2018-04-01T00:00:00Z, a Sunday: second 0 of the data.
START_MS = 1_522_540_800_000
# The Handbook's feedback delay: a fraud is known a week after it happened.
LABEL_DELAY_MS = 7 * DAY_MS


@dataclass(frozen=True, slots=True)
class Handbook:
    """Transactions in order of time; every column ``(n,)``. `event_time` in epoch ms, `amount` in cents."""

    event_id: list[str]
    event_time: Ints
    customer_id: list[str]
    terminal_id: list[str]
    amount: Ints
    fraud: Bools

    def __len__(self) -> int:
        return len(self.event_id)

    @property
    def day(self) -> Ints:
        """Days since 2018-04-01."""
        return (self.event_time - START_MS) // DAY_MS

    def take(self, rows: NDArray[Any]) -> Handbook:
        """The rows a mask or an index array picks."""
        index = np.arange(len(self))[rows]
        pick = index.tolist()
        return Handbook(
            [self.event_id[i] for i in pick],
            self.event_time[index],
            [self.customer_id[i] for i in pick],
            [self.terminal_id[i] for i in pick],
            self.amount[index],
            self.fraud[index],
        )

    def transactions(self) -> dict[str, Any]:
        """Columns of transactions, by field of the spec."""
        return {
            "event_id": self.event_id,
            "event_time": self.event_time,
            "customer_id": self.customer_id,
            "terminal_id": self.terminal_id,
            "amount": self.amount,
        }

    def labels(self) -> dict[str, Any]:
        """Columns of labels: one for each fraud, given `LABEL_DELAY_MS` after it. In order of `labelled_at`."""
        frauds = self.take(self.fraud)
        n = len(frauds)
        return {
            "event_id": frauds.event_id,
            "event_time": frauds.event_time,
            "label": ["fraud"] * n,
            "labelled_at": frauds.event_time + LABEL_DELAY_MS,
            "source": ["chargeback"] * n,
            "customer_id": frauds.customer_id,
            "terminal_id": frauds.terminal_id,
        }


def day_number(day: date) -> int:
    """Days since 2018-04-01."""
    return (day - datetime.fromtimestamp(START_MS / 1_000, UTC).date()).days


def read(path: Path, *, days: int | None = None) -> Handbook:
    """The transactions in `path`, of the first `days` only if given. Raises `UsageError` if it cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = ["t_seconds", "customer_id", "terminal_id", "amount_cents", "fraud_scenario"]
    try:
        table = pq.read_table(path, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"cannot read {path}: {error}", hint=f"It is Parquet with {', '.join(columns)}.") from None
    raw = {name: table.column(name).to_numpy().astype(np.int64) for name in columns}
    order = np.argsort(raw["t_seconds"], kind="stable")
    if days is not None:
        order = order[raw["t_seconds"][order] < days * DAY_MS // 1_000]
    return Handbook(
        event_id=[f"hb-{i}" for i in order.tolist()],
        event_time=START_MS + raw["t_seconds"][order] * 1_000,
        customer_id=[f"c{i}" for i in raw["customer_id"][order].tolist()],
        terminal_id=[f"t{i}" for i in raw["terminal_id"][order].tolist()],
        amount=raw["amount_cents"][order],
        fraud=raw["fraud_scenario"][order] > 0,
    )


def records(columns: dict[str, Any]) -> tuple[list[bytes], list[bytes]]:
    """Kafka keys (the customer) and JSON values of the rows of `columns`."""
    encode = msgspec.json.Encoder().encode
    lists: list[Sequence[Any]] = [c.tolist() if isinstance(c, np.ndarray) else c for c in columns.values()]
    names = list(columns)
    values = [encode(dict(zip(names, row, strict=True))) for row in zip(*lists, strict=True)]
    return [customer.encode() for customer in columns["customer_id"]], values


def compromised_by(data: Handbook, day: int, first_day: int) -> set[str]:
    """Customers known on `day` to be compromised: a fraud between `first_day` and 8 days before `day`, both included.

    The Handbook's rule with `first_day` the first of the training week (`get_train_test_set` in its shared functions):
    their cards are blocked by then, so a scorer is not judged on them.
    """
    known = data.fraud & (data.day >= first_day) & (data.day <= day - 8)
    return {data.customer_id[i] for i in np.flatnonzero(known).tolist()}


def main() -> None:
    """Write the files that `stream-scorer train` and `replay` take."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    day = date.fromisoformat
    parser.add_argument("--until", type=day, help="Leave out transactions of this day and later.")
    parser.add_argument("--labels-until", type=day, help="Leave out labels given on this day and later; as --until.")
    arguments = parser.parse_args()
    until, known_until = arguments.until, arguments.labels_until or arguments.until
    data = read(arguments.source, days=None if until is None else day_number(until))
    labels = pa.table(data.labels())
    if known_until is not None:
        labels = labels.filter(labels["labelled_at"].to_numpy() < START_MS + day_number(known_until) * DAY_MS)
    arguments.out.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(data.transactions()), arguments.out / "transactions.parquet", compression="zstd")
    pq.write_table(labels, arguments.out / "labels.parquet", compression="zstd")
    print(f"{len(data):,} transactions, {len(labels):,} labels, written to {arguments.out}")  # noqa: T201


if __name__ == "__main__":
    try:
        main()
    except UsageError as error:
        raise SystemExit(f"error: {error}") from None
