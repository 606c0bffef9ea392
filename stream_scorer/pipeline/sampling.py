"""The random review sample of approved transactions, and the random groups of cards (ADR 0032).

Both are functions of ids and of the secret `scorer.id_key`: no state, the same in every process, batch and replay.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from stream_scorer.arrays import Bools, Int8s, Ints, UInt64s
from stream_scorer.compiled import njit
from stream_scorer.pipeline.batch import MicroBatch
from stream_scorer.records import CARD_GROUPS, DECISIONS
from stream_scorer.serde.decoder import Transactions, hash_ids
from stream_scorer.spec.model import CheckedSpec
from stream_scorer.splitmix64 import finalise

_GROUP_SHIFT = np.uint64(64 - CARD_GROUPS.bit_length() + 1)
_APPROVE = DECISIONS.index("approve")
_WHOLE = 2**64

# Sampled transactions, transactions by decision and card group, decisions by rule: the fields of `PaneSummary`.
RateCounts = tuple[int, dict[str, list[int]], dict[str, dict[str, int]]]


class Sampling:
    """Draws the review sample of a spec, and assigns cards to groups."""

    def __init__(self, checked: CheckedSpec) -> None:
        self.share = checked.spec.monitor.review_sample
        self._entity = checked.spec.partition_entity
        self._sample_key = checked.pseudonyms.mixing_key("review-sample")
        self._group_key = checked.pseudonyms.mixing_key("card-group")

    def draw(self, id_hash: Ints, decision: Int8s) -> Bools:
        """``(n,) bool``: approved, and drawn with probability `share`.

        Args:
            id_hash: (n,) int64, `hash_ids` of the event ids. decision: (n,) int8, index into `records.DECISIONS`.
        """
        approved: Bools = decision == _APPROVE
        if self.share <= 0.0:
            return np.zeros(len(id_hash), np.bool_)
        if self.share >= 1.0:
            return approved
        drawn: Bools = mix(id_hash.view(np.uint64), self._sample_key) < np.uint64(int(self.share * _WHOLE))
        return np.logical_and(approved, drawn)

    def card_groups(self, transactions: Transactions) -> Ints:
        """``(n,) int64``, 0 to 31: the group of each transaction's card; a transaction without a card is its own."""
        hashes = transactions.id_hash
        if self._entity is not None:
            ids = transactions.entity_ids[self._entity]
            hashes = hash_ids([card or "" for card in ids])
            if None in ids:
                absent = np.array([card is None for card in ids], np.bool_)
                hashes = np.where(absent, transactions.id_hash, hashes)
        return (mix(hashes.view(np.uint64), self._group_key) >> _GROUP_SHIFT).astype(np.int64)


def mix(hashes: UInt64s, key: tuple[int, int]) -> UInt64s:
    """``(n,) uint64``: `hashes` (n,) with a key, uniform and unrelated for two keys.

    Two rounds of the finaliser of splitmix64, one before and one after the second
    half of the key. It is no cryptographic hash: who sees many drawn ids of his own choice could learn the key.
    """
    mixed: UInt64s = _mix(hashes, np.uint64(key[0]), np.uint64(key[1]))
    return mixed


@njit(cache=True, nogil=True)
def _mix(hashes, first, second):  # type: ignore[no-untyped-def]  # pragma: no cover
    out = np.empty_like(hashes)
    for row in range(len(hashes)):
        out[row] = finalise(finalise(hashes[row] ^ first) + second)
    return out


def rate_counts(batch: MicroBatch, chosen: Ints | slice, group_of: Ints, n: int) -> list[RateCounts]:
    """What the rates of each of `n` panes need of the `chosen` transactions, without repeated event ids.

    `group_of` (rows,) is the pane of each chosen transaction.
    """
    decided, enriched = batch.decided, batch.enriched
    assert decided is not None and enriched is not None
    duplicate, decided_as = enriched.duplicate[chosen], decided.decision[chosen]
    groups, drawn = _rate_cells(group_of, n, duplicate, decided_as, decided.card_group[chosen], decided.sampled[chosen])
    by_rule: list[dict[str, dict[str, int]]] = [{} for _ in range(n)]
    if decided.rules is not None:
        names, counts = decided.rules.names, ~duplicate
        pane, decision = group_of[counts], decided_as[counts].astype(np.int64)
        rule = decided.rules.rule[chosen][counts]
        held = rule >= 0
        cell = (pane[held] * len(names) + rule[held]) * len(DECISIONS) + decision[held]
        table = np.bincount(cell, minlength=n * len(names) * len(DECISIONS)).reshape(n, len(names), len(DECISIONS))
        for g, k in np.argwhere(table.any(axis=2)).tolist():
            by_rule[g][names[k]] = _nonzero(table[g, k])
    return [
        (count, {name: found for name, found in zip(DECISIONS, each, strict=True) if found}, rules)
        for count, each, rules in zip(drawn.tolist(), sparse_counts(groups), by_rule, strict=True)
    ]


def _nonzero(row: Ints) -> dict[str, int]:
    return {name: count for name, count in zip(DECISIONS, row.tolist(), strict=True) if count}


def sparse_counts(counts: Ints) -> list[list[list[int]]]:
    """`counts` (g, k, cells) as g times k flat lists ``[cell, count, ...]`` of the cells above 0."""
    pairs, bounds = _sparse(counts.reshape(-1, counts.shape[2]))
    flat, edges, width = pairs.tolist(), bounds.tolist(), counts.shape[1]
    lists = [flat[low:high] for low, high in pairwise(edges)]
    return [lists[at : at + width] for at in range(0, len(lists), width)]


@njit(cache=True, nogil=True)
def _rate_cells(group_of, n, duplicate, decision, card_group, sampled):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Transactions (n, decisions, card groups) without repeated event ids, and sampled ones (n,), by group."""
    groups, drawn = np.zeros((n, len(DECISIONS), CARD_GROUPS), np.int64), np.zeros(n, np.int64)
    for row in range(len(group_of)):
        if not duplicate[row]:
            groups[group_of[row], decision[row], card_group[row]] += 1
        if sampled[row]:
            drawn[group_of[row]] += 1
    return groups, drawn


@njit(cache=True, nogil=True)
def _sparse(counts):  # type: ignore[no-untyped-def]  # pragma: no cover
    """The pairs of all rows of `counts`, one after another, and the bounds of each row."""
    rows, cells = counts.shape
    bounds = np.zeros(rows + 1, np.int64)
    for row in range(rows):
        bounds[row + 1] = bounds[row]
        for cell in range(cells):
            bounds[row + 1] += 2 * (counts[row, cell] > 0)
    pairs = np.empty(bounds[rows], np.int64)
    at = 0
    for row in range(rows):
        for cell in range(cells):
            if counts[row, cell] > 0:
                pairs[at], pairs[at + 1] = cell, counts[row, cell]
                at += 2
    return pairs, bounds


def warm() -> None:
    """Compile the loops, or load them from their cache, before the first batch has to wait for them."""
    one, flag = np.zeros(1, np.int64), np.zeros(1, np.bool_)
    mix(one.view(np.uint64), (0, 0))
    groups, _ = _rate_cells(one, 1, flag, np.zeros(1, np.int8), one, flag)
    sparse_counts(groups)
