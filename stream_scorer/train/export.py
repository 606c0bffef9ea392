"""A training set as one Parquet table, for libraries outside this product, and for the gate."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stream_scorer.errors import UsageError
from stream_scorer.parquet import import_pyarrow, readable
from stream_scorer.spec.model import CheckedSpec
from stream_scorer.train.recipe import TrainingSet

COLUMNS = ("event_id", "event_time", "label")


def write_training_table(data: TrainingSet, spec: CheckedSpec, out: Path) -> None:
    """Write `data` to `out`: event_id, event_time (epoch ms), label (1 is fraud) and one float64 column per feature.

    A missing feature is NaN. The metadata of the file has the hash of the feature definitions.

    Raises:
        UsageError: the file cannot be written, or a feature has the name of another column.
        SettingsError: pyarrow is not installed.
    """
    for name in COLUMNS:
        if name in data.names:
            raise UsageError(f"the feature {name!r} has the name of a column of the table", hint="Rename the feature.")
    pa, pq = import_pyarrow()
    columns = {
        "event_id": pa.array(data.event_id, pa.string()),
        "event_time": pa.array(data.event_time, pa.int64()),
        "label": pa.array(data.label.astype(np.int8)),
    }
    columns |= {name: pa.array(data.features[:, index]) for index, name in enumerate(data.names)}
    table = pa.table(columns).replace_schema_metadata({"feature_hash": spec.feature_hash, "spec": spec.spec.name})
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, out)
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error}") from None


def read_training_table(path: Path, names: list[str]) -> TrainingSet:
    """Read a table with the features `names`, as `write_training_table` wrote it; other columns are ignored.

    Raises:
        UsageError: the file cannot be read, or a column is missing or has another type.
        SettingsError: pyarrow is not installed.
    """
    pa, pq = import_pyarrow()
    with readable(path), pq.ParquetFile(path) as file:
        present = set(file.schema_arrow.names)
        missing = [name for name in (*COLUMNS, *names) if name not in present]
        if missing:
            raise UsageError(
                f"{path} has no column {missing[0]!r}",
                hint=f"A training set has {', '.join(COLUMNS)} and every feature of the spec, as `features export` "
                "and `train --save-set` write it.",
            )
        table = file.read([*COLUMNS, *names])
    try:
        event_time = table.column("event_time").cast(pa.int64()).to_numpy()
        label = table.column("label").cast(pa.bool_()).to_numpy()
        columns = [table.column(name).cast(pa.float64()).to_numpy() for name in names]
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UsageError(f"{path} is not a training set: {error}") from None
    return TrainingSet(
        np.column_stack(columns) if columns else np.zeros((len(label), 0)),
        names,
        label.astype(np.bool_),
        event_time.astype(np.int64),
        event_id=[str(event_id) for event_id in table.column("event_id").to_pylist()],
    )
