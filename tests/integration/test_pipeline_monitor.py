"""Scorer, monitor and simulator together on a real Kafka and Redis: the monitor-thin proof with less of everything."""

from __future__ import annotations

from pathlib import Path

import pytest

from proofs import monitor_thin
from proofs.kit import Context, train_cards


@pytest.mark.integration
@pytest.mark.usefixtures("shared_services")
def test_windows_equal_the_topics_and_bounds_hold_the_truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # At this rate most of the CPU goes to transactions on Kafka, whatever is in them.
    monkeypatch.setenv("STREAM_SCORER_SCORER_PACE_MS", "100")
    # With more training there are too few false positives for the counts that the proof requires.
    train_cards(tmp_path, seed=1, transactions=20_000)
    result = monitor_thin.run(Context(1, 9_000, False, tmp_path, print))
    assert result.ok, ([name for name, holds in result.checks.items() if not holds], result.figures)
