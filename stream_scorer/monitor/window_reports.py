"""Turns every changed window into `monitor-metrics` records with a revision.

Only one worker does this at a time: the leader, which holds a lease in Redis. It uses the state in Redis only, so any
other worker can take over.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from stream_scorer.clock import Clock
from stream_scorer.monitor.drift import ProfileMismatch
from stream_scorer.monitor.drift_feed import DriftFeed
from stream_scorer.monitor.maturity import MaturityCurve, curve_figures
from stream_scorer.monitor.metrics import MISMATCHED, REFUSED, WAITING, WATERMARK
from stream_scorer.monitor.rate_figures import Figure, label_sources
from stream_scorer.monitor.reference import ReferenceSource
from stream_scorer.monitor.tally import parse_label
from stream_scorer.monitor.window_gauges import Kind, WindowGauges
from stream_scorer.monitor.windows import WindowRules, figures, merge, negative_fields, watermark
from stream_scorer.observability.metrics import Metrics
from stream_scorer.records import MonitorMetric
from stream_scorer.state.counters import CounterStore, Head

# Names of the maxima that the counter store keeps.
PANE = "pane:"
LABELLED_AT = "labelled_at"
WATERMARK_NAME = "watermark"
# Revisions of figures are above this time in milliseconds, the last start of a monitor: above all that were published
# before Redis lost counters, because a window has less than one revision per millisecond.
REVISIONS_FROM = "revisions_from"
# Retention deleted records before they were counted: panes up to the first time lack transactions, panes up to the
# second lack labels.
LOST_BEFORE, LABELS_LOST_BEFORE = "lost_before", "labels_lost_before"
# The end of the newest pane of another length, whose summary is not counted (event time, ms).
OTHER_PANES_TO = "other_panes_to"
# Events in the life of a window: it closes, and its labels become mature.
CLOSE, MATURE = "close", "mature"
# The start of the newest window that the gauges have shown, by kind, and the event that makes windows of that kind.
SHOWN = "shown:"
SHOWN_AFTER: Mapping[Kind, str] = {"closed": CLOSE, "mature": MATURE}

# Maximum number of panes per turn, so that a turn stays short. Of all panes, of the closed ones and of the mature ones,
# the newest are always among them; the other places, at least half of them, are for the panes that wait longest.
MAX_WINDOWS_PER_TURN = 50
NEWEST_PER_TURN = 8
# Bound of the memory of logged refusals; beyond it they are logged again.
MAX_REFUSED = 1_000
# Lease of the leader: after this time without renewal, another worker becomes the leader.
LEASE_MS = 5_000

_log = logging.getLogger("stream_scorer.monitor.window_reports")


# Offsets of the ends of partitions; those that cannot be looked up are missing.
Ends = Callable[[Sequence[int]], Mapping[int, int]]
# Takes the open drift events, and those that ended recently.
# Ensemble, version and arm.
Subject = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class WindowState:
    """Bounds of a window (event time, ms), its revision, whether it is closed, and the age of its labels in ms.

    `maturity` is the expected share of its labels that have arrived, None if unknown; `final`: its labels are mature.
    """

    start: int
    end: int
    revision: int
    closed: bool
    label_age: int | None
    maturity: float | None = None
    final: bool = False


@dataclass(frozen=True)
class WindowReports:
    """The records of one turn, and the windows to settle once the records are acknowledged."""

    records: list[MonitorMetric]
    settled: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Partitions:
    """The partitions of the summaries.

    Args:
        sources: name of each partition's applied offset in the counter store.
        ends: looks up the ends of partitions.
        idle_s: a partition is idle if its applied offset does not move for this time and is at its end.
    """

    sources: Mapping[int, str]
    ends: Ends
    idle_s: float


class WaitingPanes:
    """Chooses the panes of each turn. None of the panes that wait is passed over for good, old or new."""

    def __init__(self) -> None:
        # The turn in which each pane was found first.
        self._since: dict[int, int] = {}
        self._turn = 0

    def choose(self, waiting: Iterable[int], newest_of: Sequence[int | None]) -> list[int]:
        """The panes of a turn by their start, oldest first. They wait from the beginning if they change again.

        Args:
            waiting: starts of all panes that changed.
            newest_of: for each limit, the newest panes that start at or below it are among them; None: no limit.
        """
        self._turn += 1
        self._since = {start: self._since.get(start, self._turn) for start in waiting}
        newest = sorted(self._since, reverse=True)
        chosen: set[int] = set()
        for limit in newest_of:
            chosen.update([start for start in newest if limit is None or start <= limit][:NEWEST_PER_TURN])
        longest = sorted(self._since.keys() - chosen, key=lambda start: (self._since[start], start))
        chosen.update(longest[: MAX_WINDOWS_PER_TURN - len(chosen)])
        for start in chosen:
            del self._since[start]
        return sorted(chosen)


class WindowReporter:
    """Reads changed windows and returns their records. Its methods block; one thread calls them.

    Args:
        drift: reads the panes that close; None: no drift events.
    """

    def __init__(
        self,
        store: CounterStore,
        rules: WindowRules,
        references: ReferenceSource,
        clock: Clock,
        metrics: Metrics,
        *,
        name: str,
        partitions: Partitions,
        drift: DriftFeed | None,
    ) -> None:
        self._store = store
        self._rules = rules
        self._references = references
        self._clock = clock
        self._metrics = metrics
        metrics.begin(REFUSED, ("all", "labels", "lost"))
        self._name = name
        self._partitions = partitions
        self._unknown_ends: list[int] = []
        self._waiting = WaitingPanes()
        self._drift = drift
        self._moved: dict[int, tuple[int, float]] = {}
        self._gauges = WindowGauges(metrics)
        # Windows whose refusal is logged.
        self._refused: set[tuple[str, str, str, int, int]] = set()
        self._curve = MaturityCurve()

    def turn(self) -> WindowReports:
        """The records of changed windows, oldest first; none if another worker is the leader."""
        if not self._store.lead(self._name, LEASE_MS):
            if self._drift is not None:
                self._drift.resign()
            self._gauges.end()
            self._metrics.set(WAITING, 0)
            return WindowReports([])
        head = self._store.head()
        if not self._gauges.begun:
            self._begin_gauges(head)
        watermark = self._watermark(head)
        newest = self._newest(head)
        newest_of: list[int | None] = [None]
        if watermark is not None:
            self._metrics.set(WATERMARK, watermark / 1000)
            newest_of.append(watermark - self._rules.pane_ms - self._rules.allowed_lateness_ms)
            self._store.come_due(CLOSE, watermark - self._rules.pane_ms - self._rules.allowed_lateness_ms)
        if newest is not None:
            newest_of.append(newest - self._rules.pane_ms - self._rules.horizon_ms)
            self._store.come_due(MATURE, newest - self._rules.pane_ms - self._rules.horizon_ms)
        waiting = self._store.changed()
        changed = {start: waiting[start] for start in self._waiting.choose(waiting, newest_of)}
        self._metrics.set(WAITING, len(waiting) - len(changed))
        lost_before = max(self._lost(head, LOST_BEFORE), head.maxima.get(OTHER_PANES_TO, -1))
        records: list[MonitorMetric] = []
        for panes in self._rules.window_panes:
            for start in sorted({self._rules.start_of(pane, panes) for pane in changed}):
                if start > lost_before:
                    records += self._window(start, panes, watermark, newest, head)
                else:
                    self._metrics.count(REFUSED, 1, "lost")
        self._keep_shown(head)
        if self._drift is not None and watermark is not None:
            # The start of the first pane that is not closed.
            closed_before = self._rules.start_of(watermark - self._rules.allowed_lateness_ms, 1)
            records += self._drift.turn(waiting, closed_before, lost_before)
        return WindowReports(records, changed)

    def end(self) -> None:
        """Remove the gauges of windows: this reporter takes no more turns."""
        self._gauges.end()

    def _begin_gauges(self, head: Head) -> None:
        """Show the newest windows again, which another worker or an earlier run has shown, and no older ones."""
        newest = {kind: at for kind in SHOWN_AFTER if (at := head.maxima.get(f"{SHOWN}{kind}")) is not None}
        for kind, start in newest.items():
            self._store.add_due(SHOWN_AFTER[kind], start)
        self._gauges.begin(newest)

    def _keep_shown(self, head: Head) -> None:
        for kind in SHOWN_AFTER:
            newest, name = self._gauges.newest(kind), f"{SHOWN}{kind}"
            if newest is not None and newest > head.maxima.get(name, -1):
                self._store.raise_maximum(name, newest)

    def _lost(self, head: Head, name: str) -> int:
        """The newest event time, ms, at which a window that lacks deleted records can start; -1 if none are lacking."""
        lost = head.maxima.get(name)
        return -1 if lost is None else lost + self._rules.allowed_lateness_ms

    def settle(self, reports: WindowReports) -> None:
        """Mark the windows of `reports` as reported, after Kafka acknowledged the records.

        After a crash before this call, the next turn reports the windows again with a higher revision.
        """
        if self._drift is not None:
            self._drift.settle()
        for window, seen in reports.settled.items():
            self._store.settle(window, seen)

    def _window(
        self, start: int, panes: int, watermark: int | None, newest: int | None, head: Head
    ) -> list[MonitorMetric]:
        cells = self._store.read(self._rules.panes_of(start, panes))
        if panes == 1:
            self._curve.note(start, merge(cells.values()))
        if not cells:
            return []
        by_label: dict[str, list[Mapping[str, int]]] = {}
        for (_, label), counts in cells.items():
            by_label.setdefault(label, []).append(counts)
        end = start + panes * self._rules.pane_ms
        age = None if newest is None else max(newest - end, 0)
        final = age is not None and age >= self._rules.horizon_ms
        window = WindowState(
            start,
            end,
            self._store.next_revision(f"{start}+{panes}", head.maxima.get(REVISIONS_FROM, 0)),
            self._rules.closed(end, watermark),
            age,
            1.0 if final else self._maturity(age, newest),
            final,
        )
        if panes > 1:
            self._await_end(window)
        labels_lost_before = self._lost(head, LABELS_LOST_BEFORE)
        records = []
        for label, parts in sorted(by_label.items()):
            subject = parse_label(label)
            merged = merge(parts)
            lost = start <= labels_lost_before
            found = self._figures(parts, merged, subject, window, labels_lost=lost)
            if panes == 1 and final and not lost:
                found += curve_figures(merged)
            sources = label_sources(merged)
            records += [record_of(figure, subject, window, merged.get("n", 0), sources) for figure in found]
            if window.closed:
                self._gauges.show_closed(subject, window.start, found)
            if window.final and age is not None:
                self._gauges.show_mature(subject, window.start, found, age)
        return records

    def _await_end(self, window: WindowState) -> None:
        """Report a window of several panes when it closes and when it is final, even if its last pane is empty."""
        last_pane = window.end - self._rules.pane_ms
        for kind, reached in ((CLOSE, window.closed), (MATURE, window.final)):
            if not reached:
                self._store.add_due(kind, last_pane)

    def _maturity(self, age: int | None, newest: int | None) -> float | None:
        """The share of labels that arrive by `age`, from the newest mature panes; reads those that are not noted."""
        if age is None or newest is None:
            return None
        pane_ms, horizon_ms = self._rules.pane_ms, self._rules.horizon_ms
        mature = self._rules.start_of(newest - horizon_ms, 1) - pane_ms
        missing = self._curve.missing(mature, pane_ms)
        if missing:
            by_pane: dict[int, list[Mapping[str, int]]] = {pane: [] for pane in missing}
            for (pane, _), counts in self._store.read(missing).items():
                by_pane[pane].append(counts)
            for pane, parts in by_pane.items():
                self._curve.note(pane, merge(parts))
        return self._curve.share(age, horizon_ms, mature)

    def _figures(
        self,
        parts: list[Mapping[str, int]],
        counts: Mapping[str, int],
        subject: Subject,
        window: WindowState,
        *,
        labels_lost: bool,
    ) -> list[Figure]:
        """The figures of `counts`, the sum of `parts`; those that negative or lost counts make wrong are refused."""
        ensemble, version, _ = subject
        of_transactions, of_labels = negative_fields(parts)
        if of_transactions:
            self._refuse("all", subject, window, f"{', '.join(of_transactions)}: are summaries corrupt?")
            return []
        if of_labels:
            why = f"{', '.join(of_labels)}: retention of the topic `outcomes` is shorter than the age of labels"
            self._refuse("labels", subject, window, why)
        complete = not of_labels and not labels_lost
        profile = self._references.profile(ensemble, version)
        members = self._references.members(ensemble, version)
        try:
            return figures(counts, profile, self._rules, members, labels_complete=complete)
        except ProfileMismatch as error:
            # The scorer used another reference profile. All figures except drift are still valid.
            self._metrics.count(MISMATCHED)
            _log.warning("drift of %s %s is not computed: %s", ensemble, version, error)
            return figures(counts, None, self._rules, members, labels_complete=complete)

    def _refuse(self, what: str, subject: Subject, window: WindowState, why: str) -> None:
        self._metrics.count(REFUSED, 1, what)
        key = (*subject, window.start, window.end)
        if key in self._refused:
            return
        if len(self._refused) >= MAX_REFUSED:
            self._refused.clear()
        self._refused.add(key)
        text = f"window {window.start}: figures ({what}) are refused, because counts are negative: {why}"
        _log.error("%s %s: %s", *subject[:2], text)

    def _watermark(self, head: Head) -> int | None:
        now, sources = self._clock.monotonic(), self._partitions.sources
        for partition, source in sources.items():
            at = head.applied.get(source, 0)
            if partition not in self._moved or self._moved[partition][0] != at:
                self._moved[partition] = (at, now)
        silent = [p for p in sources if now - self._moved[p][1] > self._partitions.idle_s]
        idle = [str(p) for p in self._at_end(silent, head)]
        shown = watermark({str(p): head.maxima.get(f"{PANE}{p}") for p in sources}, idle)
        kept = head.maxima.get(WATERMARK_NAME)
        if shown is not None and (kept is None or shown > kept):
            self._store.raise_maximum(WATERMARK_NAME, shown)
            return shown
        # The watermark never decreases, so a closed window stays closed.
        return kept

    def _at_end(self, silent: list[int], head: Head) -> list[int]:
        """Those of the partitions `silent` that have nothing unread; one whose end is unknown may have a backlog."""
        ends, sources = self._partitions.ends(silent) if silent else {}, self._partitions.sources
        unknown = [p for p in silent if p not in ends]
        if unknown and unknown != self._unknown_ends:
            _log.warning("windows do not close: the ends of partitions %s of the summaries are not known", unknown)
        self._unknown_ends = unknown
        return [p for p in silent if p in ends and head.applied.get(sources[p], 0) >= ends[p]]

    def _newest(self, head: Head) -> int | None:
        times = [value for name, value in head.maxima.items() if name.startswith(PANE) or name == LABELLED_AT]
        return max(times, default=None)


def record_of(
    figure: Figure, subject: Subject, window: WindowState, rows: int, sources: Mapping[str, int]
) -> MonitorMetric:
    """The record of one figure of one window; `sources` counts its labels by source."""
    ensemble, version, arm = subject
    return MonitorMetric(
        metric=figure.metric,
        dimension=figure.dimension,
        window_start=window.start,
        window_end=window.end,
        revision=window.revision,
        closed=window.closed,
        ensemble=ensemble,
        version=version,
        value=figure.value,
        low=figure.low,
        high=figure.high,
        numerator=figure.numerator,
        denominator=figure.denominator,
        rows=rows,
        label_age=window.label_age if figure.labelled else None,
        statistics=dict(figure.statistics),
        arm=arm,
        interval_low=None if figure.interval is None else figure.interval[0],
        interval_high=None if figure.interval is None else figure.interval[1],
        maturity=window.maturity if figure.labelled else None,
        final=window.final if figure.labelled else None,
        label_sources=dict(sources) if figure.labelled else {},
    )


def record_key(record: MonitorMetric) -> bytes:
    """The Kafka key of one figure of one window. A later revision has the same key."""
    parts = (
        str(record.window_start),
        str(record.window_end - record.window_start),
        record.ensemble,
        record.version,
        record.arm,
        record.metric,
        record.dimension,
    )
    return "|".join(parts).encode()
