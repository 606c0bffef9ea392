"""The closed loop: who may learn what, when, and how many."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from stream_scorer.errors import SettingsError
from stream_scorer.serde.decoder import LabelDecoder
from stream_scorer.simulate import (
    Labeller,
    LabellerConfig,
    Labels,
    SimulationConfig,
    Transactions,
    encode_labels,
    generate,
    history_labels,
)
from stream_scorer.simulate.config import DAY_MS, HOUR_MS
from stream_scorer.spec import parse_spec

CARDS = Path(__file__).parents[2] / "stream_scorer" / "simulate" / "cards.yaml"
CONFIG = LabellerConfig(seed=5, capacity_per_hour=3, review_probability=0.02)


@pytest.fixture(scope="module")
def history() -> Transactions:
    return generate(SimulationConfig(seed=21, customers=1_500, terminals=300, days=10, fraud_rate=0.02))


def closed_loop(
    history: Transactions, config: LabellerConfig, decisions: dict[str, str], *, batch: int = 700, settle_days: int = 20
) -> tuple[Labels, Labeller]:
    """Play `history` in batches; each batch's alerts are known before the next one, the last labels after some days."""
    labeller = Labeller(config)
    parts = []
    for start in range(0, len(history), batch):
        part = history.slice(start, start + batch)
        labeller.observe(part)
        alerts = [event_id for event_id in part.event_id.tolist() if event_id in decisions]
        labeller.alerted(alerts, [decisions[event_id] for event_id in alerts])  # type: ignore[misc]
        parts.append(labeller.advance(int(part.event_time[-1])))
    parts.append(labeller.advance(int(history.event_time[-1]) + settle_days * DAY_MS))
    return Labels.concat(parts), labeller


@pytest.fixture(scope="module")
def decisions(history: Transactions) -> dict[str, str]:
    """Every second fraud is alerted, and 2 % of the genuine ones: half of them blocked, half held."""
    rng = np.random.default_rng(1)
    fraud = history.fraud_kind > 0
    alerted = np.where(fraud, rng.random(len(history)) < 0.5, rng.random(len(history)) < 0.02)
    words = np.where(rng.random(len(history)) < 0.5, "block", "review")
    rows = np.flatnonzero(alerted)
    return dict(zip(history.event_id[rows].tolist(), words[rows].tolist(), strict=True))


@pytest.fixture(scope="module")
def labels(history: Transactions, decisions: dict[str, str]) -> Labels:
    return closed_loop(history, CONFIG, decisions)[0]


def test_labels_come_in_order_and_after_their_transaction(labels: Labels) -> None:
    assert len(labels) > 300
    assert (np.diff(labels.labelled_at) >= 0).all()
    assert (labels.labelled_at > labels.event_time).all()


def test_every_source_is_there(labels: Labels) -> None:
    assert set(labels.source.tolist()) == {"analyst", "random_review", "chargeback"}


def test_a_blocked_transaction_never_gets_a_chargeback(labels: Labels, decisions: dict[str, str]) -> None:
    charged = labels.event_id[labels.source == "chargeback"].tolist()
    assert charged
    assert [event_id for event_id in charged if decisions.get(event_id) == "block"] == []


def test_a_held_transaction_gets_a_chargeback_only_after_an_analyst_cleared_it(
    history: Transactions, decisions: dict[str, str]
) -> None:
    careless = replace(CONFIG, analyst_miss=0.6, capacity_per_hour=30)
    labels, _ = closed_loop(history, careless, decisions)
    cleared = {
        event_id: at
        for event_id, at, source, label in zip(
            labels.event_id, labels.labelled_at, labels.source, labels.label, strict=True
        )
        if source == "analyst" and label == "genuine"
    }
    held = [
        (event_id, at)
        for event_id, at, source in zip(labels.event_id, labels.labelled_at, labels.source, strict=True)
        if source == "chargeback" and event_id in decisions
    ]
    assert len(held) > 10, "no label changed its mind"
    for event_id, at in held:
        assert decisions[event_id] == "review"
        assert cleared[event_id] < at


def test_chargebacks_are_for_fraud_only_and_late(history: Transactions, labels: Labels) -> None:
    fraud = set(history.event_id[history.fraud_kind > 0].tolist())
    charged = labels.take(labels.source == "chargeback")
    assert set(charged.event_id.tolist()) <= fraud
    assert set(charged.label.tolist()) == {"fraud"}
    age = charged.labelled_at - charged.event_time
    assert age.min() >= CONFIG.chargeback_min_ms
    assert np.median(age) == pytest.approx(CONFIG.chargeback_median_ms, rel=0.25)


def test_some_fraud_is_never_reported(history: Transactions, labels: Labels, decisions: dict[str, str]) -> None:
    through = [i for i in history.event_id[history.fraud_kind > 0].tolist() if i not in decisions]
    charged = set(labels.event_id[labels.source == "chargeback"].tolist())
    share = sum(event_id not in charged for event_id in through) / len(through)
    assert share == pytest.approx(CONFIG.unreported, abs=0.08)


