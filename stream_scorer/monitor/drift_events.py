"""The detector of drift events: a change of the traffic that happens now. ADR 0031 has the reasons.

For every closed window and series:

1. The divergence from each of the references: the same hour of each of the last four weeks, and of all four together.
   So a growing stream, a window that still fills, or one unusual week is no change.
2. The ratio to its usual size, ``overdispersion * sampling noise + variation between weeks``, fitted to the two weeks
   before yesterday, and for series that follow the volume what an unusual volume gives. The smallest ratio counts.
3. A p-value of the ratio among those of the last four weeks (`drift_evidence.Tail`).

The largest ``-log(p)`` over all series gets a p-value among the past windows (`drift_evidence.Extremes`), a calibrator
turns it into an e-value, and a CUSUM e-detector alarms when it reaches the run length. Source: Shin, Ramdas and
Rinaldo, "E-detectors: a nonparametric framework for sequential change detection", 2024. Windows of a day are not
exchangeable, so the threshold is higher if the maxima of the past days require it (`drift_evidence.return_level`).

The detector is a function of its windows: the same windows give the same events, live or read again.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream_scorer.arrays import Bools, Floats, Ints
from stream_scorer.monitor.drift_attribution import Evidence, event_of
from stream_scorer.monitor.drift_evidence import (
    Extremes,
    Tail,
    cusum_maxima,
    divergences,
    log_e_values,
    moved_by_scale,
    return_level,
    sampling_noise,
)
from stream_scorer.monitor.drift_history import REFERENCES, WEEKS, History
from stream_scorer.monitor.drift_types import (
    DAY_MS,
    HOUR_MS,
    WEEK_MS,
    DetectorState,
    DriftEvent,
    DriftReport,
    DriftRules,
    DriftWindow,
    SeriesInfo,
)

# A series with fewer rows in a window is no evidence.
MIN_ROWS = 100
# Windows in which more than this share of the transactions was not counted are no evidence.
MAX_INCOMPLETE = 0.2
# Until a series has this many days of ratios, it is `learning`; its first ratio needs a reference of one week.
LEARNING_DAYS = 6
# Volume that differs from last week's by more than e^0.2, apart from growth, changes the features that follow it.
MAX_SURGE = 0.2
# Less unusual volume changes them as well. The divergence that it gives is measured with values e^0.1 times as large.
PROBE = 0.1
# A change of this divergence (nats; the maximum is 0.69) is large: half of the rows differ.
LARGE = 0.1
# One window gives at most this share of the evidence that an alarm needs: half with a large change, less in proportion
# to the divergence, but at least a fifth. Attacks on cards change few rows for an hour or three, upstream changes last.
MIN_WINDOW_SHARE, MAX_WINDOW_SHARE = 0.2, 0.5
# Days until a change that lasts becomes a chronic state, and hours until a series that is as before has recovered.
ACCEPT_DAYS, RECOVER_WINDOWS = 7, 6
# Evidence, -log(p), of a series in one window: not unusual below, part of an open event above.
QUIET, JOINS = 3.0, 9.0
# Ratios are winsorised at this multiple of the median before usual sizes are fitted.
WINSORISE = 8.0
STATE_VERSION = 1


@dataclass(slots=True)
class _Held:
    """A series in an open event: its first pane, the pane at which learning starts again, quiet windows so far."""

    event: str
    first: int
    until: int
    quiet: int = 0


@dataclass(slots=True)
class _Scalars:
    """The state of the detector besides its history. `log_cusum` is the statistic of the e-detector."""

    version: int = STATE_VERSION
    pane_ms: int = HOUR_MS
    series: list[SeriesInfo] = field(default_factory=list)
    first: int = -1
    last: int = -1
    refreshed: int = -1
    log_cusum: float = 0.0
    cusum_from: int = -1
    held: dict[str, _Held] = field(default_factory=dict)
    open: dict[str, DriftEvent] = field(default_factory=dict)


class DriftDetector:
    """Detects events in the windows of one ensemble. Not thread-safe.

    `rules.series` are the series; counts of others are ignored. `with_series` replaces them, for a new version.
    """

    def __init__(self, rules: DriftRules) -> None:
        self._rules = rules
        self._names = list(rules.series)
        self._info: list[SeriesInfo] = list(rules.series.values())
        self._bins = max((len(info.edges) + 2 for info in self._info), default=2)
        rates = {self._surge_reach(info) for info in self._info if info.kind == "rate"}
        self._reaches = sorted({1, max(DAY_MS // rules.pane_ms, 1), *rates})
        self._level = np.array(
            [self._reaches.index(self._surge_reach(i)) if i.kind == "rate" else -1 for i in self._info], dtype=np.int64
        )
        self._history = History(rules.pane_ms, len(self._info), self._bins, len(self._reaches))
        self._used = np.arange(self._bins) < np.array([_bins(info) for info in self._info] or [2])[:, None]
        # A member without a score failed. That is no change of its scores.
        self._no_missing = np.array([info.kind in ("member", "score") for info in self._info], dtype=np.bool_)
        self._last_bin = self._used.sum(axis=1) - 1
        self._state = _Scalars(pane_ms=rules.pane_ms, series=self._info)
        self._needed = int(LEARNING_DAYS * self._history.per_day * 0.8)
        self._growth = np.zeros(len(self._reaches))
        self._sensitivity = np.zeros(len(self._info))
        self._threshold = math.log(rules.run_length)
        self._scale: tuple[Floats, Floats] | None = None
        self._tail: Tail | None = None
        self._extremes: Extremes | None = None

    @property
    def last(self) -> int | None:
        """Start of the newest window; None before the first."""
        return None if self._state.last < 0 else self._state.last * self._rules.pane_ms

    @property
    def pane_ms(self) -> int:
        """Length of a window, ms."""
        return self._rules.pane_ms

    @property
    def series(self) -> Mapping[str, SeriesInfo]:
        """The series by name."""
        return self._rules.series

    def last_week(self) -> Ints:
        """Counts (S, B) of the week that ends with the newest window; all zero while there is less than a week."""
        history, last = self._history, self._state.last
        slots = history.slots(last + 1 - history.per_week, last + 1)
        if last - self._state.first + 1 < history.per_week:
            slots = slots[:0]
        total: Ints = history.counts[slots].sum(axis=0, dtype=np.int64)
        return total

    @property
    def open_events(self) -> list[DriftEvent]:
        """The events that have not ended."""
        return list(self._state.open.values())

    def update(self, window: DriftWindow) -> DriftReport:
        """Take the next closed window, and return what it gives.

        Raises:
            ValueError: the window is not later than the last one, or a histogram has too many bins.
        """
        pane = window.start // self._rules.pane_ms
        state, history = self._state, self._history
        if pane <= state.last:
            raise ValueError(f"window {window.start} is not later than the last one")
        dense = self._dense(window)
        slot = history.begin(pane)
        history.rows[slot] = window.rows
        history.counts[slot] = dense
        state.first = pane if state.first < 0 else state.first
        state.last = pane
        self._measure_surge(pane, slot)
        self._measure(pane, slot, dense)
        self._refresh(pane)
        evidence = self._evidence(pane, slot)
        watching = self._extremes is not None and bool(np.isfinite(history.ratio[slot]).any())
        events = self._end_events(pane, evidence)
        if watching:
            self._accumulate(pane, self._strongest(evidence))
            if state.log_cusum >= self._threshold:
                events += self._detect(window, pane)
        elif self._extremes is None:
            state.log_cusum = 0.0
        return self._report(window, evidence, events)

    # ------------------------------------------------------------------------------------------------ one window

    def _dense(self, window: DriftWindow) -> NDArray[np.int32]:
        """The counts (S, B) of a window: all zero if it is no evidence."""
        dense = np.zeros((len(self._info), self._bins), dtype=np.int32)
        if window.rows and window.incomplete > MAX_INCOMPLETE * window.rows:
            return dense
        for column, name in enumerate(self._names):
            counts = window.counts.get(name)
            if counts is None:
                continue
            array = np.asarray(counts)
            if len(array) > int(self._last_bin[column]) + 1:
                raise ValueError(f"{name} has {len(array)} bins, its profile {int(self._last_bin[column]) + 1}")
            dense[column, : len(array)] = array
        dense[self._no_missing, self._last_bin[self._no_missing]] = 0
        return dense

    def _measure_surge(self, pane: int, slot: int) -> None:
        """Logarithm of the volume of the last hours or days over that of a week before, for each reach."""
        history = self._history
        for level, reach in enumerate(self._reaches):
            recent = history.slots(pane - reach + 1, pane + 1)
            before = history.slots(pane - reach + 1 - history.per_week, pane + 1 - history.per_week)
            if len(recent) < reach / 2 or len(before) < reach / 2:
                continue
            now, then = float(history.rows[recent].mean()), float(history.rows[before].mean())
            if now > 0 and then > 0:
                history.surge[slot, level] = math.log(now / then)

    def _measure(self, pane: int, slot: int, dense: NDArray[np.int32]) -> None:
        """Divergences from the references, and what sampling alone would give."""
        history = self._history
        counts = dense.astype(np.int64)
        references = np.zeros((REFERENCES, *counts.shape), dtype=np.int64)
        for week in range(1, WEEKS + 1):
            then = pane - week * history.per_week
            if not history.holds(then):
                continue
            at = history.slot(then)
            usable = np.where(history.masked[at][:, None], 0, history.counts[at])
            references[REFERENCES - 1] += usable
            references[week - 1] = usable
        enough = (counts.sum(axis=-1) >= MIN_ROWS) & (references.sum(axis=-1) >= MIN_ROWS)
        history.divergence[slot] = np.where(enough, divergences(counts, references, self._used), np.nan)
        history.noise[slot] = np.where(enough, sampling_noise(counts, references), np.nan)

    def _refresh(self, pane: int) -> None:
        """Fit the usual sizes, the distributions and the threshold again, once a day."""
        if self._state.refreshed >= 0 and pane - self._state.refreshed < self._history.per_day:
            return
        self._state.refreshed = pane
        self._fit(pane)

    def _fit(self, pane: int) -> None:
        """Fit to the windows before `pane`."""
        history = self._history
        # Yesterday and today are left out, so that a change does not make itself usual.
        lag = history.per_day if pane - self._state.first > 2 * history.per_week else 0
        fit = history.slots(pane - lag - 2 * history.per_week, pane - lag)
        usual = np.where(history.masked[fit][:, None], np.nan, history.divergence[fit].astype(np.float64))
        self._scale = _usual_sizes(usual, history.noise[fit].astype(np.float64)) if len(fit) else None
        before = history.surge[history.slots(pane - lag - history.per_week, pane - lag)]
        for level in range(len(self._reaches)):
            known = before[np.isfinite(before[:, level]), level]
            self._growth[level] = np.median(known) if len(known) else 0.0
        past = history.slots(pane - WEEKS * history.per_week, pane)
        self._sensitivity = self._measure_sensitivity(history.counts[past].sum(axis=0, dtype=np.int64))
        self._tail = self._extremes = None
        if len(past) >= self._needed:
            self._fit_distributions(past)

    def _measure_sensitivity(self, counts: Ints) -> Floats:
        """Divergence (S,) over the square of a change of volume, in logarithms, for series that follow it; else 0.

        `counts` (S, B) of past windows. The divergence of a small shift grows with its square.
        """
        moved = counts.astype(np.float64)
        for column, info in enumerate(self._info):
            if info.kind == "rate" and not info.categorical:
                bins = _bins(info)
                moved[column, :bins] = moved_by_scale(
                    moved[column, :bins], info.edges, PROBE, logarithmic=info.logarithmic
                )
        found: Floats = divergences(counts, moved[None], self._used)[0] / PROBE**2
        return found

    def _fit_distributions(self, past: NDArray[np.intp]) -> None:
        history = self._history
        # A window of an event is not a sample of usual windows.
        ratios = np.where(history.masked[past], np.nan, history.ratio[past])
        self._tail = Tail.fit(ratios)
        ready = self._tail.size >= self._needed
        ratios[:, ~ready] = np.nan
        known = np.isfinite(ratios).any(axis=1)
        if known.sum() < self._needed:
            return
        strongest = (-self._tail.log_p(ratios[known])).max(axis=1)
        self._extremes = Extremes.fit(strongest)
        # What the detector found when a window was new counts; the first weeks are evaluated afterwards.
        log_e = history.log_e[past][known]
        log_e = np.where(np.isfinite(log_e), log_e, log_e_values(self._extremes.log_p(strongest)))
        nominal = math.log(self._rules.run_length)
        maxima = cusum_maxima(
            np.minimum(log_e, MAX_WINDOW_SHARE * nominal), history.pane[past][known] // history.per_day
        )
        budget = min(self._rules.false_alarms_per_year / 365, 0.5)
        self._threshold = max(nominal, return_level(np.minimum(maxima, 2 * nominal), budget))

    def _evidence(self, pane: int, slot: int) -> Floats:
        """``-log(p)`` of each series in this window; 0 for series that are no evidence. Fills `ratio`."""
        history = self._history
        if self._scale is None:
            return np.zeros(len(self._info))
        spread, between = self._scale
        by_volume = self._divergence_by_volume(slot)
        with np.errstate(invalid="ignore", divide="ignore"):
            ratios = history.divergence[slot] / (spread * history.noise[slot] + between + by_volume)
        smallest = np.where(np.isfinite(ratios), ratios, np.inf).min(axis=0)
        # Below its usual size a divergence is no evidence, whatever it was in the past weeks.
        smallest = np.where(np.isfinite(smallest), np.maximum(smallest, 1.0), np.nan)
        smallest[self._follows_surge(pane, slot)] = np.nan
        history.ratio[slot] = smallest
        if self._tail is None:
            return np.zeros(len(self._info))
        evidence: Floats = np.where(self._tail.size >= self._needed, -self._tail.log_p(smallest), 0.0)
        return evidence

    def _divergence_by_volume(self, slot: int) -> Floats:
        """Divergence (S,) that the unusual part of the volume gives to series that follow it."""
        excess = np.nan_to_num(self._history.surge[slot] - self._growth)
        found: Floats = np.where(self._level >= 0, self._sensitivity * excess[self._level] ** 2, 0.0)
        return found

    def _follows_surge(self, pane: int, slot: int) -> Bools:
        """Series (S,) that are no evidence because the volume is unusual.

        Those that follow the volume within their reach, and during and after a sale all those without a large change.
        """
        history = self._history
        excess = history.surge[slot] - self._growth
        with np.errstate(invalid="ignore"):
            unusual = ~(np.abs(excess) <= self._max_surge(slot))
        found: Bools = (self._level >= 0) & unusual[self._level]
        if self._sale(pane, slot):
            found |= self._smallest(slot) < LARGE
        return found

    def _sale(self, pane: int, slot: int) -> bool:
        """Whether the volume of the last hour is unusually high, or that of a whole day was, within the last day.

        A sale changes amounts and the mix of channels, and on the day after it customers have bought more recently.
        """
        history = self._history
        hour, day = self._reaches.index(1), self._reaches.index(history.per_day)
        days = history.surge[history.slots(pane - history.per_day + 1, pane + 1), day] - self._growth[day]
        now = history.surge[slot, hour] - self._growth[hour]
        limit = self._max_surge(slot)
        return bool(now > limit or (days > limit).any())

    def _max_surge(self, slot: int) -> float:
        """`MAX_SURGE`, and what chance adds with few rows."""
        return MAX_SURGE + 4 / math.sqrt(int(self._history.rows[slot]) + 1)

    # ------------------------------------------------------------------------------------------------ the e-detector

    def _free(self) -> list[int]:
        """Columns of the series that are in no open event."""
        return [column for column, name in enumerate(self._names) if name not in self._state.held]

    def _smallest(self, slot: int) -> Floats:
        """Smallest divergence (S,) from any reference, infinity without one."""
        found = self._history.divergence[slot]
        smallest: Floats = np.where(np.isfinite(found), found, np.inf).min(axis=0).astype(np.float64)
        return smallest

    def _strongest(self, evidence: Floats) -> float:
        return float(evidence[self._free()].max(initial=0.0))

    def _accumulate(self, pane: int, strongest: float) -> None:
        assert self._extremes is not None
        state = self._state
        log_e = float(log_e_values(self._extremes.log_p(np.array([strongest])))[0])
        slot = self._history.slot(pane)
        self._history.log_e[slot] = log_e
        # Of the smallest divergence from any reference, the largest among the series.
        found = self._smallest(slot)[self._free()]
        size = float(found[np.isfinite(found)].max(initial=0.0))
        most = min(max(MAX_WINDOW_SHARE * size / LARGE, MIN_WINDOW_SHARE), MAX_WINDOW_SHARE) * self._threshold
        if state.log_cusum <= 0.0:
            state.log_cusum, state.cusum_from = 0.0, pane
        state.log_cusum += min(log_e, most)

    def _detect(self, window: DriftWindow, pane: int) -> list[DriftEvent]:
        """The event that the e-detector has just completed; none if an open event explains it.

        Its series are held, and the e-detector starts again.
        """
        state, history = self._state, self._history
        first = state.cusum_from
        slots = history.slots(first, pane + 1)
        total = self._total_evidence(slots)
        windows = len(slots)
        limit = windows + 3 * math.sqrt(windows) + math.log(max(len(self._info), 1))
        chosen = np.flatnonzero(total >= limit)
        if not len(chosen):
            chosen = np.array([int(total.argmax())])
        chosen = chosen[np.argsort(-total[chosen], kind="stable")]
        log_evidence, state.log_cusum = state.log_cusum, 0.0
        known = self._explained_by([self._info[column] for column in chosen.tolist()])
        if known is not None:
            for column in chosen.tolist():
                self._hold(column, known, first)
            return []
        event = event_of(
            self._info,
            Evidence(
                chosen=chosen.tolist(),
                evidence=total,
                now=history.counts[slots].sum(axis=0, dtype=np.int64),
                before=self._reference(first, pane),
            ),
            window,
            self._rules,
            first=first * self._rules.pane_ms,
            rows=int(history.rows[slots].sum()),
            log_evidence=log_evidence,
        )
        state.open[event.id] = event
        for column in chosen.tolist():
            self._hold(column, event.id, first)
        return [event]

    def _total_evidence(self, slots: NDArray[np.intp]) -> Floats:
        """Sum of ``-log(p)`` (S,) over these windows, 0 for series in open events."""
        assert self._tail is not None
        evidence = -self._tail.log_p(self._history.ratio[slots])
        evidence[:, self._tail.size < self._needed] = 0.0
        evidence[:, [self._names.index(name) for name in self._state.held]] = 0.0
        return np.asarray(evidence.sum(axis=0))

    def _explained_by(self, changed: list[SeriesInfo]) -> str | None:
        """The id of the open event whose field the changed series are computed from, or which changed the members.

        A long window follows a change of its field hours or days later.
        """
        fields = {name for info in changed for name in info.fields}
        for event in self._state.open.values():
            if (event.fields and event.fields[0] in fields) or not fields:
                return event.id
        return None

    def _reference(self, first: int, pane: int) -> Ints:
        """The counts (S, B) of the same hours in the last four weeks before an event."""
        history = self._history
        total = np.zeros(history.counts.shape[1:], dtype=np.int64)
        for each in range(first, pane + 1):
            for week in range(1, WEEKS + 1):
                then = each - week * history.per_week
                if history.holds(then):
                    at = history.slot(then)
                    total += np.where(history.masked[at][:, None], 0, history.counts[at])
        return total

    # ------------------------------------------------------------------------------------------------ open events

    def _hold(self, column: int, event: str, first: int) -> None:
        """Leave a changed series out, and its windows since `first` out of references."""
        history, info = self._history, self._info[column]
        until = first + ACCEPT_DAYS * history.per_day + self._reach(info)
        self._state.held[info.name] = _Held(event, first, until)
        history.masked[history.slots(first, self._state.last + 1), column] = True

    def _end_events(self, pane: int, evidence: Floats) -> list[DriftEvent]:
        """Take windows of held series, add series to open events, and end events. Returns those that ended."""
        state, history = self._state, self._history
        if not state.open and not state.held:
            return []
        slot = history.slot(pane)
        leaders = {event.series[0].info.name: event for event in state.open.values()}
        ended = []
        for name, held in list(state.held.items()):
            column = self._names.index(name)
            history.masked[slot, column] = True
            if np.isfinite(history.ratio[slot, column]):
                held.quiet = held.quiet + 1 if evidence[column] < QUIET else 0
            status = None
            if held.quiet >= RECOVER_WINDOWS:
                status = "recovered"
                history.masked[history.slots(pane - RECOVER_WINDOWS + 1, pane + 1), column] = False
            elif pane >= held.until:
                status = "accepted"
                self._learn_again(column, held.first)
            if status is not None:
                del state.held[name]
                event = leaders.get(name)
                if event is not None and event.id in state.open:
                    del state.open[event.id]
                    ended.append(replace(event, status=status, ended=pane * self._rules.pane_ms))  # type: ignore[arg-type]
        self._join(pane, evidence)
        return ended

    def _join(self, pane: int, evidence: Floats) -> None:
        """Hold series that change because of an open event: any of them on its first day, later those of its fields."""
        for event in self._state.open.values():
            detected = event.detected_window // self._rules.pane_ms
            fresh = pane - detected <= self._history.per_day
            for column in np.flatnonzero(evidence >= JOINS).tolist():
                info = self._info[column]
                related = bool(set(info.fields) & set(event.fields[:1])) or not info.fields
                if info.name not in self._state.held and (fresh or related):
                    self._hold(column, event.id, pane)

    def _learn_again(self, column: int, first: int) -> None:
        """Forget what was before an event that lasts; its own windows are the history now."""
        history = self._history
        old = history.slots(first - history.size, first)
        history.counts[old, column] = 0
        history.masked[:, column] = False
        history.ratio[:, column] = np.nan
        history.divergence[:, :, column] = np.nan
        history.noise[:, :, column] = np.nan

    # ------------------------------------------------------------------------------------------------ state

    def dump(self) -> bytes:
        """The state, from which `restored` continues."""
        scalars = msgspec.json.encode(self._state)
        return len(scalars).to_bytes(4, "big") + scalars + self._history.dump()

    @classmethod
    def restored(cls, data: bytes, false_alarms_per_year: float) -> DriftDetector:
        """The detector that `dump` saved, with this budget.

        What is fitted once a day is fitted again, to the windows before the last fit. It differs from the original in
        one case: since that fit, an event was detected that began before it.

        Raises:
            ValueError: `data` is damaged, or of another release.
        """
        size = int.from_bytes(data[:4], "big")
        try:
            state = msgspec.json.decode(data[4 : 4 + size], type=_Scalars)
            if state.version != STATE_VERSION:
                raise ValueError("the state of the drift detector is of another release")
            series = {info.name: info for info in state.series}
            detector = cls(DriftRules(state.pane_ms, false_alarms_per_year, series))
            detector._history.load(data[4 + size :])
        except (msgspec.DecodeError, KeyError, OSError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"the state of the drift detector cannot be read: {error}") from None
        detector._state = state
        if state.refreshed >= 0:
            detector._fit(state.refreshed)
        return detector

    def with_series(self, series: Mapping[str, SeriesInfo]) -> DriftDetector:
        """A detector for the series of another version. Series with the same name and key keep their history."""
        other = DriftDetector(replace(self._rules, series=series))
        old, new = self._history, other._history
        new.pane, new.rows, new.log_e = old.pane.copy(), old.rows.copy(), old.log_e.copy()
        for level, reach in enumerate(other._reaches):
            if reach in self._reaches:
                new.surge[:, level] = old.surge[:, self._reaches.index(reach)]
        for column, info in enumerate(other._info):
            if info.name not in self._names:
                continue
            source = self._names.index(info.name)
            if self._info[source].key == info.key and _bins(self._info[source]) == _bins(info):
                bins = _bins(info)
                new.counts[:, column, :bins] = old.counts[:, source, :bins]
                for name in ("divergence", "noise"):
                    getattr(new, name)[:, :, column] = getattr(old, name)[:, :, source]
                for name in ("ratio", "masked"):
                    getattr(new, name)[:, column] = getattr(old, name)[:, source]
                if info.name in self._state.held:
                    other._state.held[info.name] = self._state.held[info.name]
        state = self._state
        other._state = replace(
            state, series=other._info, held=other._state.held, log_cusum=0.0, open=_still_open(state.open, other)
        )
        if state.refreshed >= 0:
            other._fit(state.refreshed)
        return other

    # ------------------------------------------------------------------------------------------------ reports

    def _report(self, window: DriftWindow, evidence: Floats, events: list[DriftEvent]) -> DriftReport:
        state: DetectorState = "learning"
        missing = 0
        if self._state.open:
            state = "alarm"
        elif self._extremes is not None:
            state = "watching"
        if self._extremes is None:
            wanted = self._history.per_week + LEARNING_DAYS * self._history.per_day
            missing = max(wanted - (self._state.last - self._state.first), 1)
        return DriftReport(
            window.start,
            state,
            max(self._state.log_cusum, 0.0),
            self._rules.run_length,
            self._threshold,
            {name: float(value) for name, value in zip(self._names, evidence.tolist(), strict=True)},
            events,
            missing,
        )

    def _reach(self, info: SeriesInfo) -> int:
        """Panes that a series looks back, at least one."""
        return int(max(-(-info.reach_ms // self._rules.pane_ms), 1))

    def _surge_reach(self, info: SeriesInfo) -> int:
        """Panes over which the volume of a series is measured: at most a week, because more is not in the history."""
        return min(self._reach(info), max(WEEK_MS // self._rules.pane_ms, 1))


def _bins(info: SeriesInfo) -> int:
    return len(info.edges) + 2


def _still_open(events: dict[str, DriftEvent], detector: DriftDetector) -> dict[str, DriftEvent]:
    """The open events whose first series the detector still holds; nothing else can end an event."""
    held = detector._state.held
    return {name: event for name, event in events.items() if event.series[0].info.name in held}


def _usual_sizes(divergence: Floats, noise: Floats) -> tuple[Floats, Floats]:
    """Overdispersion and variation between weeks, each (R, S), of past divergences (N, R, S).

    Least squares of ``divergence / noise`` on ``1 / noise``: relative errors of small and large windows count alike.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        valid = np.isfinite(divergence) & np.isfinite(noise)
        r = np.where(valid, divergence / noise, 0.0)
        u = np.where(valid, 1 / noise, 0.0)
        n = np.maximum(valid.sum(axis=0), 1)
        r = np.minimum(r, WINSORISE * np.maximum(r.sum(axis=0) / n, 1.0))
        mean_r, mean_u = r.sum(axis=0) / n, u.sum(axis=0) / n
        variance = (u * u).sum(axis=0) / n - mean_u**2
        slope = ((r * u).sum(axis=0) / n - mean_r * mean_u) / np.maximum(variance, 1e-12)
        between = np.clip(np.nan_to_num(slope), 0.0, np.maximum(mean_r - 1.0, 0.0) / np.maximum(mean_u, 1e-12))
        spread = np.maximum(mean_r - between * mean_u, 1.0)
    return spread, between
