"""`ensemble compose`: members trained elsewhere are matched, compared, fitted and written; faults name the node."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import lightgbm
import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xgboost
import yaml
from onnx import TensorProto, helper
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.ensemble.links import sigmoid
from stream_scorer.ensemble.manifest import Platt
from stream_scorer.errors import ArtifactError, UsageError
from stream_scorer.features.derived import without_views
from stream_scorer.spec.load import parse_spec
from stream_scorer.spec.model import CheckedSpec
from stream_scorer.train.own.compose import Limits, compose_models, load_models
from stream_scorer.train.own.document import read_compose_file
from stream_scorer.train.own.report import ComposeReport
from stream_scorer.train.recipe import TrainingSet
from tests.support.specs import card_spec, numbers_spec
from tools.make_documents import make_document_schemas, make_notebook

SPEC = parse_spec(numbers_spec("abc", "policy: {version: p1, review: 0.3, block: 0.8}\n"))
NAMES = ["a_value", "b_value", "c_value"]
ROWS = 1_500
EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "own_models"


def dumps(model: Any) -> bytes:
    # Importing skops takes seconds, and every process of a test run imports this file.
    from skops.io import dumps

    return bytes(dumps(model))


class FixedClock:
    def now_ms(self) -> int:
        return 1_700_000_000_000

    def monotonic(self) -> float:
        return 0.0


def history() -> TrainingSet:
    random = np.random.default_rng(3)
    x = random.normal(size=(ROWS, 3))
    label = random.random(ROWS) < sigmoid(1.5 * x[:, 0] - 1.0 * x[:, 1] + 0.5 * x[:, 2] - 2.0)
    return TrainingSet(x, NAMES, label, np.arange(ROWS) * 1_000, event_id=[f"e-{i}" for i in range(ROWS)])


DATA = history()
TRAIN = slice(0, 900)
FRAME = pandas.DataFrame(DATA.features, columns=NAMES)


def zipmap_model() -> bytes:
    """What CatBoost and skl2onnx write: labels, and a ZipMap over the tensor of probabilities."""
    weights = [1.5, -1.0, 0.5]
    nodes = [
        helper.make_node(
            "LinearClassifier", ["x"], ["label", "p"], domain="ai.onnx.ml", classlabels_ints=[0, 1], multi_class=0,
            coefficients=[*(-w for w in weights), *weights], intercepts=[2.0, -2.0], post_transform="LOGISTIC",
        ),
        helper.make_node("ZipMap", ["p"], ["probabilities"], domain="ai.onnx.ml", classlabels_int64s=[0, 1]),
    ]  # fmt: skip
    kind = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    outputs = [
        helper.make_tensor_value_info("label", TensorProto.INT64, ["n"]),
        helper.make_value_info("probabilities", helper.make_sequence_type_proto(kind)),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("ai.onnx.ml", 3)]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five models, and their own predictions for some transactions."""
    place = tmp_path_factory.mktemp("own")
    y = DATA.label[TRAIN]
    pipeline = make_pipeline(StandardScaler(), LogisticRegression()).fit(FRAME.iloc[TRAIN], y)
    (place / "pipeline.skops").write_bytes(dumps(pipeline))
    parameters = {"objective": "binary", "num_leaves": 4, "verbose": -1, "num_threads": 1}
    boosted = lightgbm.train(parameters, lightgbm.Dataset(FRAME[["c_value", "a_value"]].iloc[TRAIN], y), 8)
    (place / "boosted.txt").write_text(boosted.model_to_string())
    trees = xgboost.train(
        {"objective": "binary:logistic", "max_depth": 2, "nthread": 1},
        xgboost.DMatrix(FRAME.iloc[TRAIN].set_axis(["one", "two", "three"], axis=1), y), 8,
    )  # fmt: skip
    (place / "trees.json").write_bytes(bytes(trees.save_raw("json")))
    (place / "linear.json").write_text(json.dumps({"intercept": -1.0, "coefficients": {"b_value": -0.7}}))
    (place / "graph.onnx").write_bytes(zipmap_model())
    ids, x = DATA.event_id[700:], DATA.features[700:]
    write_expected(place / "pipeline.parquet", ids, pipeline.predict_proba(FRAME.iloc[700:])[:, 1])
    write_expected(place / "graph.parquet", ids, sigmoid(x @ np.array([1.5, -1.0, 0.5]) - 2.0))
    return place


