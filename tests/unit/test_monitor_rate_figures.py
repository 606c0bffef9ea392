"""Figures of labels: intervals by card, parts of a window, windows without labels, and how complete labels are."""

from __future__ import annotations

import numpy as np
import pytest

from stream_scorer.monitor.clustered import MIN_FALSE_POSITIVES, group_sums, intervals
from stream_scorer.monitor.maturity import MIN_LABELS, MaturityCurve, curve_figures
from stream_scorer.monitor.rate_figures import Figure, label_sources, rate_figures
from stream_scorer.monitor.tally import age_bin
from stream_scorer.records import CARD_GROUPS
from tests.support.assumptions import FACE_VALUE

HOUR = 3_600_000
BOTH = ("review", "block")


def window(
    rng: np.random.Generator, *, burst: int, cards: int = 4_000, rate: float = 0.02, reviewed: float = 1.0
) -> dict[str, int]:
    """Counts of one window of genuine transactions: alerts come in bursts of `burst` on one card; some are reviewed."""
    group = rng.integers(0, CARD_GROUPS, cards)
    bursts = rng.random(cards) < rate / burst
    picked = np.where(bursts, rng.binomial(burst, reviewed, cards), 0)
    alerts, labels = (np.bincount(group, column, CARD_GROUPS).astype(int) for column in (bursts * burst, picked))
    approved = np.bincount(group[~bursts], minlength=CARD_GROUPS)
    counts = {"n": int(alerts.sum() + approved.sum()), "o:review:genuine": int(labels.sum())}
    counts |= {"d:review": int(alerts.sum()), "d:approve": int(approved.sum())}
    counts |= {"os:review:genuine:analyst": int(labels.sum()), f"op:review:genuine:{reviewed!r}": int(labels.sum())}
    columns = {"gd:review": alerts, "gd:approve": approved, "go:review:genuine": labels}
    columns["gw:review:genuine"] = labels * round(1000 / reviewed)
    return counts | {f"{name}:{g}": int(n) for name, column in columns.items() for g, n in enumerate(column) if n}


def one(found: list[Figure], metric: str, dimension: str) -> Figure:
    (figure,) = [f for f in found if (f.metric, f.dimension) == (metric, dimension)]
    return figure


def test_intervals_cover_the_rate_of_the_traffic_where_alerts_come_in_bursts() -> None:
    rng = np.random.default_rng(5)
    mean = 0.02 / (1 + 3 * 0.02 / 4)  # alerts per transaction: each burst adds three transactions
    covered, found = 0, 0
    for _ in range(200):
        interval = intervals(window(rng, burst=4), BOTH).get("fpr")
        assert interval is not None
        found += 1
        covered += interval.low <= mean <= interval.high
    assert covered >= 0.9 * found


def test_bursts_and_rare_reviews_widen_the_interval() -> None:
    def width(**how: float) -> float:
        rng = np.random.default_rng(1)
        limits = [intervals(window(rng, **how), BOTH)["fpr"] for _ in range(8)]  # type: ignore[arg-type]
        return float(np.mean([(limit.high - limit.low) / limit.value for limit in limits]))

    assert width(burst=4) > 1.5 * width(burst=1)
    assert width(burst=1, reviewed=0.3) > 1.3 * width(burst=1)


def test_groups_add_up_over_panes_and_label_changes() -> None:
    rng = np.random.default_rng(2)
    first, second = window(rng, burst=2), window(rng, burst=2)
    merged = {name: first.get(name, 0) + second.get(name, 0) for name in first.keys() | second.keys()}
    sums = [group_sums(counts, BOTH) for counts in (first, second, merged)]
    assert all(s is not None for s in sums)
    assert np.array_equal(sums[0].fp + sums[1].fp, sums[2].fp)  # type: ignore[union-attr]
    assert np.array_equal(sums[0].total + sums[1].total, sums[2].total)  # type: ignore[union-attr]


def test_no_interval_from_too_little() -> None:
    rng = np.random.default_rng(3)
    few = window(rng, burst=1, cards=150)
    assert few["o:review:genuine"] < MIN_FALSE_POSITIVES
    assert intervals(few, BOTH) == {}
    assert intervals({"n": 10, "d:review": 10, "o:review:genuine": 10}, BOTH) == {}, "without groups"
    partly = window(rng, burst=1, reviewed=0.5)
    stated = next(name for name in partly if name.startswith("op:"))
    partly[stated] -= 1
    assert intervals(partly, BOTH) == {}, "one reviewed alert does not state its probability"


