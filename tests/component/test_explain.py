"""An explanation adds up, inside and out, and reads well."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import lightgbm
import msgspec
import numpy as np
import pytest
import xgboost

from stream_scorer.ensemble.attribution import Explainer
from stream_scorer.ensemble.compose import Draft, Outline, compose_ensemble
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.ensemble.manifest import Input, Platt, Thresholds
from stream_scorer.ensemble.members.dense_json import Dense, Layer, encode_dense
from stream_scorer.errors import SettingsError, UsageError, install_hint
from stream_scorer.records import Alternative, Contribution, LineageRow, Members, Score, Source
from stream_scorer.replay.explain import Explanation, explain
from stream_scorer.reports.event import as_text, write_page, write_picture
from tests.support.ensembles import TRAINING

NAMES = ["amount", "count_1h", "mean_7d", "<b>age</b>"]
replace = msgspec.structs.replace


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(800, 4))
    x[rng.random(800) < 0.1, 1] = np.nan
    y = np.nan_to_num(x) @ np.array([1.0, 2.0, -1.0, 0.5]) > 0.5
    parameters = {"objective": "binary", "num_leaves": 7, "verbosity": -1, "num_threads": 1}
    bagged = parameters | {"objective": "regression", "boosting": "rf", "bagging_fraction": 0.6, "bagging_freq": 1}
    grown = xgboost.DMatrix(x, y, feature_names=["a", "b", "c", "d"])
    plain, scaled = [Input()] * 4, [Input(impute=0.5, offset=0.2, scale=2.0)] * 4
    drafts = [
        Draft("gbdt", "lightgbm-text", _text(parameters, x, y), NAMES, plain, Platt(0.9, 0.1), 2.0),
        Draft("forest", "lightgbm-text", _text(bagged, x, y), NAMES, plain, Platt(1.0, 0.0), 1.0),
        Draft(
            "xgb", "xgboost-ubj",
            bytes(xgboost.train({"objective": "binary:logistic", "nthread": 1}, grown, 10).save_raw("ubj")),
            NAMES, plain, Platt(1.0, 0.0), 1.0,
        ),
        Draft(
            "linear", "dense-json", encode_dense(Dense([Layer([[1.0], [2.0], [-1.0], [0.5]], [-0.5], "logistic")])),
            NAMES, scaled, Platt(1.0, 0.0), 0.5,
        ),
        Draft(
            "network", "dense-json",
            encode_dense(Dense([Layer([[1.0]] * 4, [0.0], "relu"), Layer([[1.0]], [0.0], "logistic")])),
            NAMES, scaled, Platt(1.0, 0.0), 0.5,
        ),
    ]  # fmt: skip
    outline = Outline(
        "cards", 1, "cards", "a" * 64, "b" * 64, NAMES, Platt(1.0, 0.0), Thresholds("p", 0.3, 0.8), 0.4, TRAINING
    )
    path = tmp_path_factory.mktemp("explain") / "e"
    compose_ensemble(path, outline, drafts, x)
    return path


def _text(parameters: dict[str, Any], x: np.ndarray, y: np.ndarray) -> bytes:
    return str(lightgbm.train(parameters, lightgbm.Dataset(x, y), 10).model_to_string()).encode()


ROW = [0.7, None, -0.4, 1.25]


def served(folder: Path) -> tuple[Ensemble, Score, Contribution, LineageRow]:
    ensemble = Ensemble.load(folder, version="7")
    scored = ensemble.score(np.array([ROW], dtype=np.float64))
    members = Members(
        ensemble.member_names, scored.member_scores[0].tolist(), scored.weights[0].tolist(),
        scored.contributions[0].tolist(),
    )  # fmt: skip
    score = Score(
        "e<1>", 1_700_000_000_000, 5, float(scored.score[0]), "review", "model", "cards", "7", "champion", "p", 1.0,
        True, ["features_stale"], 3, 1_234,
    )  # fmt: skip
    source = Source("t", 0, 0)
    contribution = Contribution(
        "e<1>", "cards", "7", "champion", float(scored.base[0]), float(scored.z[0]), float(scored.score[0]), members,
        source, [Alternative("8", -1.0, "approve")],
    )  # fmt: skip
    lineage = LineageRow(
        "e<1>", "cards", "7", "champion", "logit", source, 0, ROW, [0, 2, 1, 3], "b" * 64, "s", [], "0"
    )
    return ensemble, score, contribution, lineage


@pytest.fixture
def explanation(folder: Path) -> Explanation:
    ensemble, score, contribution, lineage = served(folder)
    return explain(score, contribution, lineage, 2, ensemble, folder, 1e-6, 3)


def test_what_is_inside_a_member_adds_up_to_its_margin(folder: Path) -> None:
    ensemble = Ensemble.load(folder, version="7")
    explainer, rows = Explainer(folder, ensemble.manifest), np.random.default_rng(3).normal(size=(10, 4))
    for place, (name, loaded) in enumerate(zip(ensemble.member_names, ensemble._members, strict=True)):
        parts, margin = explainer.attribute(place, rows)
        if name == "network":
            assert explainer.methods[place].how == "a network of several layers has no exact attribution"
            assert parts.shape == (10, 0)
            continue
        base = margin - parts.sum(axis=1)
        assert np.allclose(base, base[0], atol=1e-5)  # what is left is the same whatever the row
        # The margin is that of the member which serves.
        forest = "probability" in explainer.methods[place].how
        assert forest == (name == "forest")
        score = margin if forest else 1 / (1 + np.exp(-margin))
        assert np.allclose(score, loaded.member.predict(loaded.preprocess.apply(rows)), atol=1e-5)


def test_an_explanation_is_whole(explanation: Explanation) -> None:
    assert explanation.same
    assert [part.name for part in explanation.members] == sorted(
        explanation.contribution.members.name,
        key=lambda name: -abs(next(m.contribution for m in explanation.contribution.members.rows() if m.name == name)),
    )
    tree = next(part for part in explanation.members if part.name == "gbdt")
    assert len(tree.inside) == 3
    assert [abs(f.contribution) for f in tree.inside] == sorted(
        (abs(f.contribution) for f in tree.inside), reverse=True
    )
    by_name = {f.feature: f for part in explanation.members for f in part.inside}
    assert (by_name["count_1h"].value, by_name["count_1h"].status) == (None, "missing")
    assert by_name["mean_7d"].status == "stale"


def test_the_text_fits_a_narrow_terminal_and_says_everything(explanation: Explanation) -> None:
    text = as_text(explanation)
    assert max(map(len, text.splitlines())) <= 100
    bars = [line for line in text.splitlines() if line.endswith(("=", "+", "-")) and line[:1] != " "]
    assert len(bars) == 7
    assert max(map(len, bars)) <= 80
    for word in (
        "e<1>",
        "review (by its score)",
        "features_stale",
        "occurred before",
        "2 scores",
        "8 would have decided approve",
    ):
        assert word in text
    assert "count_1h" in text
    assert "(missing)" in text


def test_a_member_that_scores_otherwise_is_reported(folder: Path) -> None:
    ensemble, score, contribution, lineage = served(folder)

    def explained(members: Members) -> Explanation:
        return explain(score, replace(contribution, members=members), lineage, 1, ensemble, folder, 1e-6, 3)

    members = contribution.members
    found = explained(replace(members, score=[0.123, *members.score[1:]]))
    assert not found.same
    assert "differs from the record" in as_text(found)
    assert explained(replace(members, score=[None, *members.score[1:]], status=["missing"] + ["ok"] * 4)).same
    with pytest.raises(UsageError, match="was not scored by"):
        explain(score, contribution, replace(lineage, features=ROW[:3]), 1, ensemble, folder, 1e-6, 3)


def test_a_score_without_quorum_has_no_waterfall(folder: Path) -> None:
    ensemble, score, contribution, lineage = served(folder)
    members = Members(contribution.members.name, [None] * 5, [0.0] * 5, [0.0] * 5, ["missing"] * 5)
    contribution = replace(contribution, members=members, z=None, base=None, score=None)
    score = replace(score, score=None, decision_source="fallback")
    found = explain(score, contribution, lineage, 1, ensemble, folder, 1e-6, 3)
    assert "no z: too few members returned a score" in as_text(found)


def test_text_of_a_record_is_data_on_the_terminal(explanation: Explanation) -> None:
    score = replace(explanation.score, degraded=["x\x1b]0;title\x07"], rule="rule\nscore      0.0001 by cards 9")
    text = as_text(replace(explanation, score=score))
    assert "\x1b" not in text and "\x07" not in text
    assert len([line for line in text.splitlines() if line.startswith("score ")]) == 1


def test_page_and_picture(explanation: Explanation, tmp_path: Path) -> None:
    write_page(explanation, tmp_path / "e.html")
    page = (tmp_path / "e.html").read_text()
    assert "<svg" in page
    assert "&lt;b&gt;age&lt;/b&gt;" in page
    assert "<b>age" not in page
    assert "e<1>" not in page
    assert not re.search(r"https?://|//\w", page.replace("<!doctype", ""))
    write_page(explanation, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text() == page
    write_picture(explanation, tmp_path / "e.png")
    assert (tmp_path / "e.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_hostile_text_on_the_page_stays_text(explanation: Explanation, tmp_path: Path) -> None:
    hostile = "\"'><script>alert(1)</script>{{ 7 * 7 }}"
    score = replace(
        explanation.score, event_id=hostile, decision=hostile, rule=hostile, degraded=[hostile], ensemble=hostile
    )
    contribution = replace(explanation.contribution, alternatives=[Alternative(hostile, None, hostile)])
    first = explanation.members[0]
    inside = [replace(feature, feature=hostile, status=hostile) for feature in first.inside]
    members = [replace(first, name=hostile, how=hostile, inside=inside), *explanation.members[1:]]
    write_page(replace(explanation, score=score, contribution=contribution, members=members), tmp_path / "hostile.html")
    page = (tmp_path / "hostile.html").read_text()
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;{{ 7 * 7 }}") >= 8
    assert "49" not in re.sub(r"<svg.*</svg>", "", page, flags=re.DOTALL)


def test_a_missing_jinja2_is_an_error_that_names_the_extra(
    explanation: Explanation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(SettingsError, match="Jinja2") as raised:
        write_page(explanation, tmp_path / "e.html")
    assert raised.value.hint == install_hint("report")
