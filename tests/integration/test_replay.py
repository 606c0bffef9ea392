"""Replay from real topics: ranges, committed records only, what was served again, and errors a person can act on."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from click.testing import Result as Done
from confluent_kafka import Producer

from proofs.kit import CARDS_SPEC, Context, publish, train_cards
from proofs.replay_thin import run as replay_thin
from stream_scorer.clock import SystemClock
from stream_scorer.errors import CheckFailed, StreamScorerError, UsageError
from stream_scorer.kafka.config import producer_config
from stream_scorer.kafka.range_reader import RangeReader
from stream_scorer.kafka.topics import TopicAdmin, Topics
from stream_scorer.positions import SourcePartition
from stream_scorer.simulate import (
    LabellerConfig,
    SimulationConfig,
    encode_keys,
    encode_labels,
    encode_values,
    generate,
    history_labels,
)
from stream_scorer.stack import StackAddresses

pytestmark = pytest.mark.integration
N = 3_000
TOPICS = Topics("replay.")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train_cards(folder, seed=1, transactions=30_000)
    return folder / "ensemble"


@pytest.fixture(scope="module")
def bootstrap(shared_stack: StackAddresses) -> str:
    return str(shared_stack.kafka)


@pytest.fixture(scope="module")
def filled(bootstrap: str) -> str:
    """Three partitions of transactions and labels; nothing scored."""
    TopicAdmin(bootstrap).create_all(TOPICS, 3)
    config = SimulationConfig(seed=3, customers=200, terminals=40, days=None, transactions=N, fraud_rate=0.05)
    transactions = generate(config.starting(config.start_to_end_by(SystemClock().now_ms())))
    labels = history_labels(
        transactions, int(transactions.event_time[-1]), LabellerConfig(chargeback_median_ms=12 * 3_600_000)
    )
    assert len(labels) > 50
    publish(bootstrap, TOPICS.transactions, encode_keys(transactions.customer_id), encode_values(transactions))
    publish(bootstrap, TOPICS.labels, encode_keys(labels.customer_id), encode_labels(labels))
    return bootstrap


def invoke(bootstrap: str, trained: Path, out: Path, *arguments: str) -> Done:
    from stream_scorer.cli.replay import replay

    common = ["--from-topics", "--bootstrap", bootstrap, "--spec", str(CARDS_SPEC), "--ensemble", str(trained)]
    common += ["--topic-prefix", TOPICS.prefix, "--out", str(out), "--json"]
    return CliRunner().invoke(replay, [*common, *arguments])


def report(done: Done) -> dict[str, object]:
    assert done.exit_code == 0, (done.output, done.exception)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def test_only_committed_records_of_the_range_are_read(bootstrap: str) -> None:
    topic = "ranges"
    TopicAdmin(bootstrap).create([topic], 2)
    producer = Producer(producer_config(bootstrap, "t") | {"transactional.id": "t"})
    producer.init_transactions(30)
    for batch in range(6):
        producer.begin_transaction()
        for i in range(10):
            producer.produce(topic, f"{batch}-{i}".encode(), key=b"k", partition=0)
        producer.flush()
        producer.abort_transaction(10) if batch in (1, 5) else producer.commit_transaction(10)
    # Each transaction takes ten offsets and one for its marker.
    with RangeReader(bootstrap, client_id="test") as reader:
        source = SourcePartition(topic, 0)
        assert reader.bounds(topic) == {source: (0, 66), SourcePartition(topic, 1): (0, 0)}

        def read(start: int, stop: int) -> list[bytes | None]:
            return [value for chunk in reader.read(source, start, stop) for value in chunk.value]

        committed = [f"{batch}-{i}".encode() for batch in (0, 2, 3, 4) for i in range(10)]
        assert read(0, 66) == committed
        assert read(0, 1) == committed[:1]
        assert read(5, 23) == committed[5:11]
        assert read(11, 22) == []
        assert read(54, 66) == []
        assert read(7, 7) == []
        offsets = np.concatenate([chunk.offset for chunk in reader.read(source, 0, 66)])
        assert offsets.tolist() == [11 * b + i for b in (0, 2, 3, 4) for i in range(10)]
        with pytest.raises(UsageError, match="no longer has the start"):
            next(reader.read(source, 500, 600))


def test_a_replay_of_several_partitions_is_the_same_whatever_the_batches(
    filled: str, trained: Path, tmp_path: Path
) -> None:
    reports = [report(invoke(filled, trained, tmp_path / str(b), "--batch", str(b))) for b in (2_000, 19)]
    assert reports[0]["scores_sha256"] == reports[1]["scores_sha256"]
    assert reports[0]["scored"] == N
    quality = reports[0]["quality"]
    assert isinstance(quality, dict)
    assert quality["rows"] == N
    assert quality["labelled"] > 50
    # Records of the same event time stand in the order of topic, partition and offset; times only ever rise.
    table = pq.read_table(tmp_path / "19" / "lineage.parquet", columns=["features", "source"])
    assert len(table) == N


def test_a_warm_range_is_part_of_the_whole(filled: str, trained: Path, tmp_path: Path) -> None:
    report(invoke(filled, trained, tmp_path / "all"))
    whole = {(c["source"]["partition"], c["source"]["offset"]): c for c in _lineage(tmp_path / "all")}
    middle = "0:300,1:300,2:300"
    warm = report(invoke(filled, trained, tmp_path / "warm", "--start", middle, "--warm"))
    assert warm["warmed"] == 900
    part = _lineage(tmp_path / "warm")
    assert len(part) == N - 900
    # With offsets in several partitions the range begins at another moment in each, and warm records stand in between.
    assert all(whole[c["source"]["partition"], c["source"]["offset"]] == c for c in part)
    cold = report(invoke(filled, trained, tmp_path / "cold", "--start", middle, "--end", "0:500,1:500,2:500"))
    assert cold["scored"] == 600


def _lineage(folder: Path) -> list[dict[str, dict[str, int]]]:
    return pq.read_table(folder / "lineage.parquet").to_pylist()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("arguments", "kind", "word"),
    [
        (["--as-served"], UsageError, "nothing was served"),
        (["--compare"], CheckFailed, "nothing"),
        (["--start", "7:1"], UsageError, "no partition 7"),
        (["--topic-prefix", "nobody."], UsageError, "nobody.transactions"),
    ],
)
def test_what_cannot_be_replayed_is_refused(
    filled: str, trained: Path, tmp_path: Path, arguments: list[str], kind: type[StreamScorerError], word: str
) -> None:
    done = invoke(filled, trained, tmp_path, *arguments)
    assert isinstance(done.exception, kind), done.output
    assert word in str(done.exception)


@pytest.mark.timeout(400)
@pytest.mark.usefixtures("shared_services")
def test_what_was_served_comes_again_byte_for_byte(trained: Path, tmp_path: Path) -> None:
    """The proof `replay-thin`, scaled down."""
    shutil.copytree(trained, tmp_path / "ensemble")
    started = time.monotonic()
    result = replay_thin(Context(2, 2_500, False, tmp_path, print))
    assert result.ok, (result.checks, time.monotonic() - started)
