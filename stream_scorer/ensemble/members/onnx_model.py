"""ONNX models, checked first and then run by ONNX Runtime.

An ONNX file may refer to other files, operators of libraries, loops and tensors of any size. A model that predicts a
probability per row needs none of these, so they are rejected: operators must be on a short list, and the number of
operators that enlarge a tensor is limited. All checks precede the runtime.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_scorer.ensemble.members.fixed_batch import ROWS, in_blocks
from stream_scorer.errors import ArtifactError, install_hint

_FORMAT = "onnx"
# A forest of 1,000 trees is one node; a network of eight layers has about thirty.
MAX_NODES = 1_000
# Each may double the size of its input: at most a factor of 256.
MAX_GROWING = 8
# Results of all operators for a block, in addition to one per byte of the file: 1,000 layers of 1,024 units.
MAX_VALUES = 1_000 * 1_024 * ROWS
_DOMAINS = {"", "ai.onnx.ml"}
_GROWING = {"Concat", "Pad"}
OPERATORS = _GROWING | {
    "Abs", "Add", "ArrayFeatureExtractor", "Cast", "Clip", "Constant", "Div", "Elu", "Erf", "Exp", "FeatureVectorizer",
    "Flatten", "Gather", "Gelu", "Gemm", "Identity", "Imputer", "LeakyRelu", "LinearClassifier", "LinearRegressor",
    "Log", "MatMul", "Max", "Min", "Mul", "Neg", "Normalizer", "Pow", "Reciprocal", "ReduceMean", "ReduceSum", "Relu",
    "Reshape", "SVMClassifier", "SVMRegressor", "Scaler", "Selu", "Sigmoid", "Slice", "Softmax", "Softplus", "Sqrt",
    "Squeeze", "Sub", "Tanh", "Transpose", "TreeEnsembleClassifier", "TreeEnsembleRegressor", "Unsqueeze", "Where",
}  # fmt: skip


class OnnxMember:
    """A model with one input ``(n, n_inputs)`` of floats and an output of probabilities, ``(n,)``, ``(n, 1)`` or
    ``(n, 2)`` with fraud second. Raises `ArtifactError` for any other model.
    """

    def __init__(self, data: bytes, n_inputs: int) -> None:
        runtime = _runtime()
        try:
            self._input, self._output, self._type = _check_model(data, n_inputs)
        except UnicodeDecodeError:  # protobuf decodes a name on access
            raise ArtifactError(f"{_FORMAT}: not a model: a name is not UTF-8") from None
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.use_deterministic_compute = True
        try:
            self._session = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime has its own exception tree
            raise ArtifactError(f"{_FORMAT}: cannot be run: {_first_line(error)}") from None
        self._n_inputs = n_inputs
        shape = self._run(np.zeros((ROWS, n_inputs))).shape
        if shape not in ((ROWS,), (ROWS, 1), (ROWS, 2)):
            raise ArtifactError(
                f"{_FORMAT}: {ROWS} rows give an output of shape {shape}, not ({ROWS}, 1) or ({ROWS}, 2)"
            )

    def predict(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """See `Member.predict`."""
        if inputs.shape[1] != self._n_inputs:
            raise ValueError(f"{inputs.shape[1]} inputs for a model of {self._n_inputs}")
        return in_blocks(lambda block: self._run(block).reshape(ROWS, -1)[:, -1], inputs)

    def _run(self, block: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(over="ignore"):  # a value that float32 cannot hold becomes infinite
            inputs: NDArray[Any] = block.astype(self._type)
        try:
            (output,) = self._session.run([self._output], {self._input: inputs})
        except Exception as error:
            raise ArtifactError(f"{_FORMAT}: cannot be run: {_first_line(error)}") from None
        return np.asarray(output, np.float64)


def _runtime() -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise ArtifactError(
            "an ONNX member needs onnxruntime", code="artifact_library", hint=install_hint("onnx")
        ) from None
    return onnxruntime


def _check_model(data: bytes, n_inputs: int) -> tuple[str, str, type]:
    """Check the model. Returns the names of input and output, and the type of the input."""
    try:
        import onnx
    except ImportError:
        raise ArtifactError("an ONNX member needs onnx", code="artifact_library", hint=install_hint("onnx")) from None
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's DecodeError, whose type depends on the implementation
        raise ArtifactError(f"{_FORMAT}: not a model: {_first_line(error)}") from None
    graph = model.graph
    domains = {opset.domain for opset in model.opset_import} | {node.domain for node in graph.node}
    if unsupported := sorted(domains - _DOMAINS):
        raise _rejected(f"operators of {unsupported[0]!r}")
    if model.functions or model.training_info:
        raise _rejected("functions of its own")
    if unsupported := sorted({node.op_type for node in graph.node} - OPERATORS):
        raise _rejected(f"the operator {unsupported[0]}", "Supported operators: " + ", ".join(sorted(OPERATORS)) + ".")
    if len(graph.node) > MAX_NODES or sum(node.op_type in _GROWING for node in graph.node) > MAX_GROWING:
        raise ArtifactError(
            f"{_FORMAT}: more than {MAX_NODES} nodes, or than {MAX_GROWING} that enlarge a tensor",
            code="artifact_size",
        )
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g") or attribute.graphs:
                raise _rejected("a nested graph")
            for tensor in (attribute.t, *attribute.tensors):
                _check_tensor(tensor, len(data))
    for tensor in graph.initializer:
        _check_tensor(tensor, len(data))
    if graph.sparse_initializer:
        raise _rejected("sparse tensors")
    initialized = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in initialized]
    if len(inputs) != 1:
        raise ArtifactError(f"{_FORMAT}: {len(inputs)} inputs, but only one is supported")
    kinds = {onnx.TensorProto.FLOAT: np.float32, onnx.TensorProto.DOUBLE: np.float64}
    tensor_type = inputs[0].type.tensor_type
    if tensor_type.elem_type not in kinds:
        raise ArtifactError(f"{_FORMAT}: the input {inputs[0].name!r} does not consist of floats")
    shape = tensor_type.shape.dim
    if len(shape) != 2 or (shape[1].dim_value or n_inputs) != n_inputs:
        raise ArtifactError(f"{_FORMAT}: the input {inputs[0].name!r} does not have {n_inputs} columns")
    if shape[0].dim_value not in (0, ROWS):
        raise ArtifactError(
            f"{_FORMAT}: takes exactly {shape[0].dim_value} rows", hint="Export it with a dynamic first dimension."
        )
    outputs = [v for v in graph.output if v.type.tensor_type.elem_type in kinds]
    if not outputs:
        raise ArtifactError(
            f"{_FORMAT}: no output is a tensor of floats", hint="Export probabilities as a tensor, without ZipMap."
        )
    shape[0].dim_value, shape[1].dim_value = ROWS, n_inputs
    _check_results(model, MAX_VALUES + len(data))
    return inputs[0].name, outputs[-1].name, kinds[tensor_type.elem_type]


def _check_results(model: Any, limit: int) -> None:
    """Refuse a model with larger results: a column plus a row is a square. Shapes that depend on values are unknown."""
    from onnx.shape_inference import infer_shapes

    try:
        graph = infer_shapes(model, data_prop=True).graph
    except Exception as error:  # of a model that contradicts itself; the type depends on the implementation
        raise ArtifactError(f"{_FORMAT}: not a model: {_first_line(error)}") from None
    shapes = [value.type.tensor_type.shape.dim for value in (*graph.value_info, *graph.output)]
    count = sum(math.prod(max(dim.dim_value, 1) for dim in shape) for shape in shapes)
    if count > limit:
        raise ArtifactError(f"{_FORMAT}: results of {count} values for {ROWS} rows", code="artifact_size")


def _check_tensor(tensor: Any, size: int) -> None:
    if tensor.external_data or tensor.data_location:
        raise _rejected("data in other files")
    count = 1
    for dim in tensor.dims:
        count *= dim
    # A value needs at least one bit.
    if any(dim < 0 for dim in tensor.dims) or count > 8 * size:
        raise ArtifactError(f"{_FORMAT}: a tensor of {count} values in {size} bytes", code="artifact_size")


def _rejected(what: str, hint: str = "") -> ArtifactError:
    return ArtifactError(f"{_FORMAT}: not allowed: {what}", code="artifact_executable", hint=hint)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
