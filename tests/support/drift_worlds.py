"""Synthetic windows of a healthy card stream, and the changes that a drift detector must find in them.

Healthy: daily and weekly cycles, growth, day-to-day variation, windows of 30 days that fill, bursts on one card and on
many, and sales. Everything is drawn from one seed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from stream_scorer.arrays import Floats, Ints
from stream_scorer.monitor.drift_types import DAY_MS, HOUR_MS, DriftWindow, SeriesInfo

BINS = 20


def cards_series() -> dict[str, SeriesInfo]:
    """Series like those of the simulator's spec: 12 features, three members, the score and the decision."""
    # Edges on the scale of the latent variable: standard normal quantiles of the profile.
    edges = tuple(np.linspace(-2.4, 2.4, BINS - 2).tolist())
    found: list[SeriesInfo] = []

    def add(name: str, fields: tuple[str, ...], members: tuple[str, ...], **more: object) -> None:
        kind = "rate" if ".count" in name or "since_last" in name else "feature"
        found.append(SeriesInfo(name, kind, fields, members=members, edges=edges, **more))  # type: ignore[arg-type]

    for window, days in (("1h", 1 / 24), ("1d", 1), ("30d", 30)):
        reach = int(days * DAY_MS)
        add(f"customer.count_{window}", ("customer_id",), ("history",), entity="customer", reach_ms=reach)
        add(f"customer.mean_{window}", ("amount", "customer_id"), ("history",), entity="customer", reach_ms=reach)
    add("terminal.count_1h", ("terminal_id",), ("network",), entity="terminal", reach_ms=HOUR_MS)
    add("terminal.mean_1d", ("amount", "terminal_id"), ("network",), entity="terminal", reach_ms=DAY_MS)
    add("device.count_1h", ("device_id",), ("device",), entity="device", reach_ms=HOUR_MS)
    add("amount_log", ("amount",), ("history", "device", "network"), logarithmic=True)
    add("channel_code", ("channel",), ("device", "network"), categorical=True)
    add("hour", ("event_time",), ("history", "device"))
    for member in ("history", "device", "network"):
        found.append(SeriesInfo(f"member:{member}", "member", members=(member,), edges=edges, weight=1 / 3))
    found.append(SeriesInfo("score", "score", edges=edges))
    found.append(SeriesInfo("decision", "decision", edges=(1.0, 2.0)))
    return {info.name: info for info in found}


@dataclass(frozen=True)
class Change:
    """A change of the features of one field from `start` (hour) on: a shift of their latent values, or missing values.

    `missing` is the share of values that become missing. `swap` exchanges the halves of the bins (a category map).
    """

    field: str
    start: int
    shift: float = 0.0
    missing: float = 0.0
    swap: bool = False
    stop: int = 10**9


