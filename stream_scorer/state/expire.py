"""Deletes expired rows: those that no reader will look at again, judged by event time (ADR 0020).

One pass scans all keys. It deletes the rows whose newest entry lies in a witness period that ended before the horizon,
the witnesses of such periods, the epochs that nobody uses or builds any more, and the namespaces that no scorer has
used for `keys.UNUSED_MS`, such as those of an earlier spec. A time to live per row would do the same by wall time, and
would cost time at every read.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import redis

from stream_scorer.arrays import Ints
from stream_scorer.errors import ExpireRefused
from stream_scorer.state import scripts
from stream_scorer.state.client import mapped_errors
from stream_scorer.state.keys import EpochKeys, NamespaceKeys, by_namespace, used_key
from stream_scorer.state.row_format import ENTRY_BYTES, FIELD_BYTES, TIME
from stream_scorer.state.rows import WITNESS_PERIOD_MS

_log = logging.getLogger(__name__)
# Keys per step: one step occupies Redis for one to two milliseconds.
STEP = 500
# Whether a pass may begin is judged by this number of steps, and by more of them until they hold this number of rows.
SAMPLE_STEPS = 4
SAMPLE_ROWS = 2_000
# A pass over so few old rows always begins: in a new group or a test, most rows may well be old, and few keys are lost.
HARMLESS = 20
# Rows grow old by whole witness periods: with windows of a day, 14 of the 15 days of rows that are kept do so at once.
# So most rows may go if the rows themselves show that event time has come so far: this share of them, and more than
# `HARMLESS`, has an event of the last day. A wrong input time moves a watermark, but not the rows of other records.
RECENT_MS = 24 * 3_600_000
MIN_RECENT_SHARE = 0.01
# The pause between two steps, so that a pass uses a small part of one core.
PAUSE_S = 0.005
# Deleted rows are remembered for longer than a micro-batch takes from its read to its apply.
REMEMBER_S = 120.0
# The number of deleted rows remembered at once: Redis deletes a set of this size within a few milliseconds.
MAX_REMEMBERED = 50_000


def expire(
    client: Any,
    shards: Sequence[EpochKeys],
    before: Sequence[int],
    horizon_ms: int,
    stop: threading.Event,
    max_share: float,
) -> int:
    """Run one pass over all keys and return the number of deleted keys. The pass ends early when `stop` is set.

    Args:
        shards: the keys of the epoch in use, per shard. before: per shard, the event time (ms) before which no reader
            looks. horizon_ms: how far that is behind the event time that the watermarks show. max_share: the largest
            share of the rows that may go unless the rows support that event time, judged by the rows that a scan finds
            first; Redis returns keys in order of their hash, so these are as good as drawn at random.

    Raises:
        ExpireRefused: too many would go; nothing was deleted. StateUnavailable: Redis does not answer.
    """
    with mapped_errors():
        one_pass = _Pass(client, shards, before)
        if max_share < 1:
            one_pass.require_plausible(stop, max_share, horizon_ms)
        for keys in _steps(client):
            if stop.wait(PAUSE_S):
                break
            one_pass.step(keys)
            if one_pass.remembered >= MAX_REMEMBERED:
                _log.info("expired %d feature rows; the pass continues in %d s", one_pass.remembered, REMEMBER_S)
                if stop.wait(REMEMBER_S):
                    break
                one_pass.forget()
    return one_pass.deleted


class _Pass:
    """One pass over all keys.

    Attributes:
        deleted: number of deleted keys. remembered: number of deleted rows that Redis still remembers.
    """

    def __init__(self, client: Any, shards: Sequence[EpochKeys], before: Sequence[int]) -> None:
        self._client = client
        self._shards = shards
        self._before = list(before)
        # Readers look for witnesses of whole periods: a row stays as long as the last period that has its witness.
        self._first_period = [time // WITNESS_PERIOD_MS for time in before]
        self._expire_rows = client.register_script(scripts.load("expire_rows"))
        self._drop_unused = client.register_script(scripts.load("drop_unused"))
        self._in_use = [_epochs_in_use(client, shard.namespace) for shard in shards]
        self._used = {shard.namespace.tag for shard in shards}
        self.deleted = self.remembered = 0

    def require_plausible(self, stop: threading.Event, max_share: float, horizon_ms: int) -> None:
        """Raise `ExpireRefused` if more than `max_share` of a sample of the rows would be deleted.

        Unless the sample shows that event time has come so far; see `MIN_RECENT_SHARE`. Other keys do not count, so a
        small group in a large Redis is judged too, by all of its rows if they are few.
        """
        rows = old = recent = 0
        for number, keys in enumerate(_steps(self._client), 1):
            for shard, before, first_period in zip(self._shards, self._before, self._first_period, strict=True):
                mine = [key for key in keys if key.startswith(shard.rows)]
                last = self._last_times(mine)
                rows += len(mine)
                old += int((last < first_period * WITNESS_PERIOD_MS).sum())
                recent += int((last >= before + horizon_ms - RECENT_MS).sum())
            if (number >= SAMPLE_STEPS and rows >= SAMPLE_ROWS) or stop.wait(PAUSE_S):
                break
        if old > max(max_share * rows, HARMLESS) and recent <= max(MIN_RECENT_SHARE * rows, HARMLESS):
            raise ExpireRefused(
                f"{old:,} of {rows:,} feature rows would be deleted, and {recent:,} have an event of the last day, "
                "which suggests wrong input times: nothing was deleted",
                hint="If input times are right and most entities are gone: `stream-scorer features expire --force`.",
            )

    def _last_times(self, rows: Sequence[bytes]) -> Ints:
        """The event times (ms) of the last entries of `rows`: (n,) int64, without those of rows that are gone."""
        reads = self._client.pipeline(transaction=False)
        start = TIME * FIELD_BYTES - ENTRY_BYTES
        for key in rows:
            reads.getrange(key, start, start + FIELD_BYTES - 1)
        return np.frombuffer(b"".join(reads.execute()), "<i8")

    def step(self, keys: Sequence[bytes]) -> None:
        """Delete those of `keys` that no reader will look at again."""
        by_tag: dict[bytes, list[bytes]] = {}
        for key in keys:
            by_tag.setdefault(key[: key.find(b"}:") + 2], []).append(key)
        for number, shard in enumerate(self._shards):
            if mine := by_tag.get(shard.namespace.tag):
                self._step_in_shard(mine, shard, self._first_period[number])
                self._drop_epochs(mine, number)
        for tag, others in by_namespace(keys).items():
            if tag not in self._used and _in_use(self._client, tag):
                self._used.add(tag)
            if tag not in self._used:
                self.deleted += int(self._drop_unused(keys=[used_key(tag), *others]))

    def _step_in_shard(self, keys: Sequence[bytes], shard: EpochKeys, first_period: int) -> None:
        rows = [key for key in keys if key.startswith(shard.rows)]
        if rows:
            # Redis remembers them for longer than the pass waits, so that `forget` decides.
            arguments = [first_period * WITNESS_PERIOD_MS, int(5e3 * REMEMBER_S)]
            expired = int(self._expire_rows(keys=[shard.expired, *rows], args=arguments))
            self.remembered += expired
            self.deleted += expired
        witnesses = [key for key in keys if (period := shard.period_of(key)) is not None and period < first_period]
        if witnesses:
            self.deleted += self._client.unlink(*witnesses)

    def _drop_epochs(self, keys: Sequence[bytes], number: int) -> None:
        """Delete what epochs have left behind that nobody uses or builds, as a rebuild that was killed."""
        namespace = self._shards[number].namespace
        if _of_other_epochs(namespace, keys, self._in_use[number]):
            self.deleted += unlink_unused(self._client, namespace, keys)
            self._in_use[number] = _epochs_in_use(self._client, namespace)

    def forget(self) -> None:
        """Make Redis forget the deleted rows."""
        for shard in self._shards:
            self._client.unlink(shard.expired)
        self.remembered = 0


def unlink_unused(client: Any, namespace: NamespaceKeys, keys: Sequence[bytes]) -> int:
    """Delete those of `keys` that are of an epoch of `namespace` which nobody uses or builds; the number of them.

    The pointers to epochs are read here, after the keys were found, so no epoch that has begun since is touched.
    """
    unused = _of_other_epochs(namespace, keys, _epochs_in_use(client, namespace))
    return int(client.unlink(*unused)) if unused else 0


def _epochs_in_use(client: Any, namespace: NamespaceKeys) -> tuple[bytes, ...]:
    """What the keys of the current epoch, and of one that is being built, begin with."""
    return tuple(namespace.of_epoch(epoch) for epoch in client.mget((namespace.epoch, namespace.building)) if epoch)


def _of_other_epochs(namespace: NamespaceKeys, keys: Sequence[bytes], in_use: tuple[bytes, ...]) -> list[bytes]:
    """The `keys` in `namespace` that belong to an epoch, but not to one `in_use`."""
    mine = [key for key in keys if key.startswith(namespace.tag) and not key.startswith(in_use)]
    return [key for key in mine if key not in namespace.permanent]


def _in_use(client: Any, tag: bytes) -> bool:
    """Whether a scorer uses the namespace with this tag, or the user of Redis may not touch it."""
    try:
        return bool(client.exists(used_key(tag)))
    except redis.exceptions.NoPermissionError:
        return True


def _steps(client: Any) -> Iterator[list[bytes]]:
    """All keys with a hash tag, `STEP` at a time."""
    step = []
    for key in client.scan_iter(match="{*", count=STEP):
        step.append(key)
        if len(step) == STEP:
            yield step
            step = []
    yield step