def write_expected(path: Path, ids: list[str], scores: np.ndarray) -> None:
    pq.write_table(pa.table({"event_id": ids, "score": scores}), path)


def described(**more: Any) -> dict[str, Any]:
    members = [
        {"name": "pipeline", "model": "pipeline.skops", "expected": "pipeline.parquet"},
        {"name": "boosted", "model": "boosted.txt"},
        {"name": "trees", "model": "trees.json", "inputs": {"a_value": "one", "b_value": "two", "c_value": 2}},
        {"name": "linear", "model": "linear.json", "calibrator": {"kind": "platt", "slope": 1.2, "intercept": 0.1}},
        {"name": "graph", "model": "graph.onnx", "expected": "graph.parquet", "inputs": NAMES},
    ]
    return {"name": "own", "trained_until": "1970-01-01T00:15", "members": members} | more


def compose(
    folder: Path, document: dict[str, Any], data: TrainingSet = DATA, out: str = "out", spec: CheckedSpec = SPEC
) -> ComposeReport:
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    file = read_compose_file(path)
    models = load_models(file, spec)
    return compose_models(
        file, models, data, spec, folder / out, limits=Limits(64, 1e4), clock=FixedClock(),
        on_progress=lambda *_: None,
    )  # fmt: skip


@pytest.fixture(scope="module")
def composed(folder: Path) -> ComposeReport:
    return compose(folder, described(), out="composed")


def test_five_formats_become_an_ensemble_that_scores_as_their_libraries(composed: ComposeReport) -> None:
    report = composed
    ensemble = Ensemble.load(Path(report.out), version="1")
    ensemble.check_features(SPEC.features, SPEC.feature_hash)
    specs = {member.name: member for member in ensemble.manifest.members}
    assert specs["boosted"].inputs == ["c_value", "a_value"]
    assert specs["trees"].inputs == NAMES
    assert specs["linear"].calibrator == Platt(1.2, 0.1)
    assert sum(member.weight for member in specs.values()) == pytest.approx(1.0)
    compared = {member.name: [a.source.split()[0] for a in member.agreements] for member in report.members}
    assert compared == {
        "pipeline": ["scikit-learn", "expected"], "boosted": ["lightgbm"], "trees": ["xgboost"], "linear": ["numpy"],
        "graph": ["onnx", "expected"],
    }  # fmt: skip
    for member in report.members:
        assert all(a.rows >= 50 and a.difference <= a.tolerance for a in member.agreements)
        assert member.batch_ms > 0.0
    assert any("ZipMap" in note for note in report.members[4].notes)
    # Nothing before `trained_until` is used, and the figures are those of an ensemble that separates.
    assert (report.rows, ensemble.manifest.training.first_event_time) == (600, 900_000)
    assert ensemble.manifest.training.members_until == 900_000
    assert report.metrics["roc_auc"] > 0.75
    assert "members[3].calibrator" not in report.fitted


def test_the_same_files_give_the_same_folder(folder: Path, composed: ComposeReport) -> None:
    before = {path.name: path.read_bytes() for path in Path(composed.out).iterdir()}
    again = compose(folder, described(), out="again")
    assert {path.name: path.read_bytes() for path in Path(again.out).iterdir()} == before


def test_a_swapped_column_is_found_by_the_expected_scores_and_nothing_is_written(folder: Path) -> None:
    document = described()
    document["members"][4]["inputs"] = ["b_value", "a_value", "c_value"]
    (folder / "out").mkdir(exist_ok=True)
    before = sorted((p.name, p.stat().st_mtime_ns) for p in (folder / "out").iterdir())
    with pytest.raises(UsageError, match=r"members\[4\]\.expected: 8\d\d of 800 scores differ.*e-\d+"):
        compose(folder, document)
    assert sorted((p.name, p.stat().st_mtime_ns) for p in (folder / "out").iterdir()) == before


def test_a_changed_preprocessing_is_found_by_the_expected_scores(folder: Path) -> None:
    document = described()
    document["members"][0]["preprocess"] = {"*": {"offset": 0.01}}
    with pytest.raises(UsageError, match=r"members\[0\]\.expected: 800 of 800 scores differ"):
        compose(folder, document)