class World:
    """An endless healthy stream of windows of one hour."""

    def __init__(
        self, seed: int, *, per_day: int = 100_000, changes: tuple[Change, ...] = (), bursts: bool = True
    ) -> None:
        self.series = cards_series()
        self._names = list(self.series)
        self._rng = np.random.default_rng(seed)
        self._per_day = per_day
        self._changes = changes
        self._bursts = bursts
        s = len(self._names)
        self._daily = self._rng.normal(0, 0.15, s)
        self._weekly = self._rng.normal(0, 0.08, s)
        self._walk = np.zeros(s)
        self._day = np.zeros(s)
        self._burst_until, self._burst = -1, np.zeros(s, dtype=np.bool_)
        self._burst_rows = 0
        self._sale_day = int(self._rng.integers(20, 100))
        self._rates = np.array([i.kind == "rate" for i in self.series.values()])
        self._scores = np.array([i.kind in ("member", "score") for i in self.series.values()])
        self._fills = np.array(["30d" in name for name in self._names])
        self._reach = np.array([max(i.reach_ms, HOUR_MS) / HOUR_MS for i in self.series.values()])
        self._edges = np.array(self.series["amount_log"].edges)

    def windows(self, hours: int) -> Iterator[DriftWindow]:
        """The first `hours` windows."""
        for hour in range(hours):
            yield self.window(hour)

    def volume(self, hour: int) -> float:
        """Expected number of transactions in an hour: cycles, growth of 1 % per week, and a sale on one day."""
        of_day = hour % 24
        shape = 0.25 + 0.75 * max(0.0, np.sin(np.pi * (of_day - 5) / 18)) if of_day >= 5 else 0.15
        weekend = 0.8 if hour // 24 % 7 >= 5 else 1.0
        sale = 1.8 if hour // 24 % 100 == self._sale_day else 1.0
        return float(self._per_day / 24 * 1.9 * shape * weekend * sale * 1.01 ** (hour / 168))

    def _surge(self, hour: int) -> Floats:
        """Logarithm of the volume within the reach of each series, as a multiple of the mean: counts follow it."""
        usual = self._per_day / 24
        day = float(np.mean([self.volume(h) for h in range(max(hour - 23, 0), hour + 1)]))
        now, day = np.log(self.volume(hour) / usual), np.log(day / usual)
        return np.where(self._reach <= 1, now, np.where(self._reach <= 24, day, 0.0))

    def state(self) -> dict[str, object]:
        """What `restore` needs to continue another world of the same seed from here."""
        names = ("_walk", "_day", "_burst_until", "_burst", "_burst_rows")
        return {"rng": self._rng.bit_generator.state} | {name: copy.copy(getattr(self, name)) for name in names}

    def restore(self, state: dict[str, object]) -> None:
        """Continue from the state of another world of the same seed."""
        for name, value in state.items():
            if name == "rng":
                self._rng.bit_generator.state = value  # type: ignore[assignment]
            else:
                setattr(self, name, copy.copy(value))

    def window(self, hour: int) -> DriftWindow:
        """The window of one hour; hours must be taken in order."""
        rng, s = self._rng, len(self._names)
        if hour % 24 == 0:
            # Days differ a little, and slowly wander.
            self._walk += rng.normal(0, 0.004, s)
            self._day = rng.normal(0, 0.015, s)
        mean = self._walk + self._day + rng.normal(0, 0.01, s)
        mean += self._daily * np.sin(2 * np.pi * hour / 24) + self._weekly * (hour // 24 % 7 >= 5)
        mean -= np.where(self._fills, 1.5 * np.exp(-hour / (24 * 12)), 0.0)
        mean += np.where(self._rates, 0.3 * self._surge(hour), 0.0)
        if hour // 24 % 100 == self._sale_day:
            mean += np.where(np.array(self._names) == "amount_log", -0.05, 0.0)
        n = int(rng.poisson(self.volume(hour) * np.exp(rng.normal(0, 0.03))))
        shares = self._shares(mean, hour)
        counts = rng.multinomial(n, shares)
        if self._bursts:
            counts += self._burst_counts(hour)
        by_name = dict(zip(self._names, counts, strict=True))
        alert = int(rng.binomial(n, 0.01))
        by_name["decision"] = np.array([n - alert, alert - alert // 3, alert // 3, 0])
        by_name["hour"] = np.bincount([hour % 24 * 19 // 24], [n], BINS).astype(np.int64)
        return DriftWindow(hour * HOUR_MS, n, by_name, "cards", "1")

    def _shares(self, mean: Floats, hour: int) -> Floats:
        missing = np.full(len(self._names), 0.002)
        swap = np.zeros(len(self._names), dtype=bool)
        for change in self._changes:
            if change.start <= hour < change.stop:
                of = np.array([change.field in info.fields for info in self.series.values()])
                # Long windows change slowly: half of the way in a day, for a window of a day.
                speed = 1 - np.exp(-(hour - change.start + 1) / (0.5 * self._reach))
                mean = mean + of * change.shift * speed + self._scores * 0.1 * change.shift
                direct = of & (self._reach == 1)
                missing = np.where(direct, np.maximum(missing, change.missing), missing)
                swap |= direct & change.swap
        values = np.diff(ndtr(self._edges[None, :] - mean[:, None]), axis=1, prepend=0.0, append=1.0)
        values[swap] = values[swap][:, ::-1] * 0.5 + np.roll(values[swap], 7, axis=1) * 0.5
        return np.column_stack([values * (1 - missing[:, None]), missing])

    def _burst_counts(self, hour: int) -> Ints:
        """Extra rows of an attack in extreme bins: one in two days on one card, one in four on many cards."""
        rng, s = self._rng, len(self._names)
        if hour > self._burst_until:
            kind = rng.random()
            if kind < 1 / 48:
                self._burst_until, self._burst_rows = hour, int(rng.integers(20, 60))
            elif kind < 1 / 48 + 1 / 96:
                self._burst_until, self._burst_rows = hour + 2, int(rng.integers(20, 70))
            else:
                return np.zeros((s, BINS), dtype=np.int64)
            self._burst = rng.random(s) < 0.3
        extra = np.zeros((s, BINS), dtype=np.int64)
        extra[self._burst, BINS - 2] = self._burst_rows
        return extra
