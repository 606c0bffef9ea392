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


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_line_contains_a_secret(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure(form, "info", ["hunter2-hunter2"])  # type: ignore[arg-type]
    log = logging.getLogger("a.library")
    log.warning("cannot reach redis://me:pa:ss@cache:6379/0 and https://token@mlflow/x?y=1, nor http://host/path@2")
    try:
        raise ValueError("denied: hunter2-hunter2")
    except ValueError:
        log.exception("crashed")
    text = capsys.readouterr().err
    assert "pa:ss" not in text and "token@" not in text and "hunter2" not in text
    assert "redis://***@cache:6379/0" in text and "http://host/path@2" in text
