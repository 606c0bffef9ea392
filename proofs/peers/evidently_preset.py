"""Evidently: the tests of its drift preset with their defaults on each window, compared with the reference.

With more than 1,000 rows in the reference, the defaults are the normed Wasserstein distance for numbers and the
Jensen-Shannon distance for categories, both with threshold 0.1; there is drift in the data set if half of the columns
drift. A second detector alarms if any column drifts. The tests are called without the report around them, which would
draw plots for each window; on the first window the report must give the same distances.
"""

from __future__ import annotations

import math
import warnings
from importlib.metadata import version

import numpy as np
import pandas as pd
from evidently import DataDefinition, Dataset, Report
from evidently.legacy.calculations.stattests import get_stattest
from evidently.legacy.core import ColumnType
from evidently.metrics import ValueDrift
from evidently.presets import DataDriftPreset
from streams import Input, Writer, inputs, write

DRIFT_SHARE = 0.5
# A sample of the reference: the distances hardly depend on more rows, and each window sorts them again.
REFERENCE_ROWS = 5_000


def main() -> None:
    """See the module."""
    warnings.simplefilter("ignore")
    writer = Writer([f"evidently {version('evidently')}"])
    writer.add_figure("agreement", _agreement())
    half = writer.scores("Evidently, data set", 0.1, "DataDriftPreset(): half of the columns")
    single = writer.scores("Evidently, any column", 0.1, "DataDriftPreset(): any column")
    for number, world in enumerate(inputs()):
        hour, values = world.load(world.name)
        rows = np.flatnonzero((hour >= world.reference) & (hour < world.watch))
        rows = rows[np.linspace(0, len(rows) - 1, min(REFERENCE_ROWS, len(rows))).astype(np.int64)]
        reference = _frame(world, values[rows])
        if number == 0:
            _check_report(world, reference)
        wanted = math.ceil(DRIFT_SHARE * len(world.columns))
        for stream in world.files:
            half[stream], single[stream] = [], []
            for at, window in world.windows(stream, world.watch if stream == world.name else None):
                drifts = _drifts(world, _frame(world, window), reference)
                half[stream].append((at, drifts[wanted - 1]))
                single[stream].append((at, drifts[0]))
    write(writer)


def _definition(world: Input) -> DataDefinition:
    numbers = [name for name in world.columns if name not in world.categories]
    return DataDefinition(numerical_columns=numbers, categorical_columns=world.categories)


def _frame(world: Input, values: np.ndarray) -> pd.DataFrame:
    frame = pd.DataFrame(values, columns=world.columns)
    for name in world.categories:
        frame[name] = frame[name].map(lambda value: f"{value:g}")
    return frame


def _drifts(world: Input, current: pd.DataFrame, reference: pd.DataFrame) -> list[float]:
    """The distances of all columns, largest first. A column without values in the window has none."""
    found = []
    for name in world.columns:
        kind = ColumnType.Categorical if name in world.categories else ColumnType.Numerical
        old, new = reference[name].dropna(), current[name].dropna()
        if len(new):
            found.append(float(get_stattest(old, new, kind, None)(old, new, kind, None).drift_score))
    return sorted([*found, *[0.0] * (len(world.columns) - len(found))], reverse=True)


def _check_report(world: Input, reference: pd.DataFrame) -> None:
    """Raise unless the report on a window has the distances that `_drifts` finds."""
    definition = _definition(world)
    current = _frame(world, next(world.windows(world.name, world.watch))[1])
    old, new = (Dataset.from_pandas(each, data_definition=definition) for each in (reference, current))
    metrics = Report([DataDriftPreset()]).run(new, old).dict()["metrics"]
    found = sorted((float(m["value"]) for m in metrics if not isinstance(m["value"], dict)), reverse=True)
    if not np.allclose(found, _drifts(world, current, reference), rtol=0, atol=1e-12):
        raise AssertionError(f"the report has other distances: {found}")


def _agreement() -> list[dict[str, object]]:
    """Distances of two categorical columns by Evidently; the proof compares them with ours."""
    found: list[dict[str, object]] = []
    rng = np.random.default_rng(11)
    for shift in (0.0, 0.2, 1.0):
        counts = [rng.multinomial(4_000, _shares(shift * k)) for k in (0, 1)]
        old, new = (pd.DataFrame({"x": np.repeat([f"c{i}" for i in range(len(c))], c)}) for c in counts)
        definition = DataDefinition(categorical_columns=["x"])
        metrics = [ValueDrift(column="x", method=method) for method in ("jensenshannon", "psi")]
        new_set, old_set = (Dataset.from_pandas(frame, data_definition=definition) for frame in (new, old))
        js, psi = (float(m["value"]) for m in Report(metrics).run(new_set, old_set).dict()["metrics"])
        found.append({"old": counts[0].tolist(), "new": counts[1].tolist(), "jensenshannon": js, "psi": psi})
    return found


def _shares(shift: float) -> np.ndarray:
    weights = np.exp(-0.5 * (np.arange(8) - 3.0 - shift) ** 2 / 4.0)
    return weights / weights.sum()


if __name__ == "__main__":
    main()
