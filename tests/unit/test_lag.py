"""The lag that a scorer reports: alerts depend on it in a backlog, when every read returns records."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from stream_scorer.observability.metrics import LAG, RESYNCS, Metrics
from stream_scorer.pipeline.committer import Committer
from stream_scorer.pipeline.cut import Inputs
from stream_scorer.pipeline.processor import OnAssigned, Pacing, Processor
from stream_scorer.positions import SourcePartition
from stream_scorer.serde.raw import RawRecords, Read

SOURCE = SourcePartition("transactions", 0)


class Backlog:
    """A reader of records without end, which stops the scorer after some reads."""

    owned = (SOURCE,)

    def __init__(self, stop: threading.Event, on_assigned: OnAssigned) -> None:
        self._stop, self._on_assigned, self._at = stop, on_assigned, 0

    def read(self, _max_records: int, _wait_s: float) -> Read:
        if not self._at:
            self._on_assigned([SOURCE])
        self._at += 1
        if self._at == 3:
            self._stop.set()
        one = np.array([self._at], np.int64)
        records = RawRecords("transactions", np.zeros(1, np.int32), one, one, [None], [b"{}"], [None])
        return Read([records], {SOURCE: (self._at, self._at + 1)}, None)

    def read_more(self, read: Read, _max_records: int) -> Read:
        return read

    def lag(self) -> int:
        return 200_000

    def close(self) -> None:
        """Nothing is open."""


def test_a_backlog_is_reported_while_no_read_is_empty() -> None:
    stop, metrics = threading.Event(), Metrics()
    points = SimpleNamespace(read_from={SOURCE: 0}, score_from={SOURCE: 0})
    nothing = SimpleNamespace(
        check=lambda: "", start=lambda _reader, _sources: points, restore=lambda: None, close=lambda: None
    )
    processor = Processor(
        make_reader=lambda assigned, _revoked, _stopping: cast(Any, Backlog(stop, assigned)),
        producers=cast(Any, nothing),
        stages=[],
        committer=Committer([]),
        state=cast(Any, nothing),
        inputs=Inputs("transactions", "labels"),
        pacing=Pacing(1, 0.0),
        metrics=metrics,
    )
    processor.run(stop, beat=lambda: None)
    assert metrics.registry.get_sample_value(LAG.name) == 200_000
    for cause in ("aborted", "broker_unavailable", "redis_back"):
        assert metrics.registry.get_sample_value(RESYNCS.name, {"cause": cause}) == 0
