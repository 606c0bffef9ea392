"""`stream-scorer bench` runs to its end on real parts and reports everything. No time is asserted: only ratios mean
anything, and not of a run as small as this.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from stream_scorer.bench.results import Report

TINY = (
    "--quick --transactions 4000 --warm-up-drains 0 --batch 64 --events 10 "
    "--rate 200 --rounds 1 --seconds 1 --warm-up 0.3 --backlog 500"
)


@pytest.mark.integration
@pytest.mark.timeout(300)
def test_bench_runs_to_its_end_and_reports_everything(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "stream_scorer.cli.main", "bench", *TINY.split(), "--json"),
            *("--out", str(out), "--ensemble", str(trained / "ensemble")),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    assert json.loads(out.read_text()) == report
    assert set(report) == set(Report.__struct_fields__)
    assert report["scores_read"] == report["scores_expected"] == 4_000 * 2
    assert report["ratios"]["times_the_loop"] > 0
    assert report["ratios"]["share_of_passthrough"] > 0
    assert [entry["rate"] for entry in report["ratios"]["latency"]] == [200]
    assert report["loop"]["events"] == 10
    assert {(entry["kind"], entry["rate"], entry["missing"]) for entry in report["latency"]} == {
        ("scorer", 200, 0),
        ("passthrough", 200, 0),
    }
    for entry in report["latency"]:
        found = entry["latency"]
        assert 0 < found["p50"] <= found["p90"] <= found["p99"] <= found["p999"] <= found["max"]
        assert [window["transactions"] for window in entry["windows"]] == [200]
    stages = report["stages"]
    assert set(stages["main"]) == {"decode", "enrich", "score", "wait", "publish", "rest"}
    assert set(stages["beside"]) == {"commit", "apply"}
    assert set(stages["members"]) == {"gbdt", "xgb", "forest", "logistic", "neural"}
    assert report["scorer"]["cpu"]["scorer"] > 0
    assert report["scorer"]["cpu"]["broker"] > 0
    assert report["scorer"]["cpu"]["redis"] > 0
    assert not list((tmp_path / ".stream-scorer").glob("bench-*"))
