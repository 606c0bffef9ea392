"""From a CSV file to a spec and to the files that training takes."""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner

from stream_scorer.cli.main import cli
from stream_scorer.data.amounts import AmountRange
from stream_scorer.data.cells import kind_of
from stream_scorer.data.convert import Interpretation, convert
from stream_scorer.data.csv_file import read_csv, spec_name_of
from stream_scorer.data.draft import Roles, draft_spec
from stream_scorer.errors import SpecError, UsageError
from stream_scorer.spec import load_spec, parse_spec
from stream_scorer.spec.model import LABEL_COLUMNS, OPTIONAL_LABEL_COLUMNS

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


def test_an_empty_label_is_no_label_and_repeated_ids_are_counted(tmp_path: Path) -> None:
    text = "at,price,id,bad,flag\n1,1.00,A,1,yes\n2,2.00,B,,\n3,3.00,A,0,NA\n4,4.00,C,NA,no\n"
    file = read_csv(write(tmp_path, text))
    checked = parse_spec(draft_spec(file, Roles("at", "price", "id"), "x"))
    written = convert(file, checked, Interpretation("bad"), tmp_path)
    assert (written.labels, written.frauds, written.unlabelled, written.repeated_ids) == (2, 1, 2, 1)
    labels = pq.read_table(tmp_path / "labels.parquet").to_pydict()
    assert (labels["event_id"], labels["label"]) == (["A", "A"], ["fraud", "genuine"])
    # A text is a label.
    assert convert(file, checked, Interpretation("flag", "yes"), tmp_path).unlabelled == 1


@pytest.mark.parametrize("name", [*LABEL_COLUMNS, *OPTIONAL_LABEL_COLUMNS])
def test_an_entity_cannot_have_the_name_of_a_column_of_labels(tmp_path: Path, name: str) -> None:
    file = read_csv(write(tmp_path, f"at,price,shop,{name},bad\n1,1.00,a,b,1\n"))
    with pytest.raises(UsageError, match=f"'{name}' has the name of a column of the labels"):
        draft_spec(file, Roles("at", "price", entities={"shop": name}), "x")
    document = yaml.safe_load(draft_spec(file, Roles("at", "price", entities={"shop": "shop"}), "x"))
    document |= {"derived": [], "entities": {"shop": {"field": name}}}
    document["transaction"]["fields"][name] = {"type": "string"}
    with pytest.raises(SpecError, match=f"^entities.shop.field: .*'{name}' has the name of a column of the labels"):
        parse_spec(yaml.safe_dump(document))
    # The id of the transaction itself has the same content in a label.
    document["transaction"] |= {"id": name}
    if name == "event_id":
        parse_spec(yaml.safe_dump(document))


def test_a_draft_fits_long_names_long_cells_and_negative_amounts(tmp_path: Path) -> None:
    value, time = "v" * 41, "t" * 36
    card, text, name = "1" * 130, "x" * 4_097, f"{value[:37]}_log"
    file = read_csv(
        write(tmp_path, f"{time},{value},id,card,note,{name}\n1,-1.00,{card},{card},{text},1\n2,2.00,b,c,y,2\n")
    )
    draft = draft_spec(file, Roles(time, value, "id", entities={"card": "card"}), "x")
    assert draft.startswith("# note is not a field: it has texts of more than 4096 characters.")
    checked = parse_spec(draft)
    fields = checked.spec.transaction.fields
    assert (fields["id"].max_length, fields["card"].max_length, "note" in fields) == (130, 130, False)
    assert {f"{value[:35]}_log_2", name, value, f"{time}_hour", f"{time[:33]}_weekday"} <= set(checked.features)
    convert(file, checked, Interpretation(), tmp_path)
    with pytest.raises(UsageError, match="an id of 4,097 characters"):
        draft_spec(file, Roles(time, value, "note"), "x")


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


