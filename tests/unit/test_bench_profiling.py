"""The files of `bench --profile`, written with a short program under cProfile in place of the scorer."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from stream_scorer.bench import profiling
from stream_scorer.bench.config import BenchConfig
from stream_scorer.bench.processes import Bench
from stream_scorer.errors import StreamScorerError

ROWS = 2_000


class _Scorer:
    """Runs a program under cProfile when its block ends, as the real one does with the scorer."""

    drained = float(ROWS)

    def __init__(self, _bench: Any, kind: str, *, prefix: str, group: str, profile: Path | None = None) -> None:
        assert (kind, prefix) == ("scorer", profiling.PREFIX)
        self._profile = profile
        self.group = group

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._profile is not None:
            program = [sys.executable, "-m", "cProfile", "-o", str(self._profile), "-m", "calendar", "2020"]
            subprocess.run(program, check=True, capture_output=True)

    def rows(self) -> float:
        return self.drained

    def diagnostics(self) -> str:
        return "stack traces"


def bench(lines: list[str]) -> Bench:
    unused: Any = None
    config = replace(BenchConfig(), transactions=ROWS)
    return Bench(config, unused, Path(), Path(), lines.append)


def test_functions_are_written_and_a_missing_sampler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "ScorerProcess", _Scorer)
    monkeypatch.setattr(profiling.shutil, "which", lambda *_, **__: None)
    lines: list[str] = []
    written = profiling.profile_scorer(bench(lines), tmp_path / "profile")
    assert [path.name for path in written] == ["functions.txt", "functions.pstats"]
    text = written[0].read_text()
    assert "calendar.py" in text
    assert text.index("Ordered by: internal time") < text.index("Ordered by: cumulative time")
    assert lines == ["no flame graph: py-spy is not installed (`pip install py-spy`)"]


def test_a_scorer_that_does_not_drain_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "ScorerProcess", _Scorer)
    monkeypatch.setattr(_Scorer, "drained", 1.0)
    monkeypatch.setattr(profiling, "START_S", -1_000.0)
    with pytest.raises(StreamScorerError, match="stack traces"):
        profiling.profile_scorer(bench([]), tmp_path)
