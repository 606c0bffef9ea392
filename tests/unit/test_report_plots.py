"""Plots of values that anyone may write to a topic: no label is a formula, no time or value is beyond an axis."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stream_scorer.errors import UsageError
from stream_scorer.evaluation.cards import DAY_MS, DailyCards
from stream_scorer.evaluation.paired import ChangeFile
from stream_scorer.records import Score
from stream_scorer.replay.output import RecordFile
from stream_scorer.reports.incident_plots import Line, Mark, lines

NOW = 1_700_000_000_000


def test_labels_are_plain_text() -> None:
    drawn = lines("n", [Line("version $\\frac$", [(NOW, 1.0)]), Line("$a$", [(NOW, 2.0)])], "alerts")
    assert "version $\\frac$" in drawn
    assert "$a$" in drawn


@pytest.mark.parametrize("other", [221_845_392_000_000, 253_370_764_799_000])
def test_axes_end_with_the_calendar_and_name_the_years_of_long_times(other: int) -> None:
    drawn = lines("n", [Line("a", [(NOW, 1.0), (other, 2.0)])], "alerts", [Mark(other, "closed")])
    assert "Jan " in drawn or "Oct " in drawn
    assert "2024" in lines("n", [Line("a", [(NOW, 1.0), (NOW + 700 * DAY_MS, 2.0)])], "alerts")


def test_a_single_time_and_values_that_no_axis_shows() -> None:
    drawn = lines("n", [Line("a", [(NOW, 1.0), (NOW + 1, 1e308), (NOW + 2, -1e308)])], "alerts")
    assert "14 Nov" in drawn
    assert lines("n", [Line("a", [(NOW, 1e308)])], "alerts") == ""


def test_a_card_without_a_score_is_not_among_the_highest() -> None:
    daily = DailyCards(1, [2])
    fraud = np.array([True, True, False])
    daily.add(np.zeros(3, np.int64), np.arange(3), np.array([[0.5], [np.nan], [np.nan]]), fraud)
    (found,) = daily.result(0)
    assert found.by_day == [(0, 0.5)]


def test_a_full_disk_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = RecordFile(tmp_path / "scores.parquet", Score)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(file, "_file", type("Full", (), {"write_table": full, "close": full})())
    with pytest.raises(UsageError, match=r"cannot write .*scores.parquet: .*No space left"):
        file.close()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_was_not_completed_does_not_look_complete(tmp_path: Path) -> None:
    for name in ("scores.parquet", "changes.parquet"):
        (tmp_path / name).write_bytes(b"of an earlier run")
    for file in (RecordFile(tmp_path / "scores.parquet", Score), ChangeFile(tmp_path / "changes.parquet")):
        file.__enter__()
        assert any(path.name.endswith(".parquet.unfinished") for path in tmp_path.iterdir())
        file.__exit__(RuntimeError, RuntimeError(), None)
    assert list(tmp_path.iterdir()) == []
    with RecordFile(tmp_path / "scores.parquet", Score), ChangeFile(tmp_path / "changes.parquet"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["changes.parquet", "scores.parquet"]
