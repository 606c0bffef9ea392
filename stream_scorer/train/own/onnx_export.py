"""Adapts ONNX exports: CatBoost and skl2onnx end a classifier with `ZipMap`, which turns a tensor into dictionaries."""

from __future__ import annotations

from stream_scorer.errors import ArtifactError, SettingsError, install_hint


def without_zipmap(data: bytes) -> bytes:
    """The model in `data` with the tensor of probabilities as its output; unchanged if it has no `ZipMap`.

    Raises:
        ArtifactError: `data` is not an ONNX model. SettingsError: onnx is not installed.
    """
    try:
        import onnx
    except ImportError:
        raise SettingsError("an ONNX member needs onnx", hint=install_hint("onnx")) from None
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's DecodeError, whose type depends on the implementation
        raise ArtifactError(f"onnx: not a model: {(str(error).splitlines() or [''])[0][:200]}") from None
    graph = model.graph
    maps = [node for node in graph.node if node.op_type == "ZipMap"]
    if not maps:
        return data
    if len(maps) > 1 or len(maps[0].input) != 1 or len(maps[0].output) != 1:
        raise ArtifactError("onnx: more than one ZipMap", hint="Export the probabilities as a tensor, without ZipMap.")
    (zipmap,) = maps
    tensor, name = zipmap.input[0], zipmap.output[0]
    outputs = [value for value in graph.output if value.name not in (name, tensor)]
    outputs.append(onnx.helper.make_tensor_value_info(tensor, onnx.TensorProto.FLOAT, ["rows", 2]))
    graph.node.remove(zipmap)
    del graph.output[:]
    graph.output.extend(outputs)
    return bytes(model.SerializeToString(deterministic=True))
