"""Evaluation of unusual input: few transactions, wrong times, and large amounts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stream_scorer.clock import SystemClock
from stream_scorer.errors import UsageError
from stream_scorer.evaluation.counts import Ranking
from stream_scorer.evaluation.figures import Accumulator, _alerts_within
from stream_scorer.evaluation.store import Counts, PieceRecord, Store
from stream_scorer.parquet import TimeColumns, whole_time
from stream_scorer.reports.evaluation_tables import money, when
from stream_scorer.state.rows import AppliedOffsets, MemoryRowStore


def test_so_few_transactions_that_a_budget_has_no_alert() -> None:
    ranking = Ranking(np.array([0.5]), keep=0)
    ranking.add(np.array([0.1, 0.5, np.nan]), np.array([False, True, False]))
    assert ranking.threshold(0) == float("inf")
    assert (ranking.genuine.tolist(), ranking.missing) == ([1, 0, 0], 1)


def test_a_wrong_event_time_far_in_the_future_needs_one_more_day_only() -> None:
    counts: Any = SimpleNamespace(_days=[])
    assert Accumulator._day_places(counts, np.array([20_000, 20_000, 20_001])).tolist() == [0, 0, 1]
    assert Accumulator._day_places(counts, np.array([20_001, 19_675_925])).tolist() == [1, 2]
    assert counts._days == [20_000, 20_001, 19_675_925]


@pytest.mark.parametrize("wrong", ["2025-03-01", float("nan"), float("inf"), None, 1 << 70, b"1"])
def test_what_is_no_time_is_left_to_the_decoder(wrong: object) -> None:
    assert whole_time(wrong) == 0
    assert whole_time(1_000.0) == whole_time(1_000) == 1_000


@pytest.mark.parametrize("wrong", ["2025-03-01", float("nan"), None, True, -1, 1.5, 1_700_000_000_000_000, 1 << 60])
def test_a_file_without_any_time_is_an_error_that_names_the_column_and_the_first_value(wrong: object) -> None:
    columns = TimeColumns(Path("l.parquet"), ["event_time", "labelled_at"])
    columns.take([])
    columns.require()
    columns.take([{"event_time": 1_000, "labelled_at": wrong}, {"event_time": 1_000, "labelled_at": "later"}])
    with pytest.raises(UsageError, match="l.parquet: the column 'labelled_at' has no times; the first value is") as got:
        columns.require()
    assert repr(wrong) in str(got.value)
    columns.take([{"event_time": None, "labelled_at": 2_000}])
    columns.require()


def test_times_and_amounts_of_any_size() -> None:
    assert when(1_740_787_200_000) == "2025-03-01 00:00"
    assert when(1_700_000_000_000_000).startswith("55840-")
    assert when(-1) == "-"
    assert [money(value) for value in (9_007_199_254_740_993, -5, 0)] == ["90,071,992,547,409.93", "-0.05", "0.00"]


def test_a_folder_that_cannot_be_written_to_is_an_error_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "fails at once" / "checkpoint.unfinished").mkdir(parents=True)
    with pytest.raises(UsageError, match="cannot use .*fails at once"):
        Store(tmp_path / "fails at once", "f", SystemClock())
    folder = tmp_path / "fails later"
    store = Store(folder, "f", SystemClock())
    (folder / "piece-000001.parquet").mkdir()
    record = PieceRecord(1, "", "", "", 1, Counts())
    with pytest.raises(UsageError, match="cannot use .*fails later"):
        store.add({"event_id": ["a"]}, record, MemoryRowStore(AppliedOffsets({}, {})))


@pytest.mark.parametrize(
    ("budget", "rows", "alerts"), [(0.29, 100, 29), (0.01, 1_000, 10), (0.01, 1_099, 10), (0.001, 999, 0)]
)
def test_a_budget_allows_its_share_of_alerts(budget: float, rows: int, alerts: int) -> None:
    assert _alerts_within(budget, rows) == alerts
