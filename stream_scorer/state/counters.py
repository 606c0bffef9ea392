"""Counters in Redis that end the same after any crash: counts and applied offsets change in one script.

Keys, all under one hash tag so that they share a slot::

    {ns}:head               epoch, `m:<source>` next offset to count, `x:<name>` maxima (watermarks, for example),
                            `t:<name>` what the counts are bound to, such as the broker's id of a topic
    {ns}:<epoch>:c:<cell>   one hash of integer counts; a cell is `<window>|<label>`
    {ns}:<epoch>:p:<window> the labels seen in a window
    {ns}:<epoch>:dirty      windows that changed since they were last settled, with a change counter
    {ns}:<epoch>:due:<kind> windows that become due once time passes them
    {ns}:<epoch>:r:<window> revision of what was published about a window
    {ns}:<epoch>:k:<name>   bytes that the leader keeps
    {ns}:lead               the process that publishes
    {ns}:try:<type>         for a minute: whether the user may run every command

Epoch and applied offsets are in one hash, so Redis loses both or neither. After a loss, the next `open` returns a new
epoch, and everything is counted again from the beginning of the topics, in keys that no leftover can mix into.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, cast

import redis

from stream_scorer.errors import StateGap
from stream_scorer.state import scripts
from stream_scorer.state.client import mapped_errors

# Kept bytes outlive an outage of five weeks, after which a drift detector needs no older windows.
KEPT_S = 35 * 86_400

# (window start, label); the label names whose counts these are.
Cell = tuple[int, str]
Status = Literal["applied", "done", "trim", "gap"]


@dataclass(frozen=True, slots=True)
class Batch:
    """What the records ``[start, end)`` of one source add. A maximum never decreases."""

    source: str
    start: int
    end: int
    cells: Mapping[Cell, Mapping[str, int]]
    maxima: Mapping[str, int]
    due: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CounterReply:
    """The result of applying a batch.

    ``applied``: counted. ``done``: all of it was counted before. ``trim``: its records below `applied`, the applied
    offset, were counted before; send the rest. ``gap``: records between `applied` and its start are
    missing; nothing changed.
    """

    status: Status
    applied: int


@dataclass(frozen=True, slots=True)
class Head:
    """Epoch, applied offsets (`applied`) and maxima at one moment."""

    epoch: str
    applied: Mapping[str, int]
    maxima: Mapping[str, int]


def require_origin(wanted: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Raise `StateGap` unless `found` has all of `wanted`."""
    other = [name for name, value in wanted.items() if found.get(name) != value]
    if other:
        raise StateGap(
            f"the monitor's counts in Redis are lost, or of another origin ({', '.join(other)})",
            hint="Another monitor of the group may have another spec. This one counts everything again.",
        )


def _head_of(named: Mapping[str, str]) -> Head:
    return Head(
        named.get("epoch", ""),
        {key[2:]: int(value) for key, value in named.items() if key.startswith("m:")},
        {key[2:]: int(value) for key, value in named.items() if key.startswith("x:")},
    )