def test_a_window_without_labels_has_no_figures_of_labels() -> None:
    counts = {"n": 10, "d:approve": 9, "d:review": 1, "ma:gbm": 1}
    found = rate_figures(counts, ["gbm"], FACE_VALUE, labels_complete=True)
    assert found
    assert {(f.value, f.low, f.high, f.numerator) for f in found} == {(None, None, None, None)}
    assert all(f.statistics == {"no_labels": 1} for f in found)


def test_members_segments_and_money() -> None:
    counts = {
        "n": 100, "d:approve": 90, "d:review": 10, "v:approve": 900, "v:review": 400, "ma:gbm": 8, "ma:net": 3,
        "o:review:genuine": 4, "o:review:fraud": 2, "ov:review:genuine": 100, "ov:review:fraud": 200,
        "os:review:genuine:analyst": 4, "os:review:fraud:chargeback": 2, "mo:0:genuine": 3, "mo:0:fraud": 2,
        "sd:web:approve": 15, "sd:web:review": 5, "so:web:review:genuine": 2,
    }  # fmt: skip
    found = rate_figures(counts, ["gbm", "net"], FACE_VALUE, labels_complete=True)
    money = one(found, "fpr_money", "review+block")
    assert (money.numerator, money.denominator, money.low, money.high) == (100, 1100, 100 / 1100, 200 / 1100)
    web = one(found, "segment_fpr", "review+block/web")
    assert (web.numerator, web.denominator, web.low, web.high) == (2, 20, 2 / 20, 5 / 20)
    gbm, net = one(found, "member_fpr", "gbm"), one(found, "member_fpr", "net")
    assert (gbm.numerator, gbm.denominator, gbm.low) == (3, 98, 3 / 98)
    # Three alerts of the member are silent; so are four alerts of the ensemble, which may be fraud.
    assert gbm.high == pytest.approx((3 + 3) / (3 + 3 + 1 + 90 - 4 + 1))
    assert gbm.statistics["counterfactual"] == 1
    assert (net.numerator, net.low) == (0, 0.0)
    assert label_sources(counts) == {"analyst": 4, "chargeback": 2}


def test_the_maturity_curve() -> None:
    horizon = 48 * HOUR
    ages = {-5: 0, 0: 0, 2 * HOUR: 1, horizon - 1: 23, horizon: 24, 9 * horizon: 48}
    assert {age: age_bin(age, horizon) for age in ages} == ages
    assert age_bin(0, 0) == age_bin(HOUR, 0) == 48
    curve = MaturityCurve()
    assert set(curve.missing(100 * HOUR, HOUR)) == {h * HOUR for h in range(53, 101)}
    # Half of the labels arrive within the first 24th of the horizon, the others in the last; some arrive later.
    curve.note(100 * HOUR, {"la:analyst:0": 15, "la:chargeback:23": 15, "la:chargeback:30": 40})
    curve.note(101 * HOUR, {"la:analyst:0": 1_000})
    assert curve.share(0, horizon, 100 * HOUR) == 0.0
    assert curve.share(2 * HOUR, horizon, 100 * HOUR) == 0.5
    assert curve.share(40 * HOUR, horizon, 100 * HOUR) == 0.5
    assert curve.share(47 * HOUR, horizon, 100 * HOUR) == pytest.approx(0.75)
    assert curve.share(99 * horizon, horizon, 100 * HOUR) == 1.0
    curve.note(100 * HOUR, {"la:analyst:0": MIN_LABELS - 1})
    assert curve.share(2 * HOUR, horizon, 100 * HOUR) is None
    points = curve_figures({"la:analyst:0": 30, "la:chargeback:12": 10})
    assert [(f.dimension, f.value) for f in points] == [
        ("1/24", 0.75), ("1/8", 0.75), ("1/4", 0.75), ("1/2", 0.75), ("3/4", 1.0),
    ]  # fmt: skip
    assert curve_figures({"n": 3}) == []