def test_nothing_is_fitted_where_everything_is_given(folder: Path) -> None:
    given = {"calibrator": "none", "weight": 1.0}
    document = described(final_calibrator="none", thresholds={"review": 0.5, "block": 0.9, "policy_version": "p2"})
    document["members"] = [document["members"][3] | given, document["members"][4] | given]
    del document["trained_until"]
    report = compose(folder, document)
    assert (report.fitted, report.rows, report.thresholds.policy_version) == ([], ROWS, "p2")
    manifest = Ensemble.load(folder / "out", version="1").manifest
    assert [member.weight for member in manifest.members] == [1.0, 1.0]
    assert manifest.training.members_until is None


def test_stacking_has_a_calibrator_of_incomplete_scores_unless_it_is_given(folder: Path) -> None:
    how = {"kind": "stacking", "intercept": -0.1, "coefficients": [0.5, 0.5]}
    for combiner, final, fitted in (
        ("stacking", "platt", True), ("stacking", "none", True), (how, "platt", True), (how, "none", False),
        ("weighted-mean", "platt", False),
    ):  # fmt: skip
        document = described(combiner=combiner, final_calibrator=final)
        document["members"] = document["members"][3:]
        compose(folder, document)
        manifest = Ensemble.load(folder / "out", version="1").manifest
        assert isinstance(manifest.incomplete_calibrator, Platt) == fitted


def test_xgboost_that_stopped_early_needs_its_own_predictions_or_only_the_best_rounds(folder: Path) -> None:
    model = xgboost.XGBClassifier(n_estimators=30, early_stopping_rounds=3, learning_rate=1.0, n_jobs=1)
    model.fit(FRAME.iloc[:600], DATA.label[:600], eval_set=[(FRAME.iloc[600:900], DATA.label[600:900])], verbose=False)
    booster, rows = model.get_booster(), FRAME.iloc[900:]
    assert model.best_iteration + 1 < booster.num_boosted_rounds()
    model.save_model(folder / "early.ubj")
    write_expected(folder / "all.parquet", DATA.event_id[900:], booster.predict(xgboost.DMatrix(rows)))
    write_expected(folder / "best.parquet", DATA.event_id[900:], model.predict_proba(rows)[:, 1])
    node = {"name": "early", "model": "early.ubj"}
    with pytest.raises(ArtifactError, match=r"members\[0\]\.model: .*early stopping found \d+ of them best"):
        compose(folder, described(members=[node]))
    compose(folder, described(members=[node | {"expected": "all.parquet"}]))
    with pytest.raises(UsageError, match="scores differ"):
        compose(folder, described(members=[node | {"expected": "best.parquet"}]))
    booster[: model.best_iteration + 1].save_model(folder / "early.ubj")
    compose(folder, described(members=[node]))
    compose(folder, described(members=[node | {"expected": "best.parquet"}]))


def test_a_model_of_text_classes_is_refused_and_one_that_ranks_frauds_last_is_reported(folder: Path) -> None:
    node = {"name": "turned", "model": "turned.skops"}
    document = described(members=[node])
    turned = np.where(DATA.label[TRAIN], "fraud", "genuine")
    (folder / "turned.skops").write_bytes(dumps(LogisticRegression().fit(FRAME.iloc[TRAIN], turned)))
    with pytest.raises(ArtifactError, match="classes of the model are 'fraud' and 'genuine', not 0 and 1"):
        compose(folder, document)
    (folder / "turned.skops").write_bytes(dumps(LogisticRegression().fit(FRAME.iloc[TRAIN], ~DATA.label[TRAIN])))
    (note,) = compose(folder, document).members[0].notes
    assert note.startswith("warning: its ROC AUC is 0.1")


def member(index: int, **more: Any) -> dict[str, Any]:
    document = described()
    document["members"][index] |= more
    return document