def test_labels_are_given_after_the_horizon_and_never_at_once_if_features_count_them(tmp_path: Path) -> None:
    file = read_csv(write(tmp_path, ORDERS))
    text = draft_spec(file, ROLES, "orders")
    convert(file, parse_spec(text), Interpretation("bad", "yes"), tmp_path)
    label = pq.read_table(tmp_path / "labels.parquet").to_pylist()[0]
    assert label["labelled_at"] == label["event_time"] + 86_400_000
    document = yaml.safe_load(text)
    at_once = Interpretation("bad", "yes", label_delay_ms=0)
    convert(file, parse_spec(text), at_once, tmp_path)
    document["views"].append(
        {"name": "risk", "entity": "buyer", "aggregates": ["label_rate"], "windows": ["7d"], "current": "exclude"}
    )
    with pytest.raises(UsageError, match="in the features of their own transactions: the views risk count") as error:
        convert(file, parse_spec(yaml.safe_dump(document)), at_once, tmp_path)
    assert "--label-delay" in error.value.hint
    document["views"][-1]["delay"] = "1d"
    convert(file, parse_spec(yaml.safe_dump(document)), at_once, tmp_path)


CODES = """at,amount,card,mcc,rate,region,score,bad
1,1.00,40000000000000000001,0742,1.10,NA,NA,0
2,2.00,40000000000000000002,5411,1.1,"NULL",0.5,1
3,3.00,"",0742,1.10,"",1.50,0
"""


def test_ids_and_codes_stay_as_written_and_only_an_empty_text_is_missing(tmp_path: Path) -> None:
    file = read_csv(write(tmp_path, CODES))
    text = draft_spec(file, Roles("at", "amount", "card", "bad", {"merchant": "mcc"}), "codes")
    fields = parse_spec(text).spec.transaction.fields
    assert (fields["mcc"].type, fields["region"].values) == ("string", ["NA", "NULL"])
    assert (fields["rate"].type, fields["score"].type, fields["score"].optional) == ("number", "number", True)
    document = yaml.safe_load(text)
    document["derived"] = []
    document["transaction"]["fields"]["rate"] = {"type": "category", "values": ["1.10", "1.1"]}
    convert(file, parse_spec(yaml.safe_dump(document)), Interpretation("bad"), tmp_path)
    rows = pq.read_table(tmp_path / "transactions.parquet").to_pydict()
    assert rows["card"] == ["40000000000000000001", "40000000000000000002", None]
    assert (rows["mcc"], rows["rate"]) == (["0742", "5411", "0742"], ["1.10", "1.1", "1.10"])
    assert (rows["region"], rows["score"]) == (["NA", "NULL", None], [None, 0.5, 1.5])


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        ("0042 7", "text"), ("0742 1.5", "text"), ("0.5 00.5", "number"),
        ("9007199254740993 1", "text"), ("-9007199254740991 +1", "integer"), ("0 10", "integer"),
        ("0 0.5", "number"), ("1e3 -.5", "number"), ("true FALSE", "boolean"), ("NA nan", "text"), ("0x1F 1", "text"),
        ("2025-01-01 2025-01-02T03:04", "time"), ("10:00:00 11:00:00", "text"), ("inf 1", "text"), (" ", "missing"),
    ],
)  # fmt: skip
def test_a_column_is_read_as_what_all_its_cells_are(cells: str, kind: str) -> None:
    assert kind_of(pa.array([cell or None for cell in cells.split(" ")], pa.string())) == kind


@pytest.mark.parametrize(("kind", "cell"), [("integer", "1.5"), ("number", "inf"), ("boolean", "maybe"), ("time", "x")])
def test_a_cell_that_is_not_of_its_type_is_an_error_with_the_row(tmp_path: Path, kind: str, cell: str) -> None:
    file = read_csv(write(tmp_path, f"at,price,more\n1,1.00,\n2,2.00,{cell}\n"))
    document = yaml.safe_load(draft_spec(file, Roles("at", "price"), "x"))
    document |= {"derived": []}
    document["transaction"]["fields"]["more"] = {"type": kind, "optional": True}
    with pytest.raises(UsageError, match=f"row 2 of column 'more' cannot be read as {kind}"):
        convert(file, parse_spec(yaml.safe_dump(document)), Interpretation(), tmp_path)


