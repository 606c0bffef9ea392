"""Transactions and labels as the JSON bytes of their topics, without the hidden truth."""

from __future__ import annotations

import msgspec
import numpy as np

from stream_scorer.simulate.labels import Labels
from stream_scorer.simulate.transactions import Strings, Transactions


class CardTransaction(msgspec.Struct, omit_defaults=True, gc=False):
    """Value of the `transactions` topic as `cards.yaml` declares it; absent fields are left out."""

    event_id: str
    event_time: int
    customer_id: str
    terminal_id: str
    amount: int
    currency: str
    channel: str
    card_number: str | None = None
    device_id: str | None = None
    network_id: str | None = None


class Label(msgspec.Struct, omit_defaults=True, gc=False):
    """Value of the `labels` topic."""

    event_id: str
    event_time: int
    label: str
    labelled_at: int
    source: str
    customer_id: str
    terminal_id: str
    device_id: str | None = None
    network_id: str | None = None
    review_probability: float | None = None


def encode_values(transactions: Transactions) -> list[bytes]:
    """One JSON object per row, without `fraud_kind`."""
    # `map` over columns runs the loop in C: 0.6 us per row instead of 2.5 us with a comprehension over rows.
    t = transactions
    columns = (
        t.event_id, t.event_time, t.customer_id, t.terminal_id, t.amount,
        t.currency, t.channel, t.card_number, t.device_id, t.network_id,
    )  # fmt: skip
    return list(map(msgspec.json.Encoder().encode, map(CardTransaction, *(c.tolist() for c in columns))))


def encode_labels(labels: Labels) -> list[bytes]:
    """One JSON object per label."""
    probability = labels.review_probability.astype(object)
    probability[np.isnan(labels.review_probability)] = None
    columns = (
        labels.event_id, labels.event_time, labels.label, labels.labelled_at, labels.source,
        labels.customer_id, labels.terminal_id, labels.device_id, labels.network_id, probability,
    )  # fmt: skip
    return list(map(msgspec.json.Encoder().encode, map(Label, *(c.tolist() for c in columns))))


def encode_keys(customer_id: Strings) -> list[bytes]:
    """The Kafka key of each row: the customer, in UTF-8."""
    return list(map(str.encode, customer_id.tolist()))
