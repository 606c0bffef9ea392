"""What the logs of a storm may contain: tracebacks and ends of processes that its faults explain."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_TRACE = "Traceback (most recent call last)"
_CHAINED = ("During handling of the above exception", "The above exception was the direct cause")
# The line that ends a traceback, with the name of the exception. Other lines follow if a process was killed meanwhile.
_RAISED = re.compile(r"^[A-Za-z_][\w.]*(: |$)")
# Faust logs why an agent failed before the part starts again. Its clients, which lose the broker or are closed in the
# middle of a call, raise errors of their own.
_OURS = re.compile(
    r"stream_scorer\.errors\.(StateUnavailable|StateGap|BrokerUnavailable|TransactionAborted|ReaderLost)"
)
_CLIENTS = re.compile(
    r"asyncio\.exceptions\.CancelledError|RuntimeError: Event loop is closed|aiokafka\.errors\.|kafka\.errors\."
    r"|AttributeError: 'NoneType' object has no attribute 'wakeup'|GeneratorExit"
)
# The windows' consumer raises what stopped its client.
_RAISES_THEIRS = "/stream_scorer/monitor/transport.py"
# How a scorer and a monitor end if Kafka does not answer, or answers as it does while it starts.
_ENDS = re.compile(
    r"Is it running\?|A broker that has just started may do so"
    r"|Does another scorer run with the same|COORDINATOR_LOAD_IN_PROGRESS|_DESTROY_BROKER|NOT_COORDINATOR"
)
# A broker that starts may not know its topics yet.
_NO_TOPIC = re.compile(r"Create it: `stream-scorer topics create`")
# How a scorer ends that starts while the version that should serve cannot be loaded: it has no other one.
_UNLOADABLE = re.compile(
    r"^error: cards local-\w+ was served from a folder and is not in the cache .*\[artifact_invalid\]$"
)
KILLED, FAILED, USAGE = -9, 1, 2


@dataclass(frozen=True, slots=True)
class Trace:
    """A traceback with those that it is chained to: its first line, the last exception, and the last frame."""

    line: int
    raised: str
    frame: str

    def expected(self, log: str) -> bool:
        """Whether `log` may contain it: only that of the monitor, which logs faults of services so."""
        if not _RAISED.match(self.raised):
            return True  # the process was killed while it wrote
        inside = any(place in self.frame for place in ("site-packages", "/lib/python", _RAISES_THEIRS))
        known = _OURS.match(self.raised) or (inside and _CLIENTS.match(self.raised))
        return log == "monitor.log" and bool(known)


def traces(lines: Sequence[str]) -> Iterator[Trace]:
    """The tracebacks in a log; several that are chained are one."""
    at = 0
    while at < len(lines):
        if _TRACE not in lines[at]:
            at += 1
            continue
        first, frame = at, ""
        while True:
            at += 1
            while at < len(lines) and (not lines[at] or lines[at].startswith(" ")):
                frame = lines[at].strip() if lines[at].lstrip().startswith("File ") else frame
                at += 1
            follows = next((i for i in range(at + 1, min(at + 6, len(lines))) if _TRACE in lines[i]), None)
            if follows is None or not any(line.startswith(_CHAINED) for line in lines[at:follows]):
                break
            at = follows
        yield Trace(first + 1, lines[at] if at < len(lines) else "", frame)


def end_is_expected(code: int | None, tail: Sequence[str]) -> bool:
    """Whether a process may end by itself with `code`, and the last lines `tail` of its log.

    The watchdog kills a scorer, and so may an action that overlaps with another one.
    """
    if code == KILLED:
        return True
    errors = [place for place, line in enumerate(tail) if line.startswith("error: ")]
    if not errors:
        return False
    last = tail[errors[-1] :]
    if code == USAGE and (_UNLOADABLE.match(last[0]) or _NO_TOPIC.search("\n".join(last))):
        return True
    return code == FAILED and bool(_ENDS.search("\n".join(last)))
