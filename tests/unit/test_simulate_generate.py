"""The generator: the same bytes for the same config, and transactions that mean what they say."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from stream_scorer.errors import SettingsError, UsageError
from stream_scorer.serde.decoder import TransactionDecoder
from stream_scorer.simulate import (
    FRAUD_KINDS,
    SimulationConfig,
    Transactions,
    encode_keys,
    encode_values,
    generate,
    generate_days,
)
from stream_scorer.simulate.config import DAY_MS
from stream_scorer.simulate.export import export
from stream_scorer.simulate.files import read_truth
from stream_scorer.simulate.labeller import LabellerConfig, history_labels
from stream_scorer.simulate.transactions import fixed_ids
from stream_scorer.spec import load_spec
from tests.support.simulated_files import read_labels, read_transactions

CONFIG = SimulationConfig(seed=11, customers=2_000, terminals=400, days=20, transactions_per_customer_day=1.5)
CARDS = Path(__file__).parents[2] / "stream_scorer" / "simulate" / "cards.yaml"


@pytest.fixture(scope="module")
def history() -> Transactions:
    return generate(CONFIG)


def assert_same(left: Transactions, right: Transactions) -> None:
    for field in fields(Transactions):
        np.testing.assert_array_equal(getattr(left, field.name), getattr(right, field.name), err_msg=field.name)


def test_the_same_config_gives_the_same_bytes(history: Transactions) -> None:
    again = generate(CONFIG)
    assert_same(history, again)
    assert encode_values(history.slice(0, 2_000)) == encode_values(again.slice(0, 2_000))


def test_the_days_joined_are_the_whole(history: Transactions) -> None:
    days = list(generate_days(CONFIG))
    assert len(days) == CONFIG.days
    assert_same(Transactions.concat(days), history)


def test_a_shorter_simulation_is_the_beginning_of_a_longer_one(history: Transactions) -> None:
    cut = generate(replace(CONFIG, days=None, transactions=10_007))
    assert len(cut) == 10_007
    assert_same(cut, history.slice(0, 10_007))


def test_another_seed_gives_other_events_with_other_ids(history: Transactions) -> None:
    other = generate(replace(CONFIG, seed=12, days=2))
    assert not set(other.event_id.tolist()) & set(history.event_id.tolist())
    assert not np.array_equal(other.amount[:1_000], history.amount[:1_000])


def test_order_ids_and_volume(history: Transactions) -> None:
    assert (np.diff(history.event_time) >= 0).all()
    assert len(set(history.event_id.tolist())) == len(history)
    assert {len(event_id) for event_id in history.event_id.tolist()} == {19}
    assert history.event_time[0] >= CONFIG.start_ms
    assert history.event_time[-1] < CONFIG.start_ms + 20 * DAY_MS
    # 2,000 customers, 1.5 a day, 20 days.
    assert len(history) == pytest.approx(60_000, rel=0.06)


def test_fraud_is_rare_and_of_every_kind(history: Transactions) -> None:
    counts = np.bincount(history.fraud_kind, minlength=len(FRAUD_KINDS))
    assert len(FRAUD_KINDS) >= 6
    assert (counts > 0).all(), dict(zip(FRAUD_KINDS, counts.tolist(), strict=True))
    assert 0.005 <= counts[1:].sum() / len(history) <= 0.01
    # No kind is most of the fraud.
    assert counts[1:].max() < 0.5 * counts[1:].sum()


def test_a_fraud_may_last_past_midnight(history: Transactions) -> None:
    farmed = history.take(history.fraud_kind == FRAUD_KINDS.index("device_farm"))
    days = farmed.event_time // DAY_MS
    lasting = [device for device in set(farmed.device_id) if len(set(days[farmed.device_id == device])) > 1]
    assert lasting


def test_without_fraud_there_is_none() -> None:
    assert not generate(replace(CONFIG, days=2, fraud_rate=0.0)).fraud_kind.any()


def test_device_and_network_belong_to_online_payments_only(history: Transactions) -> None:
    online = history.channel == "online"
    assert 0.2 < online.mean() < 0.5
    for column in (history.device_id, history.network_id):
        np.testing.assert_array_equal(np.array([value is not None for value in column]), online)


def test_no_single_value_gives_fraud_away(history: Transactions) -> None:
    fraud = history.fraud_kind > 0
    for column in (history.channel, history.currency):
        for value in set(column[fraud].tolist()):
            assert (~fraud & (column == value)).sum() > 100, value
    # Contactless has its limit, also for thieves.
    assert history.amount[history.channel == "contactless"].max() <= 5_000


def test_customers_have_habits(history: Transactions) -> None:
    genuine = history.take(history.fraud_kind == 0)
    logs = np.log(genuine.amount.astype(float))
    customers, row = np.unique(genuine.customer_id.astype(str), return_inverse=True)
    mean = np.bincount(row, logs) / np.bincount(row)
    within = np.sqrt(np.mean((logs - mean[row]) ** 2))
    assert within < 0.85 * logs.std()
    # Somebody's favourite shop sees far more of them than chance would have it.
    busiest = customers[np.bincount(row).argmax()]
    visits = np.unique(genuine.terminal_id[genuine.customer_id == busiest].astype(str), return_counts=True)[1]
    assert visits.max() >= 5


def test_card_numbers_can_belong_to_no_card(history: Transactions) -> None:
    for number in set(history.card_number[:2_000].tolist()):
        assert len(number) == 16
        assert number.startswith("0000")
        digits = [int(digit) for digit in reversed(number)]
        luhn = sum(digits[::2]) + sum(sum(divmod(2 * digit, 10)) for digit in digits[1::2])
        assert luhn % 10 != 0, number


def test_values_decode_by_the_spec_and_hide_the_truth(history: Transactions) -> None:
    part = history.slice(0, 5_000)
    values = encode_values(part)
    decoded, rejected = TransactionDecoder(load_spec(CARDS)).decode(values, part.event_time)
    assert rejected == []
    assert decoded.event_id == part.event_id.tolist()
    np.testing.assert_array_equal(decoded.event_time, part.event_time)
    np.testing.assert_array_equal(decoded.value, part.amount)
    assert decoded.entity_ids["device"] == part.device_id.tolist()
    documents = [msgspec.json.decode(value) for value in values]
    declared = set(load_spec(CARDS).spec.transaction.fields)
    assert set().union(*documents) == declared
    assert all(None not in document.values() for document in documents)
    assert [document["customer_id"].encode() for document in documents] == encode_keys(part.customer_id)


def test_files_give_back_what_was_written(tmp_path: Path) -> None:
    config = replace(CONFIG, days=3)
    report = export(config, tmp_path, labels=LabellerConfig(seed=3))
    written = read_transactions(tmp_path / "transactions.parquet", tmp_path / "truth.parquet")
    history = generate(config)
    assert_same(written, history)
    assert report.transactions == len(history)
    assert not read_transactions(tmp_path / "transactions.parquet").fraud_kind.any()
    np.testing.assert_array_equal(read_truth(tmp_path / "truth.parquet")["fraud_kind"], history.fraud_kind)
    labels = read_labels(tmp_path / "labels.parquet")
    expected = history_labels(history, int(history.event_time[-1]), LabellerConfig(seed=3))
    assert len(labels) == report.labels == len(expected) > 0
    np.testing.assert_array_equal(labels.event_id, expected.event_id)
    np.testing.assert_array_equal(labels.review_probability, expected.review_probability)


def test_a_missing_or_another_file_is_refused(tmp_path: Path) -> None:
    export(replace(CONFIG, days=1), tmp_path)
    with pytest.raises(UsageError, match="cannot read"):
        read_truth(tmp_path / "missing.parquet")
    with pytest.raises(UsageError, match="cannot read .*fraud_kind"):
        read_truth(tmp_path / "transactions.parquet")


@pytest.mark.parametrize(
    "wrong", [{"seed": -1}, {"customers": 0}, {"days": None}, {"days": 0}, {"fraud_rate": 0.9}, {"terminals": 1}]
)
def test_impossible_configs_are_refused(wrong: dict[str, int | float | None]) -> None:
    with pytest.raises(SettingsError):
        replace(CONFIG, **wrong)  # type: ignore[arg-type]


def test_an_id_that_does_not_fit_is_refused() -> None:
    assert fixed_ids("x", np.array([0, 42, 999]), 3).tolist() == ["x000", "x042", "x999"]
    with pytest.raises(ValueError, match="3 digits"):
        fixed_ids("x", np.array([1_000]), 3)
