"""Trees by bit vectors: one bit per leaf and row, and splits that clear the bits of the leaves they exclude (ADR 0049).

A split that sends a row right excludes the leaves on its left. When all splits of a tree are done, the lowest bit left
is the leaf that a walk from the root would reach. No split depends on another, so 64 rows are evaluated at once.

Sources: QuickScorer (Lucchese et al., SIGIR 2015); for vectors of rows and masks by byte, RapidScorer (Ye et al., KDD
2018).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_scorer.compiled import njit
from stream_scorer.ensemble.members.vectors import (
    BYTES,
    all_bytes,
    masked_above,
    plus_trailing_zeros,
    store_bytes,
    where_nonzero,
)

# A leaf's number is one byte. Trees with more leaves than this are faster with the walk anyway.
MAX_LEAVES = 256
# Thresholds that one rank covers, because a rank is one byte.
_RANKED = 255
# The lowest k bits of a byte, for k of 0 to 8.
_LOW_BITS = (1 << np.arange(9)) - 1


@dataclass(frozen=True, slots=True)
class Nodes:
    """All nodes of a forest, tree by tree; within a tree the root is first, and siblings are adjacent.

    Attributes:
        child: ``(k,)`` the left child of a split; a leaf is its own child.
        feature, threshold, missing_left, value: ``(k,)``, see `trees.Tree`.
        roots: ``(n_trees,)`` the first node of each tree.
    """

    child: NDArray[np.int32]
    feature: NDArray[np.int32]
    threshold: NDArray[np.float64]
    missing_left: NDArray[np.bool_]
    value: NDArray[np.floating[Any]]
    roots: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class _Ranking:
    """How inputs become ranks. A column is an input with up to `_RANKED` of its thresholds; a slot is a row of ranks.

    Attributes:
        feature: ``(n_columns,)`` the input of a column.
        start: ``(n_columns + 1,)`` where the thresholds of each column begin in `thresholds`, and the end.
        slots: ``(n_columns, 2)`` the slot in which a missing input ranks lowest and goes left, and the one in which it
            ranks highest; -1 where no split uses it.
        n_slots: the number of slots.
    """

    feature: NDArray[np.int64]
    start: NDArray[np.int64]
    thresholds: NDArray[np.float64]
    slots: NDArray[np.int64]
    n_slots: int


class BitVectors:
    """A forest in the layout of bit vectors. `suits` must hold."""

    @staticmethod
    def suits(nodes: Nodes) -> bool:
        """Whether no tree has more than `MAX_LEAVES` leaves."""
        sizes = np.diff(nodes.roots, append=len(nodes.child))
        return bool((sizes < 2 * MAX_LEAVES).all())  # k leaves have k - 1 splits

    def __init__(self, nodes: Nodes) -> None:
        first, count = _leaf_intervals(nodes.child.tolist())
        split = np.flatnonzero(nodes.child != np.arange(len(nodes.child)))
        self._ranking, slot, rank = _rank_splits(nodes, split)
        self._set_groups(nodes, count)
        self._set_entries(nodes, split, slot, rank, first, count)
        # Leaves in the order of the bits, which is from left to right; every tree begins at a multiple of eight bits.
        leaves = np.flatnonzero(nodes.child == np.arange(len(nodes.child)))
        tree = np.searchsorted(nodes.roots, leaves, side="right") - 1
        self._values = np.zeros(8 * int(self._groups[-1]), nodes.value.dtype)
        self._values[8 * self._groups[tree] + first[leaves]] = nodes.value[leaves]

    def _set_groups(self, nodes: Nodes, count: NDArray[np.int64]) -> None:
        """Groups of entries: one for each byte of each tree, the last byte first.

        `_groups` is ``(n_trees + 1,)``: the first group of each tree. `_leaf` is the number of a group's first leaf.
        """
        n_bytes = (count[nodes.roots] + 7) // 8
        self._groups = np.concatenate(([0], np.cumsum(n_bytes))).astype(np.int64)
        within = np.arange(self._groups[-1]) - np.repeat(self._groups[:-1], n_bytes)
        self._leaf = (8 * (np.repeat(n_bytes, n_bytes) - 1 - within)).astype(np.uint8)

    def _set_entries(
        self,
        nodes: Nodes,
        split: NDArray[np.int64],
        slot: NDArray[np.int64],
        rank: NDArray[np.int64],
        first: NDArray[np.int64],
        count: NDArray[np.int64],
    ) -> None:
        """The entries of all splits, sorted by group; `_ends` is ``(n_groups,)``: the entry after a group's last."""
        low, left = first[split], count[nodes.child[split]]
        tree = np.searchsorted(nodes.roots, split, side="right") - 1
        first_byte, last_byte = low // 8, (low + left - 1) // 8
        repeats = last_byte - first_byte + 1
        of = np.repeat(np.arange(len(split)), repeats)
        byte = first_byte[of] + np.arange(len(of)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        excluded = _LOW_BITS[np.clip((low + left)[of] - 8 * byte, 0, 8)] & ~_LOW_BITS[np.clip(low[of] - 8 * byte, 0, 8)]
        group = self._groups[tree[of] + 1] - 1 - byte
        order = np.argsort(group, kind="stable")
        self._at = (BYTES * slot[of])[order].astype(np.int32)
        self._rank = rank[of][order].astype(np.uint8)
        self._mask = (255 - excluded)[order].astype(np.uint8)
        self._ends = np.cumsum(np.bincount(group, minlength=int(self._groups[-1]))).astype(np.int64)

    def add_to(self, out: NDArray[np.floating[Any]], inputs: NDArray[np.float64]) -> None:
        """Add each row's leaf values to `out` ``(n,)``, tree by tree; `inputs` is ``(n, n_inputs)``, C-contiguous."""
        ranking = self._ranking
        columns = (ranking.feature, ranking.start, ranking.thresholds, ranking.slots)
        entries = (self._at, self._rank, self._mask, self._ends)
        ranks = _ranked(inputs, columns, ranking.n_slots)
        _add_trees(ranks, ranking.n_slots, entries, (self._groups, self._leaf, self._values), out)


def _leaf_intervals(child: list[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of each node, the number of its first leaf, counted from the left within its tree, and its number of leaves."""
    first, count = [0] * len(child), [1] * len(child)
    for node in range(len(child) - 1, -1, -1):
        left = child[node]
        if left != node:
            count[node] = count[left] + count[left + 1]
    for node, left in enumerate(child):
        if left != node:
            first[left] = first[node]
            first[left + 1] = first[node] + count[left]
    return np.array(first, np.int64), np.array(count, np.int64)


def _rank_splits(nodes: Nodes, split: NDArray[np.int64]) -> tuple[_Ranking, NDArray[np.int64], NDArray[np.int64]]:
    """The ranking of all inputs, and the slot and the rank that each split compares."""
    feature, threshold = nodes.feature[split], nodes.threshold[split]
    columns: list[tuple[int, NDArray[np.float64]]] = []
    column, rank = np.zeros(len(split), np.int64), np.zeros(len(split), np.int64)
    for used in np.unique(feature).tolist():
        mine = feature == used
        ordered = np.unique(threshold[mine])
        place = np.searchsorted(ordered, threshold[mine])
        column[mine], rank[mine] = len(columns) + place // _RANKED, place % _RANKED
        columns += [(used, ordered[low : low + _RANKED]) for low in range(0, len(ordered), _RANKED)]
    sides = 2 * column + ~nodes.missing_left[split]
    used_sides, slot = np.unique(sides, return_inverse=True)
    slots = np.full(2 * len(columns), -1, np.int64)
    slots[used_sides] = np.arange(len(used_sides))
    ranking = _Ranking(
        feature=np.array([used for used, _ in columns], np.int64),
        start=np.cumsum([0, *(len(ordered) for _, ordered in columns)]).astype(np.int64),
        thresholds=np.concatenate([np.zeros(0), *(ordered for _, ordered in columns)]),
        slots=slots.reshape(-1, 2),
        n_slots=len(used_sides),
    )
    return ranking, slot, rank


# Ranks and sums are two functions, because LLVM would compile the ranks again for each type of the sum.
@njit(cache=True, nogil=True, fastmath=False)
def _ranked(x, columns, n_slots):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """``(n_blocks * n_slots * BYTES,)``: the ranks of all rows; lanes after the last row are of no use."""
    feature, start, thresholds, slots = columns
    n_blocks = (x.shape[0] + BYTES - 1) // BYTES
    ranks = np.empty(n_blocks * n_slots * BYTES, np.uint8)
    value, rank = np.zeros(BYTES, np.float64), np.empty(BYTES, np.int64)
    for block in range(n_blocks):
        low = block * BYTES
        n = min(BYTES, x.shape[0] - low)
        for column in range(feature.shape[0]):
            for r in range(n):
                value[r] = x[low + r, feature[column]]
            for r in range(BYTES):
                rank[r] = 0
            # All thresholds for all rows take less time than a search, which waits for one load per step. NaN is above
            # no threshold.
            for threshold in thresholds[start[column] : start[column + 1]]:
                for r in range(BYTES):
                    rank[r] += threshold < value[r]
            for side in range(2):
                if slots[column, side] >= 0:
                    missing = 255 * side
                    at = (block * n_slots + slots[column, side]) * BYTES
                    for r in range(BYTES):
                        ranks[at + r] = rank[r] if value[r] == value[r] else missing
    return ranks


@njit(cache=True, nogil=True, fastmath=False)
def _add_trees(ranks, n_slots, entries, trees, out):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Add the leaf value of each tree to each row of `out` ``(n,)``."""
    at, rank, mask, ends = entries
    groups, leaf, values = trees
    reached = np.empty(BYTES, np.uint8)
    for low in range(0, out.shape[0], BYTES):
        n = min(BYTES, out.shape[0] - low)
        start = low * n_slots
        entry = 0
        for tree in range(groups.shape[0] - 1):
            lowest, number = all_bytes(np.uint8(0)), all_bytes(np.uint8(0))
            # From the last byte to the first, so that the lowest byte that is not 0 is chosen last.
            for group in range(groups[tree], groups[tree + 1]):
                bits = all_bytes(np.uint8(255))
                end = ends[group]
                while entry < end:
                    bits = masked_above(bits, ranks, start + at[entry], rank[entry], mask[entry])
                    entry += 1
                number = where_nonzero(bits, all_bytes(leaf[group]), number)
                lowest = where_nonzero(bits, bits, lowest)
            store_bytes(plus_trailing_zeros(number, lowest), reached, 0)
            begin = 8 * groups[tree]
            for r in range(n):
                out[low + r] += values[begin + reached[r]]
