"""How a simulated world changes over time: growth, new customers and terminals, bursts of fraud, sales.

`SimulationConfig.life` switches it on. Its random choices have generators of their own, so a world without it stays the
same to the last byte.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from stream_scorer.arrays import Floats, Ints
from stream_scorer.simulate.config import HOUR_MS, MINUTE_MS, Life, SimulationConfig
from stream_scorer.simulate.fraud import (
    CARD_TESTING,
    COMPROMISED_TERMINAL,
    NO_ENTITY,
    ONLINE_CHANNEL,
    Raw,
    Scene,
    channels_of,
    whole_amounts,
)
from stream_scorer.simulate.world import ONLINE, STORE, World, usual_amounts

# Transactions of one burst: on one card, and on as many cards at one terminal.
CARD_BURST, TERMINAL_BURST = (20, 61), (60, 201)
# A terminal that is not open yet is replaced by another one, drawn this many times at most.
_DRAWS = 20


class Lives:
    """The entities of one world by day; see the module."""

    def __init__(self, life: Life, config: SimulationConfig, world: World) -> None:
        rng = np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=(4,)))
        self._life, self._seed, self._world = life, config.seed, world
        days = config.expected_days
        self._joins = _first_days(rng, world.customers, life.new_customers, days)
        self._leaves = days - _first_days(rng, world.customers, life.lost_customers, days)
        self._opens = _first_days(rng, config.terminals, life.new_terminals, days)
        for of_kind in world.of_kind:
            self._opens[of_kind[0]] = 0

    def activity(self, day: int) -> Floats:
        """The factor ``(customers,)`` of each customer's number of transactions on `day`."""
        present = (self._joins <= day) & (day < self._leaves)
        factor = (1.0 + self._life.growth) ** (day / 365.0)
        if day in self._life.sales:
            factor *= self._life.sale_volume
        return np.where(present, factor, 0.0)

    def adjust(self, day: int, genuine: Raw) -> Raw:
        """`genuine` transactions of `day`: none at a terminal before it opens; at a sale, cheaper goods online."""
        rng = np.random.default_rng(np.random.SeedSequence(self._seed, spawn_key=(5, day)))
        terminal, amount = genuine.terminal.copy(), genuine.amount
        kind = self._world.terminal_kind[terminal]
        closed = np.flatnonzero(self._opens[terminal] > day)
        for _ in range(_DRAWS):
            for each, of_kind in enumerate(self._world.of_kind):
                rows = closed[kind[closed] == each]
                terminal[rows] = rng.choice(of_kind, len(rows))
            closed = closed[self._opens[terminal[closed]] > day]
        for each, of_kind in enumerate(self._world.of_kind):
            terminal[closed[kind[closed] == each]] = of_kind[0]
        if day in self._life.sales:
            cheaper = np.where(kind == ONLINE, amount * self._life.sale_price, amount)
            amount = whole_amounts(cheaper, kind)
        return replace(genuine, terminal=terminal, amount=amount)

    def bursts(self, scene: Scene, day: int) -> list[Raw]:
        """The bursts of fraud that begin on `day`, on one card and on many cards at one terminal."""
        rng = np.random.default_rng(np.random.SeedSequence(self._seed, spawn_key=(6, day)))
        own = replace(scene, rng=rng)
        present = np.flatnonzero(self.activity(day) > 0)
        if not len(present):
            return []
        cards = [self._card_burst(own, present) for _ in range(rng.poisson(self._life.card_bursts))]
        return cards + [self._terminal_burst(own, present, day) for _ in range(rng.poisson(self._life.terminal_bursts))]

    def _card_burst(self, scene: Scene, present: Ints) -> Raw:
        rng, count = scene.rng, int(scene.rng.integers(*CARD_BURST))
        card = np.full(count, rng.choice(present))
        shop = np.full(count, rng.choice(self._world.of_kind[ONLINE]))
        amount = whole_amounts(rng.uniform(100, 2_000) * rng.uniform(0.6, 1.4, count), np.full(count, ONLINE))
        device, network = np.repeat(scene.devices.take(1), count), np.repeat(scene.networks.take(1), count)
        channel, kind = np.full(count, ONLINE_CHANNEL), np.full(count, CARD_TESTING)
        return Raw(_times(scene, count, 40 * MINUTE_MS), card, shop, device, network, amount, channel, kind)

    def _terminal_burst(self, scene: Scene, present: Ints, day: int) -> Raw:
        rng, count = scene.rng, int(scene.rng.integers(*TERMINAL_BURST))
        stores = self._world.of_kind[STORE]
        shop = np.full(count, rng.choice(stores[self._opens[stores] <= day]))
        card = rng.choice(present, count)
        kinds = np.full(count, STORE)
        amount = whole_amounts(usual_amounts(rng, self._world, card, shop) * rng.uniform(1.5, 4.0), kinds)
        nothing = np.full(count, NO_ENTITY)
        channel, kind = channels_of(rng, kinds, amount), np.full(count, COMPROMISED_TERMINAL)
        return Raw(_times(scene, count, 3 * HOUR_MS), card, shop, nothing, nothing, amount, channel, kind)


def _first_days(rng: np.random.Generator, count: int, share: float, days: int) -> Ints:
    """``(count,)``: a day within the simulation for `share` of the entities, 0 for the others."""
    return np.where(rng.random(count) < share, rng.integers(1, max(days, 2), count), 0)


def _times(scene: Scene, count: int, length_ms: int) -> Ints:
    start = scene.day_ms + int(scene.rng.integers(0, 20 * HOUR_MS))
    return np.asarray(start + scene.rng.integers(0, length_ms, count))
