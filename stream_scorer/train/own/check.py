"""Compares a loaded member with the library that trained it, and with the predictions made where it was trained."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from stream_scorer.arrays import Floats, Ints
from stream_scorer.ensemble.links import sigmoid
from stream_scorer.ensemble.manifest import MemberFormat
from stream_scorer.ensemble.members import Member
from stream_scorer.errors import ArtifactError
from stream_scorer.parquet import import_pyarrow, readable
from stream_scorer.train.own.document import ComposeFile, FileFormat
from stream_scorer.train.own.models import OwnModel

# Both sides compute in float64; only the order of a sum may differ.
EXACT = 1e-9
# ONNX sums leaves and products in float32: 60 trees of CatBoost differ by 1.4e-7. A wrong column costs about 1e-2.
ONNX = 1e-5
# XGBoost returns probabilities in float32, which a file of expected scores then contains.
FLOAT32 = 1e-6
# Rows for the comparison with the library; the reference evaluator of ONNX takes 3 ms per row.
ROWS, ONNX_ROWS = 512, 64
# A file of expected scores for fewer transactions of the history could miss an input that is rarely present.
MIN_EXPECTED = 50
_ROUNDS = 20


@dataclass(frozen=True, slots=True)
class Agreement:
    """The comparison of a member with `source` on `rows` rows; `difference` is the largest absolute one."""

    source: str
    rows: int
    difference: float
    tolerance: float


def compare_with_library(file: ComposeFile, index: int, model: OwnModel, inputs: Floats) -> Agreement | None:
    """Compare the member with the library of its format on prepared `inputs` ``(n, k)``, at most `ROWS` of them.

    None if the library is not installed.

    Raises:
        UsageError: they differ by more than the tolerance.
    """
    exact = model.format != "onnx"
    x = _spread(inputs, ROWS if exact else ONNX_ROWS)
    try:
        source, expected = _LIBRARIES[model.format](model.data, x)
    except ImportError:
        return None
    found = Agreement(source, len(x), _difference(model.member.predict(x), expected), EXACT if exact else ONNX)
    if not found.difference <= found.tolerance:
        raise file.wrong(
            f"members[{index}].model",
            f"the loaded member differs from {source} by {found.difference:.3g}, above {found.tolerance:g}",
            "Save the model again with the installed version of its library.",
        )
    return found


def compare_with_expected(
    file: ComposeFile, index: int, model: OwnModel, event_ids: list[str], prepare: Callable[[Ints], Floats]
) -> Agreement | None:
    """Compare the member with the file `expected`, on the transactions that both that file and the history have.

    `prepare` gives the member's inputs of rows of the history. None if the node has no such file.

    Raises:
        UsageError: the file cannot be read, has too few transactions of the history, or the scores differ.
    """
    if model.node.expected is None:
        return None
    where = f"members[{index}].expected"
    known = _read_expected(file, where, model.node.expected)
    rows = np.array([row for row, event_id in enumerate(event_ids) if event_id in known], np.int64)
    needed = min(MIN_EXPECTED, len(event_ids))
    if len(rows) < needed:
        raise file.wrong(
            where,
            f"has {len(rows)} of the transactions in the history; at least {needed} are needed",
            "Write the model's predictions for transactions of `features export`, with their `event_id`.",
        )
    expected = np.array([known[event_ids[row]] for row in rows.tolist()], np.float64)
    got = model.member.predict(prepare(rows))
    tolerance = model.node.tolerance or _TOLERANCES[model.file_format]
    apart = ~(np.abs(got - expected) <= tolerance)
    if apart.any():
        first = int(np.argmax(apart))
        raise file.wrong(
            where,
            f"{int(apart.sum())} of {len(rows)} scores differ by more than {tolerance:g}: for event "
            f"{event_ids[rows[first]]!r} the member gives {got[first]:.9g}, the file has {expected[first]:.9g}",
            f"Check `inputs` of {model.node.name!r} (the order of its columns) and `preprocess`, and that it was "
            "trained on features of this spec.",
        )
    return Agreement("expected scores", len(rows), _difference(got, expected), tolerance)


def measure_batch_ms(member: Member, prepare: Callable[[Ints], Floats], n: int, batch: int) -> float:
    """Milliseconds for one batch, preprocessing included: the fastest of 20 rounds, which excludes most other load."""
    rows = np.resize(np.arange(min(n, batch)), batch)
    seconds = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        member.predict(prepare(rows))
        seconds.append(time.perf_counter() - started)
    return 1e3 * min(seconds)


def _read_expected(file: ComposeFile, where: str, name: str) -> dict[str, float]:
    pa, pq = import_pyarrow()
    path = file.find(name)
    if not path.is_file():
        raise file.wrong(where, f"no file at {path}")
    with readable(path):
        table = pq.read_table(path)
    for column in ("event_id", "score"):
        if column not in table.column_names:
            raise file.wrong(where, f"{path} has no column {column!r}")
    try:
        scores = table.column("score").cast(pa.float64()).to_pylist()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise file.wrong(where, f"the column 'score' of {path} has no numbers: {error}") from None
    return {
        str(event_id): float("nan") if score is None else score
        for event_id, score in zip(table.column("event_id").to_pylist(), scores, strict=True)
    }


def _spread(inputs: Floats, most: int) -> Floats:
    """At most `most` rows: half evenly spread, half those with most missing values."""
    sparse = np.argsort(-np.isnan(inputs).sum(axis=1), kind="stable")[: most // 2]
    even = np.linspace(0, len(inputs) - 1, most - len(sparse)).astype(np.int64)
    return np.ascontiguousarray(inputs[np.unique(np.concatenate([sparse, even]))])


def _difference(got: Floats, expected: Floats) -> float:
    """The largest absolute difference; infinite if one side alone is NaN."""
    apart = np.where(np.isnan(got) & np.isnan(expected), 0.0, np.abs(got - expected))
    return float(np.where(np.isnan(apart), np.inf, apart).max(initial=0.0))


def _lightgbm(data: bytes, x: Floats) -> tuple[str, Floats]:
    import lightgbm

    booster = lightgbm.Booster(model_str=data.decode("ascii"))
    return f"lightgbm {lightgbm.__version__}", np.asarray(booster.predict(x, num_threads=1), np.float64)


def _xgboost(data: bytes, x: Floats) -> tuple[str, Floats]:
    import xgboost

    booster = xgboost.Booster({"nthread": 1}, model_file=bytearray(data))
    with np.errstate(over="ignore"):
        matrix = xgboost.DMatrix(x.astype(np.float32), feature_names=booster.feature_names, nthread=1)
    # From the margin: the library's own probabilities are float32.
    margin = np.asarray(booster.predict(matrix, output_margin=True), np.float64)
    return f"xgboost {xgboost.__version__}", sigmoid(margin)


def _onnx(data: bytes, x: Floats) -> tuple[str, Floats]:
    import onnx
    from onnx.reference import ReferenceEvaluator

    model = onnx.load_model_from_string(data)
    initialized = {tensor.name for tensor in model.graph.initializer}
    (given,) = [value for value in model.graph.input if value.name not in initialized]
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)
    output = [value.name for value in model.graph.output if value.type.tensor_type.elem_type in floats][-1]
    wide = given.type.tensor_type.elem_type == onnx.TensorProto.DOUBLE
    values = x.astype(np.float64 if wide else np.float32)
    try:
        (found,) = ReferenceEvaluator(model).run([output], {given.name: values})
    except Exception as error:  # the evaluator raises any error of an operator
        raise ArtifactError(f"onnx: its reference evaluator fails: {type(error).__name__}: {error}") from None
    return f"onnx {onnx.__version__} reference", np.asarray(found, np.float64).reshape(len(x), -1)[:, -1]


def _skops(data: bytes, x: Floats) -> tuple[str, Floats]:
    import sklearn
    from skops.io import get_untrusted_types, loads

    # The member was loaded before, so these types are among those that it allows.
    model = loads(data, trusted=get_untrusted_types(data=data))
    if hasattr(model, "feature_names_in_"):
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # an array has no column names
            return f"scikit-learn {sklearn.__version__}", np.asarray(model.predict_proba(x)[:, 1], np.float64)
    return f"scikit-learn {sklearn.__version__}", np.asarray(model.predict_proba(x)[:, 1], np.float64)


def _dense(data: bytes, x: Floats) -> tuple[str, Floats]:
    import msgspec

    from stream_scorer.ensemble.members.dense_json import Dense

    functions: dict[str, Callable[[Floats], Floats]] = {
        "identity": lambda z: z,
        "relu": lambda z: np.maximum(z, 0.0),
        "tanh": np.tanh,
        "logistic": lambda z: 0.5 * (1.0 + np.tanh(0.5 * z)),
    }
    for layer in msgspec.json.decode(data, type=Dense).layers:
        x = functions[layer.activation](x @ np.array(layer.weights) + np.array(layer.bias))
    return "numpy", x[:, 0]


_LIBRARIES: dict[MemberFormat, Callable[[bytes, Floats], tuple[str, Floats]]] = {
    "lightgbm-text": _lightgbm,
    "xgboost-ubj": _xgboost,
    "dense-json": _dense,
    "onnx": _onnx,
    "skops": _skops,
}
_TOLERANCES: dict[FileFormat, float] = {
    "lightgbm-text": EXACT,
    "xgboost-ubj": FLOAT32,
    "xgboost-json": FLOAT32,
    "onnx": ONNX,
    "skops": EXACT,
    "linear-json": EXACT,
    "dense-json": EXACT,
}
