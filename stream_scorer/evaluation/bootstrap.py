"""Bootstrap by card: intervals that respect that the transactions of one card resemble each other.

Each replicate gives every card a weight from the Poisson distribution with mean 1, which approximates the bootstrap
over cards (Chamandy et al. 2012, "Estimating uncertainty for massive data streams"). A weight is a hash of card and
replicate: a card has the same one in every piece and for every version, so differences of versions are paired, and
nothing about cards is kept.
"""

from __future__ import annotations

import math

import numpy as np

from stream_scorer.arrays import Bools, Floats, Int8s, Ints, UInt8s
from stream_scorer.compiled import njit
from stream_scorer.evaluation.result import Interval
from stream_scorer.records import DECISIONS
from stream_scorer.splitmix64 import STEP, finalise

LEVEL = 0.95
# A bootstrap over fewer cards shows hardly any of the variance; over a single one, none at all.
MIN_CARDS = 10
# Bins of the scores for the intervals of rank figures; values of the figures themselves are exact.
BINS = 1_024
# Cumulative Poisson(1) probabilities on 32 bits: a weight above 8 has a probability of 1e-6.
_CUMULATED = np.array(
    [min(int(sum(math.exp(-1.0) / math.factorial(i) for i in range(k + 1)) * 2**32), 2**32 - 1) for k in range(9)],
    np.uint64,
)


@njit(cache=True, nogil=True)
def _weights(card, replicates, seed, cumulated):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    out = np.zeros((card.shape[0], replicates), np.uint8)
    step = np.uint64(STEP)
    for i in range(card.shape[0]):
        state = finalise(np.uint64(card[i]) + step * np.uint64(seed + 1))
        for b in range(0, replicates, 2):
            state += step
            bits = finalise(state)
            for half in range(2):
                if b + half < replicates:
                    u = (bits >> np.uint64(32 * half)) & np.uint64(0xFFFFFFFF)
                    w = 0
                    while w < 8 and u >= cumulated[w]:
                        w += 1
                    out[i, b + half] = w
    return out


@njit(cache=True, nogil=True)
def _add(hist, group, which, weights):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    for i in range(group.shape[0]):
        row, weight = hist[group[i]], weights[which[i]]
        for b in range(weight.shape[0]):
            row[b] += weight[b]


class CardWeights:
    """The weights of the cards of one piece: (c, replicates) uint8, and per transaction (n,) the place of its card."""

    def __init__(self, card: Ints, replicates: int, seed: int) -> None:
        self.cards, self.place = np.unique(card, return_inverse=True)
        self.weights: UInt8s = _weights(self.cards, replicates, seed, _CUMULATED)

    def sums(self, rows: Bools, value: Ints | None = None) -> Floats:
        """(replicates,): the weighted number of the marked transactions, or the sum of their `value`."""
        weights = self.weights[self.place[rows]].astype(np.float64)
        return weights.sum(axis=0) if value is None else value[rows].astype(np.float64) @ weights


