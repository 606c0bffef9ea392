"""The simulated world: customers with their habits, terminals, devices and networks, all as columns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stream_scorer.arrays import Bools, Floats, Ints
from stream_scorer.simulate.config import DAY_MS, SimulationConfig
from stream_scorer.simulate.transactions import Strings, fixed_ids

STORE, ONLINE, ATM = 0, 1, 2
_KIND_SHARES = (0.68, 0.24, 0.08)
CURRENCIES = ("EUR", "GBP", "USD")
_CURRENCY_SHARES = (0.7, 0.18, 0.12)
PREFERRED = 8
# Visits of each preferred terminal, relative to the previous one: about three quarters.
_RANK_WEIGHTS = 0.75 ** np.arange(PREFERRED)
RANK_CDF: Floats = np.cumsum(_RANK_WEIGHTS / _RANK_WEIGHTS.sum())
# A customer owns up to two devices and replaces the first one once: three numbers each, one spare.
DEVICES_EACH = 4
_DEVICE_LIFE_MS = 400 * DAY_MS

# Weight of each hour of the day for six ways of living: office, early, late, night shift, home all day, students.
_HOURS = np.array(
    [
        [1, 1, 0, 0, 0, 1, 3, 8, 9, 5, 4, 5, 12, 10, 5, 5, 6, 10, 14, 12, 9, 7, 4, 2],
        [0, 0, 0, 0, 2, 6, 10, 12, 12, 10, 9, 8, 8, 7, 6, 6, 6, 6, 5, 4, 2, 1, 0, 0],
        [4, 3, 2, 1, 0, 0, 0, 1, 2, 3, 5, 6, 7, 8, 8, 8, 8, 9, 10, 11, 12, 12, 10, 7],
        [9, 9, 8, 7, 6, 5, 5, 6, 6, 3, 1, 1, 1, 1, 2, 3, 5, 6, 7, 7, 6, 6, 7, 8],
        [0, 0, 0, 0, 0, 1, 2, 4, 8, 11, 13, 12, 10, 9, 9, 10, 10, 9, 7, 5, 4, 3, 2, 1],
        [6, 5, 4, 2, 1, 0, 0, 1, 3, 4, 6, 8, 10, 9, 8, 8, 8, 9, 10, 11, 11, 11, 10, 8],
    ],
    dtype=np.float64,
)
# Row k of the cumulative weights is raised by k, so that one search over all rows samples for all customers at once.
HOUR_CDF: Floats = np.cumsum(_HOURS / _HOURS.sum(axis=1, keepdims=True), axis=1).ravel() + np.repeat(np.arange(6.0), 24)


@dataclass(frozen=True)
class World:
    """Columns of customers ``(customers,)`` and terminals ``(terminals,)``; numbers of entities are their ids.

    Attributes:
        log_amount, amount_spread: mean and standard deviation of the log of the amount (minor units), by customer.
        rate: mean transactions per day. lifestyle: row of hours. online_share: share of online purchases.
        city, currency: where the customer lives and what they pay with (index of `CURRENCIES`).
        preferred: ``(3, customers, PREFERRED)`` terminals by kind, most visited first.
        second_device: whether the customer has one. replaced_ms: when the first device is replaced.
        home_network, carrier_network: numbers of networks; several customers share one.
        terminal_kind: STORE, ONLINE or ATM. terminal_scale: factor on amounts. terminal_city: where it stands.
        of_kind: terminals by kind; popularity_cdf: their cumulative popularity, by kind.
        fresh_device, fresh_network: the first unused numbers.
    """

    log_amount: Floats
    amount_spread: Floats
    rate: Floats
    lifestyle: Ints
    online_share: Floats
    city: Ints
    currency: Ints
    preferred: Ints
    second_device: Bools
    replaced_ms: Ints
    home_network: Ints
    carrier_network: Ints
    terminal_kind: Ints
    terminal_scale: Floats
    of_kind: tuple[Ints, ...]
    popularity_cdf: tuple[Floats, ...]
    stores_of_city: tuple[Ints, ...]
    carriers: int
    fresh_device: int
    fresh_network: int
    customer_ids: Strings
    terminal_ids: Strings
    card_numbers: Strings

    @property
    def customers(self) -> int:
        return len(self.rate)


def build_world(config: SimulationConfig) -> World:
    """Draw a world from the seed: everything that does not change from day to day."""
    rng = np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=(0,)))
    count, terminals = config.customers, config.terminals
    cities = max(1, min(count // 500, terminals // 60, 400))
    city_weight = rng.lognormal(0.0, 0.5, cities)
    city = rng.choice(cities, count, p=city_weight / city_weight.sum())
    place = rng.random((count, 2))
    rate = rng.gamma(2.0, 0.5, count)

    kind = rng.choice(3, terminals, p=_KIND_SHARES)
    kind[:6] = [STORE, STORE, ONLINE, ONLINE, ATM, ATM]
    popularity = rng.lognormal(0.0, 0.9, terminals)
    terminal_city = rng.choice(cities, terminals, p=city_weight / city_weight.sum())
    terminal_place = rng.random((terminals, 2))
    of_kind = tuple(np.flatnonzero(kind == k) for k in (STORE, ONLINE, ATM))
    cdfs = tuple(_cdf(popularity[members]) for members in of_kind)

    preferred = np.empty((3, count, PREFERRED), dtype=np.int64)
    preferred[ONLINE] = of_kind[ONLINE][_draw(rng, cdfs[ONLINE], (count, PREFERRED))]
    stores_of_city: list[Ints] = []
    for number in range(cities):
        people = np.flatnonzero(city == number)
        for k in (STORE, ATM):
            local = of_kind[k][terminal_city[of_kind[k]] == number]
            local = local if len(local) else of_kind[k]
            if k == STORE:
                stores_of_city.append(local)
            # Popular and near: draw many candidates by popularity, then keep the nearest.
            options = local[_draw(rng, _cdf(popularity[local]), (len(people), 3 * PREFERRED))]
            distance = np.abs(terminal_place[options] - place[people][:, None, :]).sum(axis=2)
            nearest = np.argsort(distance, axis=1, kind="stable")[:, :PREFERRED]
            preferred[k, people] = np.take_along_axis(options, nearest, axis=1)

    households = max(1, int(count / 1.7))
    carriers = max(10, count // 150)
    return World(
        log_amount=rng.normal(np.log(2_500.0), 0.6, count),
        amount_spread=rng.uniform(0.35, 0.8, count),
        rate=rate / rate.mean() * config.transactions_per_customer_day,
        lifestyle=rng.choice(6, count, p=(0.34, 0.14, 0.14, 0.04, 0.22, 0.12)),
        online_share=rng.beta(2.0, 4.0, count),
        city=city,
        currency=rng.choice(3, cities, p=_CURRENCY_SHARES)[city],
        preferred=preferred,
        second_device=rng.random(count) < 0.5,
        replaced_ms=config.start_ms + rng.integers(0, _DEVICE_LIFE_MS, count),
        home_network=rng.integers(0, households, count),
        carrier_network=households + rng.integers(0, carriers, count),
        terminal_kind=kind,
        terminal_scale=np.where(kind == ATM, 2.0, rng.lognormal(0.0, 0.4, terminals)),
        of_kind=of_kind,
        popularity_cdf=cdfs,
        stores_of_city=tuple(stores_of_city),
        carriers=carriers,
        fresh_device=DEVICES_EACH * count,
        fresh_network=households + carriers,
        customer_ids=fixed_ids("c", np.arange(count), 8),
        terminal_ids=fixed_ids("t", np.arange(terminals), 7),
        card_numbers=_card_numbers(np.arange(count)),
    )


def popular_terminals(rng: np.random.Generator, world: World, kind: int, count: int) -> Ints:
    """`count` terminals of one kind, drawn by popularity."""
    return np.asarray(world.of_kind[kind][_draw(rng, world.popularity_cdf[kind], (count,))])


def usual_amounts(rng: np.random.Generator, world: World, customer: Ints, terminal: Ints) -> Floats:
    """Amounts in minor units as these customers spend them at these terminals, not yet rounded."""
    logs = world.log_amount[customer] + world.amount_spread[customer] * rng.standard_normal(len(customer))
    return np.asarray(np.exp(logs) * world.terminal_scale[terminal])


def own_devices(rng: np.random.Generator, world: World, customer: Ints, time: Ints) -> Ints:
    """The device of each customer at `time`: sometimes the second one, else the first one or its replacement."""
    second = world.second_device[customer] & (rng.random(len(customer)) < 0.3)
    first = (time >= world.replaced_ms[customer]).astype(np.int64)
    return np.asarray(customer * DEVICES_EACH + np.where(second, 2, first))


def carrier_networks(rng: np.random.Generator, world: World, count: int) -> Ints:
    """`count` of the networks that many customers share (mobile carriers, offices)."""
    return world.fresh_network - world.carriers + rng.integers(0, world.carriers, count)


def _cdf(weights: Floats) -> Floats:
    return np.asarray(np.cumsum(weights / weights.sum()))


def _draw(rng: np.random.Generator, cdf: Floats, shape: tuple[int, ...]) -> Ints:
    # The last cumulative weight may be slightly below 1.
    return np.minimum(np.searchsorted(cdf, rng.random(shape), side="right"), len(cdf) - 1)


def _card_numbers(customer: Ints) -> Strings:
    """16 digits from a range that no scheme issues (0000), with a wrong Luhn check digit."""
    body = np.zeros((len(customer), 15), dtype=np.int64)
    rest = customer.copy()
    for column in range(14, 3, -1):
        rest, body[:, column] = np.divmod(rest, 10)
    doubled = body.copy()
    doubled[:, ::2] *= 2
    doubled -= 9 * (doubled > 9)
    wrong = (10 - doubled.sum(axis=1) % 10 + 1) % 10
    return fixed_ids("0000", customer * 10 + wrong, 12)
