"""Writes a training set as one Parquet table, for libraries that know nothing of this product."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stream_scorer.errors import UsageError
from stream_scorer.parquet import import_pyarrow
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
    pa, pq = import_pyarrow("train")
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
