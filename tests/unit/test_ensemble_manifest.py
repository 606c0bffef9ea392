"""Manifests and members from files: strict, digests before parsing, nothing outside the folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pytest
import xgboost

from stream_scorer.ensemble.calibrate import calibrate
from stream_scorer.ensemble.compose import Draft, Outline, compose_ensemble
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.ensemble.manifest import (
    Beta,
    Input,
    Isotonic,
    Manifest,
    NoCalibrator,
    Platt,
    Thresholds,
    Training,
    manifest_bytes,
    manifest_digest,
    parse_manifest,
    read_manifest,
    series_names,
)
from stream_scorer.ensemble.members import load_member
from stream_scorer.ensemble.members.dense_json import Dense, DenseMember, Layer, encode_dense
from stream_scorer.ensemble.members.ubjson import MalformedUBJSON, read_ubjson
from stream_scorer.ensemble.preprocess import Preprocess
from stream_scorer.errors import ArtifactError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = encode_dense(Dense([Layer([[1.0], [-0.5]], [-1.0], "logistic")]))
    drafts = [
        Draft("left", "dense-json", model, ["a", "b"], [Input(impute=0.0)] * 2, Platt(0.5, 0.0), 0.25),
        Draft(
            "right", "dense-json", model, ["b", "a"], [Input(impute=0.0)] * 2, Isotonic([0.0, 1.0], [0.1, 0.9]), 0.75
        ),
    ]
    outline = Outline(
        name="cards",
        created_at=1_700_000_000_000,
        spec_name="cards",
        spec_hash="a" * 64,
        feature_hash="b" * 64,
        features=["a", "b"],
        final_calibrator=NoCalibrator(),
        thresholds=Thresholds("p1", 0.3, 0.8),
        quorum=0.5,
        training=Training(0, 1, 2, 1, "run", "0" * 64, {}),
    )
    compose_ensemble(tmp_path / "e", outline, drafts, np.random.default_rng(3).normal(size=(300, 2)))
    return tmp_path / "e"


def alter(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "manifest.json"
    document = json.loads(path.read_bytes())
    change(document)
    path.write_text(json.dumps(document))


def test_a_manifest_survives_writing_and_reading(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert (folder / "manifest.json").read_bytes() == manifest_bytes(manifest)
    assert parse_manifest(manifest_bytes(manifest)) == manifest
    assert Ensemble.load(folder, version="1").digest == manifest_digest(manifest)
    assert series_names(manifest) == ["a", "b", "member:left", "member:right", "score"]
    assert all(sum(series.counts) == 300 for series in manifest.reference_profile.values())
    assert sorted(path.name for path in folder.parent.iterdir()) == ["e"]


def member(key: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["members"][0].update({key: value})


def top(key: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda document: document.update({key: value})


BAD = {
    "unknown field": (top("surprise", 1), "surprise"),
    "later format": (top("manifest_version", 2), "manifest_version"),
    "unknown combiner": (top("combiner", "median"), "combiner"),
    "no members": (top("members", []), "members"),
    "parent folder": (member("path", "../left.json"), r"members\[0\].path|members\[\.\.\.\].path"),
    "absolute path": (member("path", "/etc/passwd"), "path"),
    "hidden file": (member("path", ".left.json"), "path"),
    "backslash": (member("path", "a\\b.json"), "path"),
    "line feed": (member("path", "left.json\n"), "path"),
    "the manifest": (member("path", "manifest.json"), "reserved for the manifest"),
    "same file twice": (member("path", "right.json"), "listed twice"),
    "unknown format": (member("format", "pickle"), "format"),
    "huge": (member("size", 10**12), "size"),
    "negative weight": (member("weight", -0.1), "weight"),
    "infinite weight": (member("weight", 1e999), "finite|range|Infinity|not a manifest"),
    "unknown input": (member("inputs", ["a", "c"]), "'c' is not one of"),
    "input twice": (member("inputs", ["a", "a"]), "listed twice"),
    "preprocess too short": (member("preprocess", [{}]), "1 entries for 2 inputs"),
    "scale 0": (member("preprocess", [{"scale": 0.0}, {}]), "scale of 'a' is 0"),
    "altered preprocess": (member("preprocess", [{"impute": 1.0}, {"impute": 0.0}]), "preprocess_sha256"),
    "falling Platt": (member("calibrator", {"kind": "platt", "slope": -1.0, "intercept": 0.0}), "slope"),
    "falling isotonic": (member("calibrator", {"kind": "isotonic", "x": [0.1, 0.2], "y": [0.9, 0.1]}), "not monotone"),
    "isotonic step": (member("calibrator", {"kind": "isotonic", "x": [0.1, 0.1], "y": [0.1, 0.2]}), "not monotone"),
    "thresholds": (top("thresholds", {"policy_version": "p", "review": 0.9, "block": 0.1}), "above block"),
    "no weight": (lambda d: [m.update(weight=0.0) for m in d["members"]], "no member has a weight"),
    "series gone": (lambda d: d["reference_profile"].pop("member:left"), "member:left"),
    "series ragged": (lambda d: d["reference_profile"]["a"]["counts"].pop(), "counts for"),
    "self-test ragged": (lambda d: d["self_test"]["score"].pop(), "differ in length"),
    "self-test narrow": (lambda d: d["self_test"]["features"][0].pop(), "has 2 values"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_manifest_that_is_wrong_is_refused_and_says_where(folder: Path, case: str) -> None:
    change, words = BAD[case]
    alter(folder, change)
    with pytest.raises(ArtifactError, match=words) as caught:
        Ensemble.load(folder, version="1")
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000], ids=str)
def test_what_is_no_manifest_is_refused(folder: Path, data: bytes) -> None:
    (folder / "manifest.json").write_bytes(data)
    with pytest.raises(ArtifactError):
        read_manifest(folder)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no file .*nowhere"):
        Ensemble.load(tmp_path / "nowhere", version="1")


def test_a_members_digest_is_checked_before_it_is_parsed(folder: Path) -> None:
    path = folder / "left.json"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"-0.5", b"-0.6"))
    with pytest.raises(ArtifactError, match=r"'left' has sha256"):
        Ensemble.load(folder, version="1")
    # Not even JSON, and of the right size: were it parsed first, the message would be about JSON.
    path.write_bytes(b"x" * len(whole))
    with pytest.raises(ArtifactError, match=r"'left' has sha256"):
        Ensemble.load(folder, version="1")
    path.write_bytes(whole[:-5])
    with pytest.raises(ArtifactError, match=r"is \d+ bytes, but the manifest records"):
        Ensemble.load(folder, version="1")
    path.unlink()
    with pytest.raises(ArtifactError, match="no file"):
        Ensemble.load(folder, version="1")
    path.write_bytes(whole)
    Ensemble.load(folder, version="1")


def test_a_malformed_member_names_its_file(folder: Path) -> None:
    import hashlib

    data = b'{"layers": []}'
    (folder / "left.json").write_bytes(data)
    alter(folder, lambda d: d["members"][0].update(size=len(data), sha256=hashlib.sha256(data).hexdigest()))
    with pytest.raises(ArtifactError, match=r"left\.json: member 'left': dense-json"):
        Ensemble.load(folder, version="1")


@pytest.fixture(scope="module")
def models() -> dict[str, bytes]:
    random = np.random.default_rng(1)
    x = random.normal(size=(600, 3))
    y = (x[:, 0] + random.normal(size=600) > 0).astype(float)
    quiet = {"verbose": -1, "num_threads": 1}
    booster = lightgbm.train(quiet | {"objective": "binary", "num_leaves": 7}, lightgbm.Dataset(x, y), 5)
    regression = lightgbm.train(quiet | {"objective": "regression"}, lightgbm.Dataset(x, y), 2)
    matrix = xgboost.DMatrix(x, y)
    boosted = xgboost.train({"objective": "binary:logistic", "nthread": 1}, matrix, 5)
    margin = xgboost.train({"objective": "reg:squarederror", "nthread": 1}, matrix, 2)
    return {
        "lightgbm-text": booster.model_to_string().encode(),
        "xgboost-ubj": bytes(boosted.save_raw("ubj")),
        "dense-json": encode_dense(Dense([Layer([[1.0], [2.0], [3.0]], [0.0], "logistic")])),
        "lightgbm regression": regression.model_to_string().encode(),
        "xgboost regression": bytes(margin.save_raw("ubj")),
        "xgboost json": bytes(boosted.save_raw("json")),
    }


@pytest.mark.parametrize("member_format", ["lightgbm-text", "xgboost-ubj", "dense-json"])
def test_a_model_that_is_cut_short_or_of_other_inputs_is_refused(models: dict[str, bytes], member_format: Any) -> None:
    whole = models[member_format]
    assert load_member(member_format, whole, 3).predict(np.zeros((2, 3))).shape == (2,)
    for length in [*range(0, int(len(whole) * 0.95), max(len(whole) // 50, 1)), len(whole) - 4]:
        if member_format == "lightgbm-text" and length > whole.index(b"end of parameters"):
            continue
        with pytest.raises(ArtifactError):
            load_member(member_format, whole[:length], 3)
    for wrong in (b"garbage", b"\x80\x04pickle", b"tree\n\n", b"{}"):
        with pytest.raises(ArtifactError):
            load_member(member_format, wrong, 3)
    with pytest.raises(ArtifactError):
        load_member(member_format, whole, 4)


def test_a_model_of_another_objective_is_refused(models: dict[str, bytes]) -> None:
    with pytest.raises(ArtifactError, match="objective"):
        load_member("lightgbm-text", models["lightgbm regression"], 3)
    with pytest.raises(ArtifactError, match="objective"):
        load_member("xgboost-ubj", models["xgboost regression"], 3)
    with pytest.raises(ArtifactError, match="not a model"):
        load_member("xgboost-ubj", models["xgboost json"], 3)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("left_child", lambda numbers: [0, *numbers[1:]]),  # a loop: the root is its own child
        ("right_child", lambda numbers: [*numbers[:-1], 9]),
        ("right_child", lambda numbers: [*numbers[:-1], -9]),
        ("split_feature", lambda numbers: [3, *numbers[1:]]),
        ("leaf_value", lambda numbers: numbers[:-1]),
    ],
)
def test_a_tree_with_broken_links_is_refused(models: dict[str, bytes], field: str, change: Any) -> None:
    text = models["lightgbm-text"].decode()
    start = text.index(f"\n{field}=") + len(field) + 2
    end = text.index("\n", start)
    numbers = text[start:end].split()
    altered = " ".join(str(number) for number in change(numbers))
    # Of the same length, so that the sizes in the header still hold.
    assert len(altered) <= end - start or field == "leaf_value"
    text = text[:start] + altered.ljust(end - start) + text[end:]
    with pytest.raises(ArtifactError, match="tree 0"):
        load_member("lightgbm-text", text.encode(), 3)


def ubjson_number(value: int) -> bytes:
    return value.to_bytes(4, "big", signed=True)


@pytest.mark.parametrize(
    ("array", "node", "value"),
    [("left_children", 0, 0), ("right_children", 0, 1_000), ("left_children", 0, -2), ("split_indices", 0, 3)],
)
def test_a_boosted_tree_with_broken_links_is_refused(
    models: dict[str, bytes], array: str, node: int, value: int
) -> None:
    whole = models["xgboost-ubj"]
    # Name, then the header of a typed array: [$l#L and eight bytes of length.
    start = whole.index(array.encode()) + len(array) + 5 + 8 + 4 * node
    altered = whole[:start] + ubjson_number(value) + whole[start + 4 :]
    with pytest.raises(ArtifactError, match="tree 0 is malformed"):
        load_member("xgboost-ubj", altered, 3)


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b"{}x",
        b"[" * 100,
        b"[#L" + b"\x7f" * 8,
        b"[$d#L" + b"\x7f" * 8,
        b"[$d#i\xff",
        b"{i\xff",
        b"Si\x02\xff\xfe",
        b"{i\x01aZi\x01aZ}",
        b"Q",
    ],
    ids=str,
)
def test_malformed_ubjson_is_refused_within_its_bounds(data: bytes) -> None:
    with pytest.raises(MalformedUBJSON):
        read_ubjson(data)


def test_ubjson_of_every_type_is_read() -> None:
    data = (
        b"{i\x01aI\xff\xfei\x01b[TFZ]i\x01c[$l#U\x02\x00\x00\x00\x01\xff\xff\xff\xffi\x01d[#i\x02U\xc8Si\x01xi\x01eD"
        + bytes(8)
        + b"}"
    )
    got = read_ubjson(data)
    assert got["c"].tolist() == [1, -1]
    del got["c"]
    assert got == {"a": -2, "b": [True, False, None], "d": [200, "x"], "e": 0.0}


@pytest.mark.parametrize(
    "layers",
    [
        [Layer([[1.0]], [0.0], "logistic")],
        [Layer([[1.0], [1.0, 2.0]], [0.0], "logistic")],
        [Layer([[1.0], [1.0]], [0.0], "relu")],
        [Layer([[1.0, 1.0], [1.0, 1.0]], [0.0, 0.0], "logistic")],
    ],
)
def test_dense_layers_must_fit(layers: list[Layer]) -> None:
    with pytest.raises(ArtifactError, match="dense-json"):
        DenseMember(encode_dense(Dense(layers)), 2)


@pytest.mark.kernels
def test_dense_activations_and_missing_inputs() -> None:
    layers = [
        Layer([[1.0, -1.0], [0.5, 2.0]], [0.25, 0.0], "relu"),
        Layer([[1.0, 0.5], [-1.0, 1.5]], [0.0, 0.1], "tanh"),
        Layer([[2.0], [-1.0]], [0.3], "logistic"),
    ]
    x = np.array([[0.3, -0.7], [1.5, 2.0], [np.nan, 1.0]])
    hidden = np.maximum(x @ np.array(layers[0].weights) + layers[0].bias, 0.0)
    hidden = np.tanh(hidden @ np.array(layers[1].weights) + layers[1].bias)
    expected = 1 / (1 + np.exp(-(hidden @ np.array(layers[2].weights)[:, 0] + 0.3)))
    got = DenseMember(encode_dense(Dense(layers)), 2).predict(x)
    assert got[:2] == pytest.approx(expected[:2], abs=1e-15)
    assert np.isnan(got[2])


@pytest.mark.kernels
def test_preprocess_imputes_then_clips_then_scales() -> None:
    prepare = Preprocess(
        ["a", "b", "c"],
        ["c", "a"],
        [Input(impute=50.0, low=0.0, high=10.0, offset=2.0, scale=4.0), Input(low=-1.0)],
    )
    got = prepare.apply(np.array([[np.nan, 9.0, np.nan], [-5.0, 9.0, 6.0], [0.5, 9.0, -3.0]]))
    assert got[:, 0].tolist() == [2.0, 1.0, -0.5]
    assert np.isnan(got[0, 1])
    assert got[1:, 1].tolist() == [-1.0, 0.5]
    assert got.flags.c_contiguous


@pytest.mark.parametrize(
    "calibrator",
    [
        NoCalibrator(),
        Platt(0.3, -4.0),
        Platt(12.0, 3.0),
        Isotonic([0.2, 0.4, 0.8], [0.0, 0.0, 1.0]),
        Isotonic([0.5], [0.2]),
        Beta(0.5, 3.0, -1.0),
        Beta(0.0, 0.0, 0.3),
    ],
    ids=str,
)
@pytest.mark.kernels
def test_calibrators_are_monotone_stay_in_bounds_and_keep_nan(calibrator: Any) -> None:
    p = np.sort(np.concatenate([[0.0, 1.0, 1e-9, 0.2, 0.4, 0.8], np.random.default_rng(2).random(5_000)]))
    got = calibrate(p, calibrator)
    assert (np.diff(got) >= 0).all()
    assert got.min() >= 0
    assert got.max() <= 1
    assert np.isnan(calibrate(np.array([np.nan]), calibrator)).all()


def test_beta_is_its_formula() -> None:
    p = np.array([0.01, 0.3, 0.9])
    z = 0.5 * np.log(p) - 3.0 * np.log(1 - p) - 1.0
    assert calibrate(p, Beta(0.5, 3.0, -1.0)) == pytest.approx(1 / (1 + np.exp(-z)), abs=1e-14)
    # With a equal to b it is Platt's.
    assert calibrate(p, Beta(2.0, 2.0, 0.4)) == pytest.approx(calibrate(p, Platt(2.0, 0.4)), abs=1e-14)


def test_isotonic_interpolates_between_its_knots() -> None:
    got = calibrate(np.array([0.0, 0.2, 0.3, 0.6, 0.8, 1.0]), Isotonic([0.2, 0.4, 0.8], [0.1, 0.2, 0.6]))
    assert got == pytest.approx([0.1, 0.1, 0.15, 0.4, 0.6, 0.6])


def test_composing_again_replaces_what_stood_there(folder: Path) -> None:
    manifest: Manifest = read_manifest(folder)
    (folder / "left.json").write_text("stale")
    model = encode_dense(Dense([Layer([[2.0]], [0.0], "logistic")]))
    outline = Outline(
        "cards", 2, "cards", "a" * 64, "b" * 64, ["a", "b"], NoCalibrator(), manifest.thresholds, 0.5, manifest.training
    )
    drafts = [Draft("left", "dense-json", model, ["a"], [Input(impute=0)], NoCalibrator(), 1)]
    compose_ensemble(folder, outline, drafts, np.random.default_rng(1).normal(size=(50, 2)))
    assert Ensemble.load(folder, version="2").member_names == ["left"]


def test_a_member_that_never_answers_cannot_be_composed(tmp_path: Path, folder: Path) -> None:
    manifest = read_manifest(folder)
    model = encode_dense(Dense([Layer([[2.0]], [0.0], "logistic")]))
    outline = Outline(
        "cards", 2, "cards", "a" * 64, "b" * 64, ["a", "b"], NoCalibrator(), manifest.thresholds, 0.5, manifest.training
    )
    drafts = [Draft("left", "dense-json", model, ["a"], [Input()], NoCalibrator(), 1.0)]
    with pytest.raises(ArtifactError, match="'left' predicts none of the reference rows"):
        compose_ensemble(tmp_path / "new", outline, drafts, np.full((50, 2), np.nan))
    assert not (tmp_path / "new").exists()
