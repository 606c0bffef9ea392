"""What every format of members must do, one suite for all; and what ONNX and skops files must not hold."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pytest
import xgboost
from onnx import TensorProto, helper
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from stream_scorer.ensemble.manifest import MemberFormat, read_bounded
from stream_scorer.ensemble.members import Member, load_member
from stream_scorer.ensemble.members.dense_json import Dense, Layer, encode_dense
from stream_scorer.errors import ArtifactError

WIDTH, N = 7, 400
RANDOM = np.random.default_rng(5)
X = RANDOM.normal(size=(N, WIDTH))
Y = X @ RANDOM.normal(size=WIDTH) + 0.3 * RANDOM.normal(size=N) > 0


def onnx_model(
    nodes: list[Any], tensors: dict[str, np.ndarray], *, output: str = "p", shape: Any = ("n", 1), **more: Any
) -> Any:
    initializers = [
        helper.make_tensor(name, TensorProto.FLOAT, value.shape, value.astype(np.float32).ravel().tolist())
        for name, value in tensors.items()
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, list(shape))],
        initializers,
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=more.pop("opsets", opsets), ir_version=10, **more)


def network() -> Any:
    weights = {"w": RANDOM.normal(size=(WIDTH, 8)), "b": RANDOM.normal(size=8), "v": RANDOM.normal(size=(8, 1))}
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["z"]),
        helper.make_node("Sigmoid", ["z"], ["p"]),
    ]
    return onnx_model(nodes, weights)


def two_columns() -> Any:
    coefficients = RANDOM.normal(size=WIDTH)
    node = helper.make_node(
        "LinearClassifier", ["x"], ["label", "p"], domain="ai.onnx.ml", classlabels_ints=[0, 1], multi_class=0,
        coefficients=[*(-coefficients).tolist(), *coefficients.tolist()], intercepts=[0.1, -0.1],
        post_transform="LOGISTIC",
    )  # fmt: skip
    return onnx_model([node], {}, shape=("n", 2))


def dumps(model: Any) -> bytes:
    # Importing skops takes seconds, and every process of a test run imports this file.
    from skops.io import dumps

    return bytes(dumps(model))


def skops_of(model: Any) -> bytes:
    return dumps(model.fit(X, Y))


def lightgbm_text() -> bytes:
    parameters = {"objective": "binary", "num_leaves": 7, "verbosity": -1, "num_threads": 1}
    return str(lightgbm.train(parameters, lightgbm.Dataset(X, Y), 10).model_to_string()).encode()


def xgboost_ubj() -> bytes:
    booster = xgboost.train({"objective": "binary:logistic", "max_depth": 3, "nthread": 1}, xgboost.DMatrix(X, Y), 10)
    return bytes(booster.save_raw("ubj"))


def dense_json() -> bytes:
    layers = [
        Layer(RANDOM.normal(size=(WIDTH, 4)).tolist(), [0.1] * 4, "relu"),
        Layer(RANDOM.normal(size=(4, 1)).tolist(), [0.0], "logistic"),
    ]
    return encode_dense(Dense(layers))


MADE: dict[str, tuple[MemberFormat, Callable[[], bytes]]] = {
    "lightgbm": ("lightgbm-text", lightgbm_text),
    "xgboost": ("xgboost-ubj", xgboost_ubj),
    "dense": ("dense-json", dense_json),
    "onnx network": ("onnx", lambda: bytes(network().SerializeToString())),
    "onnx linear": ("onnx", lambda: bytes(two_columns().SerializeToString())),
    "skops logistic": ("skops", lambda: skops_of(LogisticRegression())),
    "skops scaled network": (
        "skops", lambda: skops_of(make_pipeline(StandardScaler(), MLPClassifier((5,), max_iter=20, tol=1.0)))
    ),
    "skops forest": ("skops", lambda: skops_of(RandomForestClassifier(5, max_depth=4, n_jobs=2))),
    "skops boosting": ("skops", lambda: skops_of(GradientBoostingClassifier(n_estimators=5))),
}  # fmt: skip


@pytest.fixture(scope="module", params=MADE)
def member(request: pytest.FixtureRequest) -> Member:
    kind, make = MADE[request.param]
    return load_member(kind, make(), WIDTH)


def test_a_probability_a_row_whatever_the_batch(member: Member) -> None:
    whole = member.predict(X)
    assert (whole.shape, whole.dtype) == ((N,), np.float64)
    assert ((whole >= 0) & (whole <= 1)).all()
    assert len(np.unique(whole)) > 10
    for size in (1, 3, 63, 64, 65, 256):
        parts = [member.predict(np.ascontiguousarray(X[low : low + size])) for low in range(0, N, size)]
        assert np.array_equal(np.concatenate(parts), whole)
    assert member.predict(X[:0]).shape == (0,)


def test_rows_know_nothing_of_their_neighbours(member: Member) -> None:
    order = np.random.default_rng(1).permutation(N)
    assert np.array_equal(member.predict(np.ascontiguousarray(X[order])), member.predict(X)[order])


@pytest.mark.parametrize("odd", [(np.nan,), (1e39,), (-np.inf,), (np.nan, np.inf, 1e39)])
def test_a_row_with_odd_values_costs_no_other_row_its_score(member: Member, odd: tuple[float, ...]) -> None:
    whole, given = member.predict(X), X.copy()
    rows = [7, 20, 64][: len(odd)]
    given[rows, 1] = odd
    found = member.predict(given)
    others = np.delete(np.arange(N), rows)
    assert np.array_equal(found[others], whole[others])
    for row in rows:
        assert np.array_equal(member.predict(given[row : row + 1]), found[row : row + 1], equal_nan=True)


def test_a_skops_model_that_fails_on_every_row_raises() -> None:
    member = load_member("skops", skops_of(LogisticRegression()), WIDTH)
    member._model.coef_ = None  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        member.predict(X)


def test_inputs_are_left_as_they_are_and_their_number_is_checked(member: Member) -> None:
    given = X.copy()
    member.predict(given)
    assert np.array_equal(given, X)
    with pytest.raises(ValueError, match="inputs"):
        member.predict(np.zeros((3, WIDTH + 1)))


def test_an_onnx_model_whose_results_fill_the_memory_is_refused() -> None:
    """A column of 60,000 values, which depends on the input, plus a row of them: 14 GB."""
    n = 60_000
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=1),
        helper.make_node("Add", ["column", "sum"], ["moved"]),
        helper.make_node("Add", ["moved", "row"], ["square"]),
        helper.make_node("ReduceSum", ["square"], ["z"], keepdims=1),
        helper.make_node("MatMul", ["x", "zeros"], ["empty"]),
        helper.make_node("Add", ["empty", "z"], ["y"]),
        helper.make_node("Sigmoid", ["y"], ["p"]),
    ]
    tensors = {"column": np.zeros((n, 1)), "row": np.zeros((1, n)), "zeros": np.zeros((WIDTH, 1))}
    with pytest.raises(ArtifactError, match="values for 64 rows") as error:
        load_member("onnx", onnx_model(nodes, tensors).SerializeToString(), WIDTH)
    assert error.value.code == "artifact_size"


@pytest.mark.parametrize("made", MADE)
def test_another_number_of_inputs_is_refused(made: str) -> None:
    kind, make = MADE[made]
    with pytest.raises(ArtifactError) as error:
        load_member(kind, make(), WIDTH + 1)
    assert error.value.code == "artifact_format"


@pytest.mark.parametrize("kind", ["lightgbm-text", "xgboost-ubj", "dense-json", "onnx", "skops"])
def test_a_pickle_is_never_opened(kind: MemberFormat) -> None:
    with pytest.raises(ArtifactError, match="pickle") as error:
        load_member(kind, b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x07builtins\x94.", WIDTH)
    assert error.value.code == "artifact_executable"


def outside(model: Any) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def huge(model: Any) -> None:
    model.graph.initializer[0].dims[0] = 2**40


def growing(model: Any) -> None:
    for _ in range(9):
        model.graph.node.append(helper.make_node("Concat", ["h", "h"], ["h"], axis=1))


def looping(model: Any) -> None:
    model.graph.node[0].attribute.append(helper.make_attribute("body", model.graph))


def with_function(model: Any) -> None:
    node = helper.make_node("Relu", ["a"], ["b"])
    model.functions.append(helper.make_function("", "f", ["a"], ["b"], [node], [helper.make_opsetid("", 21)]))


ONNX: dict[str, tuple[Callable[[Any], Any], str, str]] = {
    "data elsewhere": (outside, "artifact_executable", "other files"),
    "a huge tensor": (huge, "artifact_size", "values in"),
    "a negative tensor": (lambda m: m.graph.initializer[0].dims.__setitem__(0, -1), "artifact_size", "values in"),
    "growth": (growing, "artifact_size", "enlarge"),
    "a loop": (looping, "artifact_executable", "nested graph"),
    "a function": (with_function, "artifact_executable", "functions"),
    "a custom operator": (
        lambda m: m.graph.node.append(helper.make_node("Evil", ["p"], ["q"], domain="com.evil")),
        "artifact_executable", "com.evil",
    ),
    "a custom domain": (lambda m: m.opset_import.append(helper.make_opsetid("evil", 1)), "artifact_executable", "evil"),
    "an unknown operator": (
        lambda m: m.graph.node.append(helper.make_node("RandomNormal", [], ["q"], shape=[2])),
        "artifact_executable", "Random",
    ),
    "two inputs": (
        lambda m: m.graph.input.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])),
        "artifact_format", "2 inputs",
    ),
    "another output": (
        lambda m: m.graph.output[0].type.tensor_type.__setattr__("elem_type", 7), "artifact_format", "ZipMap",
    ),
    "nothing to run": (lambda m: m.graph.ClearField("node"), "artifact_format", "cannot be run"),
}  # fmt: skip


@pytest.mark.parametrize("case", ONNX)
def test_what_an_onnx_file_must_not_hold(case: str) -> None:
    change, code, what = ONNX[case]
    model = network()
    change(model)
    with pytest.raises(ArtifactError, match=what) as error:
        load_member("onnx", model.SerializeToString(), WIDTH)
    assert error.value.code == code


def rezipped(change: Callable[[zipfile.ZipFile], None]) -> bytes:
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(skops_of(LogisticRegression()))) as given,
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as made,
    ):
        for entry in given.infolist():
            made.writestr(entry.filename, given.read(entry))
        change(made)
    return out.getvalue()


class Odd(LogisticRegression):
    """No type of scikit-learn's."""