FAULTS: list[tuple[dict[str, Any], str]] = [
    (described(nme="x"), r"own\.yaml: \(top level\): Object contains unknown field `nme`"),
    (member(1, weight="heavy"), r"members\[1\]\.weight: "),
    (member(1, name="pipeline"), r"members\[1\]\.name: 'pipeline' is used twice"),
    (member(1, weight=0.3), r"members: some weights are given and some are fitted"),
    (described(trained_until=None), r"trained_until: required, because members\[0\]\.calibrator"),
    (described(trained_until="soon"), r"trained_until: 'soon' is not a time"),
    (described(trained_until=20250117), r"trained_until: 20250117 epoch milliseconds are .*\n.*2025-02-20"),
    (described(trained_until=1_737_072_000), r"trained_until: 1737072000 epoch milliseconds are before 1973"),
    (described(trained_until="2030-01-01"), r"trained_until: the history has no mature transaction after it"),
    (described(trained_until="1970-01-01T00:24"), r"trained_until: after it, the calibration slice .* has \d frauds"),
    (described(combiner="stacking", link="rank"), r"link: stacking of ranks"),
    (described(thresholds={"review": 0.9, "block": 0.5}), r"thresholds: review is above block"),
    (described(history={"topics": True, "transactions": "x"}), r"history: give either"),
    (member(1, model="missing.txt"), r"members\[1\]\.model: no file .*missing\.txt"),
    (member(1, model="own.yaml"), r"members\[1\]\.model: .*own\.yaml: the format cannot be recognised"),
    (member(1, format="xgboost-ubj"), r"members\[1\]\.model: .*boosted\.txt: xgboost-ubj: not a model"),
    (member(1, sha256="0" * 64), r"members\[1\]\.sha256: .*boosted\.txt has sha256 "),
    (member(4, inputs=None), r"members\[4\]\.inputs: required, because the columns of the model have no names"),
    (member(4, inputs=["a_vlue", "b_value", "c_value"]), r"members\[4\]\.inputs: 'a_vlue' is not a .*\n.*'a_value'"),
    (member(4, inputs=["a_value"] * 3), r"members\[4\]\.inputs: a feature is listed twice"),
    (member(4, inputs=["a_value", "b_value"]), r"members\[4\]\.model: .*does not have 2 columns"),
    (member(1, inputs=["a_value", "c_value"]), r"members\[1\]\.inputs\[0\]: 'a_value', but .* is 'c_value'"),
    (member(2, inputs=NAMES), r"members\[2\]\.inputs\[0\]: 'a_value', but that column of the model is 'one'"),
    (member(2, inputs={"a_value": "one", "b_value": "two"}), r"members\[2\]\.inputs: no feature for .* 'three'"),
    (member(2, inputs={"a_value": "four"}), r"members\[2\]\.inputs\.a_value: the model has no column 'four'"),
    (member(1, preprocess={"b_value": {}}), r"members\[1\]\.preprocess\.b_value: not an input of this member"),
    (member(1, preprocess={"*": {"scale": 0.0}}), r"members\[1\]\.preprocess\.\*\.scale: must not be 0"),
    (member(0, expected="missing.parquet"), r"members\[0\]\.expected: no file"),
    (member(0, expected="few.parquet"), r"members\[0\]\.expected: has 3 of the transactions .* at least 50"),
    (described(limits={"batch_ms": 1e-6}), r"members\[0\]\.model: takes .* ms for a batch of 64 transactions"),
    (described(limits={"model_mb": 1e-6}), r"members\[0\]\.model: .* MB, above limits\.model_mb"),
]  # fmt: skip


@pytest.mark.parametrize(("document", "message"), FAULTS, ids=[message[:50] for _, message in FAULTS])
def test_a_fault_names_the_node_and_what_to_change(folder: Path, document: dict[str, Any], message: str) -> None:
    write_expected(folder / "few.parquet", DATA.event_id[:3], np.zeros(3))
    with pytest.raises(UsageError) as error:
        compose(folder, document)
    assert re.search(message, str(error.value)), str(error.value)


def test_a_member_without_a_score_for_missing_features_is_refused(folder: Path) -> None:
    features = DATA.features.copy()
    features[::7, 1] = np.nan
    data = TrainingSet(features, NAMES, DATA.label, DATA.event_time, event_id=DATA.event_id)
    document = described(members=[described()["members"][3]])
    with pytest.raises(UsageError, match=r"members\[0\]\.model: gives no probability .* 215 of 1500.*\n.*b_value"):
        compose(folder, document, data)
    document["members"][0]["preprocess"] = {"b_value": {"impute": 0.0}}
    assert compose(folder, document, data).members[0].weight == 1.0


