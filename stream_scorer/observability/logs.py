"""Structured logs on stderr: one line per event, as JSON or as short text. Logs contain no personal data.

Callers log counts, coordinates and codes, and never field values of a transaction.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Sequence
from typing import Literal

from stream_scorer.errors import StreamScorerError
from stream_scorer.observability.scrub import scrub

# Time in which a message of a library is not repeated, and the number of messages to which this applies.
_REPEAT_S, _MAX_MESSAGES = 10.0, 1_000
_PLAIN = set(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class _Scrubbed(logging.Formatter):
    """Formats as another formatter does, then removes secrets: a traceback of a library may contain one."""

    def __init__(self, formatter: logging.Formatter, secrets: Sequence[str]) -> None:
        super().__init__()
        # In a line of JSON, a secret with a quote, a backslash or another alphabet is escaped.
        escaped = (json.dumps(secret)[1:-1] for secret in secrets)
        self._formatter, self._secrets = formatter, tuple(dict.fromkeys((*secrets, *escaped)))

    def format(self, record: logging.LogRecord) -> str:
        return scrub(self._formatter.format(record), self._secrets)


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {key: value for key, value in vars(record).items() if key not in _PLAIN}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _drop_expected_traceback(record: logging.LogRecord) -> bool:
    """An error of our own tree, such as a service that is away, needs no traceback. Libraries log one all the same.

    Nor does an error that a library raises while it handles one of ours, as Faust does if its agents fail in a stop.
    """
    error = record.exc_info[1] if record.exc_info else None
    # A service of ours logs under our name when its library, `mode`, reports what failed.
    of_library = not record.name.startswith("stream_scorer") or "site-packages" in record.pathname
    while error is not None and of_library and not isinstance(error, StreamScorerError):
        error = error.__cause__ or error.__context__
    if isinstance(error, StreamScorerError):
        record.exc_info = record.exc_text = None
    return True


class _Repeats(logging.Filter):
    """Passes the same message of a library once per `_REPEAT_S`, and then adds how many were left out.

    aiokafka logs 200 lines per second while a broker is away.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[str, str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.startswith("stream_scorer"):
            return True
        if len(self._seen) > _MAX_MESSAGES:
            self._seen.clear()
        error = record.exc_info[1] if record.exc_info else None
        key = record.name, str(record.msg), type(error).__name__
        last, left_out = self._seen.get(key, (0.0, 0))
        if 0 <= record.created - last < _REPEAT_S:
            self._seen[key] = last, left_out + 1
            return False
        self._seen[key] = record.created, 0
        if left_out:
            record.msg, record.args = f"{record.getMessage()} ({left_out} more)", ()
        return True


def configure(form: Literal["json", "text"], level: str, secrets: Sequence[str] = ()) -> None:
    """Send the product's logs to stderr at `level`, and those of libraries from warnings up, without `secrets`."""
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")
    handler.setFormatter(_Scrubbed(_JsonFormatter() if form == "json" else text, secrets))
    handler.addFilter(_drop_expected_traceback)
    handler.addFilter(_Repeats())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("stream_scorer").setLevel(level.upper())
    # librdkafka logs many lines while a broker restarts. Our own messages report the relevant events.
    logging.getLogger("stream_scorer.kafka.librdkafka").setLevel(logging.CRITICAL)
