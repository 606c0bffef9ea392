"""The comparison of two versions names the member that moved alerts, how it differs, and the input concerned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from stream_scorer.control.attribution import Attribution
from stream_scorer.ensemble.combine import Scenarios
from stream_scorer.ensemble.compose import Draft, Outline, compose_ensemble
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.ensemble.lineup import MemberPool
from stream_scorer.ensemble.manifest import (
    CombinerSpec,
    Input,
    Link,
    Median,
    NoCalibrator,
    Platt,
    Stacking,
    Thresholds,
    TrimmedMean,
    WeightedMean,
)
from stream_scorer.evaluation.paired import PairCounts
from stream_scorer.pipeline.pair_inputs import PairComparer
from stream_scorer.records import Cause, MemberPair, PairDifferences
from stream_scorer.spec import load_spec
from tests.support.ensembles import TRAINING, logistic

CHECKED = load_spec(Path(__file__).resolve().parents[2] / "stream_scorer" / "simulate" / "cards.yaml")
FEATURES = CHECKED.features
MEMBERS = {
    "one": {"customer.count_1h": 0.9, "amount_to_mean_30d": 0.5, "device_age.since_last": 0.4},
    "two": {"amount_log": 0.9, "terminal.count_1h": -0.3, "channel_code": 0.6},
    "three": {"terminal_risk.label_rate_7d": 1.2, "amount_log": 0.5, "is_night": 0.2},
}
Change = Callable[[Draft], Draft]


def rows(n: int, seed: int) -> np.ndarray:
    """Features: counts, a code of four categories, skewed amounts, and one that is missing in a fifth of the rows."""
    rng = np.random.default_rng(seed)
    values = rng.lognormal(0.0, 0.6, (n, len(FEATURES)))
    values[:, FEATURES.index("customer.count_1h")] = rng.poisson(3.0, n)
    values[:, FEATURES.index("channel_code")] = rng.choice(4, n, p=[0.5, 0.3, 0.15, 0.05])
    values[:, FEATURES.index("is_night")] = rng.random(n) < 0.4
    values[rng.random(n) < 0.2, FEATURES.index("device_age.since_last")] = np.nan
    return values


LIVE = rows(12_000, 2)


def drafts(seed: int | None = None) -> list[Draft]:
    """The members; with a `seed` they are retrained: weights and standardisation differ a little."""
    rng = np.random.default_rng(seed or 0)

    def near(value: float, spread: float) -> float:
        return value * (1.0 if seed is None else 1.0 + spread * rng.standard_normal())

    def prepared(name: str) -> Input:
        column = LIVE[:, FEATURES.index(name)]
        offset, scale = near(float(np.nanmean(column)), 0.01), near(float(np.nanstd(column)), 0.01)
        return Input(near(float(np.nanmedian(column)), 0.01), 0.0, 40.0, offset, scale)

    return [
        Draft(
            name, "dense-json", logistic([near(w, 0.05) for w in weights.values()], near(-3.0, 0.01)), list(weights),
            [prepared(each) for each in weights], NoCalibrator(), near(1.0, 0.02),
        )
        for name, weights in MEMBERS.items()
    ]  # fmt: skip


def prepare(name: str, change: Callable[[Input], Input]) -> Change:
    """A change of the preparation of one input."""

    def apply(draft: Draft) -> Draft:
        place = list(draft.inputs).index(name)
        entries = list(draft.preprocess)
        entries[place] = change(entries[place])
        return replace_draft(draft, preprocess=entries)

    return apply


def replace_draft(draft: Draft, **change: Any) -> Draft:
    fields = {name: getattr(draft, name) for name in Draft.__slots__}
    return Draft(**(fields | change))


def invert(draft: Draft) -> Draft:
    weights = list(MEMBERS[draft.name].values())
    return replace_draft(draft, data=logistic([-w for w in weights], -3.0))


def map_otherwise(draft: Draft) -> Draft:
    """The member expects the codes of the channels in reverse order."""
    column = LIVE[:, FEATURES.index("channel_code")]
    weights = dict(MEMBERS[draft.name])
    weight, shift = weights["channel_code"], float((3.0 - 2.0 * column.mean()) / column.std())
    weights["channel_code"] = -weight
    return replace_draft(draft, data=logistic(list(weights.values()), -3.0 + weight * shift))


def composed(
    folder: Path,
    made: list[Draft],
    version: str,
    combiner: CombinerSpec | None = None,
    link: Link = "logit",
    review: float = 0.15,
    reference: np.ndarray | None = None,
) -> Ensemble:
    outline = Outline(
        "cards", 1, "cards", CHECKED.sha256, CHECKED.feature_hash, FEATURES, NoCalibrator(),
        Thresholds("p", review, 0.99), 0.4, TRAINING, combiner or WeightedMean(), link,
    )  # fmt: skip
    compose_ensemble(folder, outline, made, rows(800, 1) if reference is None else reference)
    return Ensemble.load(folder, version=version)


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Ensemble:
    return composed(tmp_path_factory.mktemp("before") / "made", drafts(), "1")


def batch_of(candidate: Ensemble, baseline: Ensemble, features: np.ndarray) -> Any:
    results = []
    for ensemble in (candidate, baseline):
        scored = ensemble.score(features)
        decision = (scored.score >= ensemble.manifest.thresholds.review).astype(np.int8)
        results.append(SimpleNamespace(scored=scored, decision=decision))
    return SimpleNamespace(
        decided=SimpleNamespace(results=results, rules=None), enriched=SimpleNamespace(matrix=features)
    )


def differences(candidate: Ensemble, baseline: Ensemble, size: int = 12_000) -> list[PairDifferences]:
    comparer, found = PairComparer(candidate, baseline, CHECKED), []
    for start in range(0, len(LIVE), size):
        part = LIVE[start : start + size]
        found.append(comparer.compare(batch_of(candidate, baseline, part), 0, 1, np.ones(len(part), np.bool_)))
    return [each for each in found if each is not None]


def net_change(candidate: Ensemble, baseline: Ensemble) -> int:
    one, two = (int((e.score(LIVE).score >= e.manifest.thresholds.review).sum()) for e in (candidate, baseline))
    return one - two


def cause_of(candidate: Ensemble, baseline: Ensemble) -> Cause | None:
    found, change = Attribution(), net_change(candidate, baseline)
    for each in differences(candidate, baseline):
        # As a reader of the topic sees it.
        found.add(msgspec.json.decode(msgspec.json.encode(each), type=PairDifferences))
    assert abs(change) > 30, "the update moves no alerts"
    return found.cause(falls=change < 0, change=change)


UPDATES: list[tuple[str, Change, str, str | None]] = [
    ("one", prepare("customer.count_1h", lambda e: replace(e, scale=0.6 * e.scale)), "scale", "customer.count_1h"),
    ("one", prepare("amount_to_mean_30d", lambda e: replace(e, scale=0.4 * e.scale)), "scale", "amount_to_mean_30d"),
    ("two", prepare("amount_log", lambda e: replace(e, offset=e.offset - 0.8)), "offset", "amount_log"),
    ("one", prepare("device_age.since_last", lambda e: replace(e, impute=6.0)), "imputation", "device_age.since_last"),
    ("three", prepare("amount_log", lambda e: replace(e, high=1.2)), "clip", "amount_log"),
    ("two", map_otherwise, "mapping", "channel_code"),
    (
        "two",
        prepare("channel_code", lambda e: replace(e, offset=3.0 - e.offset, scale=-e.scale)),
        "mapping",
        "channel_code",
    ),
    ("two", lambda draft: replace_draft(invert(draft), weight=2.0), "inverted", None),
    ("three", lambda draft: replace_draft(draft, weight=2.5), "weight", None),
    ("three", invert, "inverted", None),
    ("two", invert, "inverted", None),
]


@pytest.mark.parametrize("retrained", [False, True])
@pytest.mark.parametrize(("member", "change", "kind", "input_name"), UPDATES)
def test_the_member_and_the_kind_of_its_change_are_named(
    before: Ensemble, tmp_path: Path, member: str, change: Change, kind: str, input_name: str | None, retrained: bool
) -> None:
    made = [change(each) if each.name == member else each for each in drafts(7 if retrained else None)]
    cause = cause_of(composed(tmp_path / "after", made, "2"), before)
    assert cause is not None
    assert (cause.member, cause.kind, cause.input) == (member, kind, input_name), cause


def test_a_difference_is_described_in_terms_of_the_values_that_the_member_sees(
    before: Ensemble, tmp_path: Path
) -> None:
    change = prepare("customer.count_1h", lambda e: replace(e, scale=0.5 * e.scale))
    after = composed(tmp_path / "after", [change(each) if each.name == "one" else each for each in drafts()], "2")
    cause = cause_of(after, before)
    assert cause is not None and cause.difference == "reads customer.count_1h 2 times as large"
    attribution = Attribution()
    for each in differences(after, before):
        attribution.add(each)
    (seen,) = attribution.inputs()
    assert (seen.member, seen.input, seen.kind) == ("one", "customer.count_1h", "scale")
    assert seen.moved > 0.5


def test_alerts_of_a_scenario_are_those_of_an_ensemble_made_that_way(before: Ensemble, tmp_path: Path) -> None:
    change = prepare("customer.count_1h", lambda e: replace(e, scale=0.5 * e.scale))
    # `after` differs in two members; in the scenario, "one" is as before.
    two = replace_draft(drafts()[1], weight=3.0)
    after = composed(tmp_path / "after", [change(drafts()[0]), two, drafts()[2]], "2")
    half = composed(tmp_path / "half", [drafts()[0], two, drafts()[2]], "3")
    (found,) = differences(after, before)
    alert, changed = (e.score(LIVE).score >= 0.15 for e in (after, half))
    square = [alert & changed, alert & ~changed, ~alert & changed, ~alert & ~changed]
    assert found.members["one"].output == [int(cell.sum()) for cell in square]
    assert found.members["one"].weight == [] and found.members["two"].output == []
    assert found.members["one"].shares == (0.2, pytest.approx(1 / 3))


@pytest.mark.parametrize("how", [Median(), TrimmedMean(0.34), Stacking(-0.2, [0.5, 0.3, 0.4])])
def test_scenarios_of_every_combiner_recompute_its_scores(tmp_path: Path, how: CombinerSpec) -> None:
    ensemble = composed(tmp_path / "made", drafts(), "1", how)
    features = LIVE[:500]
    scored = ensemble.score(features)
    theirs = scored.member_scores.copy()
    theirs[:, 1] = 0.5
    ones = np.ones((2, 3))
    coefficients = np.array([how.coefficients if isinstance(how, Stacking) else [0.0] * 3] * 2)
    swap = np.array([[False] * 3, [False, True, False]])
    found = ensemble.what_if(scored.member_scores, theirs, Scenarios(swap, ones, coefficients))
    outputs = [ensemble.predict_member(index, ensemble.checked(features)) for index in range(3)]
    outputs[1].raw[:] = 0.5
    assert found[:, 0] == pytest.approx(scored.score)
    assert found[:, 1] == pytest.approx(ensemble.combine(outputs).score)


def test_counts_do_not_depend_on_how_transactions_were_split(before: Ensemble, tmp_path: Path) -> None:
    after = composed(tmp_path / "after", drafts(7), "2")
    whole, parts = Attribution(), Attribution()
    for attribution, size in ((whole, 12_000), (parts, 777)):
        for each in differences(after, before, size):
            attribution.add(each)
    assert whole.rows == parts.rows == 12_000
    assert whole.inputs() == parts.inputs()
    for name, member in whole._members.items():
        other = parts._members[name]
        assert (member.output, member.scores, member.answered) == (other.output, other.scores, other.answered)
        assert (member.answers, member.inputs) == (other.answers, other.inputs)


def test_a_retrained_version_without_a_fault_has_no_input_that_is_read_differently(
    before: Ensemble, tmp_path: Path
) -> None:
    attribution = Attribution()
    for each in differences(composed(tmp_path / "after", drafts(7), "2"), before):
        attribution.add(each)
    assert attribution.inputs() == []


def test_equal_versions_are_not_compared(before: Ensemble) -> None:
    assert PairComparer(before, before, CHECKED).equal
    # The number of transactions shows that no difference is known. Without it, readers would take another rule.
    assert differences(before, before) == [PairDifferences(12_000)]


def without(name: str) -> list[Draft]:
    return [each for each in drafts() if each.name != name]


STACKED = [0.4, 0.4, 0.4]
LOW = {"review": 0.08}


def test_another_calibrator_of_incomplete_scores_is_another_policy(tmp_path: Path) -> None:
    """Member one returns nothing for a fifth of the transactions."""
    gaps = replace_draft(drafts()[0], preprocess=[replace(each, impute=None) for each in drafts()[0].preprocess])
    before = composed(tmp_path / "before", [gaps, *drafts()[1:]], "1", Stacking(-0.8, STACKED))
    manifest = replace(before.manifest, incomplete_calibrator=Platt(2.0, 1.5))
    after = Ensemble(manifest, [loaded.member for loaded in before._members], version="2")
    mine, theirs = (each.score(LIVE) for each in (after, before))
    missing = np.isnan(mine.member_scores[:, 0])
    assert 0.1 < missing.mean() < 0.3 and np.array_equal(mine.score != theirs.score, missing)
    (found,) = differences(after, before)
    alert, changed = mine.score >= 0.15, theirs.score >= 0.15
    square = [alert & changed, alert & ~changed, ~alert & changed, ~alert & ~changed]
    assert (found.policy, found.members) == ([int(cell.sum()) for cell in square], {})
    counts = PairCounts([before, after], ["1", "2"], 1, MemberPool([before, after]))
    assert np.array_equal(counts._with_rest(mine, theirs), theirs.score)


RANKED: dict[str, Any] = {"link": "rank", "review": 0.75}
# The members are the same in both versions.
COMBINATIONS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"combiner": Median(), **LOW}, LOW, "the combiner changed from weighted mean to median"),
    (LOW, {"combiner": Median(), **LOW}, "the combiner changed from median to weighted mean"),
    ({"made": without("three")}, {}, "member three was removed"),
    ({"made": without("one"), "combiner": Median()}, {"combiner": Median()}, "member one was removed"),
    ({"made": without("three"), **RANKED}, RANKED, "member three was removed"),
    ({"link": "probability"}, {}, "the link changed from logit to probability"),
    ({"link": "rank"}, {}, "the link changed from logit to rank"),
    (
        {"combiner": TrimmedMean(0.0), **LOW}, {"combiner": TrimmedMean(0.34), **LOW},
        "the trimmed share changed from 34.0% to 0.0%",
    ),
    (
        {"combiner": Stacking(-0.8, STACKED), "review": 0.03}, {"combiner": Stacking(-1.0, STACKED), "review": 0.03},
        "the intercept of stacking changed from -1 to -0.8",
    ),
    (
        {"made": without("two"), "combiner": Median(), "review": 0.1}, {},
        "member two was removed; the combiner changed from weighted mean to median; "
        "the final calibrator or thresholds differ",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("after", "former", "difference"), COMBINATIONS)
def test_what_differs_outside_of_the_members_is_named_and_no_member(
    tmp_path: Path, after: dict[str, Any], former: dict[str, Any], difference: str
) -> None:
    candidate, baseline = (
        composed(tmp_path / version, version=version, **({"made": drafts()} | made))
        for version, made in (("2", after), ("1", former))
    )
    cause, change = cause_of(candidate, baseline), net_change(candidate, baseline)
    assert cause == Cause("combination", None, None, difference, pytest.approx(abs(change) / 12))


def test_a_faulty_member_is_named_although_the_combination_differs_too(before: Ensemble, tmp_path: Path) -> None:
    change = prepare("customer.count_1h", lambda e: replace(e, scale=0.4 * e.scale))
    made = [change(each) if each.name == "one" else each for each in drafts()]
    for place, how in enumerate(({"combiner": TrimmedMean(0.1)}, {"made": made[:2]})):
        after = composed(tmp_path / str(place), version="2", **({"made": made} | how))
        cause = cause_of(after, before)
        assert cause is not None and (cause.member, cause.input) == ("one", "customer.count_1h")


def test_a_member_that_no_longer_counts_for_the_median_is_named(tmp_path: Path) -> None:
    made = [replace_draft(each, weight=0.0) if each.name == "three" else each for each in drafts()]
    versions = [composed(tmp_path / str(k), each, str(k), Median()) for k, each in enumerate((drafts(), made))]
    cause = cause_of(versions[1], versions[0])
    assert cause is not None and (cause.member, cause.kind) == ("three", "weight")
    assert cause.difference == "its share of the weight is 0% instead of 33%"


def test_the_coefficient_of_stacking_is_stated_instead_of_the_weight(tmp_path: Path) -> None:
    hows = [Stacking(-1.0, [0.4, each, 0.4]) for each in (0.4, 0.8)]
    versions = [composed(tmp_path / str(k), drafts(), str(k), how, review=0.02) for k, how in enumerate(hows)]
    cause = cause_of(versions[1], versions[0])
    assert cause is not None and (cause.member, cause.kind) == ("two", "weight")
    assert cause.difference == "its coefficient is 0.8 instead of 0.4"


FAULTS = {
    "one": prepare("customer.count_1h", lambda e: replace(e, scale=0.6 * e.scale)),
    "two": prepare("amount_log", lambda e: replace(e, scale=0.6 * e.scale)),
    "three": prepare("terminal_risk.label_rate_7d", lambda e: replace(e, scale=0.8 * e.scale)),
}


@pytest.mark.parametrize(("renamed", "faulty"), [("one", "two"), ("two", "three"), ("three", "one")])
def test_a_renamed_member_is_the_same_one(before: Ensemble, tmp_path: Path, renamed: str, faulty: str) -> None:
    made = [FAULTS[faulty](each) if each.name == faulty else each for each in drafts()]
    made = [replace_draft(each, name="other") if each.name == renamed else each for each in made]
    after = composed(tmp_path / "after", made[::-1], "2")
    (found,) = differences(after, before)
    assert list(found.members) == [faulty]
    cause = cause_of(after, before)
    assert cause is not None and cause.member == faulty


def test_scores_of_the_link_rank_have_the_references_of_their_own_version(tmp_path: Path) -> None:
    def ranked(name: str, made: list[Draft], reference: np.ndarray | None = None) -> Ensemble:
        return composed(tmp_path / name, made, name, None, "rank", 0.75, reference)

    one, two, three = drafts()
    former = ranked("former", [one, two, three])
    calibrated = ranked("calibrated", [one, replace_draft(two, calibrator=Platt(1.0, 2.0)), three])
    # The scores of "two" are higher, and those of the reference rows as well.
    (found,) = differences(calibrated, former)
    square = found.members["two"].output
    assert net_change(calibrated, former) == 0 and square[1] == square[2] == 0
    reference = rows(800, 1)
    reference[:, FEATURES.index("customer.count_1h")] *= 2
    cause = cause_of(ranked("busy", [one, two, three], reference), former)
    assert cause is not None
    assert (cause.member, cause.difference) == ("one", "its scores are ranked by the scores of other reference rows")


def test_a_changed_threshold_is_named_and_no_member(before: Ensemble) -> None:
    lower = replace(before.manifest, thresholds=Thresholds("p", 0.08, 0.8))
    after = Ensemble(lower, [loaded.member for loaded in before._members], version="2")
    (found,) = differences(after, before)
    attribution = Attribution()
    attribution.add(found)
    cause = attribution.cause(falls=False, change=100)
    assert cause is not None and (cause.kind, cause.member) == ("policy", None)
    assert attribution.cause(falls=True, change=-100) is None


@pytest.mark.parametrize(("change", "named"), [(25, "a"), (70, None)])
def test_thresholds_that_follow_another_scale_of_scores_do_not_hide_the_member(change: int, named: str | None) -> None:
    attribution = Attribution()
    member = MemberPair((0.5, 0.5), output=[75, 26, 0, 899], member=[75, 26, 0, 899])
    attribution.add(PairDifferences(1_000, {"a": member}, policy=[31, 70, 0, 899]))
    cause = attribution.cause(falls=False, change=change)
    assert cause is not None and cause.member == named


def square(net: int) -> list[int]:
    """2x2 counts of 1,000 transactions in which a change adds `net` alerts, or prevents them if it is negative."""
    return [30, max(net, 0), max(-net, 0), 970 - abs(net)]


def cause_beside_policy(members: dict[str, MemberPair], change: int, policy: int) -> Cause | None:
    attribution = Attribution()
    attribution.add(PairDifferences(1_000, members, policy=square(policy)))
    return attribution.cause(falls=change < 0, change=change)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_weight_is_named_although_thresholds_that_follow_training_are_nearer_to_the_change(sign: int) -> None:
    heavier = MemberPair((0.5, 0.1), output=square(sign * -4), weight=square(sign * 14), member=square(sign * 10))
    others = {name: MemberPair((0.25, 0.45), output=square(3), member=square(3)) for name in "bc"}
    cause = cause_beside_policy({"a": heavier, **others}, sign * 35, sign * 28)
    assert cause is not None and (cause.member, cause.kind) == ("a", "weight")


def test_a_member_whose_lower_weight_and_higher_scores_cancel_hides_no_other_one() -> None:
    trained = MemberPair((0.15, 0.37), output=square(-63), weight=square(95), member=square(5))
    heavier = MemberPair((0.52, 0.20), weight=square(94))
    others = {name: MemberPair((0.1, 0.14), output=square(5), member=square(5)) for name in "bcd"}
    cause = cause_beside_policy({"trained": trained, "heavier": heavier, **others}, 80, -3)
    assert cause is not None and (cause.member, cause.kind) == ("heavier", "weight")


def test_weights_that_training_moved_do_not_hide_changed_thresholds() -> None:
    members = {name: MemberPair((0.5, 0.45), output=square(10), weight=square(9), member=square(20)) for name in "ab"}
    cause = cause_beside_policy(members, 100, 90)
    assert cause is not None and (cause.member, cause.kind) == (None, "policy")
