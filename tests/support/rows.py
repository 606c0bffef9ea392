"""Rows in memory: what Redis and its script do, for processes that may die between any two calls."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from stream_scorer.errors import StateGap
from stream_scorer.positions import SourcePartition
from stream_scorer.state.rows import BEGINS, AppliedOffsets, Beginning, RowUpdate
from tests.support.failpoints import Failpoints


def _undisturbed(_keys: Sequence[bytes]) -> None:
    """A server to which nothing happens."""


def _undisturbed_probe() -> None:
    """As `_undisturbed`."""


class MemoryServer:
    """The data of one namespace, shared by all processes.

    `on_read` and `on_apply` are called with the keys before every read and every update, `on_probe` before every write
    probe: the place for losses and outages.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.epoch = ""
        self.rows: dict[bytes, bytes] = {}
        self.applied: dict[SourcePartition, tuple[int, int, int]] = {}
        self.beginning = Beginning()
        self.passed = -1
        self.seen: set[bytes] = set()
        self.late = 0
        self.on_read: Callable[[Sequence[bytes]], None] = _undisturbed
        self.on_apply: Callable[[Sequence[bytes]], None] = _undisturbed
        self.on_probe: Callable[[], None] = _undisturbed_probe
        self._inits = 0

    def flush(self) -> None:
        """Lose everything, as FLUSHALL does."""
        with self.lock:
            self.epoch = ""
            self.rows.clear()
            self.applied.clear()
            self.seen.clear()

    def lose(self, key: bytes) -> None:
        """Lose a single row."""
        with self.lock:
            self.rows.pop(key, None)

    def holds(self, offsets: Mapping[SourcePartition, int]) -> bool:
        """Whether the rows hold everything up to `offsets`; a server with an unnoticed loss is not checked."""
        with self.lock:
            return not self.applied or all(offset >= offsets.get(s, 0) for s, (offset, _, _) in self.applied.items())

    def new_epoch_name(self) -> str:
        """A name never used before."""
        self._inits += 1
        return f"epoch-{self._inits}"


class MemoryAppliedRows:
    """`AppliedRowStore` on a `MemoryServer`; `per_call` is how many entries go into one atomic step."""

    def __init__(
        self,
        server: MemoryServer,
        sources: Sequence[SourcePartition],
        life: Failpoints,
        *,
        per_call: int,
        labels_topic: str = "labels",
    ) -> None:
        self._labels_topic = labels_topic
        self._server, self._sources, self._life = server, list(sources), life
        self._per_call = per_call
        self._epoch = ""
        self._acknowledged: dict[SourcePartition, int] = {}

    @property
    def epoch(self) -> str:
        """The generation of rows in use."""
        return self._epoch

    def open(self) -> AppliedOffsets | None:
        """See `AppliedRowStore.open`."""
        self._life.point("open")
        with self._server.lock:
            self._epoch = self._server.epoch
            self._acknowledged.clear()
            if not self._epoch or any(source not in self._server.applied for source in self._sources):
                return None
            applied = self._applied_offsets()
        self._acknowledged = dict(applied.next_offset)
        return applied

    def init(
        self,
        next_offset: dict[SourcePartition, int],
        target: dict[SourcePartition, int],
        beginning: Beginning = Beginning(),
    ) -> bool:
        """See `AppliedRowStore.init`."""
        self._life.point("open")
        self._acknowledged.clear()
        with self._server.lock:
            if self._server.epoch != self._epoch:
                return False
            self._epoch = self._server.epoch = self._server.new_epoch_name()
            self._server.rows.clear()
            self._server.seen.clear()
            self._server.applied = {s: (next_offset[s], -1, target.get(s, 0)) for s in self._sources}
            self._server.beginning = beginning
            return True

    def read(self, keys: Sequence[bytes]) -> tuple[list[bytes | None], AppliedOffsets]:
        """See `RowStore.read`. Raises `StateGap` when acknowledged data is gone."""
        acknowledged = dict(self._acknowledged)
        self._life.point("rows")
        self._server.on_read(keys)
        with self._server.lock:
            self._require_epoch()
            if any(source not in self._server.applied for source in self._sources):
                raise StateGap("an applied offset is lost")
            rows, applied = [self._server.rows.get(key) for key in keys], self._applied_offsets()
            lost = [key for key, row in zip(keys, rows, strict=True) if row is None and key in self._server.seen]
            if lost:
                self._server.epoch = ""
        if lost:
            raise StateGap("a row is lost")
        if any(applied.next_offset[source] < offset for source, offset in acknowledged.items()):
            raise StateGap("updates are lost")
        return rows, applied

    def apply(self, update: RowUpdate) -> None:
        """See `RowStore.apply`: part by part, each atomic."""
        for part in update.split(self._per_call):
            self._life.point("apply")
            self._server.on_apply(part.keys)
            with self._server.lock:
                self._apply(part)
            for span in part.spans:
                self._acknowledged[span.source] = max(self._acknowledged.get(span.source, 0), span.stop)
            self._life.point("applied")

    def probe_write(self) -> None:
        """See `AppliedRowStore.probe_write`."""
        self._life.point("open")
        self._server.on_probe()

    def delete_old_epochs(self) -> int:
        """See `AppliedRowStore.delete_old_epochs`: nothing is left behind here."""
        return 0

    def _apply(self, update: RowUpdate) -> None:
        server = self._server
        self._require_epoch()
        at = []
        for span in update.spans:
            applied = server.applied.get(span.source)
            if applied is None or applied[0] < span.start:
                raise StateGap("a gap before the update")
            at.append(applied[0])
        keep = update.offset >= np.array(at, np.int64)[update.span_of]
        server.late += any(offset > span.start for offset, span in zip(at, update.spans, strict=True))
        for key, fold in update.compactions.items():
            if key in server.rows:
                server.rows[key] = fold.apply(server.rows[key])
        for place, key in enumerate(update.keys):
            low, high = int(update.bounds[place]), int(update.bounds[place + 1])
            new = update.entries[low:high][keep[low:high]].astype("<i8").tobytes()
            opens = update.opens[low:high][keep[low:high]]
            begins = keep[low:high].all() and (opens == BEGINS).any() and key not in server.seen
            if new and key not in server.rows and not begins:
                server.epoch = ""
                raise StateGap("a row is lost")
            if opens.any():
                server.seen.add(key)
            if new:
                server.rows[key] = server.rows.get(key, b"") + new
        for span in update.spans:
            applied = server.applied[span.source]
            server.applied[span.source] = (max(span.stop, applied[0]), max(span.watermark, applied[1]), applied[2])

    def _require_epoch(self) -> None:
        if self._server.epoch != self._epoch:
            raise StateGap("another epoch")

    def _applied_offsets(self) -> AppliedOffsets:
        applied = self._server.applied
        offsets, watermarks, targets = ({s: applied[s][i] for s in self._sources} for i in range(3))
        return AppliedOffsets(
            offsets,
            watermarks,
            targets,
            beginning=self._server.beginning,
            passed=self._server.passed,
            labels_topic=self._labels_topic,
        )
