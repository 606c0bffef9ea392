"""Records that are too large: for a topic, and for librdkafka."""

from __future__ import annotations

import uuid

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from stream_scorer.errors import TransactionAborted
from stream_scorer.kafka.config import DEFAULT_MESSAGE_BYTES
from stream_scorer.kafka.topics import TopicAdmin
from stream_scorer.kafka.transactions import TransactionPair
from stream_scorer.stack import StackAddresses

pytestmark = pytest.mark.integration


def test_a_topic_reports_the_size_of_the_records_that_it_takes(shared_stack: StackAddresses) -> None:
    name, plain = f"sized-{uuid.uuid4().hex[:8]}", f"plain-{uuid.uuid4().hex[:8]}"
    client = AdminClient({"bootstrap.servers": str(shared_stack.kafka)})
    new = [NewTopic(name, 1, 1, config={"max.message.bytes": "123456"}), NewTopic(plain, 1, 1)]
    for made in client.create_topics(new).values():
        made.result(20)
    admin = TopicAdmin(str(shared_stack.kafka))
    assert admin.message_limit(name) == 123_456
    assert admin.message_limit("does-not-exist") == DEFAULT_MESSAGE_BYTES


def test_a_record_too_large_for_any_topic_aborts_and_the_producer_goes_on(shared_stack: StackAddresses) -> None:
    topic = f"large-{uuid.uuid4().hex[:8]}"
    TopicAdmin(str(shared_stack.kafka)).create([topic], 1)
    pair = TransactionPair(str(shared_stack.kafka), topic)
    try:
        for _ in range(8):  # more often than a producer may be replaced in a row
            transaction = pair.next()
            transaction.begin()
            with pytest.raises(TransactionAborted, match="produce"):
                transaction.produce(topic, 0, None, b"x" * 11_000_000)
        transaction = pair.next()
        transaction.begin()
        transaction.produce(topic, 0, None, b"x")
        transaction.commit({}, None)
    finally:
        pair.close()
