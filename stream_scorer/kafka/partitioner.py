"""The default partitioner of Kafka's Java clients, for a batch of keys.

Kafka's Java clients hash a key with murmur2 (`org.apache.kafka.common.utils.Utils.murmur2`) and take
``(murmur2(key) & 0x7fffffff) % partitions``. librdkafka's own default is CRC32, which gives other partitions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_SEED = 0x9747B28C
_M = 0x5BD1E995
_R = 24


def murmur2_batch(keys: Sequence[bytes]) -> NDArray[np.int32]:
    """The 32-bit hashes of `keys`: ``(n,) int32``, signed as in Java. Makes one pass per distinct length."""
    lengths = np.fromiter(map(len, keys), np.int64, len(keys))
    out = np.empty(len(keys), dtype=np.uint32)
    for length in np.unique(lengths).tolist():
        rows = np.flatnonzero(lengths == length)
        same = keys if len(rows) == len(keys) else [keys[row] for row in rows.tolist()]
        out[rows] = _hash(np.frombuffer(b"".join(same), np.uint8).reshape(len(rows), length), length)
    return out.view(np.int32)


def partitions_of(keys: Sequence[bytes], partitions: int) -> NDArray[np.int32]:
    """The partition of each key: ``(n,) int32`` in ``[0, partitions)``."""
    if partitions < 1:
        raise ValueError(f"a topic has at least 1 partition, not {partitions}")
    return (murmur2_batch(keys) & np.int32(0x7FFFFFFF)) % np.int32(partitions)


def _hash(data: NDArray[np.uint8], length: int) -> NDArray[np.uint32]:
    """Hash the rows of `data`, ``(n, length) uint8``. uint32 arrays wrap around as Java's int does."""
    m = np.uint32(_M)
    h = np.full(len(data), (_SEED ^ length) & 0xFFFFFFFF, dtype=np.uint32)
    whole = length // 4
    words = np.ascontiguousarray(data[:, : whole * 4]).view("<u4") if whole else np.empty((len(data), 0), np.uint32)
    for column in range(whole):
        k = words[:, column] * m
        k ^= k >> np.uint32(_R)
        h = (h * m) ^ (k * m)
    tail = data[:, whole * 4 :].astype(np.uint32)
    for place in range(tail.shape[1] - 1, -1, -1):
        h ^= tail[:, place] << np.uint32(8 * place)
    if tail.shape[1]:
        h *= m
    h ^= h >> np.uint32(13)
    h *= m
    h ^= h >> np.uint32(15)
    return h
