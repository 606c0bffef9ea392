"""Labels that lack the id of an entity are found, and whether the id may be missing is taken into account."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest

from stream_scorer.features.history import build_features
from stream_scorer.pipeline.batch import MicroBatch
from stream_scorer.pipeline.decode import Decode
from stream_scorer.positions import SourcePartition, Span
from stream_scorer.serde.decoder import LabelDecoder, Labels, TransactionDecoder
from stream_scorer.serde.label_ids import MIN_RUN, MissingLabelIds
from stream_scorer.serde.raw import RawRecords
from stream_scorer.spec import CheckedSpec, parse_spec
from stream_scorer.spec.model import LABEL_COLUMNS, OPTIONAL_LABEL_COLUMNS
from tests.support.stages import CARDS, CHECKED, FixedClock, raw

NOW = FixedClock().now_ms()
OPTIONAL = parse_spec(CARDS.read_text(encoding="utf-8").replace("terminal_id: {", "terminal_id: {optional: true, "))


def label(number: int, **ids: Any) -> bytes:
    return json.dumps(
        {"event_id": f"t{number}", "event_time": NOW, "label": "fraud", "labelled_at": NOW, "source": "analyst"} | ids
    ).encode()


def labels(checked: CheckedSpec, terminals: list[str | None]) -> Labels:
    values = [label(number, terminal_id=terminal) for number, terminal in enumerate(terminals)]
    found, rejected = LabelDecoder(checked).decode(values, np.full(len(values), NOW))
    assert not rejected
    return found


def found(missing: MissingLabelIds, checked: CheckedSpec, terminals: list[str | None]) -> list[int]:
    by_entity = missing.find(labels(checked, terminals))
    assert set(by_entity) <= {"terminal"}  # no features of labels need the customer, which all of these labels lack
    return by_entity["terminal"].tolist() if by_entity else []


def test_each_label_without_an_id_that_every_transaction_has_is_found() -> None:
    missing = MissingLabelIds(CHECKED)
    assert found(missing, CHECKED, ["s-1", None, "s-2", None]) == [1, 3]
    assert found(missing, CHECKED, []) == []
    assert found(missing, CHECKED, ["s-1"]) == []


@pytest.mark.parametrize("piece", [1, 7, 1_000])
def test_an_id_that_may_be_missing_counts_from_the_hundredth_label_in_a_row_on(piece: int) -> None:
    terminals = [None, "s-1", *[None] * (MIN_RUN - 1), "s-2", *[None] * (MIN_RUN + 2), "s-3", None]
    missing, places = MissingLabelIds(OPTIONAL), []
    for low in range(0, len(terminals), piece):
        places += [low + place for place in found(missing, OPTIONAL, terminals[low : low + piece])]
        assert found(missing, OPTIONAL, []) == []
    assert places == list(range(2 * MIN_RUN + 1, 2 * MIN_RUN + 4))


def test_decode_finds_them_among_labels_that_can_be_read() -> None:
    values = [b"", label(1, terminal_id="s-1"), label(2)]
    spans = [Span(SourcePartition("labels", 0), 0, 3, -1)]
    batch = MicroBatch(RawRecords.empty("transactions"), raw("labels", [b"k"] * 3, values, 0), spans, None)
    Decode(CHECKED).process(batch)
    assert {entity: places.tolist() for entity, places in batch.labels_without.items()} == {"terminal": [1]}


def test_such_a_label_changes_no_feature_although_the_status_is_fresh() -> None:
    """What makes the report necessary."""
    day = 86_400_000
    transactions = [
        {"event_id": f"t{i}", "event_time": NOW + i * day // 24, "customer_id": f"c{i}", "terminal_id": "s",
         "amount": 1, "currency": "EUR", "channel": "chip"} for i in range(24 * 4)
    ]  # fmt: skip
    times = np.array([t["event_time"] for t in transactions])
    decoded, rejected = TransactionDecoder(CHECKED).decode([json.dumps(t).encode() for t in transactions], times)
    assert not rejected
    column = CHECKED.features.index("terminal_risk.label_rate_7d")
    rates = []
    for ids in ({"terminal_id": "s"}, {}):
        given, _ = LabelDecoder(CHECKED).decode([label(i, **ids) for i in range(24)], np.full(24, NOW))
        history = build_features(CHECKED, decoded, given)
        assert history.status[-1, column] == 0
        rates.append(history.matrix[-1, column])
    assert rates[0] > 0
    assert rates[1] == 0


def test_the_columns_of_labels_are_those_that_the_decoder_reads() -> None:
    document = msgspec.yaml.decode(CARDS.read_text(encoding="utf-8"))
    for key in ("entities", "partition_entity", "views", "feature_sets"):
        document.pop(key)
    document["derived"] = []
    decoder = LabelDecoder(parse_spec(msgspec.yaml.encode(document).decode()))
    fields = decoder._decode.__self__.type.__struct_fields__
    assert set(fields) == {*LABEL_COLUMNS, *OPTIONAL_LABEL_COLUMNS}
