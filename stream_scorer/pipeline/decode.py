"""Decode: bytes to validated columns; what cannot be decoded becomes a dead letter."""

from __future__ import annotations

import numpy as np

from stream_scorer.errors import RecordError
from stream_scorer.features.engine import EventBatch
from stream_scorer.pipeline.batch import DeadLetter, MicroBatch
from stream_scorer.positions import Span
from stream_scorer.serde.decoder import LabelDecoder, Rejected, TransactionDecoder, Transactions
from stream_scorer.serde.label_ids import MissingLabelIds
from stream_scorer.serde.raw import MAX_ENVELOPE_BYTES, RawRecords, headers_size
from stream_scorer.serde.record_keys import wrong_keys
from stream_scorer.spec.model import CheckedSpec


class Decode:
    """See the module."""

    name = "decode"
    scoring_only = False

    def __init__(self, checked: CheckedSpec) -> None:
        self._transactions = TransactionDecoder(checked)
        self._labels = LabelDecoder(checked)
        self._missing_ids = MissingLabelIds(checked)
        self._pseudonyms = checked.pseudonyms
        self._partition_entity = checked.spec.partition_entity if checked.spec.entities else None
        # Whether a transaction came whose key is not the id of the partition entity. It stays so until a restart: such
        # events of an entity can wait in any partition.
        self._found_wrong_key = False

    def process(self, batch: MicroBatch) -> None:
        """Set `batch.events`, `batch.dead`, `batch.output_keys`, `batch.wrong_keys` and `batch.labels_without`."""
        transactions, bad = self._decode_transactions(batch.transactions)
        labels, bad_labels = self._labels.decode(batch.labels.value, batch.labels.timestamp)
        batch.labels_without = self._missing_ids.find(labels)
        batch.dead = [DeadLetter(batch.transactions, row, error) for row, error in bad]
        batch.dead += [DeadLetter(batch.labels, row, error) for row, error in bad_labels]
        transaction_span = _spans(batch.transactions, batch.spans)[transactions.row]
        label_span = _spans(batch.labels, batch.spans)[labels.row]
        batch.spans = _with_watermarks(
            batch.spans, transaction_span, transactions.event_time, label_span, labels.labelled_at
        )
        batch.events = EventBatch(
            transactions=transactions,
            labels=labels,
            spans=batch.spans,
            transaction_span=transaction_span,
            transaction_offset=batch.transactions.offset[transactions.row],
            label_span=label_span,
            label_offset=batch.labels.offset[labels.row],
            scattered_from=self._compare_keys(batch, transactions),
        )

    def _compare_keys(self, batch: MicroBatch, transactions: Transactions) -> int | None:
        """Set the keys of `batch`; return `EventBatch.scattered_from`."""
        # The ids of a sensitive entity are hashes here, and so are the keys of the outputs.
        batch.output_keys = keys = self._pseudonyms.record_keys(batch.transactions.key)
        if self._partition_entity is None:
            return None
        if len(transactions) < len(keys):
            keys = [keys[row] for row in transactions.row.tolist()]
        batch.wrong_keys = wrong_keys(keys, transactions.entity_ids[self._partition_entity])
        if self._found_wrong_key:
            return 0
        self._found_wrong_key = bool(batch.wrong_keys)
        return batch.wrong_keys[0] if batch.wrong_keys else None

    def _decode_transactions(self, records: RawRecords) -> tuple[Transactions, Rejected]:
        """Decode; refuse records whose key and headers are too large to be copied to several outputs."""
        values, large = records.value, _large_envelopes(records)
        if large:
            values = [None if row in large else value for row, value in enumerate(values)]
        transactions, bad = self._transactions.decode(values, records.timestamp)
        return transactions, [(row, large.get(row, error)) for row, error in bad]


def _large_envelopes(records: RawRecords) -> dict[int, RecordError]:
    """The error of each record whose key and headers hold more than `MAX_ENVELOPE_BYTES`, by row."""
    out: dict[int, RecordError] = {}
    if not any(records.headers) and max(map(len, filter(None, records.key)), default=0) <= MAX_ENVELOPE_BYTES:
        return out
    for row, (key, headers) in enumerate(zip(records.key, records.headers, strict=True)):
        if headers or (key is not None and len(key) > MAX_ENVELOPE_BYTES):
            size = len(key or b"") + headers_size(headers)
            if size > MAX_ENVELOPE_BYTES:
                message = f"key and headers have {size} bytes, the limit is {MAX_ENVELOPE_BYTES}"
                out[row] = RecordError("envelope_too_large", message)
    return out


def _spans(records: RawRecords, spans: list[Span]) -> np.ndarray:
    """(n,) int64: the index in `spans` of the span that each record belongs to."""
    if not len(records):
        return np.zeros(0, dtype=np.int64)
    by_partition = np.zeros(int(records.partition.max()) + 1, dtype=np.int64)
    for index, span in enumerate(spans):
        if span.source.topic == records.topic and span.source.partition < len(by_partition):
            by_partition[span.source.partition] = index
    return by_partition[records.partition]


def _with_watermarks(spans: list[Span], *columns: np.ndarray) -> list[Span]:
    newest = np.full(len(spans), -1, dtype=np.int64)
    for index, time in zip(columns[::2], columns[1::2], strict=True):
        if len(time):
            np.maximum.at(newest, index, time)
    return [Span(span.source, span.start, span.stop, time) for span, time in zip(spans, newest.tolist(), strict=True)]
