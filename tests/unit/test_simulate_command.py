"""The command `simulate`: files on disk, a report on stdout, mistakes reported in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from stream_scorer.cli.simulate import simulate
from stream_scorer.simulate import SimulationConfig, generate
from stream_scorer.simulate.config import DAY_MS, DEFAULT_START_MS
from tests.support.simulated_files import read_labels, read_transactions


def test_files_and_report(tmp_path: Path) -> None:
    truth = tmp_path / "elsewhere" / "truth.parquet"
    arguments = ["--transactions", "5000", "--customers", "500", "--terminals", "60", "--seed", "9"]
    result = CliRunner().invoke(simulate, [*arguments, "--out", str(tmp_path), "--truth", str(truth), "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    history = read_transactions(tmp_path / "transactions.parquet", truth)
    assert report["transactions"] == len(history) == 5_000
    assert report["fraud"] == (history.fraud_kind > 0).sum()
    assert report["labels"] == len(read_labels(tmp_path / "labels.parquet"))
    assert not (tmp_path / "truth.parquet").exists()
    expected = generate(SimulationConfig(seed=9, customers=500, terminals=60, days=None, transactions=5_000))
    assert history.event_id.tolist() == expected.event_id.tolist()
    assert history.event_time[0] // DAY_MS * DAY_MS == DEFAULT_START_MS


def test_no_labels_and_another_start(tmp_path: Path) -> None:
    arguments = ["--days", "2", "--customers", "200", "--start", "2025-03-01", "--no-labels"]
    result = CliRunner().invoke(simulate, [*arguments, "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "transactions" in result.stdout
    assert not (tmp_path / "labels.parquet").exists()
    # 2025-03-01T00:00:00Z
    assert read_transactions(tmp_path / "transactions.parquet").event_time[0] // DAY_MS * DAY_MS == 1_740_787_200_000


def test_one_target_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # no settings file, no local stack
    monkeypatch.delenv("STREAM_SCORER_KAFKA_BOOTSTRAP", raising=False)
    both = CliRunner().invoke(simulate, ["--out", str(tmp_path), "--bootstrap", "127.0.0.1:9"])
    assert both.exit_code == 2
    assert "either --bootstrap or --out" in both.stderr
    neither = CliRunner().invoke(simulate, [])
    assert neither.exit_code == 2
    assert "--out DIR" in neither.stderr


def test_live_data_end_before_now() -> None:
    config = SimulationConfig(seed=2, customers=300, terminals=60, days=None, transactions=9_000)
    now_ms = 1_750_000_000_000
    history = generate(config.starting(config.start_to_end_by(now_ms)))
    assert history.event_time[-1] < now_ms
    assert history.event_time[-1] > now_ms - 6 * DAY_MS
