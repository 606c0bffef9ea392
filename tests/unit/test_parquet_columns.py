"""Types of Parquet columns that other programs write: train, replay and evaluate read the same rows from them."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stream_scorer.errors import UsageError
from stream_scorer.evaluation.columns import TransactionFile
from stream_scorer.replay.files import FileInput
from stream_scorer.serde.columns import join_transactions
from stream_scorer.serde.decoder import TransactionDecoder, Transactions
from stream_scorer.spec.load import parse_spec
from stream_scorer.train.dataset import read_history
from tests.support.specs import card_spec

SPEC = parse_spec(
    card_spec(
        """
derived:
  - {name: items, function: value, of: [items]}
  - {name: weight, function: value, of: [weight]}
  - {name: online, function: code, of: [is_online]}
  - {name: channel, function: code, of: [channel]}
""",
        items="integer, optional: true",
        weight="number, optional: true",
        is_online="boolean, optional: true",
        channel="category, values: [chip, online], optional: true",
    )
)
PLAIN: dict[str, Any] = {
    "event_id": ["a", "b", "ü"],
    "event_time": [1_000, 2_000, 3_000],
    "card": ["x", "y", "x"],
    "amount": [1_000, 2_000, 3_000],
    "items": [1, None, 3],
    "weight": [0.5, None, 2.0],
    "is_online": [True, None, False],
    "channel": ["chip", None, "online"],
}


def read(folder: Path, columns: dict[str, Any]) -> list[Transactions]:
    """The transactions of a file with `columns`, as train, replay and evaluate read them."""
    path, known = folder / "transactions.parquet", folder / "labels.parquet"
    pq.write_table(pa.table(PLAIN | columns), path)
    label = {"event_id": [b"a"], "event_time": [Decimal(1_000)], "label": [b"fraud"], "labelled_at": [2_000.0]}
    pq.write_table(pa.table(label | {"card": [b"x"], "source": [None]}), known)
    history = read_history(path, known, SPEC)
    assert (history.labels.event_id, history.labels.fraud.tolist()) == (["a"], [True])
    assert history.labels.entity_ids == {"card": ["x"]}
    replay = [
        TransactionDecoder(SPEC).decode(chunk.value, chunk.timestamp)[0]
        for chunk in FileInput(path, "transactions", SPEC, is_label=False).chunks()
    ]
    evaluation = [found for _, found in TransactionFile(path, SPEC).chunks(2)]
    return [history.transactions, join_transactions(replay), join_transactions(evaluation)]


def dictionary(values: list[bytes | None]) -> pa.Array:
    return pa.array(values).dictionary_encode()


@pytest.mark.parametrize(
    "columns",
    [
        {},
        {"event_id": [b"a", b"b", "ü".encode()], "card": pa.array([b"x", b"y", b"x"], pa.binary(1))},
        {"channel": dictionary([b"chip", None, b"online"]), "card": pa.array([b"x", b"y", b"x"], pa.large_binary())},
        {"amount": [1e3, 2e3, 3e3], "items": [1.0, None, 3.0], "event_time": [1e3, 2e3, 3e3]},
        {"items": [1.0, float("nan"), 3.0], "is_online": [1, None, 0]},
        {"is_online": [1.0, float("nan"), 0.0], "items": pa.array([1, None, 3], pa.float16())},
        {"amount": [Decimal("1000.00"), Decimal("2e3"), Decimal(3_000)], "items": [Decimal(1), None, Decimal(3)]},
        {"weight": [Decimal("0.50"), None, Decimal(2)], "is_online": [Decimal(1), None, Decimal(0)]},
    ],
)
def test_values_of_another_type_are_read_if_they_are_exact(tmp_path: Path, columns: dict[str, Any]) -> None:
    for found in read(tmp_path, columns):
        assert (found.event_id, found.entity_ids) == (PLAIN["event_id"], {"card": PLAIN["card"]})
        assert (found.event_time.tolist(), found.value.tolist()) == (PLAIN["event_time"], PLAIN["amount"])
        for name in ("items", "weight", "is_online"):
            assert np.array_equal(found.columns[name], np.array(PLAIN[name], np.float64), equal_nan=True)
        assert np.array_equal(found.columns["channel"], [0, np.nan, 1], equal_nan=True)


@pytest.mark.parametrize(
    "columns",
    [
        {"amount": [1e3, 2e3, 30.5]},
        {"amount": [1e3, 2e3, float("nan")]},
        {"items": [1.0, None, 1e300]},
        {"items": pa.array([1, None, 10**30], pa.decimal128(38))},
        {"items": [Decimal("1.0"), None, Decimal("0.5")]},
        {"is_online": [1, None, 2]},
        {"is_online": [1.0, None, 0.5]},
    ],
)
def test_only_the_rows_with_other_values_are_rejected(tmp_path: Path, columns: dict[str, Any]) -> None:
    many = {name: list(pa.array(values).to_pylist()) * 20 for name, values in (PLAIN | columns).items()}
    bad = many["event_id"].index("ü")
    many = {name: [v for row, v in enumerate(vs) if row == bad or row % 3 != 2] for name, vs in many.items()}
    for found in read(tmp_path, many):
        assert len(found) == 40
        assert "ü" not in found.event_id


def test_binary_values_that_are_not_text_are_refused_with_the_column(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"transactions\.parquet: the column 'card' has binary values that are not"):
        read(tmp_path, {"card": [b"x", b"\xff\xfe", b"x"]})
