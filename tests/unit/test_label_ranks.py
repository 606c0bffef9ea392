"""Every part that reads labels ranks their sources by the same rule."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stream_scorer.clock import SystemClock
from stream_scorer.evaluation.labels import KnownLabels
from stream_scorer.kafka.topics import Topics
from stream_scorer.kafka.transactional_loop import InputRecord
from stream_scorer.monitor.joiner import Joiner, JoinRules
from stream_scorer.monitor.joiner_store import JoinerStore
from stream_scorer.positions import SourcePartition
from stream_scorer.replay.quality import EffectiveLabels
from stream_scorer.serde.decoder import hash_ids
from stream_scorer.serde.raw import RawRecords
from stream_scorer.spec import CheckedSpec
from stream_scorer.spec.load import parse_spec
from stream_scorer.train.dataset import read_history
from stream_scorer.train.topics import history_from_topics
from tests.support.specs import card_spec

TRANSACTION = {"event_id": "e", "event_time": 1_000, "card": "x", "amount": 10}
# The source that no spec lists comes last and is the newest.
LABELS: list[dict[str, Any]] = [
    {"event_id": "e", "event_time": 1_000, "label": label, "labelled_at": at, "source": source}
    for source, label, at in (("low", "genuine", 1_200), ("high", "fraud", 1_100), ("unlisted", "genuine", 1_300))
]


def records(topic: str, rows: list[dict[str, Any]]) -> RawRecords:
    values, numbers = [json.dumps(row).encode() for row in rows], np.arange(len(rows))
    nothing = [None] * len(rows)
    return RawRecords(topic, np.zeros(len(rows), np.int32), numbers, numbers + 1_300, nothing, list(values), nothing)


class Reader:
    """Reads topics of one partition."""

    def bounds(self, topic: str) -> dict[SourcePartition, tuple[int, int]]:
        return {SourcePartition(topic, 0): (0, 9)}

    def read(self, source: SourcePartition, low: int, high: int) -> Iterator[RawRecords]:
        yield records(source.topic, [TRANSACTION] if source.topic == "transactions" else LABELS)


def known_to_the_monitor(spec: CheckedSpec) -> list[str]:
    """The labels of the outcomes, of which the last one counts."""
    rules = JoinRules(1_000, 1_000, 0, spec.spec.labels.source_rank, 10_000, 10_000)
    score = TRANSACTION | {
        "decision": "block", "ensemble": "s", "version": "1", "arm": "champion", "policy_version": "p",
        "duplicate": False, "member_alerts": 0, "value": 10,
    }  # fmt: skip
    read = [("scores", score), *(("labels", label) for label in LABELS)]
    with closing(JoinerStore(":memory:")) as store:
        joiner = Joiner(store, rules, SystemClock(), scores="scores", labels="labels")
        return [o.label for o in joiner.join([InputRecord(t, 0, 0, json.dumps(v).encode(), 1_300) for t, v in read])]


@pytest.mark.parametrize(
    ("ranks", "last"),
    [
        ("{low: 1, high: 2}", "fraud"),
        ("{high: 0}", "fraud"),
        ("{low: -7, high: -5}", "fraud"),
        ("{}", "genuine"),
    ],
)
def test_a_source_that_is_not_listed_ranks_below_all_that_are(tmp_path: Path, ranks: str, last: str) -> None:
    spec = parse_spec(card_spec(f"labels: {{horizon: 1s, source_rank: {ranks}}}\n"))
    replayed, evaluated = EffectiveLabels(spec), KnownLabels(spec, None)
    for labels in (replayed, evaluated):
        labels.add(records("labels", LABELS))
    evaluated.complete()
    assert replayed.of(["e"])[1].tolist() == evaluated.outcomes.of(hash_ids(["e"]))[0].tolist() == [last == "fraud"]
    assert known_to_the_monitor(spec)[-1] == last
    for name, rows in (("transactions", [TRANSACTION]), ("labels", LABELS)):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    for history in (
        read_history(tmp_path / "transactions", tmp_path / "labels", spec),
        history_from_topics(Reader(), Topics(), spec),  # type: ignore[arg-type]
    ):
        order = np.lexsort((history.labels.labelled_at, history.ranks))
        assert history.labels.fraud[order[-1]] == (last == "fraud")
