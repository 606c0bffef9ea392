"""A wrong pipeline spec is refused with the path of the wrong node."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from stream_scorer.documents import parse_yaml
from stream_scorer.errors import SpecError
from stream_scorer.spec import load_spec
from stream_scorer.spec.load import parse_spec

CARDS = Path(__file__).parents[2] / "stream_scorer" / "simulate" / "cards.yaml"
DOCUMENT: dict[str, Any] = yaml.safe_load(CARDS.read_text(encoding="utf-8"))

Edit = Callable[[dict[str, Any]], Any]


def edited(edit: Edit) -> str:
    document = copy.deepcopy(DOCUMENT)
    edit(document)
    return str(yaml.dump(document, Dumper=yaml.CSafeDumper, sort_keys=False))


def field(name: str, **changes: Any) -> Edit:
    return lambda d: d["transaction"]["fields"][name].update(changes)


def view(index: int, **changes: Any) -> Edit:
    return lambda d: d["views"][index].update(changes)


def segment(**changes: Any) -> dict[str, Any]:
    return {"name": "web", "where": {"channel": {"in": ["online"]}}, "review": 0.2, "block": 0.5} | changes


def entity_list(**changes: Any) -> dict[str, Any]:
    return {"name": "vip", "entity": "customer", "decision": "approve", "ids": ["c"]} | changes


def distinct_of_a_sensitive_integer(document: dict[str, Any]) -> None:
    document["transaction"]["fields"]["bin"] = {"type": "integer", "sensitive": True}
    document["views"][0] = {
        "name": "bins", "entity": "customer", "windows": ["1d"], "aggregates": ["distinct"], "of": "bin"
    }  # fmt: skip


WRONG: list[tuple[str, Edit]] = [
    ("(top level)", lambda d: d.pop("policy")),
    ("policy", lambda d: d["policy"].update(reviev=0.3)),
    ("policy.review", lambda d: d["policy"].update(review=1.5)),
    ("policy", lambda d: d["policy"].update(review=0.9, block=0.1)),
    ("policy.segments[0]", lambda d: d["policy"].update(segments=[segment(review=0.9)])),
    (
        "policy.segments[0].where.nothing",
        lambda d: d["policy"].update(segments=[segment(where={"nothing": {"min": 1}})]),
    ),
    ("policy.segments[0].where", lambda d: d["policy"].update(segments=[segment(where={})])),
    ("policy", lambda d: d["policy"].update(segments=[segment(), segment()])),
    ("policy.lists[0].entity", lambda d: d["policy"].update(lists=[entity_list(entity="nobody")])),
    ("policy.lists[0]", lambda d: d["policy"].update(lists=[entity_list(ids=[])])),
    ("policy.lists[0]", lambda d: d["policy"].update(lists=[entity_list(file="x.txt")])),
    ("policy.lists[0].file", lambda d: d["policy"].update(lists=[entity_list(ids=[], file="nowhere.txt")])),
    ("transaction.id", lambda d: d["transaction"].update(id="nothing")),
    ("transaction.time", lambda d: d["transaction"].update(time="amount")),
    ("transaction.value", field("amount", optional=True)),
    ("transaction.currency", lambda d: d["transaction"].update(currency="nothing")),
    ("transaction.currency", field("currency", optional=True)),
    ("transaction.currency", lambda d: d["transaction"].update(currency="device_id")),
    ("transaction.rates", lambda d: d["transaction"].pop("rates")),
    ("transaction.rates", lambda d: d["transaction"]["rates"].pop("USD")),
    ("transaction.rates", lambda d: d["transaction"]["rates"].update(CHF=1)),
    ("transaction.rates.USD", lambda d: d["transaction"]["rates"].update(USD=0)),
    ("transaction.rates.USD", lambda d: d["transaction"]["rates"].update(USD=math.inf)),
    ("transaction.rates", lambda d: d["transaction"].pop("currency")),
    ("transaction.fields.event_id", field("event_id", sensitive=True)),
    ("views[0].of", distinct_of_a_sensitive_integer),
    ("transaction.fields.event_time", field("event_time", sensitive=True)),
    ("transaction.fields.amount", field("amount", sensitive=True)),
    ("transaction.fields.amount", field("amount", max=10**13 + 1)),
    ("transaction.fields.currency", field("currency", values=None)),
    ("transaction.fields.amount", field("amount", min=5, max=4)),
    ("transaction.fields.amount.type", field("amount", type="money")),
    ("transaction.fields", lambda d: d["transaction"]["fields"].update(Amount={"type": "integer"})),
    ("transaction.fields.channel.values", field("channel", values=["online", "atm", "online"])),
    ("transaction.fields.amount.min", field("amount", min=-math.inf)),
    ("transaction.fields.amount.max", field("amount", max=math.nan)),
    ("transaction.fields.amount.min", field("amount", min=0.5)),
    ("transaction.fields.amount.min", field("amount", min=10**400)),
    ("transaction.fields.amount", field("amount", min=10**14)),
    ("entities.customer.field", lambda d: d["entities"]["customer"].update(field="amount")),
    ("partition_entity", lambda d: d.update(partition_entity="nobody")),
    ("views[2].windows[0]", view(2, windows=["1 hour"])),
    ("views[2].windows", view(2, windows=["0s"])),
    ("views[2].windows", view(2, windows=[])),
    ("views[1].windows", view(1, windows=["1h"])),
    ("views[1].aggregates[0]", view(1, aggregates=["median"])),
    ("views[0].entity", view(0, entity="nobody")),
    ("views[1]", view(1, name="customer")),
    ("views[3]", view(3, delay="0s")),
    ("views[3]", view(3, delay="0d")),
    ("views[2].windows", view(2, windows=["1d", "7d", "1d"])),
    ("views[2].windows[0]", view(2, windows=["99999999999999d"])),
    ("time.max_age", lambda d: d["time"].update(max_age="99999999999999d")),
    ("views[2].aggregates", view(2, aggregates=["count", "count"])),
    ("views[2].where.amount", view(2, where={"amount": {"min": 5, "max": 1}})),
    ("views[2].where.amount.min", view(2, where={"amount": {"min": math.nan}})),
    ("derived[0].of", lambda d: d["derived"][0].update(of=["nothing"])),
    ("views[2]", view(2, of="channel")),
    ("views[2]", view(2, aggregates=["distinct"])),
    ("views[2].of", view(2, aggregates=["distinct"], of="nothing")),
    ("views[2].of", view(2, aggregates=["distinct"], of="card_number")),
    ("derived[0].of", lambda d: d["derived"][0].update(of=["amount", "amount"])),
    ("derived[0].of", lambda d: d["derived"][0].update(of=["customer_id"])),
    ("derived[1]", lambda d: d["derived"][1].update(name="amount_log")),
    ("feature_sets.network", lambda d: d["feature_sets"].update(network=["nothing.*"])),
    ("monitor.pane", lambda d: d["monitor"].update(pane="10ms")),
]


@pytest.mark.parametrize(("path", "edit"), WRONG)
def test_an_error_names_the_path(path: str, edit: Edit) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(edited(edit))
    assert caught.value.path == path
    assert caught.value.message.startswith(f"{path}: ")
    assert caught.value.exit_code == 2


def test_the_unedited_document_is_right() -> None:
    assert parse_spec(edited(lambda _d: None)).sha256 == load_spec(CARDS).sha256


def test_the_file_is_named_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(edited(view(2, windows=["1 hour"])))
    with pytest.raises(SpecError, match=r"mine\.yaml: views\[2\]\.windows\[0\]: "):
        load_spec(path)
    with pytest.raises(SpecError, match="no pipeline spec at"):
        load_spec(tmp_path / "nothing.yaml")
    with pytest.raises(SpecError, match="cannot read"):
        load_spec(tmp_path)


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_list_with_a_byte_order_mark_has_its_first_id(tmp_path: Path, ending: str) -> None:
    (tmp_path / "vip.txt").write_bytes(f"\ufeffc-1{ending}c-2{ending}".encode())
    checked = parse_spec(edited(lambda d: d["policy"].update(lists=[entity_list(ids=[], file="vip.txt")])), tmp_path)
    assert checked.spec.policy.lists[0].ids == ["c-1", "c-2"]


@pytest.mark.parametrize("content", ["", " \n\t\n", "\ufeff"])
def test_an_empty_list_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "ids").write_text(content, encoding="utf-8")
    text = edited(lambda d: d["policy"].update(lists=[entity_list(ids=[], file="ids")]))
    with pytest.raises(SpecError, match=r"policy.lists\[0\].file: the list ids has no ids"):
        parse_spec(text, tmp_path)
    with pytest.raises(SpecError, match=r"policy.lists\[0\]: .* not empty"):
        parse_spec(edited(lambda d: d["policy"].update(lists=[entity_list(ids=[])])))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("account;reason\nc-1;stolen\n", "all lines of ids have semicolons"),
        ("c-1,c-2\n", "all lines of ids have commas"),
        ('account\n"c-1"\n"c-2"\n', "2 of 3 lines of ids are in quotes"),
        ("c" * 65 + "\n" + "c" * 66, "2 of 2 ids are longer than the 64 characters that their field may have"),
    ],
)
def test_a_list_that_matches_nobody_is_refused(tmp_path: Path, content: str, what: str) -> None:
    (tmp_path / "ids").write_text(content, encoding="utf-8")
    text = edited(lambda d: d["policy"].update(lists=[entity_list(ids=[], file="ids")]))
    with pytest.raises(SpecError, match=what) as raised:
        parse_spec(text, tmp_path)
    assert "c-1" not in str(raised.value)
    ids = ["c-1;x", '"c-2"', "c" * 65]
    checked = parse_spec(edited(lambda d: d["policy"].update(lists=[entity_list(ids=ids)])))
    assert checked.spec.policy.lists[0].ids == ids


def test_broken_yaml_names_the_line() -> None:
    with pytest.raises(SpecError, match="not valid YAML at line 2"):
        parse_spec("name: cards\n  version: 1\n")


@pytest.mark.parametrize(
    ("text", "line"),
    [("a:\n  lists: [1]\n  b: 2\n  lists: [3]\n", 4), ("{1: a, 0x1: b}", 1), ("- {a: 1,\n   'a': 2}", 2)],
)
def test_a_repeated_key_is_refused_with_its_line(text: str, line: int) -> None:
    with pytest.raises(SpecError, match=f"not valid YAML at line {line}: the key .* is repeated"):
        parse_yaml(text, error=SpecError)


def test_a_merged_key_may_be_replaced() -> None:
    text = "base: &b {x: 1, y: 2}\nnext: &n {<<: *b, x: 3}\nlast: {<<: *n, y: 4}\n"
    assert parse_yaml(text)["last"] == {"x": 3, "y": 4}


def test_all_shipped_documents_have_unique_keys() -> None:
    folder = Path(__file__).parents[2]
    found = [path for part in ("examples", "stream_scorer", "deploy/ci") for path in (folder / part).rglob("*.y*ml")]
    assert len(found) >= 8
    for path in found:
        parse_yaml(path.read_text(encoding="utf-8"))


def test_a_day_that_does_not_exist_is_an_error_of_the_spec() -> None:
    with pytest.raises(SpecError, match="not valid YAML: day"):
        parse_spec("name: 2026-02-30")


def test_the_policy_is_not_part_of_what_features_mean() -> None:
    plain = load_spec(CARDS)
    other_policy = parse_spec(edited(lambda d: d["policy"].update(review=0.31)))
    other_view = parse_spec(edited(view(0, windows=["1h", "2h", "1d", "7d", "30d"])))
    assert other_policy.sha256 != plain.sha256
    assert other_policy.feature_hash == plain.feature_hash
    assert other_view.feature_hash != plain.feature_hash


def test_rows_differ_where_other_events_count_or_are_kept_though_features_mean_the_same() -> None:
    def time(**rules: str) -> Edit:
        return lambda d: d["time"].update(rules)

    plain = load_spec(CARDS)
    other_rows: list[Edit] = [
        time(allowed_lateness="7d"),
        time(max_age="10d"),
        time(max_ahead="1h"),
        lambda d: d.update(entities=dict(reversed(d["entities"].items()))),  # row keys number the entities
    ]
    others = [parse_spec(edited(edit)) for edit in other_rows]
    assert {other.feature_hash for other in others} == {plain.feature_hash}
    assert len({spec.rows_hash for spec in (plain, *others)}) == 5
    same = [time(stale_after="2d", labels_stale_after="9d"), time(max_ahead="300s")]
    assert {parse_spec(edited(edit)).rows_hash for edit in same} == {plain.rows_hash}
    other_view = parse_spec(edited(view(0, windows=["1h", "2h", "1d", "7d", "30d"])))
    assert other_view.rows_hash != plain.rows_hash


def test_sensitive_fields_are_listed() -> None:
    assert load_spec(CARDS).sensitive_fields == ["card_number"]
    assert load_spec(CARDS).sensitive_entities == []
    assert parse_spec(edited(field("device_id", sensitive=True))).sensitive_entities == ["device"]
