"""An event loop that ends in bounded time.

Faust and aiokafka have tasks that ignore their cancellation while a broker is away. `asyncio.run` would wait for them
forever, so the part would neither restart nor stop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

# Time that tasks have for their cancellation.
CLEANUP_S = 2.0

_log = logging.getLogger("stream_scorer.monitor")


def run_bounded(main: Coroutine[Any, Any, None], cleanup_s: float = CLEANUP_S) -> None:
    """Run `main` in an event loop of its own, like `asyncio.run`. Abandons tasks that do not end within `cleanup_s`."""
    loop = asyncio.new_event_loop()
    left: set[asyncio.Task[Any]] = set()
    try:
        loop.run_until_complete(main)
    finally:
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            _, left = loop.run_until_complete(asyncio.wait(tasks, timeout=cleanup_s))
        if left:
            # A thread may still call into the loop, so it stays open.
            _log.warning("%d tasks do not end and are abandoned", len(left))
        else:
            loop.close()
