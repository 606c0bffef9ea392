"""The training set from Parquet files: what is read, joined and left out."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stream_scorer.errors import UsageError
from stream_scorer.kafka.topics import Topics
from stream_scorer.positions import SourcePartition
from stream_scorer.replay.files import FileInput
from stream_scorer.serde.raw import RawRecords
from stream_scorer.spec.load import parse_spec
from stream_scorer.train.dataset import read_training_set
from stream_scorer.train.export import write_training_table
from stream_scorer.train.recipe import TrainingSet
from stream_scorer.train.rows import Period
from stream_scorer.train.topics import training_set_from_topics
from tests.support.specs import card_spec

TEXT = card_spec(
    """
derived:
  - {name: has_device, function: present, of: [device]}
labels: {horizon: 2s, source_rank: {analyst: 1, chargeback: 2}}
""",
    device="string, optional: true",
)
SPEC = parse_spec(TEXT)


def write(folder: Path, transactions: dict[str, list[object]], labels: dict[str, list[object]]) -> tuple[Path, Path]:
    pq.write_table(pa.table(transactions), folder / "transactions.parquet")
    pq.write_table(pa.table(labels), folder / "labels.parquet")
    return folder / "transactions.parquet", folder / "labels.parquet"


def transactions() -> dict[str, list[object]]:
    return {
        "event_id": ["t3", "t1", "t2", "t1", "late"],
        "event_time": [3_000, 1_000, 2_000, 1_500, 9_000],
        "card": ["x", "x", "x", "x", "y"],
        "device": [None, "d", None, "d", None],
        "amount": [30, 10, 20, 10, 5],
        "unknown": [1, 2, 3, 4, 5],
    }


def labels() -> dict[str, list[object]]:
    return {
        "event_id": ["t1", "t1", "t2", "t2"],
        "event_time": [1_000, 1_000, 2_000, 2_000],
        "label": ["fraud", "genuine", "genuine", "fraud"],
        "labelled_at": [4_000, 5_000, 6_000, 5_000],
        "source": ["chargeback", "analyst", "analyst", "analyst"],
    }


def test_labels_join_by_rank_then_time_and_the_young_and_doubled_stay_out(tmp_path: Path) -> None:
    data = read_training_set(*write(tmp_path, transactions(), labels()), SPEC)
    assert data.event_time.tolist() == [1_000, 2_000, 3_000]
    # t1: the chargeback outranks the later analyst; t2: the later analyst wins; t3: silence is presumed genuine.
    assert data.label.tolist() == [True, False, False]
    assert (data.duplicates, data.immature, data.refused) == (1, 1, 0)
    assert data.features.tolist() == [[1.0, 1.0], [2.0, 0.0], [3.0, 0.0]]


def test_one_event_id_on_two_cards_has_the_label_of_each(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = transactions() | {"event_id": ["t2", "t1", "t2", "t1", "late"], "card": ["y", "x", "x", "x", "y"]}
    given = {name: values[:3] for name, values in labels().items()}
    given |= {"event_id": ["t2", "t2", "t2"], "label": ["fraud", "genuine", "genuine"], "card": ["y", "x", None]}
    with caplog.at_level(logging.WARNING):
        data = read_training_set(*write(tmp_path, table, given), SPEC)
    assert data.event_id == ["t1", "t2", "t2"]
    assert data.label.tolist() == [False, False, True]
    assert "1 event ids, such as 't2', are of transactions of several ids of card." in caplog.text
    assert "1 labels, which lack a matching card" in caplog.text


def test_a_fraud_is_known_since_its_first_report_and_not_since_its_confirmation(tmp_path: Path) -> None:
    given = {
        "event_id": ["t1", "t1", "t2", "t2", "t2", "t3", "t3"],
        "event_time": [1_000, 1_000, 2_000, 2_000, 2_000, 3_000, 3_000],
        "label": ["fraud", "fraud", "fraud", "genuine", "fraud", "genuine", "fraud"],
        "labelled_at": [8_000, 4_000, 4_000, 5_000, 6_000, 4_500, 7_500],
        "source": ["chargeback", "analyst", "analyst", "analyst", "analyst", "chargeback", "analyst"],
    }
    data = read_training_set(*write(tmp_path, transactions(), given), SPEC)
    assert data.label.tolist() == [True, True, False]
    assert data.labelled_at is not None
    assert data.labelled_at.tolist() == [4_000, 6_000, 4_500]


def test_labels_in_the_features_of_their_own_transactions_are_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = "  - {name: risk, entity: card, aggregates: [label_count], windows: [1d], current: exclude%s}\n"
    at_once, later = (parse_spec(TEXT.replace("views:\n", "views:\n" + view % delay)) for delay in ("", ", delay: 2s"))
    given = labels() | {"labelled_at": [1_000, 5_000, 6_000, 5_000], "card": ["x"] * 4}
    paths = write(tmp_path, transactions(), given)
    with pytest.raises(UsageError, match=r"1 of 2 labelled transactions .* in their own features \(views risk\)"):
        read_training_set(*paths, at_once)
    read_training_set(*paths, later)
    assert "their own features" not in caplog.text
    monkeypatch.setattr("stream_scorer.train.dataset.MAX_SHARE", 0.5)
    read_training_set(*paths, at_once)
    assert "1 of 2 labelled transactions have a label that was given when they happened" in caplog.text


def test_transactions_without_a_card_are_not_of_one_card(tmp_path: Path) -> None:
    spec = parse_spec(TEXT.replace("card: {type: string}", "card: {type: string, optional: true}"))
    table = transactions() | {"card": ["x", None, None, None, "y"]}
    data = read_training_set(*write(tmp_path, table, labels()), spec)
    assert data.entity is not None
    assert len(set(data.entity.tolist())) == len(data.label) == 4


def test_cards_are_numbered_by_first_occurrence_in_time_whatever_their_pseudonyms(tmp_path: Path) -> None:
    paths = write(tmp_path, transactions() | {"card": ["a", "z", "m", "z", "b"]}, labels())
    text = TEXT.replace("card: {type: string}", "card: {type: string, sensitive: true}")
    for key in "abc":
        data = read_training_set(*paths, parse_spec(text, id_key=key * 32))
        assert data.entity is not None
        assert data.entity.tolist() == [0, 1, 2]


def test_timestamps_are_read_as_milliseconds(tmp_path: Path) -> None:
    table = transactions()
    table["event_time"] = pa.array(np.array(table["event_time"]) * 1_000, pa.timestamp("us", tz="UTC"))
    data = read_training_set(*write(tmp_path, table, labels()), SPEC)
    assert data.event_time.tolist() == [1_000, 2_000, 3_000]


def test_timestamps_in_another_field_of_times_are_read_too(tmp_path: Path) -> None:
    spec = parse_spec(TEXT.replace("card: {type: string}", "card: {type: string}\n    opened: {type: time}"))
    opened = pa.array(np.arange(5) * 1_000, pa.timestamp("us", tz="UTC"))
    data = read_training_set(*write(tmp_path, transactions() | {"opened": opened}, labels()), spec)
    assert (len(data.label), data.refused) == (3, 0)


def test_what_is_finer_than_a_millisecond_is_cut_off(tmp_path: Path) -> None:
    table, given = transactions(), labels()
    for columns, name in ((table, "event_time"), (given, "event_time"), (given, "labelled_at")):
        columns[name] = pa.array(np.array(columns[name]) * 1_000_000 + 999_999, pa.timestamp("ns"))
    data = read_training_set(*write(tmp_path, table, given), SPEC)
    assert data.event_time.tolist() == [1_000, 2_000, 3_000]
    assert data.label.tolist() == [True, False, False]


def test_a_few_records_that_serving_refuses_are_left_out_and_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream_scorer.train.dataset._CHUNK", 8)
    table = {name: values * 4 for name, values in transactions().items()}
    table["amount"][11] = -10
    with caplog.at_level(logging.WARNING):
        data = read_training_set(*write(tmp_path, table, labels()), SPEC)
    assert data.refused == 1
    assert "1 of 20 transactions are rejected (1 out_of_range); the first is row 12: " in caplog.text
    assert "$.amount" in caplog.text
    table["amount"][10] = -10
    with pytest.raises(UsageError, match="2 of 20 transactions are rejected .*; the first is row 11: ") as caught:
        read_training_set(*write(tmp_path, table, labels()), SPEC)
    assert "5%" in caught.value.hint
    shouted = labels() | {"label": ["Fraud", "genuine", "genuine", "FRAUD"]}
    with pytest.raises(
        UsageError, match=r"2 of 4 labels are rejected \(2 out_of_range\); the first is row 1: .*\.label"
    ):
        read_training_set(*write(tmp_path, transactions(), shouted), SPEC)
    reader = TwoPartitions({"transactions": transactions(), "labels": shouted})
    with pytest.raises(UsageError, match="the first is partition 0, offset 0: "):
        training_set_from_topics(reader, Topics(), SPEC)  # type: ignore[arg-type]


def test_labels_that_end_long_before_the_transactions_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = transactions()
    with caplog.at_level(logging.WARNING):
        table["event_time"][4] = 8_000  # the newest label is of 6,000, and the horizon is 2,000
        read_training_set(*write(tmp_path, table, labels()), SPEC)
        assert "the newest label" not in caplog.text
        table["event_time"][4] = 8_001
        read_training_set(*write(tmp_path, table, labels()), SPEC)
    assert "the newest label is 0.0 days older than the newest transaction, the label horizon is 2s" in caplog.text


def test_a_label_in_the_future_which_makes_every_transaction_mature_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = labels()
    given["labelled_at"] = [*given["labelled_at"][:-1], 100_000_000]
    with caplog.at_level(logging.WARNING):
        read_training_set(*write(tmp_path, transactions(), given), SPEC)
    assert "the newest label (1970-01-02) is more than the label horizon of 2s younger" in caplog.text


def test_labels_of_no_transaction_are_counted_and_reported_if_they_are_many(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = labels()
    with caplog.at_level(logging.WARNING):
        assert read_training_set(*write(tmp_path, transactions(), given), SPEC).unmatched == 0
        # Two labels of one transaction; and labels of times that the history does not have, which are no mistake.
        given["event_id"] = ["T1", "T1", "t2", "other"]
        given["event_time"] = [1_000, 1_000, 2_000, 500]
        assert "of no transaction" not in caplog.text
        assert read_training_set(*write(tmp_path, transactions(), given), SPEC).unmatched == 2
    assert "2 of 3 labels within the time of the history are of no transaction, such as 'T1'" in caplog.text


def test_files_that_will_not_do_are_named(tmp_path: Path) -> None:
    good, known = write(tmp_path, transactions(), labels())
    with pytest.raises(UsageError, match="cannot read"):
        read_training_set(tmp_path / "nowhere.parquet", known, SPEC)
    with pytest.raises(UsageError, match="no column 'label'"):
        read_training_set(good, good, SPEC)
    (tmp_path / "text.parquet").write_text("not parquet")
    with pytest.raises(UsageError, match="cannot read"):
        read_training_set(tmp_path / "text.parquet", known, SPEC)
    young = {name: values[4:] for name, values in transactions().items()}
    with pytest.raises(UsageError, match="younger than the label horizon") as caught:
        read_training_set(*write(tmp_path, young, labels()), SPEC)
    assert (
        caught.value.hint == "The newest transaction is of 1970-01-01: times are epoch milliseconds. Are these seconds?"
    )


def test_labels_without_the_entity_of_a_view_of_labels_are_refused(tmp_path: Path) -> None:
    view = "  - {name: risk, entity: card, windows: [1d], delay: 1s, aggregates: [label_rate]}"
    spec = parse_spec(TEXT.replace("views:", f"views:\n{view}"))
    good, known = write(tmp_path, transactions(), labels())
    for read in (
        lambda: read_training_set(good, known, spec),
        lambda: list(FileInput(known, "labels", spec, is_label=True).chunks()),
    ):
        with pytest.raises(UsageError, match=r"labels\.parquet has no column 'card'") as caught:
            read()
        assert "'risk' counts labels by it" in caught.value.hint
    write(tmp_path, transactions(), labels() | {"card": ["x"] * 4})
    assert read_training_set(good, known, spec).features[:, 0].tolist() == [0, 0, 0]


class TwoPartitions:
    """A range reader over rows that alternate between two partitions. `at`: Kafka's times; None: those of the rows."""

    def __init__(
        self,
        tables: dict[str, dict[str, list[object]]],
        low: int = 0,
        at: int | None = 9_000,
        emptied: int | None = None,
    ) -> None:
        self._low, self._at, self._emptied = low, at, emptied
        self._values = {
            topic: [
                msgspec.json.encode(dict(zip(table, row, strict=True))) for row in zip(*table.values(), strict=True)
            ]
            for topic, table in tables.items()
        }

    def bounds(self, topic: str) -> dict[SourcePartition, tuple[int, int]]:
        if topic not in self._values:
            raise UsageError(f"topic {topic} does not exist")
        found = {SourcePartition(topic, p): (self._low, len(self._values[topic][p::2])) for p in range(2)}
        return {
            s: (end, end) if topic == "transactions" and s.partition == self._emptied else (low, end)
            for s, (low, end) in found.items()
        }

    def retention_ms(self, topic: str) -> int | None:
        return None

    def read(self, source: SourcePartition, start: int, stop: int) -> Iterator[RawRecords]:
        values = self._values[source.topic][source.partition :: 2][start:stop]
        n = len(values)
        rows = [msgspec.json.decode(value) for value in values]
        own = [row.get("labelled_at", row.get("event_time", 0)) for row in rows]
        times = np.array(own if self._at is None else [self._at] * n, np.int64)
        yield RawRecords(source.topic, np.full(n, source.partition, np.int32), np.arange(n), times, [None] * n, values)