class Replicates:
    """The figures of one version in every replicate.

    Args:
        fraud: the scores of all frauds, which determine the bins.
    """

    def __init__(self, fraud: Floats, replicates: int, budgets: int) -> None:
        levels = np.unique(fraud[~np.isnan(fraud)])
        exact = len(levels) <= BINS
        if not exact:
            levels = np.unique(np.quantile(levels, np.linspace(0.0, 1.0, BINS), method="nearest"))
        # Without quantiles, each bin begins at the score of a fraud. Its genuine transactions rank above that fraud, or
        # have the same score, which counts half. In bins that hold many frauds, half of the pairs rank above.
        self._levels, self._exact = levels, exact
        self._genuine = np.zeros((len(levels) + 1, replicates), np.uint32)
        self._half = np.zeros_like(self._genuine) if exact else self._genuine
        self._fraud = np.zeros((len(levels) + 1, replicates), np.uint32)
        # Genuine and fraud: without a score, alerts, and blocks.
        self._missing = np.zeros((2, replicates), np.uint32)
        self._alerts = np.zeros((2, replicates))
        self._blocks = np.zeros((2, replicates))
        self._caught_value = np.zeros(replicates)
        self._caught_budget = np.zeros((budgets, replicates))
        # Cards with a fraud, with a genuine transaction, and with an alert; no more than an interval needs.
        self._fraud_cards: set[int] = set()
        self._genuine_cards: set[int] = set()
        self._alerted_cards: set[int] = set()

    def add(
        self,
        cards: CardWeights,
        score: Floats,
        fraud: Bools,
        decision: Int8s,
        value: Ints,
        in_budget: list[Bools],
    ) -> None:
        """Add transactions ``(n,)``: score, fraud, decision (as in `DECISIONS`), value, and alert at each budget."""
        alert, block = decision > 0, decision == DECISIONS.index("block")
        kinds = ((self._fraud_cards, fraud), (self._genuine_cards, ~fraud), (self._alerted_cards, alert))
        for known, rows in kinds:
            if len(known) < MIN_CARDS:
                known.update(cards.cards[np.unique(cards.place[rows])[:MIN_CARDS]].tolist())
        present = ~np.isnan(score)
        place = np.searchsorted(self._levels, score, side="right")
        counted = [(self._genuine, present & ~fraud), (self._fraud, present & fraud)]
        if self._exact and len(self._levels):
            counted.append((self._half, present & ~fraud & (self._levels[np.maximum(place - 1, 0)] == score)))
        for hist, rows in counted:
            _add(hist, place[rows], cards.place[rows], cards.weights)
        _add(self._missing, fraud[~present].astype(np.int64), cards.place[~present], cards.weights)
        for sums, rows in ((self._alerts, alert), (self._blocks, block)):
            sums[0] += cards.sums(rows & ~fraud)
            sums[1] += cards.sums(rows & fraud)
        self._caught_value += cards.sums(alert & fraud, value)
        for index, inside in enumerate(in_budget):
            self._caught_budget[index] += cards.sums(inside & fraud)

    def figures(self) -> dict[str, Floats]:
        """(replicates,) of each figure, NaN where it is undefined, or based on fewer than `MIN_CARDS` cards."""
        with np.errstate(invalid="ignore", divide="ignore"):
            genuine, fraud, half = (hist[::-1].astype(np.float64) for hist in (self._genuine, self._fraud, self._half))
            hits, false = np.cumsum(fraud, axis=0), np.cumsum(genuine, axis=0)
            frauds, others = hits[-1], false[-1]
            all_others, all_frauds = self._missing[0] + others, self._missing[1] + frauds
            precision = np.where(hits + false > 0, hits / np.maximum(hits + false, 1.0), 0.0)
            found = {
                "average_precision": (fraud * precision).sum(axis=0) / frauds,
                "roc_auc": ((false - 0.5 * half) * fraud).sum(axis=0),
                "precision": self._alerts[1] / self._alerts.sum(axis=0),
                "recall": self._alerts[1] / all_frauds,
                "false_positive_rate": self._alerts[0] / all_others,
                "alert_rate": self._alerts.sum(axis=0) / (all_frauds + all_others),
                "block_rate": self._blocks.sum(axis=0) / (all_frauds + all_others),
                "blocked_genuine_rate": self._blocks[0] / all_others,
                "value_caught": self._caught_value,
            }
            # The share of pairs in which the fraud ranks above the genuine transaction.
            found["roc_auc"] = 1.0 - found["roc_auc"] / (frauds * others)
            for index, caught in enumerate(self._caught_budget):
                found[f"budget_recall_{index}"] = caught / all_frauds
        few = {name for name in found if any(len(known) < MIN_CARDS for known in self._cards_of(name))}
        return {name: np.full_like(values, np.nan) if name in few else values for name, values in found.items()}

    def _cards_of(self, name: str) -> tuple[set[int], ...]:
        """The cards that the variance of a figure comes from."""
        if name == "precision":
            return (self._alerted_cards,)
        if name in ("false_positive_rate", "alert_rate", "block_rate", "blocked_genuine_rate"):
            return (self._genuine_cards,)
        return (self._fraud_cards, self._genuine_cards) if name == "roc_auc" else (self._fraud_cards,)


def interval(value: float | None, replicates: Floats | None) -> Interval:
    """`value` with the central 95 % of the replicates that are defined."""
    if value is None or replicates is None:
        return Interval(value)
    defined = replicates[~np.isnan(replicates)]
    if len(defined) < len(replicates) / 2 or not len(defined):
        return Interval(value)
    low, high = np.quantile(defined, [(1.0 - LEVEL) / 2.0, (1.0 + LEVEL) / 2.0])
    return Interval(value, float(low), float(high))
