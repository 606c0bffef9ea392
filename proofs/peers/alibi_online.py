"""Alibi Detect: its online Cramér-von Mises detector on the means of windows, any column.

It has no defaults for the expected run time and the sizes of its windows: 2,190 windows are the budget of 4 false
alarms per year, 6 and 24 windows a quarter of a day and a day. The reference is its last week. The score is the largest
test statistic in multiples of the detector's own threshold. The online MMD and LSDD detectors need TensorFlow or
PyTorch, and the one by Fisher's exact test takes binary values only.
"""

from __future__ import annotations

import copy
import warnings
from importlib.metadata import version

import numpy as np

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from alibi_detect.cd import CVMDriftOnline
from streams import Writer, hourly_means, inputs, write

RUN_LENGTH = 2_190
SIZES = [6, 24]
REFERENCE_HOURS = 168


def main() -> None:
    """See the module."""
    warnings.simplefilter("ignore")
    np.random.seed(1)
    writer = Writer([f"alibi-detect {version('alibi-detect')}"])
    scores = writer.scores("Alibi Detect CVM online, means", 1.0, f"CVMDriftOnline(ert={RUN_LENGTH}, {SIZES})")
    for world in inputs():
        hours, means = hourly_means(world, world.name, world.watch - REFERENCE_HOURS)
        reference = means[np.array(hours) < world.watch]
        detector = CVMDriftOnline(reference, RUN_LENGTH, SIZES, verbose=False)
        for stream in world.files:
            healthy = stream == world.name
            mine = detector if healthy else copy.deepcopy(detector)
            scores[stream] = []
            for hour, row in zip(*hourly_means(world, stream, world.watch if healthy else None), strict=True):
                found = mine.predict(row)["data"]
                score = float(np.nanmax(found["test_stat"])) if np.isfinite(found["test_stat"]).any() else 0.0
                scores[stream].append((hour, score / float(np.min(found["threshold"]))))
    write(writer)


if __name__ == "__main__":
    main()
