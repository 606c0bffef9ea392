"""What the programs share: reading the streams, cutting them into windows of an hour, and writing the results."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Input:
    """The streams of one world: hours and values (n, columns) of each, and where the reference and the watch begin."""

    name: str
    reference: int
    watch: int
    end: int
    columns: list[str]
    categories: list[str]
    min_rows: int
    files: dict[str, Path]

    def load(self, stream: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Hours (n,) and values (n, columns) of a stream."""
        with np.load(self.files[stream], allow_pickle=False) as found:
            return found["hour"], found["values"]

    @property
    def changes(self) -> list[str]:
        """The streams that follow the healthy one, a day each."""
        return [name for name in self.files if name != self.name]

    def windows(self, stream: str, first: int | None = None) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
        """The windows with enough rows, from hour `first` on: the hour and its values."""
        hour, values = self.load(stream)
        for each in range(int(hour[0]) if first is None else first, int(hour[-1]) + 1):
            low, high = np.searchsorted(hour, [each, each + 1])
            if high - low >= self.min_rows:
                yield each, values[low:high]


class Writer:
    """Collects the results: for each detector either a score per window, or the windows with an alarm per level."""

    def __init__(self, packages: list[str]) -> None:
        self.out: dict[str, Any] = {"packages": packages, "detectors": {}}

    def scores(self, detector: str, default: float, setting: str) -> dict[str, list[tuple[int, float]]]:
        """Pairs of hour and score by stream, to be filled in. There is an alarm if the score exceeds the threshold."""
        entry = {"default": default, "setting": setting, "scores": {}}
        return self.out["detectors"].setdefault(detector, entry)["scores"]  # type: ignore[no-any-return]

    def levels(self, detector: str, default: str, setting: str) -> dict[str, dict[str, list[int]]]:
        """Hours with an alarm by level (the strictest first) and stream, to be filled in."""
        entry = {"default": default, "setting": setting, "levels": {}}
        return self.out["detectors"].setdefault(detector, entry)["levels"]  # type: ignore[no-any-return]

    def add_figure(self, name: str, value: object) -> None:
        """A figure besides the detectors."""
        self.out[name] = value


def inputs() -> list[Input]:
    """The worlds that the command line names."""
    path = Path(sys.argv[1])
    index = json.loads(path.read_text())
    return [
        Input(
            world["name"],
            world["reference"],
            world["watch"],
            world["end"],
            index["columns"],
            index["categories"],
            index["min_rows"],
            {name: path.parent / file for name, file in world["files"].items()},
        )
        for world in index["worlds"]
    ]


def write(writer: Writer) -> None:
    """Write the results to the path that the command line names."""
    Path(sys.argv[2]).write_text(json.dumps(writer.out))


def hourly_means(world: Input, stream: str, first: int | None = None) -> tuple[list[int], np.ndarray[Any, Any]]:
    """Hours and means (windows, columns) of the values that are present; 0 where a window has none."""
    hours, means = [], []
    for hour, values in world.windows(stream, first):
        present = np.isfinite(values)
        total = np.where(present, values, 0.0).sum(axis=0)
        hours.append(hour)
        means.append(total / np.maximum(present.sum(axis=0), 1))
    return hours, np.array(means).reshape(len(hours), len(world.columns))
