"""River: ADWIN and KSWIN, one detector per column, any column alarms.

They have no reference: each detector starts with the last week of the reference. ADWIN reads every value, and in a
second form the mean of each window. KSWIN reads the same. A test per value costs too much, so it tests once per window,
at the best moment: when its recent values are the first ones of the window, and its older ones those before. Missing
values are left out. ADWIN runs once per `delta`; for KSWIN the p-value is recorded, and its memory is not reset after
an alarm.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from importlib.metadata import version

import numpy as np
from river import drift
from streams import Input, Writer, hourly_means, inputs, write

# The strictest first; the default is 0.002.
DELTAS = (1e-300, 1e-200, 1e-100, 1e-50, 1e-20, 1e-10, 1e-5, 0.002)
FEW_DELTAS = (1e-300, 1e-50, 0.002)
ALPHA = 0.005
WARM_HOURS = 168
Windows = Iterator[tuple[int, np.ndarray]]
Read = Callable[[Input, str, int], Windows]


def main() -> None:
    """See the module."""
    writer = Writer([f"river {version('river')}"])
    values = writer.levels("River ADWIN", "0.002", "ADWIN() on every value: any column")
    means = writer.levels("River ADWIN, means", "0.002", "ADWIN() on means of windows: any column")
    kswin = writer.scores("River KSWIN", -math.log10(ALPHA), "KSWIN() on every value, one test per window: any column")
    kswin_means = writer.scores("River KSWIN, means", -math.log10(ALPHA), "KSWIN() on means of windows: any column")
    for world in inputs():
        for delta in FEW_DELTAS:
            _adwin(world, delta, values.setdefault(f"{delta:g}", {}), _all_values)
        for delta in DELTAS:
            _adwin(world, delta, means.setdefault(f"{delta:g}", {}), _means)
        _kswin(world, kswin, _all_values)
        _kswin(world, kswin_means, _means)
    write(writer)


def _all_values(world: Input, stream: str, first: int) -> Windows:
    yield from world.windows(stream, first)


def _means(world: Input, stream: str, first: int) -> Windows:
    for hour, row in zip(*hourly_means(world, stream, first), strict=True):
        yield hour, row[None, :]


def _adwin(world: Input, delta: float, alarms: dict[str, list[int]], read: Read) -> None:
    detectors = [drift.ADWIN(delta=delta) for _ in world.columns]
    for stream in world.files:
        healthy = stream == world.name
        mine = detectors if healthy else copy.deepcopy(detectors)
        found = alarms[stream] = []
        for hour, rows in read(world, stream, world.watch - WARM_HOURS if healthy else world.end):
            alarm = False
            for detector, column in zip(mine, rows.T, strict=True):
                for value in column[np.isfinite(column)].tolist():
                    detector.update(value)
                    alarm |= detector.drift_detected
            if alarm and (hour >= world.watch):
                found.append(hour)


def _kswin(world: Input, scores: dict[str, list[tuple[int, float]]], read: Read) -> None:
    # An alpha that no p-value reaches: the threshold is applied to the recorded p-values.
    detectors = [drift.KSWIN(alpha=1e-300, seed=number) for number in range(len(world.columns))]
    for stream in world.files:
        healthy = stream == world.name
        mine = detectors if healthy else copy.deepcopy(detectors)
        scores[stream] = []
        for hour, rows in read(world, stream, world.watch - WARM_HOURS if healthy else world.end):
            smallest = 1.0
            for detector, column in zip(mine, rows.T, strict=True):
                values = column[np.isfinite(column)].tolist()
                tested = min(detector.stat_size, len(values))
                # What `update` does without the test.
                detector.window.extend(values[: max(tested - 1, 0)])
                for value in values[max(tested - 1, 0) : tested]:
                    detector.update(value)
                    if len(detector.window) >= detector.window_size:
                        smallest = min(smallest, float(detector.p_value))
                detector.window.extend(values[tested:])
            if hour >= world.watch:
                scores[stream].append((hour, -math.log10(max(smallest, 1e-300))))


if __name__ == "__main__":
    main()
