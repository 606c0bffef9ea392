"""Evaluation of topics that grow, and of a tracking server that is away; in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from stream_scorer.cli.main import cli
from stream_scorer.clock import SystemClock
from stream_scorer.ensemble import tracking
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.errors import RegistryUnavailable
from stream_scorer.evaluation import scoring
from stream_scorer.evaluation.first_range import FirstRange
from stream_scorer.evaluation.job import evaluate, facts_of
from stream_scorer.evaluation.options import Options
from stream_scorer.evaluation.result import Evaluation
from stream_scorer.evaluation.sources import from_topics
from stream_scorer.kafka.topics import Topics
from stream_scorer.positions import SourcePartition
from stream_scorer.replay.pieces import Range
from stream_scorer.serde.raw import RawRecords
from stream_scorer.spec import CheckedSpec, parse_spec
from tests.support.small_history import SPEC_TEXT, small_ensemble, write_history

TOPICS = Topics()
OPTIONS = Options(budgets=(0.1,), cards_per_day=[5], replicates=0, rows=100, piece_rows=200)


@dataclass
class MemoryTopics:
    """A range reader over two partitions per topic, by the hash of `who`. `low` is their first offset."""

    records: dict[SourcePartition, list[tuple[int, bytes]]] = field(default_factory=dict)
    low: int = 0
    topic_id: str = "first"

    def append(self, topic: str, rows: Sequence[dict[str, Any]], time: str) -> None:
        for partition in range(2):
            self.records.setdefault(SourcePartition(topic, partition), [])
        for row in rows:
            value = msgspec.json.encode({name: each for name, each in row.items() if each is not None})
            self.records[SourcePartition(topic, crc32(row["who"].encode()) % 2)].append((row[time], value))

    def bounds(self, topic: str) -> dict[SourcePartition, tuple[int, int]]:
        return {s: (self.low, len(records)) for s, records in self.records.items() if s.topic == topic}

    def read(self, source: SourcePartition, start: int, stop: int) -> Iterator[RawRecords]:
        assert start >= self.low
        found = self.records[source][start:stop]
        n = len(found)
        times = np.array([time for time, _ in found], np.int64)
        partition, values = np.full(n, source.partition, np.int32), [value for _, value in found]
        yield RawRecords(source.topic, partition, np.arange(start, start + n), times, [None] * n, values, [None] * n)


@pytest.fixture(scope="module")
def checked() -> CheckedSpec:
    return parse_spec(SPEC_TEXT)


@pytest.fixture(scope="module")
def versions(checked: CheckedSpec, tmp_path_factory: pytest.TempPathFactory) -> list[Ensemble]:
    return [small_ensemble(tmp_path_factory.mktemp("versions"), checked, "1", {"one": 1, "two": 2})]


@pytest.fixture
def rows(tmp_path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    transactions, labels = (pq.read_table(path).to_pylist() for path in write_history(tmp_path / "history", 800))
    return transactions, labels


def run(reader: MemoryTopics, checked: CheckedSpec, versions: list[Ensemble], out: Path) -> tuple[Evaluation, int]:
    """The result, and the number of newer offsets that were left out; -1 if the record was of expired offsets."""
    first = FirstRange(out, facts_of(checked, versions, OPTIONS), [reader.topic_id])
    source = from_topics(reader, TOPICS, checked, Range(), None, warm=False, first=first)  # type: ignore[arg-type]
    result = evaluate(source, checked, versions, OPTIONS, out, Eager())
    return result, -1 if first.expired else first.newer


class Eager(SystemClock):
    """Saving takes no time, so every piece is saved."""

    def monotonic(self) -> float:
        return 0.0


def test_an_evaluation_of_growing_topics_continues_with_the_offsets_of_its_first_start(
    rows: tuple[list[dict[str, Any]], list[dict[str, Any]]], checked: CheckedSpec, versions: list[Ensemble],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    class Killed(BaseException):
        pass

    process = scoring.Pass._process

    def dies(self: Any, *arguments: Any) -> None:
        if self.counts.scored > 450:
            raise Killed
        process(self, *arguments)

    transactions, labels = rows
    reader = MemoryTopics()
    reader.append(TOPICS.transactions, transactions[:600], "at")
    reader.append(TOPICS.labels, labels[:200], "labelled_at")
    whole, newer = run(reader, checked, versions, tmp_path / "whole")
    assert (newer, whole.resumed) == (0, 0)

    monkeypatch.setattr(scoring.Pass, "_process", dies)
    with pytest.raises(Killed):
        run(reader, checked, versions, tmp_path / "killed")
    monkeypatch.undo()
    reader.append(TOPICS.transactions, transactions[600:], "at")
    reader.append(TOPICS.labels, labels[200:], "labelled_at")
    resumed, newer = run(reader, checked, versions, tmp_path / "killed")
    assert resumed.resumed == 400
    assert resumed.digests == whole.digests
    assert resumed.input == whole.input
    assert newer == len(transactions) - 600 + len(labels) - 200

    grown, newer = run(reader, checked, versions, tmp_path / "grown")
    assert newer == 0
    assert grown.transactions > whole.transactions
    other, newer = run(reader, checked, [small_ensemble(tmp_path, checked, "2", {"one": 5})], tmp_path / "killed")
    assert (newer, other.transactions, other.resumed) == (0, grown.transactions, 0)
    reader.topic_id = "created again"
    assert run(reader, checked, versions, tmp_path / "grown")[0].resumed == 0
    reader.low = 5
    expired, newer = run(reader, checked, versions, tmp_path / "grown")
    assert newer == -1
    assert expired.transactions < grown.transactions


def test_a_damaged_record_of_the_range_is_replaced(tmp_path: Path) -> None:
    source = SourcePartition("t", 0)
    first = FirstRange(tmp_path, {})
    assert first.resolve({source: (0, 5)}, {}) == {source: (0, 5)}
    assert FirstRange(tmp_path, {}).resolve({source: (0, 9)}, {}) == {source: (0, 5)}
    (tmp_path / "range.json").write_text("{")
    again = FirstRange(tmp_path, {})
    assert again.resolve({source: (0, 9)}, {}) == {source: (0, 9)}
    # A topic that was cut below the recorded end holds other records.
    cut = FirstRange(tmp_path, {})
    assert cut.resolve({source: (0, 3)}, {}) == {source: (0, 3)}
    assert cut.expired


def command(tmp_path: Path) -> list[str]:
    (tmp_path / "spec.yaml").write_text(SPEC_TEXT)
    transactions, labels = write_history(tmp_path / "history", 400)
    small_ensemble(tmp_path / "e", parse_spec(SPEC_TEXT), "1", {"one": 1})
    # Nothing listens on the port of the discard service.
    server = "http://127.0.0.1:9"
    return ["evaluate", "--ensemble", str(tmp_path / "e" / "1"), "--spec", str(tmp_path / "spec.yaml"),
            "--transactions", str(transactions), "--labels", str(labels), "--replicates", "0", "--json",
            "--out", str(tmp_path / "out"), "--mlflow", server, "--experiment", "e"]  # fmt: skip


def test_a_tracking_server_that_is_away_is_an_error_before_the_work(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, command(tmp_path))
    assert isinstance(done.exception, RegistryUnavailable)
    assert "leave out --experiment" in done.exception.hint
    assert done.stdout == ""
    assert not (tmp_path / "out").exists()


def test_a_tracking_server_that_goes_away_during_the_work_costs_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_arguments: object) -> str:
        raise RegistryUnavailable("MLflow does not answer")

    monkeypatch.setattr(tracking, "open_experiment", lambda *_: "1")
    monkeypatch.setattr(tracking, "log_run", away)
    done = CliRunner().invoke(cli, command(tmp_path))
    assert isinstance(done.exception, RegistryUnavailable)
    assert "the run is not logged" in done.exception.message
    assert "same command" in done.exception.hint
    assert msgspec.json.decode(done.stdout, type=Evaluation).transactions > 300
