"""The streams on which drift detectors are compared: simulated worlds with healthy weeks and then one of many changes.

A world is traffic of the simulator with daily and weekly cycles, growth, new customers and terminals, and bursts of
fraud, taken through the product's own feature path. All detectors get the same columns of the same rows in the same
windows of an hour. There is no hour of the day and no window of 30 days among the columns: compared with a fixed
reference they differ in every window, and a user would leave them out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from proofs.worlds import FeaturePath, Prepared
from stream_scorer.bench.material import CARDS_SPEC
from stream_scorer.simulate.config import HOUR_MS, Life, SimulationConfig
from stream_scorer.simulate.fraud import CHANNELS
from stream_scorer.simulate.generate import generate_days
from stream_scorer.simulate.transactions import Strings, Transactions
from stream_scorer.spec import CheckedSpec, load_spec

COLUMNS = (
    "amount_log", "channel_code", "currency_code", "has_device", "has_network", "customer.count_1h",
    "customer.mean_1d", "customer_rhythm.since_last", "terminal.count_1h", "terminal.mean_1d", "device.count_1h",
    "network.count_1h",
)  # fmt: skip
CATEGORIES = ("channel_code", "currency_code", "has_device", "has_network")
# The same day without a change, for each world: an alarm in a window in which it has one too is no detection.
CONTROL = "unchanged"
# A detector has a day to find a change.
AFTER_HOURS = 24
# Peers do not get windows with fewer rows; our detector gets them and leaves them out.
MIN_ROWS = 100
BATCH = 2_048
TENS = 1_000
_MORE = "  - {name: currency_code, function: code, of: [currency]}\n" \
    "  - {name: has_network, function: present, of: [network_id]}\n"  # fmt: skip


@dataclass(frozen=True)
class PeerChange:
    """A change upstream: what it does to the transactions, and whether it is a large one."""

    name: str
    large: bool
    alter: Callable[[Transactions], Transactions]


@dataclass(frozen=True)
class Stretch:
    """Rows in order of time: `hour` (n,) since 1970 and `values` (n, columns), NaN where missing."""

    hour: NDArray[np.int64]
    values: NDArray[np.float64]


@dataclass(frozen=True)
class World:
    """A stream that is healthy up to hour `end` and is watched from hour `watch`; `changed` is the day that follows.

    One of `changed` is the same day without a change (`CONTROL`).

    Peers have the hours ``[reference, watch)`` as their reference.
    """

    name: str
    healthy: Stretch
    reference: int
    watch: int
    end: int
    changed: Mapping[str, Stretch]


@dataclass(frozen=True)
class Scale:
    """The size of the worlds."""

    customers: int
    terminals: int
    history_days: int
    reference_days: int
    watch_days: int
    seed: int

    def config(self, number: int) -> SimulationConfig:
        """World `number`."""
        days = self.history_days + self.watch_days + 8
        life = Life(
            growth=0.5, new_customers=0.2, lost_customers=0.05, new_terminals=0.15,
            card_bursts=1.0, terminal_bursts=0.3,
        )  # fmt: skip
        return SimulationConfig(
            seed=self.seed * 1_000 + number, customers=self.customers, terminals=self.terminals, days=days,
            fraud_rate=0.003, life=life,
        )  # fmt: skip


def peer_spec(folder: Path) -> CheckedSpec:
    """The cards spec with two more features: the currency, and whether there is a network."""
    text = CARDS_SPEC.read_text()
    place = "  - {name: has_device,"
    assert text.count(place) == 1
    text = text.replace(place, _MORE + place).replace("has_device, amount_log", "has_device, currency_code, amount_log")
    text = text.replace("network: [network.*,", "network: [has_network, network.*,")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cards.yaml").write_text(text)
    return load_spec(folder / "cards.yaml")


def make_world(checked: CheckedSpec, scale: Scale, number: int, changes: Sequence[PeerChange]) -> World:
    """A world whose change begins in the morning, the evening or at night, and on another day of the week each time."""
    config = scale.config(number)
    start = config.start_ms // HOUR_MS
    watch = start + 24 * scale.history_days
    end = watch + 24 * scale.watch_days + (10, 44, 77)[number % 3]
    path, healthy, tail = FeaturePath(checked, seed=config.seed), [], []
    for rows in generate_days(config):
        hour = rows.event_time // HOUR_MS
        if hour[0] >= end + AFTER_HOURS:
            break
        if (hour < end).any():
            healthy.append(_values(checked, path.run(rows.take(hour < end), size=BATCH)))
        if (hour >= end).any():
            tail.append(rows.take((hour >= end) & (hour < end + AFTER_HOURS)))
    after = Transactions.concat(tail)
    changed = {c.name: _values(checked, path.fork().run(c.alter(after), size=BATCH)) for c in changes}
    if changes:
        changed[CONTROL] = _values(checked, path.run(after, size=BATCH))
    return World(f"world-{number}", _joined(healthy), watch - 24 * scale.reference_days, watch, end, changed)


def write_streams(folder: Path, worlds: Sequence[World]) -> Path:
    """Write the streams for programs that cannot import this project, and return the path of their index."""
    index: list[dict[str, object]] = []
    for world in worlds:
        streams = {world.name: world.healthy} | {f"{world.name}/{name}": s for name, s in world.changed.items()}
        files = {}
        for number, (name, stretch) in enumerate(streams.items()):
            files[name] = f"{world.name}-{number}.npz"
            np.savez(folder / files[name], hour=stretch.hour, values=stretch.values)
        index.append(
            {"name": world.name, "reference": world.reference, "watch": world.watch, "end": world.end, "files": files}
        )
    path = folder / "index.json"
    path.write_text(json.dumps({"columns": COLUMNS, "categories": CATEGORIES, "min_rows": MIN_ROWS, "worlds": index}))
    return path


def _values(checked: CheckedSpec, batches: Iterable[Prepared]) -> Stretch:
    columns = [checked.features.index(name) for name in COLUMNS]
    hours, values = [], []
    for prepared in batches:
        events, enriched = prepared.batch.events, prepared.batch.enriched
        assert events is not None and enriched is not None
        hours.append(events.transactions.event_time // HOUR_MS)
        values.append(enriched.matrix[:, columns])
    return Stretch(np.concatenate(hours), np.concatenate(values).astype(np.float64))


def _joined(parts: Sequence[Stretch]) -> Stretch:
    return Stretch(np.concatenate([p.hour for p in parts]), np.concatenate([p.values for p in parts]))


# ---------------------------------------------------------------------------------------------------- the changes


def _scaled(factor: float) -> Callable[[Transactions], Transactions]:
    return lambda rows: replace(rows, amount=np.maximum((rows.amount * factor).astype(np.int64), 1))


def _rounded(rows: Transactions) -> Transactions:
    return replace(rows, amount=np.maximum((rows.amount + TENS // 2) // TENS, 1) * TENS)


def _mapped(rows: Transactions) -> Transactions:
    others = dict(zip(CHANNELS, (*CHANNELS[1:], CHANNELS[0]), strict=True))
    return replace(rows, channel=np.array([others[channel] for channel in rows.channel], dtype=object))


def _few_mapped(rows: Transactions) -> Transactions:
    """A tenth of the contactless payments arrive as chip payments."""
    chosen = (rows.channel == "contactless") & (_draws(rows) < 0.1)
    return replace(rows, channel=np.where(chosen, "chip", rows.channel).astype(object))


def _null(field: str, share: float) -> Callable[[Transactions], Transactions]:
    def alter(rows: Transactions) -> Transactions:
        kept: Strings = getattr(rows, field).copy()
        kept[_draws(rows) < share] = None
        return replace(rows, **{field: kept})

    return alter


def _without_country(share: float) -> Callable[[Transactions], Transactions]:
    return lambda rows: rows.take(~(_of_second_country(rows) & (_draws(rows) < share)))


def _one_country_scaled(rows: Transactions) -> Transactions:
    """The amounts of one country arrive in another unit."""
    return replace(rows, amount=np.where(_of_second_country(rows), rows.amount * 100, rows.amount))


def _of_second_country(rows: Transactions) -> NDArray[np.bool_]:
    """Rows with the second most frequent currency; the simulator gives each country one."""
    names, counts = np.unique(rows.currency.astype(str), return_counts=True)
    assert len(names) > 1, "all customers of this world live in one country; take another seed"
    return np.asarray(rows.currency == names[np.argsort(counts)[-2]])


def _merged(field: str, share: float) -> Callable[[Transactions], Transactions]:
    """Ten ids become one, for a share of the ids."""

    def alter(rows: Transactions) -> Transactions:
        ids = [f"{each[:-1]}0" if int(each[1:]) // 10 % 100 < 100 * share else each for each in getattr(rows, field)]
        return replace(rows, **{field: np.array(ids, dtype=object)})

    return alter


def _one_device(rows: Transactions) -> Transactions:
    devices = [None if device is None else "d000000000" for device in rows.device_id]
    return replace(rows, device_id=np.array(devices, dtype=object))


def _draws(rows: Transactions) -> NDArray[np.float64]:
    return np.random.default_rng(len(rows)).random(len(rows))


CHANGES = (
    PeerChange("amounts x 100", True, _scaled(100)),
    PeerChange("amounts x 1.35", False, _scaled(1.35)),
    PeerChange("amounts x 1.1", False, _scaled(1.1)),
    PeerChange("amounts of one country x 100", False, _one_country_scaled),
    PeerChange("amounts rounded to tens", False, _rounded),
    PeerChange("networks null", True, _null("network_id", 1.0)),
    PeerChange("10 % of the devices null", False, _null("device_id", 0.1)),
    PeerChange("channels mapped to each other", True, _mapped),
    PeerChange("10 % of contactless as chip", False, _few_mapped),
    PeerChange("customer ids merged", True, _merged("customer_id", 1.0)),
    PeerChange("5 % of customer ids merged", False, _merged("customer_id", 0.05)),
    PeerChange("one device for all", True, _one_device),
    PeerChange("a country disappears", True, _without_country(1.0)),
    PeerChange("a third of a country disappears", False, _without_country(0.33)),
)
