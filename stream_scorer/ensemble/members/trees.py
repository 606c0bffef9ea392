"""Trees as flat arrays, and a loop that walks the trees of all libraries.

The predict functions of the libraries are made for large batches: for a micro-batch of a hundred rows, their setup
costs more than the trees. Forests of trees of at most 256 leaves are evaluated by bit vectors (`bit_vectors`), others
by the loop here, which walks eight rows in parallel, so that memory loads overlap. Both sum the leaves in the order of
the trees and in the type of the library, so the sums equal the library's to the last bit (ADR 0008 and 0049) and do not
depend on the other rows of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_scorer.compiled import njit
from stream_scorer.ensemble.members.bit_vectors import BitVectors, Nodes


@dataclass(frozen=True, slots=True)
class Tree:
    """One tree of k nodes; node 0 is the root, and children follow their parent.

    Attributes:
        left, right: ``(k,)`` the children, -1 at a leaf.
        feature: ``(k,)`` the input of a split. threshold: ``(k,) float64``; inputs up to it go left.
        missing_left: ``(k,) bool``, whether a missing input goes left.
        value: ``(k,)`` the value of a leaf.
    """

    left: NDArray[np.int64]
    right: NDArray[np.int64]
    feature: NDArray[np.int64]
    threshold: NDArray[np.float64]
    missing_left: NDArray[np.bool_]
    value: NDArray[np.floating[Any]]


class Forest:
    """Several trees in packed arrays.

    Args:
        trees: in the order of summation.
        dtype: the type of the sum.
    """

    def __init__(self, trees: Sequence[Tree], dtype: type[np.floating[Any]]) -> None:
        sizes = [len(tree.left) for tree in trees]
        roots = np.concatenate(([0], np.cumsum(sizes)))[:-1].astype(np.int32)
        packed = [_siblings_adjacent(tree) for tree in trees]
        self._depths = np.array([depth for _, _, depth in packed], np.int32)
        order = [nodes + root for (nodes, _, _), root in zip(packed, roots.tolist(), strict=True)]
        at = np.concatenate(order) if order else np.zeros(0, np.int64)
        none = np.zeros(0, np.int64)
        child = [first + root for (_, first, _), root in zip(packed, roots.tolist(), strict=True)]
        leaf = np.concatenate([none, *(tree.left for tree in trees)])[at] < 0
        threshold = np.concatenate([none, *(tree.threshold for tree in trees)])[at]
        # A leaf is its own child: a row at a leaf stays there until the deepest row has reached its leaf.
        self._nodes = Nodes(
            child=np.concatenate([none, *child]).astype(np.int32),
            feature=np.where(leaf, 0, np.concatenate([none, *(tree.feature for tree in trees)])[at]).astype(np.int32),
            threshold=np.where(leaf, np.inf, threshold),
            missing_left=leaf | np.concatenate([none.astype(bool), *(tree.missing_left for tree in trees)])[at],
            value=np.concatenate([none, *(tree.value for tree in trees)])[at].astype(dtype),
            roots=roots,
        )
        self._bit_vectors = BitVectors(self._nodes) if BitVectors.suits(self._nodes) else None

    def sums(self, inputs: NDArray[np.float64], base: float = 0.0) -> NDArray[np.floating[Any]]:
        """``(n,)``: `base` plus the leaf values of each row of ``(n, n_inputs) float64``, summed tree by tree."""
        if self._bit_vectors is None:
            return self.walked_sums(inputs, base)
        out = np.full(len(inputs), base, self._nodes.value.dtype)
        self._bit_vectors.add_to(out, np.ascontiguousarray(inputs))
        return out

    def walked_sums(self, inputs: NDArray[np.float64], base: float = 0.0) -> NDArray[np.floating[Any]]:
        """The same sums, by a walk from the root of each tree."""
        nodes = self._nodes
        out = np.full(len(inputs), base, nodes.value.dtype)
        arrays = (nodes.feature, nodes.threshold, nodes.child, nodes.missing_left, nodes.value)
        _walk(np.ascontiguousarray(inputs), *arrays, nodes.roots, self._depths, out)
        return out


def _siblings_adjacent(tree: Tree) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """The nodes in an order with adjacent siblings, the position of each left child in it, and the depth."""
    left, right = tree.left.tolist(), tree.right.tolist()
    order, child, level = [0], [0] * len(left), [0]
    place = 0
    while place < len(order):
        node = order[place]
        if left[node] < 0:
            child[place] = place
        else:
            child[place] = len(order)
            order += [left[node], right[node]]
            level += [level[place] + 1] * 2
        place += 1
    return np.array(order, np.int64), np.array(child, np.int64), level[-1]


@njit(cache=True, nogil=True, fastmath=False)
def _walk(x, feature, threshold, child, missing_left, value, roots, depths, out):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    n = x.shape[0]
    whole = n - n % 8
    for t in range(roots.shape[0]):
        root, depth = roots[t], depths[t]
        for r in range(0, whole, 8):
            a = b = c = d = e = f = g = h = root
            for _ in range(depth):
                # Right unless the input is at most the threshold, or is missing and missing goes left. Without a
                # branch, because the processor cannot predict the direction.
                xa, xb = x[r, feature[a]], x[r + 1, feature[b]]
                xc, xd = x[r + 2, feature[c]], x[r + 3, feature[d]]
                xe, xf = x[r + 4, feature[e]], x[r + 5, feature[f]]
                xg, xh = x[r + 6, feature[g]], x[r + 7, feature[h]]
                a = child[a] + ((not (xa <= threshold[a])) & (not ((xa != xa) & missing_left[a])))
                b = child[b] + ((not (xb <= threshold[b])) & (not ((xb != xb) & missing_left[b])))
                c = child[c] + ((not (xc <= threshold[c])) & (not ((xc != xc) & missing_left[c])))
                d = child[d] + ((not (xd <= threshold[d])) & (not ((xd != xd) & missing_left[d])))
                e = child[e] + ((not (xe <= threshold[e])) & (not ((xe != xe) & missing_left[e])))
                f = child[f] + ((not (xf <= threshold[f])) & (not ((xf != xf) & missing_left[f])))
                g = child[g] + ((not (xg <= threshold[g])) & (not ((xg != xg) & missing_left[g])))
                h = child[h] + ((not (xh <= threshold[h])) & (not ((xh != xh) & missing_left[h])))
            out[r] += value[a]
            out[r + 1] += value[b]
            out[r + 2] += value[c]
            out[r + 3] += value[d]
            out[r + 4] += value[e]
            out[r + 5] += value[f]
            out[r + 6] += value[g]
            out[r + 7] += value[h]
        for r in range(whole, n):
            a = root
            for _ in range(depth):
                xa = x[r, feature[a]]
                a = child[a] + ((not (xa <= threshold[a])) & (not ((xa != xa) & missing_left[a])))
            out[r] += value[a]