def test_a_member_without_a_score_while_features_are_not_available_is_refused(folder: Path) -> None:
    """No history contains such rows: every feature of a history is computed."""
    spec = parse_spec(
        card_spec(
            "derived:\n  - {name: a_value, function: value, of: [a]}\n"
            "  - {name: share, function: ratio, of: [amount, card.count_1d]}\n"
            "  - {name: share_log, function: log1p, of: [share]}\n",
            a="number",
        )
    )
    assert spec.features == ["card.count_1d", "a_value", "share", "share_log"]
    assert np.array_equal(
        without_views(spec, np.array([[3.0, 5.0, 0.5, 1.0]])), [[np.nan, 5.0, np.nan, np.nan]], equal_nan=True
    )
    x = np.random.default_rng(5).normal(size=(ROWS, 4))
    data = TrainingSet(x, spec.features, DATA.label, DATA.event_time, event_id=DATA.event_id)
    model = LogisticRegression().fit(x, DATA.label)
    (folder / "views.skops").write_bytes(dumps(model))
    write_expected(folder / "views.parquet", DATA.event_id, model.predict_proba(x)[:, 1])
    described_member = {"name": "one", "model": "views.skops", "expected": "views.parquet", "inputs": spec.features}
    document = described(members=[described_member])
    wrong = r"members\[0\]\.model: gives no probability while features .*\n.*card.count_1d, share, share_log: add"
    with pytest.raises(UsageError, match=wrong):
        compose(folder, document, data, spec=spec)
    described_member["preprocess"] = {name: {"impute": 0.0} for name in ("card.count_1d", "share", "share_log")}
    assert compose(folder, document, data, spec=spec).members[0].weight == 1.0


def test_the_schema_accepts_the_example_and_rejects_an_unknown_key() -> None:
    schema = json.loads(make_document_schemas()["ensemble-compose.schema.json"])
    document = yaml.safe_load((EXAMPLES / "own.yaml").read_text())
    document["trained_until"] = str(document["trained_until"])
    jsonschema.validate(document, schema)
    document["members"][0]["modell"] = "x"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, schema)


def test_the_notebook_has_the_cells_of_the_script() -> None:
    script = (EXAMPLES / "train_models.py").read_text()
    notebook = json.loads(make_notebook(script))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(code) >= 5
    assert all("".join(cell["source"]) in script for cell in code)
    assert "stream_scorer" not in "".join("".join(cell["source"]) for cell in code)


def test_scores_that_are_no_numbers_name_the_column(folder: Path) -> None:
    pq.write_table(
        pa.table({"event_id": DATA.event_id, "score": ["high"] * len(DATA.event_id)}), folder / "text.parquet"
    )
    with pytest.raises(UsageError, match=r"members\[0\]\.expected: the column 'score' of .* has no numbers"):
        compose(folder, member(0, expected="text.parquet"))


@pytest.mark.parametrize("text", ["members: &all [*all]", "history: &same {labels: *same}", "weights: !!timestamp x"])
def test_a_node_that_contains_itself_or_no_time_is_not_valid_yaml(tmp_path: Path, text: str) -> None:
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(UsageError, match="not valid YAML"):
        read_compose_file(tmp_path / "own.yaml")


def test_a_date_that_does_not_exist_is_not_valid_yaml(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("trained_until: 2025-02-30\n")
    with pytest.raises(UsageError, match="not valid YAML: day"):
        read_compose_file(tmp_path / "own.yaml")


def test_a_model_without_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text('{"intercept": 0, "coefficients": {}}')
    text = "{name: n, final_calibrator: none, members: [{name: a, model: m.json, calibrator: none, weight: %s}]}"
    (tmp_path / "own.yaml").write_text(text % "1")
    with pytest.raises(UsageError, match=r"members\[0\]\.inputs: the model has no columns"):
        load_models(read_compose_file(tmp_path / "own.yaml"), SPEC)
    (tmp_path / "own.yaml").write_text(text % ".inf")
    with pytest.raises(UsageError, match="the sum of the weights"):
        read_compose_file(tmp_path / "own.yaml")
