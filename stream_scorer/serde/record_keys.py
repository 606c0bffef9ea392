"""Compares the keys of transactions with the ids of the partition entity.

The features of that entity count on the key: it sends all its transactions to one partition, in order.
"""

from __future__ import annotations

from collections.abc import Sequence


def wrong_keys(keys: Sequence[bytes | None], ids: Sequence[str | None]) -> list[int]:
    """The places, in order, where the key is not the id. A transaction without an id may have any key."""
    try:
        # The usual case, by one comparison of all. Only keys and ids that contain NUL could hide a difference here.
        if b"\0".join(keys) == "\0".join(ids).encode():  # type: ignore[arg-type]
            return []
    except TypeError:
        pass  # a key or an id is missing
    pairs = enumerate(zip(keys, ids, strict=True))
    return [place for place, (key, own) in pairs if own is not None and key != own.encode()]
