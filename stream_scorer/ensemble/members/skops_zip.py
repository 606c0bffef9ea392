"""scikit-learn classifiers in the skops format: data in a zip, rebuilt from types that skops trusts, without pickle."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_scorer.arrays import Bools
from stream_scorer.ensemble.members.fixed_batch import in_blocks
from stream_scorer.errors import ArtifactError, install_hint

_FORMAT = "skops"
# Arrays and one schema that combines them. A forest of 1,000 trees has about 10,000 entries.
_ENTRY = re.compile(r"(schema\.json|[0-9]{1,20}\.np[yz])\Z")
MAX_ENTRIES = 100_000
MAX_UNPACKED_BYTES = 512 * 1024 * 1024
# Trees compress well, by a factor of 5 to 20. A factor of a thousand is a zip bomb.
MAX_RATIO = 200
# In addition to the types that skops trusts: trees, which are checked below, the optimizers of networks, and the types
# of arrays, which an imputer keeps (skops reads them from an empty array, without pickle).
_TREE = "sklearn.tree._tree.Tree"
_TRUSTED = {
    _TREE,
    "numpy.dtype",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
}
# A pipeline in a column transformer in a pipeline has a depth of 12.
_MAX_DEPTH = 16
# Trees read float32. Infinite values are larger, too.
_LARGEST = float(np.finfo(np.float32).max)
_HINT = "scikit-learn linear models, networks, and forests and boosting of its plain trees are supported; or use ONNX."


class SkopsMember:
    """A fitted scikit-learn classifier of two classes, fraud second. Raises `ArtifactError` for any other `data`.

    `columns` are the names of its inputs, if it was fitted on a data frame, and `classes` the values of its labels, in
    the order of its probabilities. `n_inputs` None accepts any number.
    """

    def __init__(self, data: bytes, n_inputs: int | None) -> None:
        _check_zip(data)
        try:
            from skops.io import get_untrusted_types, loads
        except ImportError:
            raise ArtifactError(
                "a skops member needs skops", code="artifact_library", hint=install_hint("skops")
            ) from None
        try:
            unknown = get_untrusted_types(data=data)
        except Exception as error:  # a malformed document can raise anything
            raise ArtifactError(f"{_FORMAT}: not a model: {type(error).__name__}: {error}") from None
        if untrusted := sorted(set(unknown) - _TRUSTED):
            raise ArtifactError(f"{_FORMAT}: not allowed: {untrusted[0]}", code="artifact_executable", hint=_HINT)
        try:
            model = loads(data, trusted=sorted(set(unknown) & _TRUSTED))
        except Exception as error:
            raise ArtifactError(f"{_FORMAT}: not a model: {type(error).__name__}: {error}") from None
        if not type(model).__module__.startswith("sklearn.") or not hasattr(model, "predict_proba"):
            raise ArtifactError(
                f"{_FORMAT}: {type(model).__name__} is not a scikit-learn classifier with probabilities"
            )
        classes, width = getattr(model, "classes_", ()), getattr(model, "n_features_in_", None)
        if len(classes) != 2:
            raise ArtifactError(f"{_FORMAT}: {len(classes)} classes, not two")
        self.classes = [str(value) for value in classes]
        if not isinstance(width, int) or (n_inputs is not None and width != n_inputs):
            raise ArtifactError(f"{_FORMAT}: takes {width} inputs, the manifest expects {n_inputs}")
        if not all(_is_sound(tree, width) for tree in _trees(model, 0)):
            hint = "Trees must read the columns of the model: steps before them must not add any. Or use ONNX."
            raise ArtifactError(f"{_FORMAT}: a tree is malformed", hint=hint)
        names = getattr(model, "feature_names_in_", None)
        self.columns = None if names is None else [str(name) for name in names]
        try:
            _forget_names(model, 0)
        except (TypeError, ValueError) as error:
            raise ArtifactError(f"{_FORMAT}: not a model: {error}") from None
        self._model, self._n_inputs = _single_threaded(model), width

    def predict(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """See `Member.predict`."""
        if inputs.shape[1] != self._n_inputs:
            raise ValueError(f"{inputs.shape[1]} inputs for a model of {self._n_inputs}")
        return in_blocks(self._predict_block, inputs)

    def _predict_block(self, block: NDArray[np.float64]) -> NDArray[np.float64]:
        """Probabilities ``(ROWS,)``; NaN for the rows with values that the model does not accept.

        scikit-learn refuses a whole array for one of them. Raises what the model raises if other rows fail as well.
        """
        try:
            return self._probabilities(block)
        except Exception:
            huge: Bools = np.logical_or.reduce(np.abs(block) > _LARGEST, axis=1)
            missing: Bools = np.logical_or.reduce(np.isnan(block), axis=1)
            for refused in (huge, missing, huge | missing):
                with suppress(Exception):
                    # The other rows alone: so a row's score does not depend on the rows of its block.
                    found = self._probabilities(np.where(refused[:, None], 0.0, block))
                    found[refused] = np.nan
                    return found
            raise

    def _probabilities(self, block: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.array(self._model.predict_proba(block)[:, 1], np.float64)


def _check_zip(data: bytes) -> None:
    try:
        entries = zipfile.ZipFile(io.BytesIO(data)).infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise ArtifactError(f"{_FORMAT}: not a zip: {error}") from None
    for entry in entries:
        if not _ENTRY.match(entry.filename):
            pickled = entry.filename.lower().endswith((".pkl", ".pickle", ".joblib"))
            code = "artifact_executable" if pickled else "artifact_path"
            raise ArtifactError(f"{_FORMAT}: the entry {entry.filename[:80]!r} is not allowed", code=code)
    unpacked = sum(entry.file_size for entry in entries)
    if len(entries) > MAX_ENTRIES or unpacked > min(MAX_UNPACKED_BYTES, MAX_RATIO * len(data)):
        raise ArtifactError(
            f"{_FORMAT}: {len(entries)} entries of {unpacked} bytes in {len(data)} bytes", code="artifact_size"
        )


def _trees(value: Any, depth: int) -> Iterator[Any]:
    """All trees in a model, which must be checked because the library does not check their indices."""
    if f"{type(value).__module__}.{type(value).__qualname__}" == _TREE:
        yield value
        return
    if depth > _MAX_DEPTH:
        raise ArtifactError(f"{_FORMAT}: nested too deeply")
    for part in _parts(value):
        yield from _trees(part, depth + 1)


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, (list, tuple)):
        return value
    if isinstance(value, np.ndarray):
        return value.ravel().tolist() if value.dtype == object else ()
    return list(getattr(value, "__dict__", {}).values()) if type(value).__module__.startswith("sklearn.") else ()


def _forget_names(value: Any, depth: int) -> None:
    """Replace the column names that a data frame left by positions: a member gets arrays, which have no names."""
    if isinstance(value, (str, np.ndarray)) or depth > _MAX_DEPTH:
        return
    if type(value).__module__.startswith("sklearn.") and hasattr(value, "__dict__"):
        value.__dict__.pop("feature_names_in_", None)
        places = value.__dict__.get("_transformer_to_input_indices")
        if type(value).__name__ == "ColumnTransformer" and isinstance(places, dict):
            value.transformers_ = [
                (name, part, places.get(name, columns)) for name, part, columns in value.transformers_
            ]
    for part in _parts(value):
        _forget_names(part, depth + 1)


def _is_sound(tree: Any, n_inputs: int) -> bool:
    """Whether every split reads an existing input and leads to later nodes of the tree."""
    left, right, feature = tree.children_left, tree.children_right, tree.feature
    number, split = np.arange(tree.node_count), left != -1
    if tree.node_count == 0 or ((right != -1) != split).any() or len(tree.value) != tree.node_count:
        return False
    for child in (left, right):
        if (split & ((child <= number) | (child >= tree.node_count))).any():
            return False
    return bool((~split | ((feature >= 0) & (feature < n_inputs))).all())


def _single_threaded(model: Any) -> Any:
    """Set `n_jobs` to 1 everywhere: the scorer manages its threads."""
    threads = [name for name in model.get_params() if name.rpartition("__")[2] == "n_jobs"]
    return model.set_params(**dict.fromkeys(threads, 1))
