"""Alibi Detect: its online Cramér-von Mises detector on the means of windows, any column.

It has no defaults for the expected run time and the sizes of its windows. 720 windows are one false alarm per month,
almost the longest run time that its default number of simulations allows for 12 columns; 6 and 24 windows are a quarter
of a day and a day. The reference has the last `REFERENCE` means. The score is the largest test statistic in multiples
of the detector's own threshold. The online MMD and LSDD detectors need TensorFlow or PyTorch, and the one by Fisher's
exact test takes binary values only.
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

RUN_LENGTH = 720
SIZES = [6, 24]
REFERENCE = 120


def main() -> None:
    """See the module."""
    warnings.simplefilter("ignore")
    np.random.seed(1)
    writer = Writer([f"alibi-detect {version('alibi-detect')}"])
    scores = writer.scores("Alibi Detect CVM online, means", 1.0, f"CVMDriftOnline(ert={RUN_LENGTH}, {SIZES})")
    detector = None
    for world in inputs():
        hours, means = hourly_means(world, world.name, world.reference)
        reference = means[np.array(hours) < world.watch][-REFERENCE:]
        if detector is None:
            detector = CVMDriftOnline(reference, RUN_LENGTH, SIZES, verbose=False)
        else:
            # The thresholds are simulated for a minute. They depend on the size of the reference only.
            detector = copy.deepcopy(detector)
            detector.x_ref = reference
            detector._configure_ref()
            detector.reset_state()
        for stream in world.files:
            healthy = stream == world.name
            mine = detector if healthy else copy.deepcopy(detector)
            scores[stream] = []
            for hour, row in zip(*hourly_means(world, stream, world.watch if healthy else None), strict=True):
                found = mine.predict(row)["data"]
                # No statistic until the first window is full.
                ready = np.isfinite(found["test_stat"]).any()
                score = float(np.nanmax(found["test_stat"])) / float(np.min(found["threshold"])) if ready else 0.0
                scores[stream].append((hour, score))
    write(writer)


if __name__ == "__main__":
    main()
