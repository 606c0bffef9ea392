"""Generates transactions from a config, day by day of event time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from stream_scorer.arrays import Ints
from stream_scorer.simulate.config import DAY_MS, HOUR_MS, SimulationConfig
from stream_scorer.simulate.fraud import (
    CHANNELS,
    COMPROMISED_TERMINAL,
    EPISODES,
    NO_ENTITY,
    ONLINE_CHANNEL,
    SHARES,
    Fresh,
    Raw,
    Scene,
    channels_of,
    whole_amounts,
)
from stream_scorer.simulate.life import Lives
from stream_scorer.simulate.transactions import Strings, Transactions, fixed_ids
from stream_scorer.simulate.world import (
    ATM,
    CURRENCIES,
    HOUR_CDF,
    ONLINE,
    RANK_CDF,
    STORE,
    World,
    build_world,
    carrier_networks,
    own_devices,
    popular_terminals,
    usual_amounts,
)

# Activity by day of week, Monday first; the mean is 1.
_WEEK = np.array([0.92, 0.94, 0.96, 1.0, 1.14, 1.16, 0.88])
_EPOCH_WEEKDAY = 3  # 1970-01-01 was a Thursday


def generate(config: SimulationConfig) -> Transactions:
    """All transactions of `config`, in memory (about 0.5 GB per million). See `generate_days` for bounded memory."""
    return Transactions.concat(list(generate_days(config)))


def generate_days(config: SimulationConfig) -> Iterator[Transactions]:
    """The transactions of `config` in order of event time, one chunk per day of event time.

    The chunks joined are the same bytes as `generate(config)`.
    """
    world = build_world(config)
    devices, networks = Fresh(world.fresh_device), Fresh(world.fresh_network)
    compromised = _CompromisedTerminals(config, world)
    lives = None if config.life is None else Lives(config.life, config, world)
    later: list[Raw] = []
    done = day = 0
    while config.days is None or day < config.days:
        start = config.start_ms + day * DAY_MS
        rng = np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=(1, day)))
        scene = Scene(world, rng, start, devices, networks)
        genuine = _genuine(scene, lives, day)
        bursts = [] if lives is None else lives.bursts(scene, day)
        genuine = compromised.strike(rng, day, genuine)
        pool = Raw.concat([*later, genuine, *_episodes(scene, config), *bursts])
        # An episode may last past midnight: its later transactions are kept for the next days.
        today = pool.time < start + DAY_MS
        later = [pool.take(~today)]
        pool = pool.take(today)
        pool = pool.take(np.argsort(pool.time, kind="stable"))
        if config.transactions is not None:
            pool = pool.take(np.arange(min(len(pool), config.transactions - done)))
        yield _dress(pool, world, config.seed, done)
        done += len(pool)
        day += 1
        if done == config.transactions:
            return


def _genuine(scene: Scene, lives: Lives | None, day: int) -> Raw:
    """The genuine transactions of one day."""
    rng, world = scene.rng, scene.world
    weekday = (scene.day_ms // DAY_MS + _EPOCH_WEEKDAY) % 7
    # Occasional shopping days: a burst of genuine purchases.
    busy = np.where(rng.random(world.customers) < 0.01, 4.0, 1.0)
    expected = world.rate * _WEEK[weekday] * busy
    if lives is not None:
        expected *= lives.activity(day)
    customer = np.repeat(np.arange(world.customers), rng.poisson(expected))
    count = len(customer)
    hour = np.searchsorted(HOUR_CDF, rng.random(count) + world.lifestyle[customer], side="right") % 24
    time = scene.day_ms + ((hour + rng.random(count)) * HOUR_MS).astype(np.int64)

    pick = rng.random(count)
    online = pick < world.online_share[customer]
    kind = np.where(online, ONLINE, np.where(pick > 0.96, ATM, STORE))
    rank = np.minimum(np.searchsorted(RANK_CDF, rng.random(count), side="right"), len(RANK_CDF) - 1)
    terminal = world.preferred[kind, customer, rank]
    elsewhere = rng.random(count) < 0.12
    for each in (STORE, ONLINE, ATM):
        rows = np.flatnonzero(elsewhere & (kind == each))
        terminal[rows] = popular_terminals(rng, world, each, len(rows))

    amount = usual_amounts(rng, world, customer, terminal)
    # One in two hundred genuine purchases is large, such as furniture or a flight.
    amount *= np.where(rng.random(count) < 0.005, rng.uniform(3.0, 10.0, count), 1.0)
    whole = whole_amounts(amount, kind)

    device = np.full(count, NO_ENTITY)
    network = np.full(count, NO_ENTITY)
    rows = np.flatnonzero(online)
    device[rows] = own_devices(rng, world, customer[rows], time[rows])
    borrowed = rows[rng.random(len(rows)) < 0.003]
    device[borrowed] = scene.devices.take(len(borrowed))
    where = rng.random(len(rows))
    home, own_carrier = world.home_network[customer[rows]], world.carrier_network[customer[rows]]
    abroad = carrier_networks(rng, world, len(rows))
    network[rows] = np.where(where < 0.68, home, np.where(where < 0.95, own_carrier, abroad))
    hotel = rows[where > 0.99]
    network[hotel] = scene.networks.take(len(hotel))
    channel = channels_of(rng, kind, whole)
    genuine = Raw(time, customer, terminal, device, network, whole, channel, np.zeros(count, np.int64))
    return genuine if lives is None else lives.adjust(day, genuine)


def _episodes(scene: Scene, config: SimulationConfig) -> list[Raw]:
    frauds = config.transactions_per_day * config.fraud_rate
    return [
        draw(scene, int(scene.rng.poisson(frauds * SHARES[kind] / size))) for kind, (draw, size) in EPISODES.items()
    ]


class _CompromisedTerminals:
    """Terminals that are compromised for some days: a share of their transactions is fraud.

    New terminals are added whenever the expected fraud falls below this kind's share of the budget.
    """

    def __init__(self, config: SimulationConfig, world: World) -> None:
        self._world = world
        self._budget = config.transactions_per_day * config.fraud_rate * SHARES[COMPROMISED_TERMINAL]
        self._share = np.zeros(config.terminals)
        self._until = np.full(config.terminals, -1)

    def strike(self, rng: np.random.Generator, day: int, genuine: Raw) -> Raw:
        """`genuine` of one day with the compromised terminals' share of it turned into fraud."""
        volume = np.bincount(genuine.terminal, minlength=len(self._share))
        self._share[self._until < day] = 0.0
        candidates = np.flatnonzero(self._world.terminal_kind != ONLINE)
        for terminal in rng.permutation(candidates):
            missing = self._budget - float((self._share * volume).sum())
            share = float(rng.uniform(0.35, 0.8))
            if missing <= 0:
                break
            # A terminal that exceeds the budget would cause most of the day's fraud alone.
            if self._share[terminal] == 0.0 and 0 < volume[terminal] * share <= 1.3 * missing:
                self._share[terminal] = share
                self._until[terminal] = day + int(rng.integers(5, 13))
        struck = np.flatnonzero(rng.random(len(genuine)) < self._share[genuine.terminal])
        kind, amount, channel = genuine.kind.copy(), genuine.amount.copy(), genuine.channel.copy()
        kind[struck] = COMPROMISED_TERMINAL
        terminal_kind = self._world.terminal_kind[genuine.terminal[struck]]
        amount[struck] = whole_amounts(amount[struck] * rng.uniform(1.2, 3.5, len(struck)), terminal_kind)
        # Draw the channels again: a contactless payment above the limit would reveal the fraud.
        channel[struck] = channels_of(rng, terminal_kind, amount[struck])
        return replace(genuine, amount=amount, channel=channel, kind=kind)


def _dress(raw: Raw, world: World, seed: int, first: int) -> Transactions:
    """Convert numbers to ids. `first` is the ordinal of the first row in the whole simulation."""
    tag = int(np.random.SeedSequence(seed, spawn_key=(2,)).generate_state(1)[0])
    currencies, channels = np.array(CURRENCIES, dtype=object), np.array(CHANNELS, dtype=object)
    online = raw.channel == ONLINE_CHANNEL
    return Transactions(
        event_id=fixed_ids(f"{tag:08x}-", np.arange(first, first + len(raw)), 10),
        event_time=raw.time,
        customer_id=world.customer_ids[raw.customer],
        terminal_id=world.terminal_ids[raw.terminal],
        device_id=_optional_ids("d", raw.device, online),
        network_id=_optional_ids("n", raw.network, online),
        card_number=world.card_numbers[raw.customer],
        amount=raw.amount,
        currency=currencies[world.currency[raw.customer]],
        channel=channels[raw.channel],
        fraud_kind=raw.kind.astype(np.int8),
    )


def _optional_ids(prefix: str, numbers: Ints, present: np.ndarray) -> Strings:
    out = np.full(len(numbers), None, dtype=object)
    out[present] = fixed_ids(prefix, numbers[present], 9)
    return out
