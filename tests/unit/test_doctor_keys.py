"""`doctor` looks at the newest records: keys that are not the id of the partition entity, labels that lack an id."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from confluent_kafka import Producer

from stream_scorer.cli import checks
from stream_scorer.errors import StreamScorerError
from stream_scorer.settings import load_settings
from stream_scorer.simulate.config import SimulationConfig
from stream_scorer.simulate.encode import encode_keys, encode_values
from stream_scorer.simulate.generate import generate

CARDS = Path(__file__).parents[2] / "stream_scorer" / "simulate" / "cards.yaml"


@pytest.mark.parametrize("sensitive", [False, True])
def test_doctor_finds_record_keys_that_are_not_the_id_of_the_partition_entity(tmp_path: Path, sensitive: bool) -> None:
    """Against librdkafka's own broker in memory, whose topics have four partitions."""
    text = CARDS.read_text(encoding="utf-8")
    spec = tmp_path / "spec.yaml"
    spec.write_text(text.replace("customer_id: {", "customer_id: {sensitive: true, ") if sensitive else text)
    transactions = generate(SimulationConfig(seed=3, customers=4, terminals=10, days=None, transactions=30))
    keys, values = encode_keys(transactions.customer_id), encode_values(transactions)
    producer = Producer({"bootstrap.servers": "memory", "test.mock.num.brokers": 1, "log_level": 0})
    (broker,) = producer.list_topics(timeout=10).brokers.values()
    flags = {"kafka.bootstrap": f"{broker.host}:{broker.port}", "scorer.spec": str(spec), "scorer.id_key": "k" * 32}
    settings = load_settings(flags, environment={}, directory=tmp_path)

    def check() -> str:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checks, "NEWEST_PER_PARTITION", 10)
            try:
                return checks._record_keys(settings, "scorer")
            except StreamScorerError as error:
                return error.message

    def send(key: bytes | None, row: int, partition: int) -> None:
        stamp = int(transactions.event_time[row])
        producer.produce("transactions", values[row], key, partition=partition, timestamp=stamp)

    for row, key in enumerate(keys):
        send(None if row == 0 else key, row, row % 2)
    producer.produce("transactions", b"no transaction", partition=0)
    assert producer.flush(10) == 0
    # The wrong key is no longer among the newest ones; a record that is no transaction counts as none.
    assert check() == "those of the 19 newest transactions are the ids of the customer"
    send(None, 1, 3)
    assert producer.flush(10) == 0
    assert "1 of the 20 newest transactions" in (found := check())
    assert "transactions[3] at offset 0" in found


def test_doctor_finds_labels_without_an_id_that_features_need(tmp_path: Path) -> None:
    producer = Producer({"bootstrap.servers": "memory", "test.mock.num.brokers": 1, "log_level": 0})
    (broker,) = producer.list_topics(timeout=10).brokers.values()
    flags = {"kafka.bootstrap": f"{broker.host}:{broker.port}", "scorer.spec": str(CARDS)}
    settings = load_settings(flags, environment={}, directory=tmp_path)
    optional = tmp_path / "optional.yaml"
    text = CARDS.read_text(encoding="utf-8")
    optional.write_text(text.replace("terminal_id: {", "terminal_id: {optional: true, "))
    time = 1_767_225_600_000

    def send(number: int, partition: int, **ids: str) -> None:
        document = {"event_id": f"t{number}", "event_time": time, "label": "fraud", "labelled_at": time, "source": "a"}
        producer.produce("labels", json.dumps(document | ids), partition=partition, timestamp=time)
        assert producer.flush(10) == 0

    for number in range(6):
        # No feature of labels needs the customer.
        send(number, number % 2, terminal_id="s-4")
    assert checks._label_ids(settings, "scorer") == "those of the 6 newest labels suffice"
    send(6, 3, customer_id="c-17")
    with pytest.raises(StreamScorerError) as error:
        checks._label_ids(settings, "scorer")
    expected = "1 of the 7 newest labels lack the id of their terminal, such as labels[3] at offset 0"
    assert error.value.message == expected
    assert "terminal_id" in error.value.hint
    settings = load_settings(flags | {"scorer.spec": str(optional)}, environment={}, directory=tmp_path)
    found = checks._label_ids(settings, "scorer")
    assert found == "those of the 7 newest labels suffice; 1 lack the optional id of their terminal"
