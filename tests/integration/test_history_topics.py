"""`evaluate`, `train` and `features export` on real topics give what they give on Parquet files of the same records."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from proofs.kit import CARDS_SPEC
from stream_scorer.cli.main import cli
from stream_scorer.ensemble.manifest import read_manifest
from stream_scorer.kafka.range_reader import RangeReader
from stream_scorer.kafka.topics import TopicAdmin, Topics
from tests.support.services import services

pytestmark = pytest.mark.integration
# Enough for mature labels: 300 customers make about 430 transactions per day.
TRANSACTIONS, MORE = 12_000, 300

# Two members are enough to compare digests.
TRAINING = """
version: 1
folds: {count: 2, test: 8d, delay: 1d}
members:
  - {name: boosted, algorithm: lightgbm, features: all, parameters: {trees: 20, num_leaves: 7}}
  - {name: linear, algorithm: logistic-regression, features: all}
"""


@pytest.fixture(scope="module")
def bootstrap() -> Iterator[str]:
    with services("kafka") as addresses:
        assert addresses.kafka is not None
        TopicAdmin(addresses.kafka).create_all(Topics(), 3)
        assert simulate(addresses.kafka, TRANSACTIONS, 3)["labels"]
        yield addresses.kafka


@pytest.fixture(scope="module")
def files(bootstrap: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options of files with the records of both topics in the order of a replay: by time, partition and offset.

    A record that is older than the one before it in its partition, such as a duplicate, has the time of that one.
    """
    folder, options = tmp_path_factory.mktemp("files"), []
    with RangeReader(bootstrap, client_id="test") as reader:
        for name, time in (("transactions", "event_time"), ("labels", "labelled_at")):
            timed: list[tuple[int, dict[str, Any]]] = []
            for source, (low, high) in reader.bounds(name).items():
                newest = 0
                for chunk in reader.read(source, low, high):
                    for row in map(msgspec.json.decode, filter(None, chunk.value)):
                        newest = max(newest, int(row[time]))
                        timed.append((newest, row))
            rows = [row for _, row in sorted(timed, key=lambda each: each[0])]
            pq.write_table(pa.Table.from_pylist(rows, _schema(rows)), folder / f"{name}.parquet")
            options += [f"--{name}", str(folder / f"{name}.parquet")]
    return options


@pytest.fixture(scope="module")
def trained(files: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train(folder, files)
    return folder / "ensemble"


def train(folder: Path, history: list[str]) -> None:
    (folder / "training.yaml").write_text(TRAINING)
    options = ["--spec", str(CARDS_SPEC), "--training", str(folder / "training.yaml"), "--jobs", "1"]
    call("train", *history, *options, "--out", str(folder / "ensemble"), "--json")


def simulate(bootstrap: str, transactions: int, seed: int) -> dict[str, Any]:
    sent: dict[str, Any] = json.loads(
        call(
            "simulate", "--bootstrap", bootstrap, "--transactions", str(transactions), "--seed", str(seed),
            "--customers", "300", "--terminals", "60", "--duplicates", "0.01", "--json",
        )
    )  # fmt: skip
    return sent


def call(*arguments: str) -> str:
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


def _schema(rows: list[dict[str, Any]]) -> pa.Schema:
    """A field that the first rows lack has to become a column all the same."""
    fields: dict[str, pa.DataType] = {}
    for row in rows:
        fields |= {name: pa.scalar(value).type for name, value in row.items() if name not in fields}
    return pa.schema(list(fields.items()))


def topics_of(bootstrap: str) -> list[str]:
    return ["--from-topics", "--bootstrap", bootstrap]


def test_features_exported_from_topics(bootstrap: str, files: list[str], tmp_path: Path) -> None:
    for name, given in (("topics", topics_of(bootstrap)), ("files", files)):
        call("features", "export", *given, "--spec", str(CARDS_SPEC), "--out", str(tmp_path / f"{name}.parquet"))
    table = pq.read_table(tmp_path / "topics.parquet")
    assert len(table) > TRANSACTIONS / 4
    assert sum(table.column("label").to_pylist()) > 5
    of_files = pq.read_table(tmp_path / "files.parquet")
    assert table.column_names == of_files.column_names
    for name in table.column_names:
        # Missing values are NaN, which Arrow does not find equal.
        np.testing.assert_array_equal(table.column(name).to_numpy(), of_files.column(name).to_numpy(), name)


def test_training_from_topics(bootstrap: str, trained: Path, tmp_path: Path) -> None:
    train(tmp_path, topics_of(bootstrap))
    here, there = read_manifest(tmp_path / "ensemble"), read_manifest(trained)
    assert here.training.rows > TRANSACTIONS / 4
    assert here.training.data_sha256 == there.training.data_sha256
    assert [member.sha256 for member in here.members] == [member.sha256 for member in there.members]
    assert here.thresholds == there.thresholds


def test_evaluation_of_topics_that_grow(bootstrap: str, files: list[str], trained: Path, tmp_path: Path) -> None:
    common = ["evaluate", "--spec", str(CARDS_SPEC), "--ensemble", str(trained), "--replicates", "0", "--json"]
    of_files = json.loads(call(*common, *files, "--out", str(tmp_path / "files")))
    live = [*common, *topics_of(bootstrap), "--out", str(tmp_path / "topics")]
    of_topics = json.loads(call(*live))
    assert of_topics["transactions"] == of_files["transactions"] == TRANSACTIONS
    assert of_topics["duplicates"] == of_files["duplicates"] > 50
    assert (of_topics["frauds"], of_topics["digests"]) == (of_files["frauds"], of_files["digests"])
    assert of_topics["frauds"] > 10

    simulate(bootstrap, MORE, 4)
    done = CliRunner().invoke(cli, live)
    assert done.exit_code == 0, (done.output, done.exception)
    again = json.loads(done.stdout)
    assert again["resumed"] == TRANSACTIONS + of_topics["duplicates"]
    assert (again["digests"], again["input"]) == (of_topics["digests"], of_topics["input"])
    assert "newer offsets of the topics are left out" in done.stderr
    other = json.loads(call(*common, *topics_of(bootstrap), "--out", str(tmp_path / "other")))
    assert other["transactions"] == TRANSACTIONS + MORE