def test_analysts_keep_to_their_capacity_and_to_alerts(labels: Labels, decisions: dict[str, str]) -> None:
    analysed = labels.take(labels.source == "analyst")
    assert set(analysed.event_id.tolist()) <= decisions.keys()
    an_hour = np.unique(analysed.labelled_at // HOUR_MS, return_counts=True)[1]
    assert an_hour.max() == CONFIG.capacity_per_hour, "the capacity was never reached: the test shows nothing"
    assert (analysed.labelled_at - analysed.event_time).min() >= CONFIG.analyst_delay_ms


def test_the_recorded_probability_weighs_reviews_up_to_all_alerts(labels: Labels, decisions: dict[str, str]) -> None:
    analysed = labels.take(labels.source == "analyst")
    assert ((analysed.review_probability > 0) & (analysed.review_probability <= 1)).all()
    assert len(analysed) < 0.8 * len(decisions)
    # Horvitz-Thompson: the weights of a random sample add up to the population.
    assert (1 / analysed.review_probability).sum() == pytest.approx(len(decisions), rel=0.1)


def test_random_reviews_are_a_sample_of_what_was_approved(
    history: Transactions, labels: Labels, decisions: dict[str, str]
) -> None:
    reviewed = labels.take(labels.source == "random_review")
    assert not set(reviewed.event_id.tolist()) & decisions.keys()
    approved = len(history) - len(decisions)
    assert len(reviewed) == pytest.approx(CONFIG.review_probability * approved, rel=0.2)
    assert set(reviewed.review_probability.tolist()) == {CONFIG.review_probability}


def test_the_sample_of_a_scorer_is_reviewed_and_an_own_one_is_not_drawn(history: Transactions) -> None:
    labeller = Labeller(CONFIG)
    labeller.observe(history, own_sample=False)
    drawn = history.event_id[::97].tolist()
    labeller.sampled(drawn, [0.01] * len(drawn))
    labeller.sampled([*drawn[:5], "unknown"], [0.01] * 6)
    labels = labeller.advance(int(history.event_time[-1]) + 20 * DAY_MS)
    reviews = labels.take(labels.source == "random_review")
    assert sorted(reviews.event_id.tolist()) == sorted(drawn)
    assert set(reviews.review_probability.tolist()) == {0.01}
    assert (reviews.labelled_at > reviews.event_time).all()


def test_a_label_says_what_the_entity_fields_of_its_transaction_are(history: Transactions, labels: Labels) -> None:
    row = {event_id: index for index, event_id in enumerate(history.event_id.tolist())}
    rows = [row[event_id] for event_id in labels.event_id.tolist()]
    for name in ("event_time", "customer_id", "terminal_id", "device_id", "network_id"):
        np.testing.assert_array_equal(getattr(labels, name), getattr(history, name)[rows], err_msg=name)


def test_the_size_of_batches_changes_no_label(history: Transactions, decisions: dict[str, str]) -> None:
    small = closed_loop(history, CONFIG, {}, batch=97)[0]
    large = closed_loop(history, CONFIG, {}, batch=5_000)[0]
    assert encode_labels(small) == encode_labels(large)
    assert len(small) > 100


def test_an_alert_that_comes_too_late_is_counted(history: Transactions) -> None:
    labeller = Labeller(CONFIG)
    labeller.observe(history)
    known = labeller.advance(int(history.event_time[-1]))
    recent = known.event_id[known.event_time > known.labelled_at[-1] - DAY_MS]
    assert len(recent) > 0
    labeller.alerted([recent[-1], "nobody-knows-this", recent[-1]], ["block", "block", "review"])
    assert (labeller.late_alerts, labeller.unknown_alerts) == (1, 1)
    after = labeller.advance(int(history.event_time[-1]) + 10 * DAY_MS)
    assert recent[-1] not in after.event_id[after.source == "analyst"].tolist()


def test_what_is_forgotten_costs_no_memory_and_breaks_no_rule(
    history: Transactions, decisions: dict[str, str], labels: Labels
) -> None:
    forgetful, labeller = closed_loop(history, replace(CONFIG, memory_ms=6 * HOUR_MS), decisions)
    assert encode_labels(forgetful) == encode_labels(labels)
    assert labeller.remembered < 0.2 * len(history)


def test_event_time_does_not_go_back(history: Transactions) -> None:
    labeller = Labeller(CONFIG)
    labeller.advance(CONFIG.memory_ms)
    with pytest.raises(ValueError, match="cannot go back"):
        labeller.advance(0)


def test_history_knows_only_what_was_known_then(history: Transactions) -> None:
    middle = int(history.event_time[len(history) // 2])
    early, late = (history_labels(history, as_of, CONFIG) for as_of in (middle, middle + 2 * DAY_MS))
    assert early.labelled_at.max() <= middle
    assert 0 < len(early) < len(late)
    known = set(zip(late.event_id.tolist(), late.source.tolist(), strict=True))
    assert set(zip(early.event_id.tolist(), early.source.tolist(), strict=True)) <= known


def test_labels_decode_by_the_contract(labels: Labels) -> None:
    values = encode_labels(labels)
    decoded, rejected = LabelDecoder(parse_spec(CARDS.read_text())).decode(values, labels.labelled_at)
    assert rejected == []
    assert decoded.event_id == labels.event_id.tolist()
    np.testing.assert_array_equal(decoded.fraud, labels.label == "fraud")
    assert decoded.entity_ids["network"] == labels.network_id.tolist()
    probabilities = [msgspec.json.decode(value).get("review_probability", np.nan) for value in values]
    np.testing.assert_array_equal(np.array(probabilities), labels.review_probability)


def test_impossible_configs_are_refused() -> None:
    with pytest.raises(SettingsError, match="unreported"):
        LabellerConfig(unreported=1.5)