def test_topics_give_the_training_set_of_the_same_rows_in_files(tmp_path: Path) -> None:
    files = read_training_set(*write(tmp_path, transactions(), labels()), SPEC)
    reader = TwoPartitions({"transactions": transactions(), "labels": labels()})
    topics = training_set_from_topics(reader, Topics(), SPEC)  # type: ignore[arg-type]
    assert topics.event_id == files.event_id == ["t1", "t2", "t3"]
    assert np.array_equal(topics.features, files.features)
    assert (topics.label.tolist(), topics.duplicates, topics.immature) == (files.label.tolist(), 1, 1)


def test_rows_are_chosen_by_period_decision_and_complete_windows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    day, n = 86_400_000, 12
    last = 11 * day // 4 + 1_000
    table: dict[str, list[object]] = {
        "event_id": [f"t{i}" for i in range(n)],
        "event_time": [i * day // 4 + 1_000 for i in range(n)],
        "card": ["x"] * n,
        "amount": [1] * n,
        "decision": ["block" if i in (2, 9) else "approve" for i in range(n)],
    }
    known: dict[str, list[object]] = {
        "event_id": ["t9"], "event_time": [9 * day // 4 + 1_000], "label": ["fraud"], "labelled_at": [last + 2_000],
        "source": ["analyst"],
    }  # fmt: skip

    def ids(data: TrainingSet) -> list[int]:
        return [int(event_id[1:]) for event_id in data.event_id]

    paths = write(tmp_path, table, known)
    data = read_training_set(*paths, SPEC)
    # t2 was blocked, so its silence means nothing; t9 was blocked too, and has a label.
    assert ids(data) == [0, 1, *range(3, n)]
    assert (data.blocked, data.outside, data.incomplete) == (1, 0, 3)
    assert "27 % of the training rows have features that look back to before the first transaction" in caplog.text
    caplog.clear()
    data = read_training_set(*paths, SPEC, None, Period(day, 2 * day))
    assert (ids(data), data.outside, data.incomplete) == ([4, 5, 6, 7], 8, 0)
    assert not caplog.records
    with pytest.raises(UsageError, match="no training row is left: they begin at 1970-01-11"):
        read_training_set(*paths, SPEC, None, Period(10 * day))

    decided = {"event_id": ["t2", "t9"], "decision": ["block", "block"]}
    tables = {"transactions": {name: table[name] for name in list(table)[:4]}, "labels": known, "scores": decided}
    topics = training_set_from_topics(TwoPartitions(tables, at=last), Topics(), SPEC)  # type: ignore[arg-type]
    assert (ids(topics), topics.blocked) == ([0, 1, *range(3, n)], 1)
    # Both partitions have lost their first two records: windows of a day are complete a day after the sixth one.
    cut = TwoPartitions(tables | {"labels": {name: value * 6 for name, value in known.items()}}, low=2, at=None)
    topics = training_set_from_topics(cut, Topics(), SPEC)  # type: ignore[arg-type]
    assert ids(topics) == [9, 10, 11]
    # A partition of which nothing is left shows nothing, and its retention is not known: it had no records then.
    emptied = TwoPartitions(tables, at=None, emptied=1)
    with pytest.raises(UsageError, match="no training row is left"):
        training_set_from_topics(emptied, Topics(), SPEC, None, Period(10 * day))  # type: ignore[arg-type]
    assert ids(training_set_from_topics(emptied, Topics(), SPEC)) == [0, 4, 6, 8, 10]  # type: ignore[arg-type]
    everything = training_set_from_topics(cut, Topics(), SPEC, None, Period(1))  # type: ignore[arg-type]
    assert ids(everything)[0] == 4


def test_the_exported_table_has_ids_labels_and_features(tmp_path: Path) -> None:
    data = read_training_set(*write(tmp_path, transactions(), labels()), SPEC)
    write_training_table(data, SPEC, tmp_path / "folder" / "training.parquet")
    table = pq.read_table(tmp_path / "folder" / "training.parquet")
    assert table.column_names == ["event_id", "event_time", "label", *SPEC.features]
    assert table.column("label").to_pylist() == [1, 0, 0]
    assert table.column("card.count_1d").to_pylist() == [1.0, 2.0, 3.0]
    assert table.schema.metadata[b"feature_hash"].decode() == SPEC.feature_hash


@pytest.mark.parametrize("column", ["event_time", "labelled_at"])
def test_times_as_text_are_refused_with_the_column(tmp_path: Path, column: str) -> None:
    given, known = transactions(), labels()
    table = given if column == "event_time" else known
    table[column] = ["2025-01-01"] * len(table[column])
    with pytest.raises(UsageError, match=rf"the column '{column}' has no times; the first value is '2025-01-01'"):
        read_training_set(*write(tmp_path, given, known), SPEC)
