"""The random review sample of approved transactions, and the random groups of cards (ADR 0032).

Both are functions of ids and of the secret `scorer.id_key`: no state, the same in every process, batch and replay.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream_scorer.pipeline.batch import MicroBatch
from stream_scorer.records import CARD_GROUPS, DECISIONS
from stream_scorer.serde.decoder import Transactions, hash_ids
from stream_scorer.spec.model import CheckedSpec

_GROUP_SHIFT = np.uint64(64 - CARD_GROUPS.bit_length() + 1)
_APPROVE = DECISIONS.index("approve")
_WHOLE = 2**64

Flags = NDArray[np.bool_]
U64 = NDArray[np.uint64]
# Sampled transactions, transactions by decision and card group, decisions by rule: the fields of `PaneSummary`.
RateCounts = tuple[int, dict[str, list[int]], dict[str, dict[str, int]]]


class Sampling:
    """Draws the review sample of a spec, and assigns cards to groups."""

    def __init__(self, checked: CheckedSpec) -> None:
        self.share = checked.spec.monitor.review_sample
        self._entity = checked.spec.partition_entity
        self._sample_key = checked.pseudonyms.mixing_key("review-sample")
        self._group_key = checked.pseudonyms.mixing_key("card-group")

    def draw(self, id_hash: NDArray[np.int64], decision: NDArray[np.int8]) -> Flags:
        """``(n,) bool``: approved, and drawn with probability `share`.

        Args:
            id_hash: (n,) int64, `hash_ids` of the event ids. decision: (n,) int8, index into `records.DECISIONS`.
        """
        approved: Flags = decision == _APPROVE
        if self.share <= 0.0:
            return np.zeros(len(id_hash), np.bool_)
        if self.share >= 1.0:
            return approved
        drawn: Flags = mix(id_hash.view(np.uint64), self._sample_key) < np.uint64(int(self.share * _WHOLE))
        return np.logical_and(approved, drawn)

    def card_groups(self, transactions: Transactions) -> NDArray[np.int64]:
        """``(n,) int64``, 0 to 31: the group of each transaction's card; a transaction without a card is its own."""
        hashes = transactions.id_hash
        if self._entity is not None:
            ids = transactions.entity_ids[self._entity]
            hashes = hash_ids([card or "" for card in ids])
            if None in ids:
                absent = np.array([card is None for card in ids], np.bool_)
                hashes = np.where(absent, transactions.id_hash, hashes)
        return (mix(hashes.view(np.uint64), self._group_key) >> _GROUP_SHIFT).astype(np.int64)


def mix(hashes: U64, key: tuple[int, int]) -> U64:
    """``(n,) uint64``: `hashes` (n,) with a key, uniform and unrelated for two keys.

    Two rounds of the finaliser of splitmix64 (Steele, Lea, Flood, OOPSLA 2014), one before and one after the second
    half of the key. It is no cryptographic hash: who sees many drawn ids of his own choice could learn the key.
    """
    return _finalise(_finalise(hashes ^ np.uint64(key[0])) + np.uint64(key[1]))


def _finalise(x: U64) -> U64:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def rate_counts(
    batch: MicroBatch, chosen: NDArray[np.int64] | slice, group_of: NDArray[np.int64], n: int
) -> list[RateCounts]:
    """What the rates of each of `n` panes need of the `chosen` transactions, without repeated event ids.

    `group_of` (rows,) is the pane of each chosen transaction.
    """
    decided, enriched = batch.decided, batch.enriched
    assert decided is not None and enriched is not None
    counts = ~enriched.duplicate[chosen]
    pane, decision = group_of[counts], decided.decision[chosen][counts].astype(np.int64)
    sampled = np.bincount(group_of[decided.sampled[chosen]], minlength=n)
    width = len(DECISIONS) * CARD_GROUPS
    cell = (pane * len(DECISIONS) + decision) * CARD_GROUPS + decided.card_group[chosen][counts]
    groups = np.bincount(cell, minlength=n * width).reshape(n, len(DECISIONS), CARD_GROUPS)
    by_rule: list[dict[str, dict[str, int]]] = [{} for _ in range(n)]
    if decided.rules is not None:
        names = decided.rules.names
        rule = decided.rules.rule[chosen][counts]
        held = rule >= 0
        cell = (pane[held] * len(names) + rule[held]) * len(DECISIONS) + decision[held]
        table = np.bincount(cell, minlength=n * len(names) * len(DECISIONS)).reshape(n, len(names), len(DECISIONS))
        for g, k in np.argwhere(table.any(axis=2)).tolist():
            by_rule[g][names[k]] = _nonzero(table[g, k])
    drawn: list[int] = sampled.tolist()
    sparse = SparseCounts(groups)
    return [
        (drawn[g], {name: found for name, found in zip(DECISIONS, sparse.of(g), strict=True) if found}, by_rule[g])
        for g in range(n)
    ]


def _nonzero(row: NDArray[np.int64]) -> dict[str, int]:
    return {name: count for name, count in zip(DECISIONS, row.tolist(), strict=True) if count}


class SparseCounts:
    """`counts` (g, k, cells) as flat lists ``[cell, count, ...]``, found with one pass over the cells above 0."""

    def __init__(self, counts: NDArray[np.int64]) -> None:
        rows, self._width = counts.shape[0] * counts.shape[1], counts.shape[1]
        flat = counts.reshape(rows, counts.shape[2])
        row, cell = np.nonzero(flat)
        pairs = np.empty(2 * len(row), dtype=np.int64)
        pairs[::2], pairs[1::2] = cell, flat[row, cell]
        self._pairs: list[int] = pairs.tolist()
        bounds = np.zeros(rows + 1, dtype=np.int64)
        np.cumsum(2 * np.bincount(row, minlength=rows), out=bounds[1:])
        self._bounds: list[int] = bounds.tolist()

    def of(self, group: int) -> list[list[int]]:
        """The k lists of `group`."""
        pairs, bounds = self._pairs, self._bounds[group * self._width : (group + 1) * self._width + 1]
        return [pairs[low:high] for low, high in zip(bounds, bounds[1:], strict=False)]
