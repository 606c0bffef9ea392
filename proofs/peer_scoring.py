"""How detectors are compared: alarms, a threshold for a given number of false alarms, F1 and the detection delay.

Every detector gives alarms by stream and threshold, as hours. An alarm opens an episode of a day, and all alarms within
it count once. A false alarm is an episode in the healthy part of a stream. A change is found if there is an alarm on
the day that begins with it, in a window without an alarm on the same day without the change. Earlier alarms have no
effect on that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Protocol

EPISODE_HOURS = 24
HOURS_PER_YEAR = 365 * 24

Alarms = Sequence[int]


class Detector(Protocol):
    """A detector that has read all streams."""

    @property
    def name(self) -> str:
        """Library and method."""
        ...

    @property
    def setting(self) -> str:
        """How it is called."""
        ...

    @property
    def default(self) -> Any:
        """Its default threshold."""
        ...

    def thresholds(self, streams: Iterable[str]) -> list[Any]:
        """The thresholds that make a difference on these streams, the strictest first."""
        ...

    def alarms(self, stream: str, threshold: Any) -> Alarms:
        """Hours with an alarm, ascending."""
        ...


@dataclass(frozen=True)
class Scored:
    """A detector that gives each window a score; a score above the threshold is an alarm."""

    name: str
    setting: str
    default: float
    scores: Mapping[str, Sequence[tuple[int, float]]]

    def thresholds(self, streams: Iterable[str]) -> list[float]:
        """The scores that occur, largest first: with the largest one as the threshold there is no alarm."""
        return sorted({score for stream in streams for _, score in self.scores[stream]}, reverse=True)

    def alarms(self, stream: str, threshold: float) -> list[int]:
        """See `Detector`."""
        return [hour for hour, score in self.scores[stream] if score > threshold]


@dataclass(frozen=True)
class Leveled:
    """A detector that was run once per level, the strictest first, because its alarms change what it does next."""

    name: str
    setting: str
    default: str
    levels: Mapping[str, Mapping[str, Sequence[int]]]

    def thresholds(self, streams: Iterable[str]) -> list[str]:
        """The levels."""
        return list(self.levels)

    def alarms(self, stream: str, threshold: str) -> Sequence[int]:
        """See `Detector`."""
        return self.levels[threshold][stream]


def detectors_of(found: Mapping[str, Any]) -> list[Detector]:
    """The detectors of one program's results (`proofs.peers.streams.Writer`)."""
    out: list[Detector] = []
    for name, entry in found["detectors"].items():
        if "scores" in entry:
            scores = {s: [(int(h), float(v)) for h, v in pairs] for s, pairs in entry["scores"].items()}
            out.append(Scored(name, entry["setting"], float(entry["default"]), scores))
        else:
            out.append(Leveled(name, entry["setting"], entry["default"], entry["levels"]))
    return out


def episodes(alarms: Alarms) -> list[int]:
    """The hours at which an episode begins."""
    begins: list[int] = []
    for hour in alarms:
        if not begins or hour - begins[-1] >= EPISODE_HOURS:
            begins.append(hour)
    return begins


def calibrate(detector: Detector, healthy: Sequence[str], allowed: int) -> Any:
    """The most sensitive threshold with at most `allowed` false alarms on the healthy streams.

    All stricter thresholds have at most as many. None if even the strictest one has more.
    """
    chosen = None
    for threshold in detector.thresholds(healthy):
        if sum(len(episodes(detector.alarms(stream, threshold))) for stream in healthy) > allowed:
            break
        chosen = threshold
    return chosen


@dataclass(frozen=True)
class Tried:
    """A stream with a change: its name, its first hour, and whether the change is large.

    `control` is the same day without the change.
    """

    stream: str
    control: str
    change: str
    begins: int
    large: bool


@dataclass
class Measure:
    """What a detector finds with one threshold. `delays` are in windows, 1 if the first window was enough."""

    name: str
    threshold: Any
    false_alarms: int = 0
    years: float = 0.0
    delays: dict[str, int] = field(default_factory=dict)
    tried: int = 0
    large: int = 0
    large_tried: int = 0

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN): changes found, false alarms, and changes not found."""
        found = len(self.delays)
        return 2 * found / max(2 * found + self.false_alarms + self.tried - found, 1)

    @property
    def median_delay(self) -> float | None:
        """Windows up to the detection, of the changes that were found."""
        return float(median(self.delays.values())) if self.delays else None

    def line(self) -> dict[str, Any]:
        """A row of the table."""
        return {
            "detector": self.name,
            "threshold": self.threshold,
            "false_alarms": self.false_alarms,
            "false_alarms_per_year": round(self.false_alarms / self.years, 1) if self.years else None,
            "found": len(self.delays),
            "of": self.tried,
            "large_found": self.large,
            "large": self.large_tried,
            "f1": round(self.f1, 3),
            "median_delay_windows": self.median_delay,
        }


def measure(detector: Detector, threshold: Any, healthy: Mapping[str, int], tried: Sequence[Tried]) -> Measure:
    """False alarms on `healthy`, hours watched by stream, and what is found of the changes."""
    out = Measure(detector.name, threshold)
    if threshold is None:
        return out
    out.years = sum(healthy.values()) / HOURS_PER_YEAR
    out.false_alarms = sum(len(episodes(detector.alarms(stream, threshold))) for stream in healthy)
    out.tried, out.large_tried = len(tried), sum(each.large for each in tried)
    for each in tried:
        control = set(detector.alarms(each.control, threshold))
        alarms = [h for h in detector.alarms(each.stream, threshold) if h >= each.begins and h not in control]
        if alarms and alarms[0] < each.begins + EPISODE_HOURS:
            out.delays[each.stream] = alarms[0] - each.begins + 1
            out.large += each.large
    return out


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The rows as lines of a Markdown table."""
    head = ("detector", "threshold", "false alarms", "per year", "F1", "found", "large", "median delay, windows")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        limit = row["threshold"]
        cells = (
            row["detector"],
            "none is strict enough" if limit is None else f"{limit:.3g}" if isinstance(limit, float) else str(limit),
            row["false_alarms"],
            "" if row["false_alarms_per_year"] is None else f"{row['false_alarms_per_year']:g}",
            f"{row['f1']:.2f}",
            f"{row['found']} of {row['of']}",
            f"{row['large_found']} of {row['large']}",
            "" if row["median_delay_windows"] is None else f"{row['median_delay_windows']:g}",
        )
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return lines
