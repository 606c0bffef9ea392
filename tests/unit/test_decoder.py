"""Every way a record can be bad has a code and a path, and no message repeats the content of the record."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stream_scorer.errors import RECORD_CODES, RecordError
from stream_scorer.serde.decoder import LabelDecoder, TransactionDecoder
from stream_scorer.spec import CheckedSpec, load_spec, parse_spec
from stream_scorer.spec.model import MAX_VALUE
from tests.support.tables import transactions_from_columns

ROOT = Path(__file__).parents[2]
CARDS = load_spec(ROOT / "stream_scorer" / "simulate" / "cards.yaml")
NOW = 1_736_157_600_000
SECRET = "4111-SECRET"
GOOD: dict[str, Any] = {
    "event_id": "e1",
    "event_time": NOW,
    "customer_id": "c1",
    "terminal_id": "t1",
    "card_number": SECRET,
    "amount": 1_234,
    "currency": "USD",
    "channel": "online",
}
LABEL: dict[str, Any] = {
    "event_id": "e1",
    "event_time": NOW,
    "label": "fraud",
    "labelled_at": NOW + 1,
    "source": "analyst",
    "customer_id": "c1",
}


def encode(document: Any) -> bytes:
    return json.dumps(document).encode()


def without(document: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key != name}


BAD: list[tuple[str, str, bytes | None]] = [
    ("empty_value", "", None),
    ("empty_value", "", b""),
    ("value_too_large", "", encode(GOOD | {"more": SECRET * 100_000})),
    ("not_utf8", "", b'{"card_number": "' + SECRET.encode() + b'\xff"}'),
    ("not_json", "", encode(GOOD)[:-1]),
    ("not_json", "", encode(GOOD).replace(b"1234", b"NaN")),
    ("not_json", "", b'{"card_number": "\\q' + SECRET.encode() + b'"}'),
    ("not_json", "", b'{"more":' + b"[" * 100_000),
    ("missing_field", "$.amount", encode(without(GOOD, "amount"))),
    ("wrong_type", "$", encode([SECRET])),
    ("wrong_type", "$", encode(SECRET)),
    ("wrong_type", "$.amount", encode(GOOD | {"amount": SECRET})),
    ("wrong_type", "$.amount", encode(GOOD | {"amount": 12.34})),
    ("wrong_type", "$.amount", encode(GOOD | {"amount": None})),
    ("wrong_type", "$.card_number", encode(GOOD | {"card_number": [SECRET]})),
    ("out_of_range", "$.amount", encode(GOOD | {"amount": -1})),
    ("out_of_range", "$.amount", encode(GOOD | {"amount": 2**60})),
    ("out_of_range", "$.event_id", encode(GOOD | {"event_id": ""})),
    ("out_of_range", "$.card_number", encode(GOOD | {"card_number": SECRET * 10})),
    ("out_of_range", "$.currency", encode(GOOD | {"currency": SECRET})),
    ("time_out_of_range", "$.event_time", encode(GOOD | {"event_time": NOW + 3_600_000})),
    ("time_out_of_range", "$.event_time", encode(GOOD | {"event_time": NOW // 1_000})),
]


def reject(value: bytes | None) -> RecordError:
    decoded, rejected = TransactionDecoder(CARDS).decode([value], np.array([NOW]))
    assert len(decoded) == 0
    assert [index for index, _ in rejected] == [0]
    return rejected[0][1]


@pytest.mark.parametrize(("code", "path", "value"), BAD)
def test_a_bad_record_has_its_code_and_the_path_of_the_bad_field(code: str, path: str, value: bytes | None) -> None:
    error = reject(value)
    assert (error.code, error.path) == (code, path)
    assert error.message


@pytest.mark.parametrize("value", [value for _, _, value in BAD])
def test_no_message_repeats_a_value(value: bytes | None) -> None:
    error = reject(value)
    assert "SECRET" not in f"{error} {error.path} {error.message}"


def test_the_document_of_errors_and_these_cases_know_the_same_codes() -> None:
    section = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8").partition("Headers of a dead letter")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.M)) == set(RECORD_CODES)
    # The stage `decode` refuses large envelopes: the value is not what is refused.
    assert set(RECORD_CODES) == {code for code, _, _ in BAD} | {"envelope_too_large"}


def test_a_good_record_becomes_columns() -> None:
    decoded, rejected = TransactionDecoder(CARDS).decode([encode(GOOD | {"unknown": 1})], np.array([NOW]))
    assert rejected == []
    assert decoded.event_id == ["e1"]
    assert decoded.event_time.tolist() == [NOW]
    assert decoded.value.tolist() == [1_234]
    assert decoded.entity_ids == {"customer": ["c1"], "terminal": ["t1"], "device": [None], "network": [None]}
    assert decoded.columns["currency"].tolist() == [1.0]  # its place in [EUR, USD, GBP]


def in_euros(**rates: float) -> CheckedSpec:
    text = (ROOT / "stream_scorer" / "simulate" / "cards.yaml").read_text(encoding="utf-8")
    return parse_spec(text.replace("rates: {EUR: 1, USD: 1, GBP: 1}", f"rates: {json.dumps({'EUR': 1.0} | rates)}"))


def test_amounts_of_other_currencies_are_converted() -> None:
    currencies = ["EUR", "USD", "GBP", "USD"]
    documents = [GOOD | {"currency": c, "amount": 101 + i} for i, c in enumerate(currencies)]
    spec = in_euros(USD=0.5, GBP=1.25)
    decoded, rejected = TransactionDecoder(spec).decode([encode(d) for d in documents], np.full(4, NOW))
    assert not rejected
    # Halves are rounded to even: 102 / 2, 103 * 1.25 = 128.75, 104 / 2.
    assert decoded.value.tolist() == [101, 51, 129, 52]
    assert decoded.columns["amount"].tolist() == [101.0, 51.0, 129.0, 52.0]
    columns = {name: [d[name] for d in documents] for name in GOOD}
    assert transactions_from_columns(spec, columns).value.tolist() == decoded.value.tolist()


def test_an_amount_without_a_maximum_cannot_overflow_sums() -> None:
    text = (ROOT / "stream_scorer" / "simulate" / "cards.yaml").read_text(encoding="utf-8")
    spec = parse_spec(text.replace("min: 0, max: 100000000", "min: 0"))
    values = [encode(GOOD | {"amount": amount}) for amount in (MAX_VALUE, MAX_VALUE + 1)]
    decoded, rejected = TransactionDecoder(spec).decode(values, np.full(2, NOW))
    assert decoded.value.tolist() == [MAX_VALUE]
    assert [(row, error.code, error.path) for row, error in rejected] == [(1, "out_of_range", "$.amount")]


def test_a_converted_amount_stays_within_the_limit_of_sums() -> None:
    spec = in_euros(USD=1.0, GBP=1_000_000.0)
    values = [encode(GOOD | {"amount": amount}) for amount in (MAX_VALUE // 1_000_000, MAX_VALUE // 1_000_000 + 1)]
    decoded, rejected = TransactionDecoder(spec).decode(values, np.full(2, NOW))
    assert len(decoded) == 1
    assert [(row, error.code, error.path) for row, error in rejected] == [(1, "out_of_range", "$.amount")]


def test_bad_records_leave_their_neighbours_alone() -> None:
    values = [encode(GOOD | {"event_id": f"e{i}"}) for i in range(4)]
    values[1] = b"{"
    values[2] = encode(GOOD | {"event_time": 1})
    decoded, rejected = TransactionDecoder(CARDS).decode(values, np.full(4, NOW))
    assert decoded.event_id == ["e0", "e3"]
    assert decoded.row.tolist() == [0, 3]
    assert [(index, error.code) for index, error in rejected] == [(1, "not_json"), (2, "time_out_of_range")]


def test_plausible_ends_are_inclusive() -> None:
    ahead, age = 5 * 60_000, 400 * 86_400_000
    times = [NOW + ahead, NOW + ahead + 1, NOW - age, NOW - age - 1]
    values = [encode(GOOD | {"event_time": time}) for time in times]
    decoded, rejected = TransactionDecoder(CARDS).decode(values, np.full(4, NOW))
    assert decoded.row.tolist() == [0, 2]
    assert [index for index, _ in rejected] == [1, 3]


@pytest.mark.parametrize(
    ("code", "path", "value"),
    [
        ("out_of_range", "$.label", LABEL | {"label": SECRET}),
        ("out_of_range", "$.review_probability", LABEL | {"review_probability": 0}),
        ("wrong_type", "$.review_probability", LABEL | {"review_probability": SECRET}),
        ("missing_field", "$.source", without(LABEL, "source")),
        ("time_out_of_range", "$.labelled_at", LABEL | {"labelled_at": NOW * 1_000}),
        ("time_out_of_range", "$.labelled_at", LABEL | {"labelled_at": NOW // 1_000}),
        ("time_out_of_range", "$.labelled_at", LABEL | {"labelled_at": NOW + 400_000, "event_time": NOW + 400_000}),
        ("time_out_of_range", "$.event_time", LABEL | {"event_time": NOW * 1_000}),
        ("time_out_of_range", "$.event_time", LABEL | {"event_time": NOW // 1_000}),
        ("time_out_of_range", "$.event_time", LABEL | {"event_time": NOW + 400_000}),
    ],
)
def test_bad_labels(code: str, path: str, value: dict[str, Any]) -> None:
    decoded, rejected = LabelDecoder(CARDS).decode([encode(value), encode(LABEL)], np.full(2, NOW))
    assert [(i, e.code, e.path) for i, e in rejected] == [(0, code, path)]
    assert "SECRET" not in str(rejected[0][1])
    assert decoded.row.tolist() == [1]
    assert decoded.fraud.tolist() == [True]
    assert decoded.entity_ids["customer"] == ["c1"]
