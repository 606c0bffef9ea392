"""A world that changes: it grows, entities come and go, there are bursts and sales; by default nothing changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stream_scorer.errors import SettingsError
from stream_scorer.simulate import FRAUD_KINDS, Life, SimulationConfig, Transactions, generate, generate_days
from stream_scorer.simulate.config import DAY_MS

PLAIN = SimulationConfig(seed=5, customers=800, terminals=120, days=30, transactions_per_customer_day=2.0)


def days_of(life: Life | None, config: SimulationConfig = PLAIN) -> list[Transactions]:
    return list(generate_days(replace(config, life=life)))


def test_a_life_in_which_nothing_happens_changes_nothing() -> None:
    plain, idle = days_of(None), days_of(Life())
    for one, two in zip(plain, idle, strict=True):
        np.testing.assert_array_equal(one.event_id, two.event_id)
        np.testing.assert_array_equal(one.amount, two.amount)
        np.testing.assert_array_equal(one.terminal_id, two.terminal_id)


def test_the_number_of_transactions_grows() -> None:
    counts = [len(day) for day in days_of(Life(growth=20.0))]
    # The same days of the week, four weeks apart: 21^(28/365) = 1.26.
    assert sum(counts[-7:]) / sum(counts[2:9]) == pytest.approx(21 ** (21 / 365), rel=0.12)


def test_customers_and_terminals_appear_and_disappear() -> None:
    days = days_of(Life(new_customers=0.5, lost_customers=0.2, new_terminals=0.5))
    plain = days_of(None)

    def genuine(some: list[Transactions], column: str) -> set[str]:
        return {name for day in some for name in getattr(day, column)[day.fraud_kind == 0].tolist()}

    for column, share in (("customer_id", 0.75), ("terminal_id", 0.75)):
        assert len(genuine(days[:5], column)) < share * len(genuine(plain[:5], column))
        assert genuine(days[-5:], column) - genuine(days[:-5], column)
    gone = genuine(days[:10], "customer_id") - genuine(days[-5:], "customer_id")
    assert len(gone) > len(genuine(plain[:10], "customer_id") - genuine(plain[-5:], "customer_id"))


def test_bursts_are_on_one_card_and_on_many_cards_at_one_terminal() -> None:
    config = replace(PLAIN, fraud_rate=0.0, days=10)
    made = Transactions.concat(days_of(Life(card_bursts=1.0, terminal_bursts=1.0), config))
    fraud = made.take(made.fraud_kind > 0)
    kinds = {FRAUD_KINDS[kind] for kind in np.unique(fraud.fraud_kind).tolist()}
    assert kinds == {"card_testing", "compromised_terminal"}
    for kind, column, other in ((1, "customer_id", "terminal_id"), (3, "terminal_id", "customer_id")):
        mine = fraud.take(fraud.fraud_kind == kind)
        of_one, of_other = (len(set(getattr(mine, name).tolist())) for name in (column, other))
        assert len(mine) >= 20 * of_one
        assert kind == 1 or of_other > 5 * of_one


def test_a_sale_is_a_day_with_more_and_cheaper_purchases() -> None:
    config = replace(PLAIN, fraud_rate=0.0, days=3)
    sale, plain = (days_of(life, config)[2] for life in (Life(sales=(2,), sale_volume=2.0, sale_price=0.5), None))
    assert len(sale) == pytest.approx(2 * len(plain), rel=0.1)
    online = [np.median(day.amount[day.channel == "online"]) for day in (sale, plain)]
    assert online[0] == pytest.approx(0.5 * online[1], rel=0.2)


def test_the_same_config_gives_the_same_bytes() -> None:
    life = Life(growth=1.0, new_customers=0.2, new_terminals=0.2, card_bursts=0.5, terminal_bursts=0.5, sales=(1,))
    one, two = (generate(replace(PLAIN, days=3, life=life)) for _ in range(2))
    np.testing.assert_array_equal(one.amount, two.amount)
    assert (np.diff(one.event_time) >= 0).all()
    assert one.event_time[-1] < PLAIN.start_ms + 3 * DAY_MS


@pytest.mark.parametrize(
    "wrong", [{"new_customers": 1.0}, {"growth": -1.0}, {"card_bursts": -1.0}, {"sale_price": 0.0}]
)
def test_values_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(SettingsError):
        Life(**wrong)  # type: ignore[arg-type]
