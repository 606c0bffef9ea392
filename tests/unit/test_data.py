"""From a CSV file to a spec and to the files that training takes."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from stream_scorer.cli.main import cli
from stream_scorer.data.convert import Interpretation, convert
from stream_scorer.data.csv_file import read_csv, spec_name_of
from stream_scorer.data.draft import Roles, draft_spec
from stream_scorer.errors import UsageError
from stream_scorer.spec import parse_spec

ORDERS = """Order No.,at,Buyer,Price,Way,Items,Gift,Note,bad
A1,2025-01-02T10:00:00,b1,10.50,card,2,true,,no
A2,2025-01-01T09:30:00,b2,3,wallet,,false,,yes
A3,2025-01-03T00:00:00,b1,0.07,card,4,false,,no
"""
ROLES = Roles("at", "Price", "Order No.", "bad", {"buyer": "Buyer"})


def write(folder: Path, text: str) -> Path:
    path = folder / "orders.csv"
    path.write_text(text)
    return path


def test_a_draft_is_a_spec_with_every_column(tmp_path: Path) -> None:
    checked = parse_spec(draft_spec(read_csv(write(tmp_path, ORDERS)), ROLES, "orders"))
    fields = checked.spec.transaction.fields
    assert {name: field.type for name, field in fields.items()} == {
        "order_no": "string", "at": "time", "buyer": "string", "price": "integer", "way": "category",
        "items": "integer", "gift": "boolean", "note": "number",
    }  # fmt: skip
    assert fields["way"].values == ["card", "wallet"]
    assert [name for name, field in fields.items() if field.optional] == ["items", "note"]
    assert checked.spec.partition_entity == "buyer"
    assert "bad" not in fields
    assert {"buyer.count_1d", "at_hour", "price_log", "way", "items", "gift"} <= set(checked.features)


def test_rows_come_in_order_of_time_with_money_in_minor_units(tmp_path: Path) -> None:
    file = read_csv(write(tmp_path, ORDERS))
    checked = parse_spec(draft_spec(file, ROLES, "orders"))
    written = convert(file, checked, Interpretation("bad", "yes", label_delay_ms=5), tmp_path)
    assert (written.transactions, written.labels, written.frauds) == (3, 3, 1)
    rows = pq.read_table(tmp_path / "transactions.parquet").to_pylist()
    assert [row["order_no"] for row in rows] == ["A2", "A1", "A3"]
    assert [row["price"] for row in rows] == [300, 1050, 7]
    assert rows[0]["at"] == 1_735_723_800_000
    labels = pq.read_table(tmp_path / "labels.parquet").to_pylist()
    assert [(label["label"], label["buyer"]) for label in labels] == [
        ("fraud", "b2"), ("genuine", "b1"), ("genuine", "b1"),
    ]  # fmt: skip
    assert labels[0]["labelled_at"] == labels[0]["event_time"] + 5


def test_what_is_finer_than_a_millisecond_is_cut_off(tmp_path: Path) -> None:
    text = ORDERS.replace("10:00:00,", "10:00:00.123456789,").replace("09:30:00,", "09:30:00.000999999,")
    file = read_csv(write(tmp_path, text))
    convert(file, parse_spec(draft_spec(file, ROLES, "orders")), Interpretation("bad", "yes"), tmp_path)
    rows = pq.read_table(tmp_path / "transactions.parquet").to_pylist()
    assert [row["at"] for row in rows][:2] == [1_735_723_800_000, 1_735_812_000_123]


def test_a_file_without_entities_and_ids_will_do(tmp_path: Path) -> None:
    file = read_csv(write(tmp_path, "Time,V1,Amount,Class\n0,0.5,1.5,0\n2.5,-1,2,1\n"))
    checked = parse_spec(draft_spec(file, Roles("Time", "Amount", label="Class"), "plain"))
    assert not checked.spec.entities
    convert(file, checked, Interpretation("Class", "1", start_ms=1_000_000), tmp_path)
    rows = pq.read_table(tmp_path / "transactions.parquet").to_pylist()
    assert [(row["row_id"], row["time"], row["amount"]) for row in rows] == [
        ("row-1", 1_000_000, 150), ("row-2", 1_002_500, 200),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "roles", "message"),
    [
        ("a,b\n1,2\n", Roles("when", "b"), "no column 'when'"),
        ("a b,a_b\n1,2\n", Roles("a b", "a_b"), "both map to 'a_b'"),
        ("a,b\n", Roles("a", "b"), "no rows"),
        ("a,b\n1,2,3\n", Roles("a", "b"), "cannot read"),
    ],
)
def test_a_file_that_cannot_serve_is_told(tmp_path: Path, text: str, roles: Roles, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        draft_spec(read_csv(write(tmp_path, text)), roles, "x")


@pytest.mark.parametrize(
    ("cell", "meaning", "message"),
    [
        ("1.005", Interpretation(), "more decimals"),
        ("1.00", Interpretation("bad", "fraud"), "no row of 'bad' is 'fraud'"),
        ("", Interpretation(), "must be a number in every row"),
    ],
)
def test_a_cell_that_means_nothing_is_told(tmp_path: Path, cell: str, meaning: Interpretation, message: str) -> None:
    file = read_csv(write(tmp_path, f"at,price,bad\n1,{cell},0\n2,2.00,1\n"))
    spec = draft_spec(read_csv(write(tmp_path, "at,price,bad\n1,1,0\n")), Roles("at", "price", label="bad"), "x")
    with pytest.raises(UsageError, match=message):
        convert(file, parse_spec(spec), meaning, tmp_path)


@pytest.mark.parametrize(
    ("name", "plain"), [("Order No.", "order_no"), ("V1", "v1"), ("3D", "c_3d"), ("Price (€)", "price")]
)
def test_names_take_the_form_of_a_spec(name: str, plain: str) -> None:
    assert spec_name_of(name) == plain


def test_the_command_tells_what_it_wrote_and_what_it_misses(tmp_path: Path) -> None:
    path = write(tmp_path, ORDERS)
    arguments = ["data", "draft", str(path), "--time", "at", "--value", "Price", "--out", str(tmp_path / "spec.yaml")]
    told = CliRunner().invoke(cli, arguments)
    assert told.exit_code == 0
    assert "features" in told.output
    told = CliRunner().invoke(
        cli, ["data", "draft", str(path), "--time", "at", "--value", "Price", "--entity", "buyer"]
    )
    assert told.exit_code == 2
    assert "NAME=COLUMN" in told.output