def test_what_a_skops_file_must_not_hold() -> None:
    cases = {
        "not a zip": (b"PK\x03\x04 no", "artifact_format"),
        "another type": (skops_of(Odd()), "artifact_executable"),
        "a path": (rezipped(lambda z: z.writestr("../evil.npy", b"")), "artifact_path"),
        "a pickle": (rezipped(lambda z: z.writestr("model.pkl", b"\x80\x04.")), "artifact_executable"),
        "a bomb": (rezipped(lambda z: z.writestr("1.npy", bytes(50_000_000))), "artifact_size"),
        "no classifier": (dumps(StandardScaler().fit(X)), "artifact_format"),
        "three classes": (dumps(LogisticRegression().fit(X, np.arange(N) % 3)), "artifact_format"),
    }
    for case, (data, code) in cases.items():
        with pytest.raises(ArtifactError) as error:
            load_member("skops", data, WIDTH)
        assert error.value.code == code, (case, error.value)


def test_a_tree_that_leads_out_of_itself_is_refused() -> None:
    forest = RandomForestClassifier(2, max_depth=3).fit(X, Y)
    tree = forest.estimators_[1].tree_
    for name, place, value in (("left_child", 0, 10**6), ("right_child", 0, 0), ("feature", 0, WIDTH)):
        state = tree.__getstate__()
        nodes = state["nodes"].copy()
        nodes[name][place] = value
        changed = type(tree)(tree.n_features, np.array(tree.n_classes), tree.n_outputs)
        changed.__setstate__(state | {"nodes": nodes})
        forest.estimators_[1].tree_ = changed
        with pytest.raises(ArtifactError, match="a tree is malformed"):
            load_member("skops", dumps(forest), WIDTH)
    forest.estimators_[1].tree_ = tree
    load_member("skops", dumps(forest), WIDTH)


def test_a_device_is_not_read_for_ever() -> None:
    with pytest.raises(ArtifactError) as error:
        read_bounded(Path("/dev/zero"), 100)
    assert error.value.code == "artifact_path"
