"""Logs: an expected error is one line, an unexpected one has its traceback."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from stream_scorer.errors import StateUnavailable
from stream_scorer.observability.logs import configure


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)


@pytest.mark.parametrize("form", ["text", "json"])
def test_only_an_unexpected_error_has_a_traceback(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure(form, "info")  # type: ignore[arg-type]
    for error in (StateUnavailable("Redis is away"), ValueError("a bug")):
        try:
            raise error
        except Exception:
            logging.getLogger("a.library").exception("crashed: %r", error)
    text = capsys.readouterr().err
    assert text.count("crashed") == 2
    assert text.count("Traceback") == 1
    assert "ValueError: a bug" in text