class CounterStore:
    """The counters of one namespace. Methods block on Redis and raise `StateUnavailable`.

    Several threads may call them once `open` has returned.
    """

    def __init__(self, client: redis.Redis, namespace: str, *, ttl_s: int) -> None:
        self._client = client
        self._root = f"{{{namespace}}}:"
        self._ttl = str(ttl_s)
        self._epoch = ""
        self._origin: Mapping[str, str] = {}
        self._apply = client.register_script(scripts.load("apply_counters"))
        self._open = client.register_script(scripts.load("open_counters"))
        self._settle = client.register_script(scripts.load("settle_window"))
        self._come_due = client.register_script(scripts.load("collect_due"))
        self._raise = client.register_script(scripts.load("raise_field"))
        self._bind = client.register_script(scripts.load("bind_topics"))
        self._revise = client.register_script(scripts.load("next_revision"))
        self._lead = client.register_script(scripts.load("take_lead"))

    @property
    def _head(self) -> str:
        return f"{self._root}head"

    @property
    def _base(self) -> str:
        return f"{self._root}{self._epoch}:"

    def bind(self, origin: Mapping[str, str]) -> bool:
        """Require that the counts are of this origin, and return whether they are.

        If they are not, they are lost, and the next `open` begins a new epoch.

        Args:
            origin: what the counts are made of, such as the broker's ids of the topics by name, and settings that they
                depend on. A name without a value so far gets this one.
        """
        with mapped_errors():
            args = [x for pair in origin.items() for x in pair]
            kept = bool(self._bind(keys=[self._head], args=args) == 1)
        self._origin = dict(origin)
        return kept

    def open(self, new_epoch: str, first: Mapping[str, int]) -> Head:
        """Begin `new_epoch` if there is no epoch, and set the applied offsets that are missing to `first`.

        Raises:
            StateGap: the counts are not of the origin of `bind` any more: another process has bound them to its own, or
                Redis has lost them. Bind them again.
        """
        pairs = [str(x) for pair in first.items() for x in pair]
        keys = [self._head, *(f"{self._root}try:{kind}" for kind in ("hash", "set", "zset"))]
        with mapped_errors():
            self._epoch = cast(bytes, self._open(keys=keys, args=[new_epoch, *pairs])).decode()
        head = self._named_head()
        # After the epoch was read: whoever binds them later begins another epoch.
        require_origin(self._origin, {key[2:]: value for key, value in head.items() if key.startswith("t:")})
        return _head_of(head)

    def skip_to(self, source: str, offset: int) -> int:
        """Advance the applied offset past records that no longer exist; the caller reports the loss.

        Returns the applied offset, which is above `offset` if somebody has counted more. It never decreases.
        """
        with mapped_errors():
            return int(cast(bytes, self._raise(keys=[self._head], args=[f"m:{source}", offset])))

    def head(self) -> Head:
        """The current epoch, applied offsets and maxima."""
        return _head_of(self._named_head())

    def _named_head(self) -> dict[str, str]:
        with mapped_errors():
            raw = cast(dict[bytes, bytes], self._client.hgetall(self._head))
        return {key.decode(): value.decode() for key, value in raw.items()}

    def apply(self, batch: Batch) -> CounterReply:
        """Add the counts of `batch` and advance the applied offset of its source, or change nothing and return why.

        Raises:
            StateGap: the epoch or the applied offset is missing: Redis has lost its data.
        """
        args: list[str | int] = [self._epoch, batch.source, batch.start, batch.end, self._ttl, len(batch.maxima)]
        for name, value in batch.maxima.items():
            args += (name, value)
        args.append(len(batch.due))
        args += batch.due
        args.append(len(batch.cells))
        for (window, label), counts in batch.cells.items():
            args += (window, label, len(counts))
            for field, delta in counts.items():
                args += (field, delta)
        with mapped_errors():
            status, applied = cast(list[bytes], self._apply(keys=[self._head, self._base], args=args))
        if status == b"lost":
            raise StateGap(
                f"Redis has lost the monitor's applied offset of {batch.source}",
                hint="The monitor counts again from the beginning of its topics.",
            )
        return CounterReply(cast(Status, status.decode()), int(applied))

    def changed(self) -> dict[int, int]:
        """The windows that changed since they were settled, each with its change counter."""
        with mapped_errors():
            raw = cast(dict[bytes, bytes], self._client.hgetall(f"{self._base}dirty"))
        return {int(window): int(count) for window, count in raw.items()}

    def settle(self, window: int, seen: int) -> None:
        """Remove `window` from the changed windows, unless it changed again after `seen`."""
        with mapped_errors():
            self._settle(keys=[f"{self._base}dirty"], args=[window, seen])

    def add_due(self, kind: str, window: int) -> None:
        """Let `window` come due even if it has no counts."""
        with mapped_errors():
            self._client.zadd(f"{self._base}due:{kind}", {str(window): window})

    def come_due(self, kind: str, up_to: int) -> int:
        """Add the windows with a start at or below `up_to` to the changed ones, once; return how many there were."""
        with mapped_errors():
            return cast(int, self._come_due(keys=[f"{self._base}due:{kind}", f"{self._base}dirty"], args=[up_to]))

    def read(self, windows: Iterable[int]) -> dict[Cell, dict[str, int]]:
        """The counts of every cell of these windows."""
        wanted = list(windows)
        with mapped_errors():
            pipe = self._client.pipeline(transaction=False)
            for window in wanted:
                pipe.smembers(f"{self._base}p:{window}")
            cells = [
                (window, label.decode())
                for window, labels in zip(wanted, pipe.execute(), strict=True)
                for label in sorted(labels)
            ]
            for window, label in cells:
                pipe.hgetall(f"{self._base}c:{window}|{label}")
            found = pipe.execute()
        return {
            cell: {field.decode(): int(value) for field, value in raw.items()}
            for cell, raw in zip(cells, found, strict=True)
        }

    def next_revision(self, window: str, above: int = 0) -> int:
        """1, 2, 3… per window, across restarts, but always higher than `above`.

        Raises:
            StateGap: Redis has lost the counts since they were opened.
        """
        keys = [f"{self._base}r:{window}", self._head]
        with mapped_errors():
            revision = cast("bytes | None", self._revise(keys=keys, args=[above, self._ttl, self._epoch]))
        if revision is None:
            raise StateGap(
                f"Redis has lost the monitor's counts before window {window} was reported",
                hint="The monitor counts again from the beginning of its topics.",
            )
        return int(revision)

    def keep(self, name: str, value: bytes) -> None:
        """Store bytes under a name, for the next leader; they are lost together with the counts."""
        with mapped_errors():
            self._client.set(f"{self._base}k:{name}", value, ex=max(int(self._ttl), KEPT_S))

    def kept(self, name: str) -> bytes | None:
        """What `keep` stored last; None without any."""
        with mapped_errors():
            return cast("bytes | None", self._client.get(f"{self._base}k:{name}"))

    def raise_maximum(self, name: str, value: int) -> None:
        """Raise one maximum without a batch."""
        with mapped_errors():
            self._raise(keys=[self._head], args=[f"x:{name}", value])

    def lead(self, who: str, for_ms: int) -> bool:
        """Take or extend the lead for `for_ms`; False while another process leads."""
        with mapped_errors():
            return bool(self._lead(keys=[f"{self._root}lead"], args=[who, for_ms]) == 1)
