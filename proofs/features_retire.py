"""features-retire: rows that are no longer read are deleted, and no feature changes.

A stream of 400 days, in which customers and terminals are active for a season, go quiet, and some come back, runs
through engine and rows in a real Redis, one batch in flight. Rows expire again and again, also between the read of
a batch and its apply. Every feature must equal, to the byte, that of rows in memory that are never deleted; only rows
of the last weeks may be left; and a row that is really lost must still be noticed.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proofs.feature_path import BATCH, HOUR_MS, SOURCE, START_MS, Path, made, no_labels, path_spec
from proofs.kit import Context, Result, services
from stream_scorer.errors import StateGap
from stream_scorer.features.engine import EventBatch, FeatureEngine
from stream_scorer.positions import Span
from stream_scorer.serde.columns import take_transactions
from stream_scorer.serde.decoder import Transactions
from stream_scorer.spec.model import CheckedSpec
from stream_scorer.state.client import connect
from stream_scorer.state.keys import NamespaceKeys, rows_namespace, used_key
from stream_scorer.state.redis_rows import RedisRowStore
from stream_scorer.state.row_format import latest, unpack
from stream_scorer.state.rows import BEGINS, WITNESS_PERIOD_MS, AppliedOffsets, MemoryRowStore, RowUpdate

N = 60_000
DAYS, SEASON_DAYS = 400, 20
CUSTOMERS, TERMINALS = 3_000, 600
# Of all, how many are active in a season; and how much of the traffic goes to one terminal.
ACTIVE, HOT_SHARE = 0.1, 0.1
LATE, EXPIRE = 0.02, 0.2
DAY_MS = 24 * HOUR_MS
END_MS = START_MS + DAYS * DAY_MS
# One partition, always read to its end.
ENDS = {SOURCE: 0}


def run(context: Context) -> Result:
    """See the module. `n` transactions."""
    n = context.n or N
    result = Result()
    rng = np.random.default_rng(context.seed)
    checked = path_spec()
    transactions = _seasons(checked, rng, n)
    never = threading.Event()
    with services("redis") as (_stack, addresses):
        client = connect(str(addresses.redis))
        path = Path(str(addresses.redis), checked, "seasons")
        if context.broken:
            _break()
        expires = rng.random(n // BATCH + 1) < EXPIRE
        matrices, statuses, gone, met = [], [], 0, 0
        for index, enriched in enumerate(path.feed(transactions)):
            matrices.append(enriched.matrix)
            statuses.append(enriched.status)
            if expires[index]:
                gone += path.store.expire(ENDS, never, now_ms=END_MS, max_share=1.0)
                met += _gone_since_read(client, path.store, enriched.update)
        path.finish()
        gone += path.store.expire(ENDS, never, now_ms=END_MS, max_share=1.0)
        context.say(f"{n:,} transactions, {int(expires.sum())} passes, {gone:,} keys deleted")
        matrix, status = _by_rows_that_forget_nothing(checked, transactions)
        same = (np.vstack(matrices).view(np.int64) == matrix.view(np.int64)) & (np.vstack(statuses) == status)
        result.figures["transactions_with_a_difference"] = int((~same.all(axis=1)).sum())
        result.check("every feature is that of rows that forget nothing", bool(same.all()))
        result.at_least("keys_deleted", gone, n // 40)
        result.at_least("rows_deleted_between_read_and_apply", met, 1)
        left = list(path.store.keys())
        _check_what_is_left(result, path.store, left, int(transactions.event_time.max()))
        _check_namespaces(result, client, path.store)
        _check_a_loss(result, client, path.store, left[0])
    return result


def _by_rows_that_forget_nothing(
    checked: CheckedSpec, transactions: Transactions
) -> tuple[NDArray[np.float64], NDArray[np.int8]]:
    """Features and statuses, both (n, n_features), in the order of the log."""
    engine, rows, out = FeatureEngine(checked), MemoryRowStore(), []
    none = np.zeros(0, dtype=np.int64)
    for low in range(0, len(transactions), BATCH):
        place = np.arange(low, min(low + BATCH, len(transactions)))
        part = take_transactions(transactions, place)
        span = Span(SOURCE, low, low + len(place), int(part.event_time.max()))
        events = EventBatch(part, no_labels(checked), [span], np.zeros(len(place), np.int64), place, none, none)
        enriched = engine.enrich(events, rows)
        rows.apply(enriched.update)
        out.append(enriched)
    return np.vstack([e.matrix for e in out]), np.vstack([e.status for e in out])


def _gone_since_read(client: Any, store: RedisRowStore, update: RowUpdate) -> int:
    """How many rows to which `update` adds were read, and have been deleted since."""
    begun = np.unique(update.key_of[update.opens != BEGINS]).tolist()
    keys = [store.row_prefix + update.keys[i] for i in begun]
    return sum(client.smismember(store.expired_key, keys)) if keys else 0


def _seasons(checked: CheckedSpec, rng: np.random.Generator, n: int) -> Transactions:
    """Traffic on those that are active at the time; one of the terminals has a tenth."""
    at = START_MS + np.sort(rng.integers(0, DAYS * DAY_MS, n))
    season = (at - START_MS) // (SEASON_DAYS * DAY_MS)
    seasons = DAYS // SEASON_DAYS
    who, where = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    for s in range(seasons):
        mine = np.flatnonzero(season == s)
        who[mine] = rng.choice(rng.permutation(CUSTOMERS)[: int(ACTIVE * CUSTOMERS)], len(mine))
        open_now = rng.permutation(TERMINALS)[: int(ACTIVE * TERMINALS)]
        where[mine] = np.where(rng.random(len(mine)) < HOT_SHARE, open_now[0], rng.choice(open_now, len(mine)))
    at -= np.where(rng.random(n) < LATE, rng.integers(0, HOUR_MS, n), 0)
    return made(checked, [f"c{i}" for i in who.tolist()], [f"t{i}" for i in where.tolist()], at, 0)


def _check_what_is_left(result: Result, store: RedisRowStore, left: list[bytes], newest: int) -> None:
    """Rows of the horizon are there; the rest went, but for the period that readers still look into."""
    last = np.array([latest(unpack(row or b"")) for row in store.read(left)[0]])
    oldest = (newest - store.horizon_ms) // WITNESS_PERIOD_MS * WITNESS_PERIOD_MS
    result.check("no row is left that ended before the last witness period in use", bool((last >= oldest).all()))
    result.at_least("rows_left", len(left), 10)


def _check_a_loss(result: Result, client: Any, store: RedisRowStore, key: bytes) -> None:
    client.delete(store.row_prefix + key)
    try:
        store.read([key])
        noticed = False
    except StateGap:
        noticed = True
    result.check("a row that is lost is noticed", noticed)


def _check_namespaces(result: Result, client: Any, store: RedisRowStore) -> None:
    """What an earlier spec left goes once nobody says that it is in use."""
    kept, _ = (_store_of(client, spec) for spec in ("kept", "left"))
    tag = NamespaceKeys(_namespace("left")).tag
    client.delete(used_key(tag))
    store.expire(ENDS, threading.Event(), now_ms=END_MS, max_share=1.0)
    result.check("rows of a spec in use stay", kept.open() is not None)
    result.check("rows of a spec that nobody uses are deleted", not client.keys(tag.decode() + "*"))


def _store_of(client: Any, spec: str) -> RedisRowStore:
    store = RedisRowStore(client, _namespace(spec), [SOURCE], labels_topic="labels", horizon_ms=DAY_MS)
    store.open()
    store.init({SOURCE: 0}, {})
    return store


def _break() -> None:
    """Rows go as soon as their period has ended, though readers still look into it."""

    def unread_before(self: RedisRowStore, ends: Any, now_ms: int) -> int | None:
        applied = self.open()
        assert isinstance(applied, AppliedOffsets)
        return min(applied.settled(ends), now_ms)

    RedisRowStore.unread_before = unread_before  # type: ignore[method-assign]


def _namespace(spec: str) -> str:
    return rows_namespace("g", spec, ["t", "l"])
