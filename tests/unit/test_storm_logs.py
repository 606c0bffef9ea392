"""Logs of a storm: what its faults explain is expected, and a bug is not."""

from __future__ import annotations

import pytest

from proofs.storm_logs import Trace, end_is_expected, traces

CHAIN = """10:00:01 ERROR   Task exception was never retrieved
Traceback (most recent call last):
  File "/v/lib/python3.11/site-packages/aiokafka/client.py", line 464, in send
    raise NodeNotReadyError(
aiokafka.errors.NodeNotReadyError: NodeNotReadyError: Attempt to send a request

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/app/stream_scorer/monitor/app.py", line 341, in count
    await asyncio.sleep(self._retry_backoff)
  File "/usr/lib/python3.11/asyncio/tasks.py", line 649, in sleep
    return await future
asyncio.exceptions.CancelledError
10:00:02 INFO    monitoring
Traceback (most recent call last):
  File "/app/stream_scorer/monitor/app.py", line 300, in count
    counts[key] += 1
KeyError: 'block'
""".splitlines()


def test_tracebacks_are_found_with_all_that_they_are_chained_to() -> None:
    found = list(traces(CHAIN))
    assert [(t.line, t.raised) for t in found] == [(2, "asyncio.exceptions.CancelledError"), (16, "KeyError: 'block'")]
    assert [t.expected("monitor.log") for t in found] == [True, False]
    assert not found[0].expected("one.log")
    assert [t.raised for t in traces(CHAIN[:8])] == [
        "aiokafka.errors.NodeNotReadyError: NodeNotReadyError: Attempt to send a request"
    ]


@pytest.mark.parametrize(
    ("raised", "frame", "holds"),
    [
        (
            "stream_scorer.errors.StateUnavailable: Redis: TimeoutError",
            'File "/app/stream_scorer/state/client.py"',
            True,
        ),
        ("stream_scorer.errors.UsageError: the spec is wrong", 'File "/app/stream_scorer/spec/load.py"', False),
        ("RuntimeError: Event loop is closed", 'File "/app/stream_scorer/monitor/app.py"', False),
        (
            "aiokafka.errors.KafkaError: KafkaError: GroupLoadInProgressError()",
            'File "/app/stream_scorer/monitor/transport.py", line 145, in _fetch_records',
            True,
        ),
        ("KeyError: 'block'", 'File "/app/stream_scorer/monitor/transport.py"', False),
        ("10:00:03 INFO    monitoring", 'File "/app/stream_scorer/monitor/app.py"', True),
    ],
)
def test_the_monitor_may_report_failures_of_services(raised: str, frame: str, holds: bool) -> None:
    assert Trace(1, raised, frame).expected("monitor.log") == holds


@pytest.mark.parametrize(
    ("code", "tail", "holds"),
    [
        (-9, ["10:00:00 INFO    features: catching_up -> ready"], True),
        (1, ["error: no Kafka broker answers at 127.0.0.1:1", "  Is it running? `stream-scorer stack up`, or"], True),
        (1, ["10:00:00 INFO    stopped"], False),
        (1, ["  Is it running?", "error: the processor is broken"], False),
        (0, ["10:00:00 INFO    stopped"], False),
        (2, ["error: a setting is wrong", "  Is it running?"], False),
        (2, ["error: topic control does not exist", "  Create it: `stream-scorer topics create`."], True),
        (
            2,
            ["error: cards local-94 was served from a folder and is not in the cache /c [artifact_invalid]", "  x"],
            True,
        ),
        (-11, [], False),
        (None, [], False),
    ],
)
def test_a_process_may_end_by_itself_if_a_service_or_the_version_is_not_there(
    code: int | None, tail: list[str], holds: bool
) -> None:
    assert end_is_expected(code, tail) == holds
