"""Counters with applied offsets in memory: what `stream_scorer.state.counters.CounterStore` does in Redis."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from stream_scorer.errors import StateGap
from stream_scorer.state.counters import Batch, Cell, CounterReply, Head, require_origin


@dataclass(slots=True)
class _Epoch:
    """What lies under the keys of one epoch."""

    cells: dict[Cell, Counter[str]] = field(default_factory=dict)
    dirty: Counter[int] = field(default_factory=Counter)
    due: dict[str, set[int]] = field(default_factory=dict)
    revisions: Counter[str] = field(default_factory=Counter)
    kept: dict[str, bytes] = field(default_factory=dict)


class MemoryCounterServer:
    """The data of one namespace, shared by all stores. `now_ms` is the server's clock."""

    def __init__(self, now_ms: Callable[[], int] = lambda: 0) -> None:
        self.lock = threading.Lock()
        self.now_ms = now_ms
        self.epoch = ""
        self.applied: dict[str, int] = {}
        self.maxima: dict[str, int] = {}
        self.origin: dict[str, str] = {}
        self.epochs: dict[str, _Epoch] = {}
        self.lead: tuple[str, int] = ("", -1)  # who, until when

    def lose_head(self) -> None:
        """Lose epoch, applied offsets and maxima; counts stay behind."""
        with self.lock:
            self._lose_head()

    def _lose_head(self) -> None:
        self.epoch = ""
        self.applied.clear()
        self.maxima.clear()
        self.origin.clear()

    def bind(self, origin: Mapping[str, str]) -> bool:
        """See `CounterStore.bind`."""
        with self.lock:
            kept = all(self.origin.get(name, value) == value for name, value in origin.items())
            if not kept:
                self._lose_head()
            self.origin |= origin
            return kept


class MemoryCounterStore:
    """`CounterStore` on a `MemoryCounterServer`."""

    def __init__(self, server: MemoryCounterServer) -> None:
        self._server = server
        self._epoch = ""
        self._origin: Mapping[str, str] = {}

    @property
    def _mine(self) -> _Epoch:
        return self._server.epochs.setdefault(self._epoch, _Epoch())

    def bind(self, origin: Mapping[str, str]) -> bool:
        """See `CounterStore.bind`."""
        self._origin = dict(origin)
        return self._server.bind(origin)

    def open(self, new_epoch: str, first: Mapping[str, int]) -> Head:
        """See `CounterStore.open`."""
        with self._server.lock:
            self._server.epoch = self._epoch = self._server.epoch or new_epoch
            for source, offset in first.items():
                self._server.applied.setdefault(source, offset)
            require_origin(self._origin, self._server.origin)
        return self.head()

    def skip_to(self, source: str, offset: int) -> int:
        """See `CounterStore.skip_to`."""
        with self._server.lock:
            self._server.applied[source] = max(offset, self._server.applied.get(source, offset))
            return self._server.applied[source]

    def head(self) -> Head:
        """See `CounterStore.head`."""
        with self._server.lock:
            return Head(self._server.epoch, dict(self._server.applied), dict(self._server.maxima))

    def apply(self, batch: Batch) -> CounterReply:
        """See `CounterStore.apply`. Raises `StateGap` when epoch or applied offset are gone."""
        with self._server.lock:
            applied = self._server.applied.get(batch.source)
            if self._server.epoch != self._epoch or applied is None:
                raise StateGap(f"the applied offset of {batch.source} is lost")
            if applied < batch.start:
                return CounterReply("gap", applied)
            if applied >= batch.end:
                return CounterReply("done", applied)
            if applied > batch.start:
                return CounterReply("trim", applied)
            self._count(batch)
            self._server.applied[batch.source] = batch.end
            return CounterReply("applied", batch.end)

    def _count(self, batch: Batch) -> None:
        mine = self._mine
        for name, value in batch.maxima.items():
            self._raise(name, value)
        for cell, counts in batch.cells.items():
            mine.cells.setdefault(cell, Counter()).update(counts)
            mine.dirty[cell[0]] += 1
            for kind in batch.due:
                mine.due.setdefault(kind, set()).add(cell[0])

    def _raise(self, name: str, value: int) -> None:
        self._server.maxima[name] = max(value, self._server.maxima.get(name, value))

    def changed(self) -> dict[int, int]:
        """See `CounterStore.changed`."""
        with self._server.lock:
            return dict(self._mine.dirty)

    def settle(self, window: int, seen: int) -> None:
        """See `CounterStore.settle`."""
        with self._server.lock:
            if self._mine.dirty.get(window) == seen:
                del self._mine.dirty[window]

    def add_due(self, kind: str, window: int) -> None:
        """See `CounterStore.add_due`."""
        with self._server.lock:
            self._mine.due.setdefault(kind, set()).add(window)

    def come_due(self, kind: str, up_to: int) -> int:
        """See `CounterStore.come_due`."""
        with self._server.lock:
            waiting = self._mine.due.get(kind, set())
            due = {window for window in waiting if window <= up_to}
            waiting -= due
            self._mine.dirty.update(due)
            return len(due)

    def read(self, windows: Iterable[int]) -> dict[Cell, dict[str, int]]:
        """See `CounterStore.read`."""
        wanted = list(windows)
        with self._server.lock:
            return {
                cell: dict(self._mine.cells[cell])
                for cell in sorted(self._mine.cells, key=lambda cell: cell[1])
                if cell[0] in wanted
            }

    def next_revision(self, window: str, above: int = 0) -> int:
        """See `CounterStore.next_revision`."""
        with self._server.lock:
            if self._server.epoch != self._epoch:
                raise StateGap(f"the counts of window {window} are lost")
            self._mine.revisions[window] = max(self._mine.revisions[window], above) + 1
            return self._mine.revisions[window]

    def keep(self, name: str, value: bytes) -> None:
        """See `CounterStore.keep`."""
        with self._server.lock:
            self._mine.kept[name] = value

    def kept(self, name: str) -> bytes | None:
        """See `CounterStore.kept`."""
        with self._server.lock:
            return self._mine.kept.get(name)

    def raise_maximum(self, name: str, value: int) -> None:
        """See `CounterStore.raise_maximum`."""
        with self._server.lock:
            self._raise(name, value)

    def lead(self, who: str, for_ms: int) -> bool:
        """See `CounterStore.lead`."""
        with self._server.lock:
            leader, until = self._server.lead
            if leader not in ("", who) and self._server.now_ms() < until:
                return False
            self._server.lead = (who, self._server.now_ms() + for_ms)
            return True
