"""The search of the proof `leaks` finds what it looks for, in every form, and nothing else."""

from __future__ import annotations

import base64
import html
import json
from pathlib import Path
from urllib.parse import quote

import pytest
import xxhash

from proofs.leak_search import Search, card_numbers

CARDS = card_numbers(50, 1)
SECRET = "p/w d"


@pytest.fixture
def search() -> Search:
    return Search(CARDS, {"redis": SECRET, "mlflow": "hunter2"}, ["ann"])


def luhn(number: str) -> bool:
    digits = [int(d) for d in reversed(number)]
    return sum(digits[0::2]) % 10 == -sum(sum(divmod(2 * d, 10)) for d in digits[1::2]) % 10


def test_card_numbers_are_valid_and_distinct() -> None:
    assert len(set(CARDS)) == 50
    assert all(len(card) == 16 and luhn(card) for card in CARDS)


@pytest.mark.parametrize("form", [f'{{"a": "{CARDS[3]}"}}', f"00{CARDS[3]}9", f"key:{CARDS[3]}\n"])
def test_a_card_number_is_found_in_text(search: Search, form: str) -> None:
    search.look("text", [b"x" * 100, form.encode(), None])
    assert search.areas["text"].cards == {CARDS[3]}
    assert (search.areas["text"].items, search.areas["text"].size) == (2, 100 + len(form))


@pytest.mark.parametrize("order", ["little", "big"])
def test_a_card_number_and_its_plain_hash_are_found_in_binary(search: Search, order: str) -> None:
    for number in (int(CARDS[3]), xxhash.xxh3_64_intdigest(CARDS[4].encode())):
        search.look("binary", [b"abc", number.to_bytes(8, order), b"d"], binary=True)  # type: ignore[arg-type]
    assert len(search.areas["binary"].cards) == 2
    search.look("text", [int(CARDS[3]).to_bytes(8, "little")])
    assert search.areas["text"].cards == set()


def test_a_secret_is_found_in_every_form_and_counted_once(search: Search, tmp_path: Path) -> None:
    basic = base64.b64encode(f"ann:{SECRET}".encode())
    for form in (SECRET.encode(), b"p%2Fw%20d", basic):
        found = Search(CARDS, {"redis": SECRET}, ["ann"])
        found.look("here", [b"before " + form])
        assert found.areas["here"].secrets == {"redis"}
    odd = 'planted-@/#%"\\ü'
    written = [odd, quote(odd), quote(odd, safe=""), json.dumps(odd), json.dumps(odd, ensure_ascii=False), repr(odd)]
    written += [json.dumps({"message": json.dumps(odd)}), html.escape(odd)]
    basics = [base64.b64encode(f"ann:{odd}".encode(charset)) for charset in ("utf-8", "latin-1")]
    for blob in [*(text.encode() for text in written), *basics]:
        found = Search(CARDS, {"redis": odd}, ["ann"])
        found.look("here", [b"before " + blob])
        assert found.areas["here"].secrets == {"redis"}, blob
    (tmp_path / "hunter2.log").write_text("nothing")
    search.look_at_files("files", [tmp_path / "hunter2.log"])
    assert (search.found("secrets"), search.found("cards")) == (1, 0)


def test_other_numbers_and_texts_are_not_found(search: Search) -> None:
    search.look("here", [b"4111111111111111 1700000000000 p/w  d", bytes(range(256)) * 50], binary=True)
    assert (search.found("secrets"), search.found("cards")) == (0, 0)
