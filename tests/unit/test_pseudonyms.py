"""Ids of sensitive entities are hashed with a key, and nothing works with such a spec without one."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from stream_scorer.app import scorer
from stream_scorer.clock import SystemClock
from stream_scorer.errors import SettingsError
from stream_scorer.features.engine import FeatureEngine
from stream_scorer.observability.liveness import Health
from stream_scorer.observability.metrics import Metrics
from stream_scorer.pipeline.decode import Decode
from stream_scorer.settings import load_settings
from stream_scorer.spec import CheckedSpec, load_spec, parse_spec
from stream_scorer.spec.pseudonyms import Pseudonyms
from stream_scorer.state.keys import rows_namespace
from tests.support.tables import transactions_from_columns

CARDS = Path(__file__).parents[2] / "stream_scorer" / "simulate" / "cards.yaml"
KEY, OTHER_KEY = "k" * 32, "l" * 32
IDS: list[str | None] = ["c1", None, "c2", "c1"]


def sensitive(key: str = KEY, field: str = "customer_id") -> CheckedSpec:
    text = CARDS.read_text(encoding="utf-8").replace(f"{field}: {{", f"{field}: {{sensitive: true, ")
    return parse_spec(text, id_key=key)


def test_equal_ids_have_equal_hashes_of_128_bits() -> None:
    found = Pseudonyms(KEY, frozenset({"customer"}), "customer").column("customer", IDS)
    assert found[0] == found[3] != found[2]
    assert found[1] is None
    assert len(bytes.fromhex(found[0] or "")) == 16


def test_the_hash_depends_on_the_key_and_not_on_the_id_alone() -> None:
    one, other = (Pseudonyms(key, frozenset({"customer"}), "customer").of("customer", "c1") for key in (KEY, OTHER_KEY))
    assert len({one, other, hashlib.blake2b(b"c1", digest_size=16).hexdigest()}) == 3


def test_ids_of_other_entities_stay() -> None:
    pseudonyms = Pseudonyms(KEY, frozenset({"customer"}), "terminal")
    assert pseudonyms.column("terminal", IDS) is IDS
    assert pseudonyms.of("terminal", "t1") == "t1"
    assert pseudonyms.record_keys([b"t1"]) == [b"t1"]


def test_the_key_of_a_record_has_the_hash_of_its_entity() -> None:
    pseudonyms = Pseudonyms(KEY, frozenset({"customer"}), "customer")
    assert pseudonyms.record_keys([b"c1", None]) == [pseudonyms.of("customer", "c1").encode(), None]
    assert len(pseudonyms.record_keys([b"\xff"])[0] or b"") == 32


def test_a_spec_without_sensitive_entities_needs_no_key() -> None:
    pseudonyms = load_spec(CARDS).pseudonyms
    keys: list[bytes | None] = [b"c1"]
    assert pseudonyms.record_keys(keys) is keys
    assert pseudonyms.fingerprint == ""


@pytest.mark.parametrize("part", [Decode, FeatureEngine])
@pytest.mark.parametrize("key", ["", "short"])
def test_nothing_reads_sensitive_entities_without_a_key(part: type, key: str) -> None:
    with pytest.raises(SettingsError, match=r"scorer\.id_key .*customer") as caught:
        part(sensitive(key))
    assert key == "" or key not in str(caught.value)
    assert "STREAM_SCORER_SCORER_ID_KEY_FILE" in caught.value.hint


def test_a_scorer_does_not_start_without_the_key(tmp_path: Path) -> None:
    spec = tmp_path / "cards.yaml"
    text = CARDS.read_text(encoding="utf-8").replace("device_id:   {", "device_id: {sensitive: true, ")
    spec.write_text(text, encoding="utf-8")
    flags = {"scorer.spec": str(spec), "kafka.bootstrap": "127.0.0.1:1", "redis.url": "redis://127.0.0.1:1"}
    settings = load_settings(flags, environment={}, directory=tmp_path)
    with (
        pytest.raises(SettingsError, match="sensitive entities: device"),
        scorer(settings, Metrics(), Health(SystemClock())),
    ):
        raise AssertionError("it has started")


def test_rows_of_another_key_are_in_another_namespace() -> None:
    fingerprints = [sensitive(key).pseudonyms.fingerprint for key in (KEY, OTHER_KEY)]
    assert len({rows_namespace("g", "rows", ["t", "l"], id_key) for id_key in ["", *fingerprints]}) == 3
    assert sensitive(KEY).pseudonyms.fingerprint == fingerprints[0]


def test_the_keys_of_rows_have_hashes() -> None:
    checked = sensitive()
    keys = FeatureEngine(checked).row_keys("customer", "c1")
    assert keys == [b"0:" + checked.pseudonyms.of("customer", "c1").encode()]


def test_columns_of_files_have_the_same_hashes() -> None:
    checked = sensitive()
    names = ("event_id", "event_time", "customer_id", "terminal_id", "amount", "currency", "channel")
    row = ("e1", 0, "c1", "t1", 5, "EUR", "chip")
    columns = {name: np.array([value]) for name, value in zip(names, row, strict=True)}
    found = transactions_from_columns(checked, columns).entity_ids
    assert (found["customer"], found["terminal"]) == ([checked.pseudonyms.of("customer", "c1")], ["t1"])
