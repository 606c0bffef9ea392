"""Logs: an expected error is one line, an unexpected one has its traceback."""

from __future__ import annotations

import logging
import sys
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


@pytest.mark.parametrize(("logger", "tracebacks"), [("a.library", 0), ("stream_scorer.pipeline", 1)])
def test_an_error_while_a_library_handles_an_expected_one_has_no_traceback(
    logger: str, tracebacks: int, capsys: pytest.CaptureFixture[str]
) -> None:
    configure("text", "info")
    try:
        try:
            raise StateUnavailable("Redis is away")
        except StateUnavailable:
            raise AttributeError("no supervisor")  # noqa: B904 - as Faust does
    except AttributeError as error:
        logging.getLogger(logger).exception("error while stopping: %r", error)
        text = capsys.readouterr().err
        assert "no supervisor" in text
        assert ("Traceback" in text) == bool(tracebacks)
        path = "/venv/lib/site-packages/mode/services.py"
        record = logging.LogRecord(logger, logging.ERROR, path, 1, "child: %r", (error,), sys.exc_info())
        logging.getLogger(logger).handle(record)
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_line_contains_a_secret(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    quoted = 'pass"wörd\\'
    configure(form, "info", ["hunter2-hunter2", quoted])  # type: ignore[arg-type]
    log = logging.getLogger("a.library")
    log.warning("cannot reach redis://me:pa:ss@cache:6379/0 and https://token@mlflow/x?y=1, nor http://host/path@2")
    log.warning("the password %s is wrong", quoted)
    try:
        raise ValueError("denied: hunter2-hunter2")
    except ValueError:
        log.exception("crashed")
    text = capsys.readouterr().err
    assert "pa:ss" not in text and "token@" not in text and "hunter2" not in text
    assert "the password *** is wrong" in text
    assert "redis://***@cache:6379/0" in text and "http://host/path@2" in text


def test_a_library_that_repeats_itself_is_heard_once_in_a_while(capsys: pytest.CaptureFixture[str]) -> None:
    configure("text", "info")
    library, own = logging.getLogger("a.library"), logging.getLogger("stream_scorer.part")
    for attempt in range(200):
        library.error("cannot connect to node %s: attempt %d", 1, attempt)
        own.error("part failed: attempt %d", attempt)
    library.error("another message")
    text = capsys.readouterr().err
    assert text.count("cannot connect") == 1
    assert text.count("part failed") == 200
    assert "another message" in text


def test_what_a_library_says_later_counts_what_was_left_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    configure("text", "info")
    library = logging.getLogger("a.library")
    for at in (0.0, 0.1, 0.2, 1_000.0):
        monkeypatch.setattr("time.time", lambda at=at: 1e9 + at)
        library.error("cannot connect to node %s", 1)
    lines = capsys.readouterr().err.splitlines()
    assert [line.endswith("cannot connect to node 1 (2 more)") for line in lines] == [False, True]