def test_what_is_finer_than_a_millisecond_is_cut_off(tmp_path: Path) -> None:
    text = ORDERS.replace("10:00:00,", "10:00:00.123456789,").replace("09:30:00,", "09:30:00.000999999,")
    file = read_csv(write(tmp_path, text))
    convert(file, parse_spec(draft_spec(file, ROLES, "orders")), Interpretation("bad", "yes"), tmp_path)
    rows = pq.read_table(tmp_path / "transactions.parquet").to_pylist()
    assert [row["at"] for row in rows][:2] == [1_735_723_800_000, 1_735_812_000_123]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "UTF8", "utf-16", "cp1252"])
def test_a_file_may_have_any_encoding_and_delimiter(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "orders.csv"
    for delimiter in ",\t|":
        path.write_bytes("\nPreis,Zählpunkt\n1.50,süd\n".replace(",", delimiter).encode(encoding))
        file = read_csv(path, encoding, delimiter)
        assert {name: column.to_pylist() for name, column in file.columns.items()} == {
            "preis": ["1.50"],
            "z_hlpunkt": ["süd"],
        }


def test_cells_may_have_newlines_wherever_the_file_is_cut_into_blocks(tmp_path: Path) -> None:
    note = "7\n8,x"  # in quotes; a reader that cuts at each newline finds a row of two cells here
    file = read_csv(write(tmp_path, "at,note,price\n" + f'1,"{note}",2.50\n' * 70_000))
    assert file.rows == 70_000
    assert set(file.columns["note"].to_pylist()) == {note}


def test_a_compressed_file_is_named_so(tmp_path: Path) -> None:
    path = tmp_path / "orders.csv"
    path.write_bytes(gzip.compress(ORDERS.encode()))
    with pytest.raises(UsageError, match=r"orders\.csv is compressed with gzip") as caught:
        read_csv(path)
    assert "gunzip" in caught.value.hint
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("orders.csv", ORDERS)
    with pytest.raises(UsageError, match=r"orders\.csv is a zip archive or an Excel file") as caught:
        read_csv(path)
    assert "unzip" in caught.value.hint


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
        ("a;b\n1;2,5\n", Roles("a", "b"), "--delimiter ';'"),
        ("a\tb\n1\t2\n", Roles("a", "b"), "--delimiter tab"),
    ],
)
def test_a_file_that_cannot_serve_is_refused(tmp_path: Path, text: str, roles: Roles, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        draft_spec(read_csv(write(tmp_path, text)), roles, "x")


CURRENCIES = """
name: x
version: 1
transaction:
  {id: row_id, time: at, value: price, currency: code, rates: {EUR: 1, JPY: 0.6}, fields: {row_id: {type: string},
  at: {type: time}, price: {type: integer}, code: {type: category, values: [EUR, JPY]}}}
policy: {version: x, review: 0.3, block: 0.8}
"""


def test_amounts_of_several_currencies_need_the_minor_units_of_each(tmp_path: Path) -> None:
    file = read_csv(write(tmp_path, "at,price,code\n1,99.50,EUR\n2,9950,JPY\n3,12.34,EUR\n"))
    checked = parse_spec(CURRENCIES)
    written = convert(file, checked, Interpretation(minor_units={"EUR": 100, "JPY": 1}), tmp_path)
    assert pq.read_table(tmp_path / "transactions.parquet").column("price").to_pylist() == [9950, 9950, 1234]
    assert written.amounts == [
        AmountRange("EUR", "12.34", "99.50", 1234, 9950), AmountRange("JPY", "9950", "9950", 9950, 9950),
    ]  # fmt: skip
    for units in (None, 100, {"EUR": 100}, {"EUR": 100, "JPY": 1, "USD": 100}):
        with pytest.raises(UsageError, match=r"currencies EUR, JPY(?s:.)*EUR=100,JPY=1"):
            convert(file, checked, Interpretation(minor_units=units), tmp_path)
    file = read_csv(write(tmp_path, "at,price,code\n1,99.50,EUR\n2,9950,CHF\n"))
    with pytest.raises(UsageError, match="row 2 has no currency of the spec"):
        convert(file, checked, Interpretation(minor_units={"EUR": 100, "JPY": 1}), tmp_path)


def test_whole_amounts_need_their_minor_units(tmp_path: Path) -> None:
    file = read_csv(write(tmp_path, "at,price\n1,7\n2,+12\n"))
    checked = parse_spec(draft_spec(file, Roles("at", "price"), "x"))
    with pytest.raises(UsageError, match="whole numbers only"):
        convert(file, checked, Interpretation(), tmp_path)
    for units in (1, 100):
        convert(file, checked, Interpretation(minor_units=units), tmp_path)
        prices = pq.read_table(tmp_path / "transactions.parquet").column("price").to_pylist()
        assert prices == [7 * units, 12 * units]
    with pytest.raises(UsageError, match="names EUR, but the spec has no currency"):
        convert(file, checked, Interpretation(minor_units={"EUR": 100}), tmp_path)


def test_rounding_errors_of_an_export_are_no_decimals(tmp_path: Path) -> None:
    file = read_csv(write(tmp_path, "at,price\n1,12.340000000000002\n2,99999999999.99\n3,-0.01\n"))
    convert(file, parse_spec(draft_spec(file, Roles("at", "price"), "x")), Interpretation(), tmp_path)
    prices = pq.read_table(tmp_path / "transactions.parquet").column("price").to_pylist()
    assert prices == [1234, 9_999_999_999_999, -1]


@pytest.mark.parametrize(
    ("time", "start", "ms"),
    [
        ("9999999.5", None, 1_714_067_199_500), ("1700000000.25", 0, 1_700_000_000_250),
        ("15000000", 10_000, 15_000_010_000),
        ("10000000", None, "--start 1970-01-01"), ("1700000000", None, "--start 1970-01-01"),
        ("20250131", None, "--start 1970-01-01"), ("1700000000000", 0, "Divide milliseconds"),
        ("10:00:00", None, "a time of day needs its date"), ("NA", None, "1 rows have no value"),
        ("2025-01-31T10:00:00.9999+01:00", None, 1_738_314_000_999), ("9999-12-31", None, 253_402_214_400_000),
    ],
)  # fmt: skip
def test_a_time_is_plausible_or_refused(tmp_path: Path, time: str, start: int | None, ms: int | str) -> None:
    file = read_csv(write(tmp_path, f"at,price\n{time},1.00\n"))
    checked = parse_spec(draft_spec(file, Roles("at", "price"), "x"))
    meaning = Interpretation(start_ms=start)
    if isinstance(ms, str):
        with pytest.raises(UsageError, match=ms):
            convert(file, checked, meaning, tmp_path)
    else:
        written = convert(file, checked, meaning, tmp_path)
        assert (written.first_ms, written.last_ms) == (ms, ms)


@pytest.mark.parametrize(
    ("cell", "meaning", "message"),
    [
        ("1.005", Interpretation(), "more decimals"),
        ("123456.785", Interpretation(), "more decimals"),
        ("99999999999.995", Interpretation(), "more decimals"),
        ("1e30", Interpretation(), "more than 10,000,000,000,000 minor units"),
        ('"1,5"', Interpretation(), "must be a number in every row, .* row 1 is not"),
        ("1.00", Interpretation("bad", "fraud"), "no row of 'bad' is 'fraud'"),
        ("", Interpretation(), "must be a number in every row"),
    ],
)
def test_a_cell_that_means_nothing_is_refused(tmp_path: Path, cell: str, meaning: Interpretation, message: str) -> None:
    file = read_csv(write(tmp_path, f"at,price,bad\n1,{cell},0\n2,2.00,1\n"))
    spec = draft_spec(read_csv(write(tmp_path, "at,price,bad\n1,1,0\n")), Roles("at", "price", label="bad"), "x")
    with pytest.raises(UsageError, match=message):
        convert(file, parse_spec(spec), meaning, tmp_path)


@pytest.mark.parametrize(
    ("name", "plain"), [("Order No.", "order_no"), ("V1", "v1"), ("3D", "c_3d"), ("Price (€)", "price")]
)
def test_names_take_the_form_of_a_spec(name: str, plain: str) -> None:
    assert spec_name_of(name) == plain


def test_the_command_prints_what_it_wrote_and_what_it_misses(tmp_path: Path) -> None:
    path = write(tmp_path, ORDERS)
    arguments = ["data", "draft", str(path), "--time", "at", "--value", "Price", "--id", "Order No."]
    arguments += ["--out", str(tmp_path / "new" / "spec.yaml")]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0
    assert "features" in result.output
    result = CliRunner().invoke(
        cli, ["data", "draft", str(path), "--time", "at", "--value", "Price", "--entity", "buyer"]
    )
    assert result.exit_code == 2
    assert "NAME=COLUMN" in result.output
    path.write_bytes(ORDERS.replace("wallet", "Überweisung").replace(",", ";").encode("cp1252"))
    for options, message in [
        ([], "--encoding cp1252"), (["--encoding", "no"], "no encoding 'no'"),
        (["--encoding", "ascii"], "not a text file in ascii"),
        (["--encoding", "cp1252"], "--delimiter ';'"),
    ]:  # fmt: skip
        result = CliRunner().invoke(cli, [*arguments, *options])
        assert isinstance(result.exception, UsageError) and message in str(result.exception)
    result = CliRunner().invoke(cli, [*arguments, "--encoding", "cp1252", "--delimiter", ";;"])
    assert result.exit_code == 2 and "not one character" in result.output
    read_as = ["--encoding", "cp1252", "--delimiter", ";"]
    assert CliRunner().invoke(cli, [*arguments, *read_as]).exit_code == 0
    assert load_spec(tmp_path / "new" / "spec.yaml").spec.transaction.fields["way"].values == ["card", "Überweisung"]
    convert_it = [
        "data",
        "convert",
        str(path),
        "--spec",
        str(tmp_path / "new" / "spec.yaml"),
        "--out",
        str(tmp_path),
        *read_as,
    ]
    result = CliRunner().invoke(cli, convert_it)
    assert "times 2025-01-01 09:30:00 … 2025-01-03 00:00:00 UTC" in result.output
    assert "amounts 0.07 … 10.50 became 7 … 1050" in result.output
    path.write_bytes(path.read_bytes().replace(b"A2", b"A1").replace(b"true;;no", b"true;;"))
    result = CliRunner().invoke(cli, [*convert_it, "--label", "bad", "--fraud", "yes"])
    assert "warning: 1 ids occur in several rows" in result.stderr
    assert "3 transactions, 2 labels, 1 of them fraud\n1 transactions have no label" in result.stdout
    for units in ("EUR", "EUR=0", "1,2", "EUR=1,EUR=2", "100,EUR=1"):
        result = CliRunner().invoke(cli, [*convert_it, "--minor-units", units])
        assert result.exit_code == 2 and "neither a number nor CODE=NUMBER" in result.output
    result = CliRunner().invoke(cli, [*convert_it, "--minor-units", "EUR=100,JPY=1"])
    assert "names EUR, JPY, but the spec has no currency" in str(result.exception)
