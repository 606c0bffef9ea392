"""ONNX models, run by ONNX Runtime once they have been looked through.

An ONNX file may name other files to read, operators of libraries to load, graphs that loop, tensors of any size. None
of it is needed by a model that gives a probability a row, so none of it is let in: operators are those of a short list,
and what grows a tensor is counted. Nothing is handed to the runtime before.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_scorer.ensemble.members.fixed_batch import ROWS, in_blocks
from stream_scorer.errors import ArtifactError

_FORMAT = "onnx"
# A forest of 1,000 trees is one node; a network of eight layers some thirty.
MAX_NODES = 1_000
# Each may double what it is given: 256 times the input at most.
MAX_GROWING = 8
_DOMAINS = {"", "ai.onnx.ml"}
_GROWING = {"Concat", "Pad"}
OPERATORS = _GROWING | {
    "Abs", "Add", "ArrayFeatureExtractor", "Cast", "Clip", "Constant", "Div", "Elu", "Erf", "Exp", "FeatureVectorizer",
    "Flatten", "Gather", "Gelu", "Gemm", "Identity", "Imputer", "LeakyRelu", "LinearClassifier", "LinearRegressor",
    "Log", "MatMul", "Max", "Min", "Mul", "Neg", "Normalizer", "Pow", "Reciprocal", "ReduceMean", "ReduceSum", "Relu",
    "Reshape", "SVMClassifier", "SVMRegressor", "Scaler", "Selu", "Sigmoid", "Slice", "Softmax", "Softplus", "Sqrt",
    "Squeeze", "Sub", "Tanh", "Transpose", "TreeEnsembleClassifier", "TreeEnsembleRegressor", "Unsqueeze", "Where",
}  # fmt: skip
_EXTRA = "Install the extra: pip install 'stream-scorer[onnx]'."


class OnnxMember:
    """A model with one input ``(n, n_inputs)`` of floats and an output of probabilities, ``(n,)``, ``(n, 1)`` or
    ``(n, 2)`` with fraud second. Raises `ArtifactError` if `data` is not one.
    """

    def __init__(self, data: bytes, n_inputs: int) -> None:
        runtime = _runtime()
        try:
            self._input, self._output, self._type = _look_through(data, n_inputs)
        except UnicodeDecodeError:  # protobuf finds out when a name is asked for
            raise ArtifactError(f"{_FORMAT}: not a model: a name is not UTF-8") from None
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.use_deterministic_compute = True
        try:
            self._session = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's own tree of errors, all of them "cannot be run"
            raise ArtifactError(f"{_FORMAT}: cannot be run: {_first_line(error)}") from None
        self._n_inputs = n_inputs
        shape = self._ask(np.zeros((ROWS, n_inputs))).shape
        if shape not in ((ROWS,), (ROWS, 1), (ROWS, 2)):
            raise ArtifactError(
                f"{_FORMAT}: {ROWS} rows give an output of shape {shape}, not ({ROWS}, 1) or ({ROWS}, 2)"
            )

    def predict(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """See `Member.predict`."""
        if inputs.shape[1] != self._n_inputs:
            raise ValueError(f"{inputs.shape[1]} inputs for a model of {self._n_inputs}")
        return in_blocks(lambda block: self._ask(block).reshape(ROWS, -1)[:, -1], inputs)

    def _ask(self, block: NDArray[np.float64]) -> NDArray[np.float64]:
        try:
            (answer,) = self._session.run([self._output], {self._input: block.astype(self._type)})
        except Exception as error:
            raise ArtifactError(f"{_FORMAT}: cannot be run: {_first_line(error)}") from None
        return np.asarray(answer, np.float64)


def _runtime() -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise ArtifactError("an ONNX member needs onnxruntime", code="artifact_library", hint=_EXTRA) from None
    return onnxruntime


def _look_through(data: bytes, n_inputs: int) -> tuple[str, str, type]:
    """Names of input and output and the input's type, of a model without anything that is not let in."""
    try:
        import onnx
    except ImportError:
        raise ArtifactError("an ONNX member needs onnx", code="artifact_library", hint=_EXTRA) from None
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's DecodeError, by whichever implementation
        raise ArtifactError(f"{_FORMAT}: not a model: {_first_line(error)}") from None
    graph = model.graph
    domains = {opset.domain for opset in model.opset_import} | {node.domain for node in graph.node}
    if odd := sorted(domains - _DOMAINS):
        raise _refused(f"operators of {odd[0]!r}")
    if model.functions or model.training_info:
        raise _refused("functions of its own")
    if odd := sorted({node.op_type for node in graph.node} - OPERATORS):
        raise _refused(f"the operator {odd[0]}", "Those let in: " + ", ".join(sorted(OPERATORS)) + ".")
    if len(graph.node) > MAX_NODES or sum(node.op_type in _GROWING for node in graph.node) > MAX_GROWING:
        raise ArtifactError(
            f"{_FORMAT}: more nodes than {MAX_NODES}, or than {MAX_GROWING} that grow a tensor", code="artifact_size"
        )
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g") or attribute.graphs:
                raise _refused("a graph within the graph")
            for tensor in (attribute.t, *attribute.tensors):
                _check_tensor(tensor, len(data))
    for tensor in graph.initializer:
        _check_tensor(tensor, len(data))
    if graph.sparse_initializer:
        raise _refused("sparse tensors")
    held = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in held]
    if len(inputs) != 1:
        raise ArtifactError(f"{_FORMAT}: {len(inputs)} inputs, one is possible")
    kinds = {onnx.TensorProto.FLOAT: np.float32, onnx.TensorProto.DOUBLE: np.float64}
    tensor_type = inputs[0].type.tensor_type
    if tensor_type.elem_type not in kinds:
        raise ArtifactError(f"{_FORMAT}: the input {inputs[0].name!r} is not of floats")
    shape = tensor_type.shape.dim
    if len(shape) != 2 or (shape[1].dim_value or n_inputs) != n_inputs:
        raise ArtifactError(f"{_FORMAT}: the input {inputs[0].name!r} is not of {n_inputs} columns")
    if shape[0].dim_value not in (0, ROWS):
        raise ArtifactError(
            f"{_FORMAT}: takes {shape[0].dim_value} rows at a time", hint="Export it with a free first dimension."
        )
    outputs = [v for v in graph.output if v.type.tensor_type.elem_type in kinds]
    if not outputs:
        raise ArtifactError(
            f"{_FORMAT}: no output is a tensor of floats", hint="Export probabilities as a tensor, without ZipMap."
        )
    return inputs[0].name, outputs[-1].name, kinds[tensor_type.elem_type]


def _check_tensor(tensor: Any, size: int) -> None:
    if tensor.external_data or tensor.data_location:
        raise _refused("data in other files")
    count = 1
    for dim in tensor.dims:
        count *= dim
    # At least a bit a value, and what has no values has no bytes.
    if any(dim < 0 for dim in tensor.dims) or count > 8 * size:
        raise ArtifactError(f"{_FORMAT}: a tensor of {count} values in {size} bytes", code="artifact_size")


def _refused(what: str, hint: str = "") -> ArtifactError:
    return ArtifactError(f"{_FORMAT}: not let in: {what}", code="artifact_executable", hint=hint)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
