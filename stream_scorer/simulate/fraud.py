"""The kinds of fraud, as episodes of raw transactions; each function draws all episodes of one day at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_scorer.arrays import Floats, Ints
from stream_scorer.simulate.config import DAY_MS, HOUR_MS, MINUTE_MS
from stream_scorer.simulate.world import (
    ATM,
    ONLINE,
    World,
    carrier_networks,
    own_devices,
    popular_terminals,
    usual_amounts,
)

FRAUD_KINDS = (
    "genuine",
    "card_testing",
    "account_takeover",
    "compromised_terminal",
    "stolen_card",
    "device_farm",
    "large_amount",
)
CARD_TESTING, ACCOUNT_TAKEOVER, COMPROMISED_TERMINAL, STOLEN_CARD, DEVICE_FARM, LARGE_AMOUNT = range(1, 7)

# Each kind's share of the fraud transactions, and the mean transactions of one of its episodes as drawn below.
SHARES = {
    CARD_TESTING: 0.18,
    ACCOUNT_TAKEOVER: 0.26,
    COMPROMISED_TERMINAL: 0.13,
    STOLEN_CARD: 0.22,
    DEVICE_FARM: 0.11,
    LARGE_AMOUNT: 0.10,
}
NO_ENTITY = -1
# This share of the episodes starts between midnight and six, the rest at any time.
NIGHT_SHARE = 0.3


@dataclass(frozen=True)
class Raw:
    """Transactions before they get ids: columns ``(n,)`` of int64, entities by number, NO_ENTITY without one."""

    time: Ints
    customer: Ints
    terminal: Ints
    device: Ints
    network: Ints
    amount: Ints
    channel: Ints
    kind: Ints

    def __len__(self) -> int:
        return len(self.time)

    def take(self, rows: NDArray[Any]) -> Raw:
        """The rows a mask or an index array picks."""
        return Raw(*(getattr(self, field.name)[rows] for field in fields(self)))

    @staticmethod
    def concat(parts: list[Raw]) -> Raw:
        """The rows of `parts` (at least one), one after the other."""
        return Raw(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Raw)))


class Fresh:
    """Returns numbers of unused devices or networks."""

    def __init__(self, first: int) -> None:
        self._next = first

    def take(self, count: int) -> Ints:
        """`count` new numbers."""
        numbers = np.arange(self._next, self._next + count)
        self._next += count
        return numbers


@dataclass(frozen=True)
class Scene:
    """Inputs of an episode: the world, the random generator of the day, unused devices and networks."""

    world: World
    rng: np.random.Generator
    day_ms: int
    devices: Fresh
    networks: Fresh


CHIP, CONTACTLESS, ONLINE_CHANNEL, ATM_CHANNEL = 0, 1, 2, 3
CHANNELS = ("chip", "contactless", "online", "atm")
# Maximum contactless payment, 50.00; above it, the card must be inserted.
CONTACTLESS_LIMIT = 5_000


def whole_amounts(amount: Floats, terminal_kind: Ints) -> Ints:
    """Minor units: at least 0.50 and at most 90,000.00; cash comes in notes of ten."""
    notes = np.ceil(amount / 1_000.0) * 1_000.0
    return np.clip(np.where(terminal_kind == ATM, notes, np.rint(amount)), 50, 9_000_000).astype(np.int64)


def channels_of(rng: np.random.Generator, terminal_kind: Ints, amount: Ints) -> Ints:
    """The channel follows the terminal; in a store, most small amounts are contactless."""
    touched = (amount <= CONTACTLESS_LIMIT) & (rng.random(len(amount)) < 0.8)
    in_store = np.where(touched, CONTACTLESS, CHIP)
    return np.where(terminal_kind == ONLINE, ONLINE_CHANNEL, np.where(terminal_kind == ATM, ATM_CHANNEL, in_store))


def card_testing(scene: Scene, episodes: int) -> Raw:
    """Many small amounts on one card within minutes, at one online terminal, from an unknown device."""
    rng, world = scene.rng, scene.world
    size = rng.integers(4, 15, episodes)
    row = np.repeat(np.arange(episodes), size)
    victim = rng.integers(0, world.customers, episodes)[row]
    shop = rng.choice(world.of_kind[ONLINE], episodes)[row]
    # Some testers use about a hundred cents, others the price of a coffee.
    amount = rng.uniform(80, 1_800, episodes)[row] * rng.uniform(0.6, 1.4, len(row))
    shared = carrier_networks(rng, world, episodes)
    network = np.where(rng.random(episodes) < 0.5, scene.networks.take(episodes), shared)[row]
    time = _within(scene, row, episodes, 8 * MINUTE_MS, 90 * MINUTE_MS)
    return _online(scene, time, victim, shop, scene.devices.take(episodes)[row], network, amount, CARD_TESTING)


def account_takeover(scene: Scene, episodes: int) -> Raw:
    """Account takeover: a new device and network, larger amounts, for a few hours."""
    rng, world = scene.rng, scene.world
    size = rng.integers(2, 6, episodes)
    row = np.repeat(np.arange(episodes), size)
    victim = rng.integers(0, world.customers, episodes)[row]
    shop = popular_terminals(rng, world, ONLINE, len(row))
    amount = usual_amounts(rng, world, victim, shop) * rng.uniform(1.5, 6.0, episodes)[row]
    time = _within(scene, row, episodes, 15 * MINUTE_MS, 5 * HOUR_MS)
    # One in ten uses a session on the customer's own device.
    hijacked = (rng.random(episodes) < 0.1)[row]
    device = np.where(hijacked, own_devices(rng, world, victim, time), scene.devices.take(episodes)[row])
    shared = carrier_networks(rng, world, episodes)
    network = np.where(rng.random(episodes) < 0.65, scene.networks.take(episodes), shared)[row]
    return _online(scene, time, victim, shop, device, network, amount, ACCOUNT_TAKEOVER)


def stolen_card(scene: Scene, episodes: int) -> Raw:
    """A stolen card: a series of purchases and withdrawals until the card is blocked."""
    rng, world = scene.rng, scene.world
    size = rng.integers(3, 10, episodes)
    row = np.repeat(np.arange(episodes), size)
    victim = rng.integers(0, world.customers, episodes)[row]
    pick = rng.random(len(row))
    home = [world.stores_of_city[city] for city in world.city[victim]]
    local = np.array([stores[int(u * len(stores))] for stores, u in zip(home, rng.random(len(row)), strict=True)])
    anywhere = popular_terminals(rng, world, 0, len(row))
    cash = popular_terminals(rng, world, ATM, len(row))
    shop = np.where(pick < 0.55, local if len(row) else anywhere, np.where(pick < 0.8, anywhere, cash))
    amount = usual_amounts(rng, world, victim, shop) * rng.uniform(1.5, 5.0, episodes)[row]
    time = _within(scene, row, episodes, 20 * MINUTE_MS, 2 * HOUR_MS)
    kind = world.terminal_kind[shop]
    whole = whole_amounts(amount, kind)
    no_entity = np.full(len(row), NO_ENTITY)
    return Raw(time, victim, shop, no_entity, no_entity, whole, channels_of(rng, kind, whole), _kind(row, STOLEN_CARD))


def device_farm(scene: Scene, episodes: int) -> Raw:
    """One device and network on which the cards of many customers are used, in ordinary amounts."""
    rng, world = scene.rng, scene.world
    size = rng.integers(6, 25, episodes)
    row = np.repeat(np.arange(episodes), size)
    victim = rng.integers(0, world.customers, len(row))
    shop = popular_terminals(rng, world, ONLINE, len(row))
    amount = usual_amounts(rng, world, victim, shop) * rng.uniform(0.6, 2.0, episodes)[row]
    time = _within(scene, row, episodes, 6 * HOUR_MS, 36 * HOUR_MS)
    device, network = scene.devices.take(episodes)[row], scene.networks.take(episodes)[row]
    return _online(scene, time, victim, shop, device, network, amount, DEVICE_FARM)


def large_amount(scene: Scene, episodes: int) -> Raw:
    """One purchase far above the customer's habit, a third of them on the customer's own device."""
    rng, world = scene.rng, scene.world
    row = np.arange(episodes)
    victim = rng.integers(0, world.customers, episodes)
    shop = popular_terminals(rng, world, ONLINE, episodes)
    amount = usual_amounts(rng, world, victim, shop) * rng.uniform(6.0, 20.0, episodes)
    time = _within(scene, row, episodes, 0, 1)
    own = rng.random(episodes) < 0.33
    device = np.where(own, own_devices(rng, world, victim, time), scene.devices.take(episodes))
    network = np.where(own, world.home_network[victim], carrier_networks(rng, world, episodes))
    return _online(scene, time, victim, shop, device, network, amount, LARGE_AMOUNT)


# Kinds that come as episodes, with the mean number of transactions of one; terminals are compromised in `generate`.
EPISODES: dict[int, tuple[Callable[[Scene, int], Raw], float]] = {
    CARD_TESTING: (card_testing, 9.0),
    ACCOUNT_TAKEOVER: (account_takeover, 3.5),
    STOLEN_CARD: (stolen_card, 6.0),
    DEVICE_FARM: (device_farm, 15.0),
    LARGE_AMOUNT: (large_amount, 1.0),
}


def _within(scene: Scene, row: Ints, episodes: int, shortest_ms: int, longest_ms: int) -> Ints:
    """A time for each row: its episode starts some time this day, often at night, and lasts between the durations."""
    at_night = scene.rng.random(episodes) < NIGHT_SHARE
    start = scene.day_ms + scene.rng.integers(0, np.where(at_night, 6 * HOUR_MS, DAY_MS))
    length = scene.rng.uniform(shortest_ms, longest_ms, episodes)
    return start[row] + (length[row] * scene.rng.random(len(row))).astype(np.int64)


def _online(
    scene: Scene, time: Ints, victim: Ints, shop: Ints, device: Ints, network: Ints, amount: Floats, kind: int
) -> Raw:
    whole = whole_amounts(amount, scene.world.terminal_kind[shop])
    return Raw(time, victim, shop, device, network, whole, np.full(len(time), ONLINE_CHANNEL), _kind(time, kind))


def _kind(like: Ints, kind: int) -> Ints:
    return np.full(len(like), kind)
