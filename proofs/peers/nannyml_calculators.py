"""NannyML: its univariate and its multivariate drift calculator on chunks of an hour, fitted to the reference.

The default method is the Jensen-Shannon distance for numbers and for categories, with a threshold of three standard
deviations above the mean of the reference's chunks. A second detector takes the same distances with one threshold for
all columns, 0.1, which the documentation names. Any column alarms. The multivariate calculator (reconstruction error of
principal components) alarms beyond three standard deviations on either side.
"""

from __future__ import annotations

import warnings
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
from streams import Input, Writer, inputs, write

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import nannyml

DEVIATIONS = 3.0
# Hours between the beginnings of the streams in one analysis period.
APART = 10_000


def main() -> None:
    """See the module."""
    warnings.simplefilter("ignore")
    writer = Writer([f"nannyml {version('nannyml')}"])
    deviations = writer.scores("NannyML, univariate", DEVIATIONS, "UnivariateDriftCalculator(): any column")
    constant = writer.scores("NannyML, one threshold", 0.1, "ConstantThreshold(upper=0.1): any column")
    together = writer.scores("NannyML, multivariate", DEVIATIONS, "DataReconstructionDriftCalculator()")
    for world in inputs():
        settings: dict[str, Any] = {"timestamp_column_name": "timestamp", "chunk_period": "h"}
        reference = _frame(world, _windows(world, world.name, world.reference, world.watch), 0)
        streams = {name: _windows(world, name, world.watch, None) for name in world.files}
        parts = [_frame(world, windows, number * APART) for number, windows in enumerate(streams.values())]
        analysis = pd.concat(parts, ignore_index=True)
        univariate = nannyml.UnivariateDriftCalculator(
            column_names=world.columns, treat_as_categorical=world.categories, **settings
        )
        multivariate = nannyml.DataReconstructionDriftCalculator(column_names=world.columns, **settings)
        distances, beyond = _distances(univariate.fit(reference).calculate(analysis), world)
        errors = _reconstruction(multivariate.fit(reference).calculate(analysis))
        place = 0
        for stream, windows in streams.items():
            hours = [hour for hour, _ in windows]
            part = slice(place, place + len(hours))
            place += len(hours)
            constant[stream] = list(zip(hours, distances[part].tolist(), strict=True))
            deviations[stream] = list(zip(hours, beyond[part].tolist(), strict=True))
            together[stream] = list(zip(hours, errors[part].tolist(), strict=True))
        assert place == len(distances) == len(errors), "there is a chunk for each window"
    write(writer)


def _windows(world: Input, stream: str, first: int, stop: int | None) -> list[tuple[int, np.ndarray]]:
    return [(h, values) for h, values in world.windows(stream) if h >= first and (stop is None or h < stop)]


def _frame(world: Input, windows: list[tuple[int, np.ndarray]], shift: int) -> pd.DataFrame:
    """The rows of these windows, `shift` hours later."""
    frame = pd.DataFrame(np.concatenate([values for _, values in windows]), columns=world.columns)
    for name in world.categories:
        frame[name] = frame[name].map(lambda value: f"{value:g}")
    hour = np.repeat([hour for hour, _ in windows], [len(values) for _, values in windows])
    frame["timestamp"] = pd.to_datetime((hour + shift) * 3600, unit="s")
    return frame


def _distances(result: Any, world: Input) -> tuple[np.ndarray, np.ndarray]:
    """For each chunk the largest distance of a column, and the largest in standard deviations above the mean.

    A column without values has no distance. The standard deviations must give the alerts that NannyML gives.
    """
    frame = result.to_df()
    reference = (frame[("chunk", "chunk", "period")] == "reference").to_numpy()
    value, alert = (
        np.column_stack([frame[(name, "jensen_shannon", kind)].to_numpy(dtype=np.float64) for name in world.columns])
        for kind in ("value", "alert")
    )
    mean, spread = np.nanmean(value[reference], axis=0), np.nanstd(value[reference], axis=0)
    beyond = np.nan_to_num((value - mean) / np.maximum(spread, 1e-12))[~reference]
    different = (beyond > DEVIATIONS) != (alert[~reference] > 0)
    assert different.mean() < 0.001, f"{different.sum()} alerts differ from NannyML's"
    return np.nan_to_num(value[~reference]).max(axis=1), beyond.max(axis=1)


def _reconstruction(result: Any) -> np.ndarray:
    """The distance of the reconstruction error from its mean in the reference, in standard deviations."""
    frame = result.filter(period="analysis").to_df()
    value, upper, lower = (
        frame[("reconstruction_error", name)].to_numpy(dtype=np.float64)
        for name in ("value", "upper_threshold", "lower_threshold")
    )
    deviation = np.maximum((upper - lower) / (2 * DEVIATIONS), 1e-12)
    return np.asarray(np.abs(value - (upper + lower) / 2) / deviation)


if __name__ == "__main__":
    main()
