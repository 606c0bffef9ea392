"""Deliberate faults of the in-memory parts, one at a time, and runs of the contract suites that must find them."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from stream_scorer.positions import SourcePartition
from stream_scorer.serde.raw import RawRecords, Read
from stream_scorer.state.counters import Batch, CounterReply
from stream_scorer.state.rows import RowUpdate
from tests.support import kafka_parts
from tests.support.broker import Entry, MemoryBroker, MemoryLog, MemoryProducers, MemoryReader, MemoryTransaction
from tests.support.counters import MemoryCounterStore
from tests.support.rows import MemoryAppliedRows

SUITES = Path(__file__).parents[1] / "contract"


@dataclass(frozen=True, slots=True)
class Fault:
    """`part` does something wrong when its `method` is replaced by what `make` makes of it; `suite` must find it."""

    title: str
    part: type
    method: str
    suite: str
    make: Callable[[Callable[..., Any]], Callable[..., Any]]


def _stale_offsets(commit: Callable[..., None]) -> Callable[..., None]:
    def wrong(self: MemoryBroker, number: int, offsets: Mapping[SourcePartition, int], metadata: Any) -> None:
        self.offsets.update(offsets)
        commit(self, number, offsets, metadata)

    return wrong


def _uncommitted(_read: Callable[..., Any]) -> Callable[..., list[tuple[int, Entry]]]:
    def wrong(self: MemoryBroker, source: SourcePartition, start: int, most: int) -> list[tuple[int, Entry]]:
        found = [(o, e) for o, e in enumerate(self.log[source]) if o >= start and not e.control]
        return found[:most]

    return wrong


def _no_fencing(_register: Callable[..., int]) -> Callable[..., int]:
    return lambda self, name: self._epochs.setdefault(name, 1)


def _repeats(read: Callable[..., Read]) -> Callable[..., Read]:
    def wrong(self: MemoryReader, most: int) -> Read:
        found = read(self, most)
        for source, (start, stop) in found.positions.items():
            self._position[source] = max(start, stop - (stop == 5))
        return found

    return wrong


def _too_many(read: Callable[..., Read]) -> Callable[..., Read]:
    return lambda self, most: read(self, most + 1)


def _forgets_revocation(give_up: Callable[..., None]) -> Callable[..., None]:
    def wrong(self: MemoryReader, *, lost: bool) -> None:
        with patch.object(self, "_on_revoked", lambda _lost: None):
            give_up(self, lost=lost)

    return wrong


def _one_more(read: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(self: MemoryLog, source: SourcePartition, start: int, stop: int) -> Sequence[RawRecords]:
        return list(read(self, source, start, stop + 1))

    return wrong


def _abort_commits(_abort: Callable[..., None]) -> Callable[..., None]:
    return lambda self: self._broker.commit(self._number, {}, None)


def _one_producer(_next: Callable[..., MemoryTransaction]) -> Callable[..., MemoryTransaction]:
    def wrong(self: MemoryProducers) -> MemoryTransaction:
        slot = self._slots[0]
        slot.epoch = self._broker.register(slot.name)
        return MemoryTransaction(self._broker, slot, self._life)

    return wrong


def _accepts_gaps(apply: Callable[..., None]) -> Callable[..., None]:
    def wrong(self: MemoryAppliedRows, update: RowUpdate) -> None:
        for span in update.spans:
            applied = self._server.applied.get(span.source)
            if applied is not None and applied[0] < span.start:
                self._server.applied[span.source] = (span.start, *applied[1:])
        apply(self, update)

    return wrong


def _applies_again(apply: Callable[..., None]) -> Callable[..., None]:
    def wrong(self: MemoryAppliedRows, update: RowUpdate) -> None:
        for span in update.spans:
            applied = self._server.applied.get(span.source)
            if applied is not None:
                self._server.applied[span.source] = (min(applied[0], span.start), *applied[1:])
        apply(self, update)

    return wrong


def _forgets_rows_seen(read: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(self: MemoryAppliedRows, keys: Sequence[bytes]) -> Any:
        self._server.seen.clear()
        return read(self, keys)

    return wrong


def _counts_twice(apply: Callable[..., CounterReply]) -> Callable[..., CounterReply]:
    def wrong(self: MemoryCounterStore, batch: Batch) -> CounterReply:
        reply = apply(self, batch)
        if reply.status == "done":
            self._count(batch)
        return reply

    return wrong


def _settles_all(settle: Callable[..., None]) -> Callable[..., None]:
    return lambda self, window, seen: settle(self, window, self.changed().get(window, seen))


FAULTS = [
    Fault("offsets are kept when a commit is refused", MemoryBroker, "commit", "test_transactions.py", _stale_offsets),
    Fault("open and aborted records are read", MemoryBroker, "read_committed", "test_reader.py", _uncommitted),
    Fault("a newer producer does not fence", MemoryBroker, "register", "test_transactions.py", _no_fencing),
    Fault("a record is read twice", MemoryReader, "_read", "test_reader.py", _repeats),
    Fault("a read brings one record too many", MemoryReader, "_read", "test_reader.py", _too_many),
    Fault("partitions go without a callback", MemoryReader, "_give_up", "test_reader.py", _forgets_revocation),
    Fault("a range has one record too many", MemoryLog, "read", "test_transactions.py", _one_more),
    Fault("an abort commits", MemoryTransaction, "abort", "test_transactions.py", _abort_commits),
    Fault("both transactions share a producer", MemoryProducers, "next", "test_transactions.py", _one_producer),
    Fault("an update after a gap is applied", MemoryAppliedRows, "_apply", "test_rows.py", _accepts_gaps),
    Fault("an update sent again is applied again", MemoryAppliedRows, "_apply", "test_rows.py", _applies_again),
    Fault("a lost row reads as never seen", MemoryAppliedRows, "read", "test_rows.py", _forgets_rows_seen),
    Fault("a batch sent again counts again", MemoryCounterStore, "apply", "test_counters.py", _counts_twice),
    Fault("settling forgets later changes", MemoryCounterStore, "settle", "test_counters.py", _settles_all),
]
PARTS = {fault.part for fault in FAULTS}


@dataclass(slots=True)
class Outcome:
    """Cases by name, the same name in memory and on real parts. A case that did not pass has failed."""

    collected: set[str] = field(default_factory=set)
    passed: set[str] = field(default_factory=set)
    first_failed: str = ""
    output: str = ""

    @property
    def failed(self) -> set[str]:
        return self.collected - self.passed

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Called by pytest."""
        self.collected = {_case(item.nodeid) for item in session.items}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called by pytest."""
        if report.when == "call" and report.passed:
            self.passed.add(_case(report.nodeid))
        elif report.failed:
            self.passed.discard(_case(report.nodeid))
            self.first_failed = self.first_failed or _case(report.nodeid)


def _case(nodeid: str) -> str:
    name, _, parameters = nodeid.partition("[")
    return name.rpartition("/")[2] + re.sub("memory|kafka|redis|]$", "", parameters)


def run_suites(*names: str, real: bool, collect_only: bool = False, stop_early: bool = False) -> Outcome:
    """Run the suites in this process, in memory or on real parts."""
    outcome, text = Outcome(), io.StringIO()
    options = ["-m", "integration" if real else "not integration", "-p", "no:cacheprovider", "-o", "timeout=0"]
    # Without the plugin that collects garbage several times at the end of every run.
    options += ["-p", "no:faulthandler", "-p", "no:unraisableexception", "-p", "no:threadexception"]
    options += ["--collect-only"] if collect_only else []
    options += ["-x"] if stop_early else []
    patience = kafka_parts.PATIENCE_S if real else 2.0
    with contextlib.redirect_stdout(text), patch.object(kafka_parts, "PATIENCE_S", patience):
        pytest.main([*options, *[str(SUITES / name) for name in names]], plugins=[outcome])
    outcome.output = text.getvalue()
    return outcome


def run_with(fault: Fault) -> Outcome:
    """Run the suite that must find `fault`, in memory, until its first failure."""
    wrong = fault.make(getattr(fault.part, fault.method))
    with patch.object(fault.part, fault.method, wrong):
        return run_suites(fault.suite, real=False, stop_early=True)
