"""Feeds the closed windows of the counter store to a drift detector per ensemble, and keeps its state in the store.

The state is saved after the records of a turn are acknowledged. After a crash before that, or with a new leader, the
same windows are read again and give the same events with the same ids. After a loss of Redis, the windows are counted
again from the log, so the detector sees them again, as far back as the topic reaches.

An ensemble whose champion has no manifest, because the registry is away, waits at its pane, and the others go on. The
wait is bounded (`manifest_waits`), as the version may be deleted.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream_scorer.clock import Clock, SystemClock
from stream_scorer.ensemble.manifest import Manifest
from stream_scorer.monitor.drift import ProfileMismatch
from stream_scorer.monitor.drift_attribution import chronic_shifts
from stream_scorer.monitor.drift_events import DriftDetector
from stream_scorer.monitor.drift_series import DECISION, describe
from stream_scorer.monitor.drift_types import (
    DAY_MS,
    WEEK_MS,
    ChronicShift,
    DriftEvent,
    DriftReport,
    DriftRules,
    DriftWindow,
    SeriesInfo,
)
from stream_scorer.monitor.manifest_waits import ManifestWaits, Version
from stream_scorer.monitor.metrics import DRIFT_EVENT, DRIFT_EVIDENCE, DRIFT_LEARNING, DRIFT_THRESHOLD, MISMATCHED
from stream_scorer.monitor.tally import parse_label
from stream_scorer.monitor.windows import histograms
from stream_scorer.observability.metrics import Metrics
from stream_scorer.records import ARMS, DECISIONS, MonitorMetric
from stream_scorer.spec.model import CheckedSpec
from stream_scorer.state.counters import Cell, CounterStore

# Maximum number of panes per turn, so that a backlog does not delay other figures.
MAX_PANES_PER_TURN = 48
# Panes between two saves of the state: it has a few megabytes.
SAVE_EVERY = 24
# The detector looks back four weeks; older panes are not worth reading after a gap.
MAX_GAP_MS = 5 * WEEK_MS
# Series with the most evidence that are published for each window.
SERIES_SHOWN = 5
# Ended events that `events` returns besides the open ones.
ENDED_KEPT = 20
OnDrift = Callable[[Sequence[DriftEvent]], None]
STATES = ("learning", "watching", "alarm")

_log = logging.getLogger("stream_scorer.monitor.drift")


class Manifests(Protocol):
    """Returns the manifest of an ensemble version; None if it is unknown."""

    def manifest(self, ensemble: str, version: str) -> Manifest | None:
        """The manifest, if it is known."""
        ...


@dataclass(slots=True)
class _Stream:
    """One ensemble: its detector, and the series of its newest version.

    `replaced` are events that ended because a new version lacks their series, and that the next report includes.
    """

    detector: DriftDetector
    series: Mapping[str, SeriesInfo]
    ended: deque[DriftEvent] = field(default_factory=lambda: deque(maxlen=ENDED_KEPT))
    shown: set[tuple[str, str, str]] = field(default_factory=set)
    replaced: list[DriftEvent] = field(default_factory=list)


class DriftFeed:
    """Reads closed panes in order and returns the records of what the detector finds. Used by one thread.

    Args:
        false_alarms_per_year: of each ensemble, over all series and versions.
        on_events: gets `events` after each turn whose records are acknowledged.
        clock: measures how long a manifest is waited for; None: the machine's.
    """

    def __init__(
        self,
        store: CounterStore,
        checked: CheckedSpec,
        manifests: Manifests,
        metrics: Metrics,
        *,
        pane_ms: int,
        false_alarms_per_year: float,
        on_events: OnDrift,
        clock: Clock | None = None,
    ) -> None:
        self._store = store
        self._checked = checked
        self._manifests = manifests
        self._metrics = metrics
        self._pane_ms = pane_ms
        self._budget = false_alarms_per_year
        self._on_events = on_events
        self._streams: dict[str, _Stream] = {}
        self._described: dict[tuple[str, str], Mapping[str, SeriesInfo]] = {}
        self._next: int | None = None
        self._saved = 0
        self._unsaved_event = False
        self._waits = ManifestWaits(store, clock or SystemClock())
        # Champions without a manifest, by ensemble: whose panes are not read, the first of them, and the end of the
        # last turn that read the others.
        self._missing: dict[str, str] = {}
        self._waits_at: int | None = None
        self._read_to = 0

    def turn(self, changed: Iterable[int], closed_before: int, lost_before: int = -1) -> list[MonitorMetric]:
        """The records of the panes that start before `closed_before` and were not read yet.

        Args:
            changed: starts of panes with changes; the first of them is where the detector begins without a state.
            lost_before: panes that start here or earlier lack deleted summaries, and are not read.
        """
        first = self._first(changed, closed_before)
        if first is None or first >= closed_before:
            return []
        if self._missing and closed_before == self._read_to and not self._found():
            return []
        self._missing, self._waits_at, self._read_to = {}, None, closed_before
        panes = range(first, min(closed_before, first + MAX_PANES_PER_TURN * self._pane_ms), self._pane_ms)
        cells = self._store.read(panes)
        by_pane: dict[int, dict[Cell, dict[str, int]]] = {}
        for cell, counts in cells.items():
            by_pane.setdefault(cell[0], {})[cell] = counts
        records: list[MonitorMetric] = []
        for pane in panes:
            if pane > lost_before:
                records += self._pane(pane, by_pane.get(pane, {}))
        self._next = panes[-1] + self._pane_ms if self._waits_at is None else self._waits_at
        self._waits.log(set(self._missing.items()), (closed_before - self._next) // self._pane_ms)
        return records

    def settle(self) -> None:
        """The records of the last turn are acknowledged: save the state if it is time, and pass the events on."""
        self._save()
        self._on_events(self.events())

    def _save(self) -> None:
        """Save the state after events, and every few panes.

        Panes since then are read again after a restart; the counter store has them for days.
        """
        if self._next is None or not (self._unsaved_event or self._next - self._saved >= SAVE_EVERY * self._pane_ms):
            return
        for ensemble, stream in self._streams.items():
            self._store.keep(f"drift:{ensemble}", stream.detector.dump())
            self._store.keep(f"drift-ended:{ensemble}", msgspec.json.encode(list(stream.ended)))
        # Last: a detector that is ahead ignores the panes it has seen, one that is behind would lose some.
        self._store.keep("drift-next", str(self._next).encode())
        self._saved, self._unsaved_event = self._next, False

    def resign(self) -> None:
        """Another worker leads: forget the state, which that worker continues, and withdraw the gauges."""
        for ensemble, stream in self._streams.items():
            for labels in stream.shown:
                self._metrics.set(DRIFT_EVENT, 0, ensemble, *labels[1:])
            for metric in (DRIFT_LEARNING, DRIFT_EVIDENCE, DRIFT_THRESHOLD):
                self._metrics.remove(metric, ensemble)
        self._streams.clear()
        self._next = None
        self._missing = {}
        self._waits.forget()

    def events(self) -> list[DriftEvent]:
        """The open events, and the newest that ended; empty until this worker has read a pane as the leader."""
        return [e for s in self._streams.values() for e in (*s.detector.open_events, *s.ended)]

    def _first(self, changed: Iterable[int], closed_before: int) -> int | None:
        """The next pane to read."""
        if self._next is None:
            kept = self._store.kept("drift-next")
            known = [pane for pane in changed if pane < closed_before]
            self._next = int(kept) if kept is not None else min(known, default=None)
            self._saved = self._next if kept is not None and self._next is not None else 0
        if self._next is not None and closed_before - self._next > MAX_GAP_MS:
            self._next = closed_before - MAX_GAP_MS
        return self._next

    def _pane(self, pane: int, cells: Mapping[Cell, Mapping[str, int]]) -> list[MonitorMetric]:
        by_ensemble: dict[str, dict[tuple[str, str], Mapping[str, int]]] = {}
        for (_, label), counts in cells.items():
            ensemble, version, arm = parse_label(label)
            by_ensemble.setdefault(ensemble, {})[version, arm] = counts
        records = []
        for ensemble, parts in sorted(by_ensemble.items()):
            champions = {version: counts.get("n", 0) for (version, arm), counts in parts.items() if arm == ARMS[0]}
            if not any(champions.values()):
                continue
            version = max(champions, key=lambda each: (champions[each], each))
            stream = self._stream(ensemble, version, pane)
            if stream is None:
                continue
            window = self._window(pane, ensemble, version, stream, parts)
            report = stream.detector.update(window)
            report = replace(report, events=[*stream.replaced, *report.events])
            stream.replaced = []
            records += self._report(stream, window, report)
        return records

    def _found(self) -> bool:
        """Whether a manifest that was missing is there, or is not waited for any more."""
        # All of them, as each counts its own time.
        waits = [self._series(*version) is None and self._waits.waits(version) for version in self._missing.items()]
        return not all(waits)

    def _stream(self, ensemble: str, version: str, pane: int) -> _Stream | None:
        """The detector of an ensemble, with the series of this version; None if it has read this pane or must not."""
        stream = self._streams.get(ensemble)
        # The panes after one that waits must wait too, whatever their version.
        if ensemble in self._missing or _has_read(stream, pane):
            return None
        series = self._series(ensemble, version)
        if series is None:
            self._pass_or_wait((ensemble, version), pane)
            return None
        if stream is None:
            stream = self._streams[ensemble] = self._restored(ensemble, series)
            if _has_read(stream, pane):
                return None
        if stream.series != series:
            self._replace(stream, series)
        return stream

    def _pass_or_wait(self, version: Version, pane: int) -> None:
        if not self._waits.waits(version):
            self._waits.passed(version)
            return
        self._missing[version[0]] = version[1]
        self._waits_at = pane if self._waits_at is None else self._waits_at

    @staticmethod
    def _replace(stream: _Stream, series: Mapping[str, SeriesInfo]) -> None:
        """Continue with the series of another version, and end the events that the new detector cannot end."""
        before, ended = stream.detector, stream.detector.last
        stream.detector, stream.series = before.with_series(series), series
        kept = {event.id for event in stream.detector.open_events}
        gone = [event for event in before.open_events if event.id not in kept]
        stream.replaced += [replace(event, status="replaced", ended=ended) for event in gone]

    def _restored(self, ensemble: str, series: Mapping[str, SeriesInfo]) -> _Stream:
        detector = DriftDetector(DriftRules(self._pane_ms, self._budget, series))
        kept = self._store.kept(f"drift:{ensemble}")
        if kept is not None:
            try:
                restored = DriftDetector.restored(kept, self._budget)
                if restored.pane_ms != self._pane_ms:
                    raise ValueError(f"its panes have {restored.pane_ms} ms, those of the spec {self._pane_ms} ms")
                detector = restored
            except ValueError as error:
                _log.warning("the drift detector of %s learns again: %s", ensemble, error)
        ended = self._store.kept(f"drift-ended:{ensemble}")
        try:
            events = [] if ended is None else msgspec.json.decode(ended, type=list[DriftEvent])
        except msgspec.DecodeError as error:  # of another release
            _log.warning("the ended drift events of %s cannot be read: %s", ensemble, error)
            events = []
        return _Stream(detector, detector.series, deque(events, maxlen=ENDED_KEPT))

    def _series(self, ensemble: str, version: str) -> Mapping[str, SeriesInfo] | None:
        key = (ensemble, version)
        if key not in self._described:
            manifest = self._manifests.manifest(ensemble, version)
            if manifest is None:
                return None
            self._described[key] = describe(self._checked, manifest)
        return self._described[key]

    def _window(
        self,
        pane: int,
        ensemble: str,
        version: str,
        stream: _Stream,
        parts: Mapping[tuple[str, str], Mapping[str, int]],
    ) -> DriftWindow:
        """The sum of all versions and arms, where their series have the same key as those of the champion."""
        total: dict[str, np.ndarray] = {}
        for (other, _), counts in parts.items():
            series = self._series(ensemble, other)
            if series is None:
                continue
            same = {name: i for name, i in stream.series.items() if name in series and series[name].key == i.key}
            try:
                found = series_counts(counts, same)
            except ProfileMismatch:
                self._metrics.count(MISMATCHED)
                continue
            for name, histogram in found.items():
                total[name] = total[name] + histogram if name in total else histogram
        rows = sum(counts.get("n", 0) for counts in parts.values())
        incomplete = sum(counts.get("inc", 0) for counts in parts.values())
        return DriftWindow(pane, rows, total, ensemble, version, incomplete)

    def _report(self, stream: _Stream, window: DriftWindow, report: DriftReport) -> list[MonitorMetric]:
        """The records of one window; also sets the gauges."""
        ensemble = window.ensemble
        self._metrics.set(DRIFT_LEARNING, int(report.state == "learning"), ensemble)
        self._metrics.set(DRIFT_EVIDENCE, report.log_evidence, ensemble)
        self._metrics.set(DRIFT_THRESHOLD, report.threshold, ensemble)
        for event in report.events:
            self._unsaved_event = True
            labels = (event.id, event.kind, event.series[0].info.name)
            self._metrics.set(DRIFT_EVENT, int(event.status == "open"), ensemble, *labels[1:])
            if event.status == "open":
                stream.shown.add(labels)
                _log.warning("drift event %s: %s of %s", event.id, event.kind, ", ".join(event.fields) or labels[2])
            else:
                stream.ended.append(event)
                _log.info("drift event %s has ended: %s", event.id, event.status)
        return [
            *_window_records(window, report, self._pane_ms),
            *(_event_record(event) for event in report.events),
            *(self._chronic(stream, window) if (window.start + self._pane_ms) % DAY_MS == 0 else ()),
        ]

    def _chronic(self, stream: _Stream, window: DriftWindow) -> list[MonitorMetric]:
        """Once a day, the permanent difference of the last week from the training profile, with its price."""
        manifest = self._manifests.manifest(window.ensemble, window.version)
        if manifest is None:
            return []
        profile = {name: np.asarray(series.counts) for name, series in manifest.reference_profile.items()}
        shifts = chronic_shifts(list(stream.series.values()), stream.detector.last_week(), profile)
        end = window.start + self._pane_ms
        week = replace(window, start=end - WEEK_MS)
        return [
            _record(
                week, end, "drift_chronic", s.series, s.distance, {"psi": s.psi, "ks": s.ks, "price": s.price}, s.rows
            )
            for s in shifts
        ]


def _has_read(stream: _Stream | None, pane: int) -> bool:
    return stream is not None and stream.detector.last is not None and stream.detector.last >= pane


def _statistics(shift: ChronicShift) -> dict[str, float | int | None]:
    return {"psi": shift.psi, "ks": shift.ks, "price": shift.price}


def series_counts(counts: Mapping[str, int], series: Mapping[str, SeriesInfo]) -> dict[str, NDArray[np.int64]]:
    """The histograms of `series` in the counts of a window. Raises `ProfileMismatch` if these have other bins."""
    found = histograms(counts, {name: len(info.edges) + 2 for name, info in series.items() if name != DECISION})
    if DECISION in series:
        found[DECISION] = np.array([*(counts.get(f"d:{each}", 0) for each in DECISIONS), 0], dtype=np.int64)
    return found


def _window_records(window: DriftWindow, report: DriftReport, pane_ms: int) -> list[MonitorMetric]:
    """The state of the detector, and the series with the most evidence."""
    statistics: dict[str, float | int | None] = {
        "threshold": report.threshold,
        "missing_windows": report.missing_windows,
        "incomplete": window.incomplete,
    }
    end = window.start + pane_ms
    found = [
        _record(window, end, "drift_state", report.state, float(STATES.index(report.state))),
        _record(window, end, "drift_evidence", "", report.log_evidence, statistics),
    ]
    strongest = sorted(report.evidence.items(), key=lambda item: (-item[1], item[0]))[:SERIES_SHOWN]
    return found + [_record(window, end, "drift_evidence", name, value) for name, value in strongest if value > 0]


def _event_record(event: DriftEvent) -> MonitorMetric:
    """One event: its window spans it from the first changed window to the one that completed the evidence."""
    statistics: dict[str, float | int | None] = {
        "rows": event.rows,
        "windows": event.windows,
        "run_length": event.run_length,
        "series": len(event.series),
        "ended": event.ended,
    }
    return MonitorMetric(
        metric="drift_event",
        dimension=f"{event.kind}:{event.series[0].info.name}",
        window_start=event.first_window,
        window_end=event.detected_window + event.pane_ms,
        revision=1 if event.status == "open" else 2,
        closed=event.status != "open",
        ensemble=event.ensemble,
        version=event.version,
        value=event.log_evidence,
        low=None,
        high=None,
        numerator=None,
        denominator=None,
        rows=event.rows,
        label_age=None,
        statistics=statistics,
    )


def _record(
    window: DriftWindow,
    end: int,
    metric: str,
    dimension: str,
    value: float,
    statistics: dict[str, float | int | None] | None = None,
    rows: int | None = None,
) -> MonitorMetric:
    return MonitorMetric(
        metric=metric,
        dimension=dimension,
        window_start=window.start,
        window_end=end,
        revision=1,
        closed=True,
        ensemble=window.ensemble,
        version=window.version,
        value=value,
        low=None,
        high=None,
        numerator=None,
        denominator=None,
        rows=window.rows if rows is None else rows,
        label_age=None,
        statistics=statistics or {},
    )
