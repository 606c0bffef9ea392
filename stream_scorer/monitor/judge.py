"""Says what the windows show: every window that changed becomes `monitor-metrics` records, with a revision.

One judge speaks at a time: the holder of the lead in Redis. It decides from Redis alone, so any worker can take over.
Nothing here acts on what it sees.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from stream_scorer.clock import Clock
from stream_scorer.monitor.metrics import ALERT_RATE, DRIFT_SCORE, FPR_HIGH, FPR_LOW, LABEL_AGE, MISMATCHED, WATERMARK
from stream_scorer.monitor.reference import ReferenceSource
from stream_scorer.monitor.tally import parse_label
from stream_scorer.monitor.windows import Figure, WindowRules, figures, merge, watermark
from stream_scorer.observability.metrics import Metrics
from stream_scorer.records import MonitorMetric
from stream_scorer.state.counters import CounterStore, Head

# Names of maxima in the store's head.
PANE = "pane:"
LABELLED_AT = "labelled_at"
WATERMARK_NAME = "watermark"
# Kinds of things that become due for a window.
CLOSE, MATURE = "close", "mature"

# Windows judged in one turn: bounds how long a backlog keeps the others waiting.
WINDOWS_A_TURN = 50
# Without the lead being renewed for this long, another worker takes it.
LEAD_MS = 5_000

_log = logging.getLogger("stream_scorer.monitor.judge")


@dataclass(frozen=True)
class WindowReports:
    """What one turn has to say, and what to settle once it is said."""

    records: list[MonitorMetric]
    settled: Mapping[int, int] = field(default_factory=dict)


class Judge:
    """Reads changed windows and turns them into records. Blocking; call it from one thread."""

    def __init__(
        self,
        store: CounterStore,
        rules: WindowRules,
        references: ReferenceSource,
        clock: Clock,
        metrics: Metrics,
        *,
        name: str,
        partitions: Iterable[int],
        sources: Mapping[int, str],
        idle_s: float,
    ) -> None:
        """`sources` names the mark of each partition of the summaries; one that stays put for `idle_s` is idle."""
        self._store = store
        self._rules = rules
        self._references = references
        self._clock = clock
        self._metrics = metrics
        self._name = name
        self._partitions = list(partitions)
        self._sources = dict(sources)
        self._idle_s = idle_s
        self._moved: dict[int, tuple[int, float]] = {}
        self._newest_shown: dict[tuple[str, str], int] = {}

    def turn(self) -> WindowReports:
        """Records of the windows that changed, oldest first; nothing while another worker has the lead."""
        if not self._store.lead(self._name, LEAD_MS):
            return WindowReports([])
        head = self._store.head()
        mark = self._watermark(head)
        newest = self._newest(head)
        if mark is not None:
            self._metrics.set(WATERMARK, mark / 1000)
            late = self._rules.pane_ms + self._rules.allowed_lateness_ms
            self._store.come_due(CLOSE, mark - late)
        if newest is not None:
            self._store.come_due(MATURE, newest - self._rules.pane_ms - self._rules.horizon_ms)
        changed = dict(sorted(self._store.changed().items())[:WINDOWS_A_TURN])
        records = []
        for panes in self._rules.window_panes:
            for start in sorted({self._rules.start_of(pane, panes) for pane in changed}):
                records += self._window(start, panes, mark, newest)
        return WindowReports(records, changed)

    def settle(self, verdicts: WindowReports) -> None:
        """Call it when the records are acknowledged: a crash before repeats them with the next revision."""
        for window, seen in verdicts.settled.items():
            self._store.settle(window, seen)

    def _window(self, start: int, panes: int, mark: int | None, newest: int | None) -> list[MonitorMetric]:
        cells = self._store.read(self._rules.panes_of(start, panes))
        by_label: dict[str, list[Mapping[str, int]]] = {}
        for (_, label), counts in cells.items():
            by_label.setdefault(label, []).append(counts)
        end = start + panes * self._rules.pane_ms
        revision = self._store.next_revision(f"{start}+{panes}")
        closed = self._rules.closed(end, mark)
        age = None if newest is None else max(newest - end, 0)
        records = []
        for label, parts in sorted(by_label.items()):
            ensemble, version, arm = parse_label(label)
            merged = merge(parts)
            found = self._figures(merged, ensemble, version)
            records += [
                record_of(figure, ensemble, version, arm, start, end, revision, closed, age, merged.get("n", 0))
                for figure in found
            ]
            self._show(found, (ensemble, version, arm), start, closed, age)
        return records

    def _figures(self, counts: Mapping[str, int], ensemble: str, version: str) -> list[Figure]:
        profile = self._references.profile(ensemble, version)
        try:
            return figures(counts, profile, self._rules)
        except ValueError as error:
            # The scorer counted on another profile than we were given: everything but drift still holds.
            self._metrics.count(MISMATCHED)
            _log.warning("no drift for %s %s: %s", ensemble, version, error)
            return figures(counts, None, self._rules)

    def _watermark(self, head: Head) -> int | None:
        now = self._clock.monotonic()
        for partition in self._partitions:
            at = head.marks.get(self._sources[partition], 0)
            if partition not in self._moved or self._moved[partition][0] != at:
                self._moved[partition] = (at, now)
        idle = [str(p) for p in self._partitions if now - self._moved[p][1] > self._idle_s]
        shown = watermark({str(p): head.maxima.get(f"{PANE}{p}") for p in self._partitions}, idle)
        kept = head.maxima.get(WATERMARK_NAME)
        if shown is not None and (kept is None or shown > kept):
            self._store.raise_maximum(WATERMARK_NAME, shown)
            return shown
        # It never goes back: what was closed stays closed.
        return kept

    def _newest(self, head: Head) -> int | None:
        times = [value for name, value in head.maxima.items() if name.startswith(PANE) or name == LABELLED_AT]
        return max(times, default=None)

    def _show(self, found: list[Figure], who: tuple[str, str, str], start: int, closed: bool, age: int | None) -> None:
        mature = age is not None and age >= self._rules.horizon_ms
        key = "|".join(who)
        if closed and self._is_newest(key, "closed", start):
            for figure in found:
                if figure.value is None:
                    continue
                if figure.metric == "alert_rate":
                    self._metrics.set(ALERT_RATE, figure.value, *who, figure.dimension)
                elif figure.metric == "drift_score":
                    self._metrics.set(DRIFT_SCORE, figure.value, *who, figure.dimension)
        if mature and age is not None and self._is_newest(key, "mature", start):
            self._metrics.set(LABEL_AGE, age / 1000, *who)
            for figure in found:
                if figure.metric == "fpr" and figure.low is not None and figure.high is not None:
                    self._metrics.set(FPR_LOW, figure.low, *who, figure.dimension)
                    self._metrics.set(FPR_HIGH, figure.high, *who, figure.dimension)

    def _is_newest(self, who: str, kind: str, start: int) -> bool:
        if start < self._newest_shown.get((who, kind), start):
            return False
        self._newest_shown[who, kind] = start
        return True


def record_of(
    figure: Figure,
    ensemble: str,
    version: str,
    arm: str,
    start: int,
    end: int,
    revision: int,
    closed: bool,
    age: int | None,
    rows: int,
) -> MonitorMetric:
    """The record of one figure of one window."""
    return MonitorMetric(
        metric=figure.metric,
        dimension=figure.dimension,
        window_start=start,
        window_end=end,
        revision=revision,
        closed=closed,
        ensemble=ensemble,
        version=version,
        value=figure.value,
        low=figure.low,
        high=figure.high,
        numerator=figure.numerator,
        denominator=figure.denominator,
        rows=rows,
        label_age=age if figure.labelled else None,
        statistics=dict(figure.statistics),
        arm=arm,
    )


def record_key(record: MonitorMetric) -> bytes:
    """Kafka key: one figure of one window; a later revision replaces an earlier one under the same key."""
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
