"""`features export` on real topics gives what it gives on Parquet files of the same records."""

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
from stream_scorer.kafka.range_reader import RangeReader
from stream_scorer.kafka.topics import TopicAdmin, Topics
from tests.support.services import services

pytestmark = pytest.mark.integration
# Enough for mature labels: 300 customers make about 430 transactions per day.
TRANSACTIONS = 10_000


@pytest.fixture(scope="module")
def bootstrap() -> Iterator[str]:
    with services("kafka") as addresses:
        assert addresses.kafka is not None
        TopicAdmin(addresses.kafka).create_all(Topics(), 3)
        simulate(addresses.kafka, TRANSACTIONS, 3)
        yield addresses.kafka


@pytest.fixture(scope="module")
def files(bootstrap: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options of files with the records of both topics, in the order of a replay: by time, partition and offset."""
    folder, options = tmp_path_factory.mktemp("files"), []
    with RangeReader(bootstrap, client_id="test") as reader:
        for name, time in (("transactions", "event_time"), ("labels", "labelled_at")):
            rows: list[dict[str, Any]] = []
            for source, (low, high) in reader.bounds(name).items():
                for chunk in reader.read(source, low, high):
                    rows += [msgspec.json.decode(value) for value in chunk.value if value is not None]
            rows.sort(key=lambda row: int(row[time]))
            pq.write_table(pa.Table.from_pylist(rows, _schema(rows)), folder / f"{name}.parquet")
            options += [f"--{name}", str(folder / f"{name}.parquet")]
    return options


def simulate(bootstrap: str, transactions: int, seed: int) -> None:
    sent = json.loads(
        call(
            "simulate", "--bootstrap", bootstrap, "--transactions", str(transactions), "--seed", str(seed),
            "--customers", "300", "--terminals", "60", "--duplicates", "0.01", "--json",
        )
    )  # fmt: skip
    assert sent["labels"]


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
