"""The weighted logit mean: from members' probabilities to z, score and contributions that add up to z exactly.

Order of computation, each step value by value and members always in manifest order:
member -> calibrator -> clip to [1e-6, 1 - 1e-6] -> logit -> weighted mean over those present -> z -> sigmoid -> g ->
score.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from stream_scorer.ensemble.calibrate import CalibratorTable, calibrate_one
from stream_scorer.ensemble.links import logit_of, sigmoid_of
from stream_scorer.ensemble.manifest import Manifest
from stream_scorer.records import DECISIONS, Decision

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]

# 0.05 + 0.35 falls short of a quorum of 0.4 by 3e-17; no share of weight is meant to that precision.
_QUORUM_SLACK = 1e-12


class WeightedLogitMean:
    """The combiner of one manifest, packed for the compiled loops."""

    def __init__(self, manifest: Manifest) -> None:
        self._calibrators = CalibratorTable([member.calibrator for member in manifest.members])
        self._final = CalibratorTable([manifest.final_calibrator])
        self._weights = np.array([member.weight for member in manifest.members], np.float64)
        self._logit_means = np.array([member.logit_mean for member in manifest.members], np.float64)
        self._quorum = manifest.quorum

    def combine(self, raw: Matrix) -> tuple[Matrix, Matrix, Matrix, Vector, Vector, Vector, Vector]:
        """From the members' own probabilities ``(n, m)`` (NaN: missing), in the order of `Scored`'s fields:

        member scores, weights, contributions (each ``(n, m)``), base, z, score, coverage (each ``(n,)``).
        """
        c, g = self._calibrators, self._final
        packed: tuple[Matrix, Matrix, Matrix, Vector, Vector, Vector, Vector] = _combine(
            raw,
            (c.kinds, c.starts, c.first, c.second),
            (g.kinds, g.starts, g.first, g.second),
            self._weights,
            self._logit_means,
            self._quorum,
        )
        return packed

    def left_out(self, member_scores: Matrix, score: Vector) -> Matrix:
        """``(n, m)``: the final score with each member left out and the weights renormalised over the rest.

        A member that was missing anyway changes nothing. NaN where the served score is NaN or nobody remains.
        """
        g = self._final
        scores: Matrix = _left_out(member_scores, score, (g.kinds, g.starts, g.first, g.second), self._weights)
        return scores


def decide(score: Vector, review: float, block: float, fallback: Decision) -> NDArray[np.int8]:
    """``(n,) int8`` index into `records.DECISIONS` of each score; NaN (no quorum) gets `fallback`."""
    decision = (score >= review).astype(np.int8)
    decision += score >= block
    decision[np.isnan(score)] = DECISIONS.index(fallback)
    return decision


@njit(cache=True, nogil=True, fastmath=False)
def _final_score(z, final):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    return calibrate_one(sigmoid_of(z), final[0][0], final[1][0], final[1][1], final[2], final[3])


@njit(cache=True, nogil=True, fastmath=False)
def _combine(raw, calibrators, final, weights, logit_means, quorum):  # type: ignore[no-untyped-def]  # pragma: no cover
    rows, members = raw.shape
    kinds, starts, first, second = calibrators
    scores = np.empty((rows, members), np.float64)
    shares = np.zeros((rows, members), np.float64)
    contributions = np.zeros((rows, members), np.float64)
    base = np.empty(rows, np.float64)
    z = np.empty(rows, np.float64)
    score = np.empty(rows, np.float64)
    coverage = np.empty(rows, np.float64)
    logits = np.empty(members, np.float64)
    total = 0.0
    for j in range(members):
        total += weights[j]
    for i in range(rows):
        present = 0.0
        for j in range(members):
            p = calibrate_one(raw[i, j], kinds[j], starts[j], starts[j + 1], first, second)
            scores[i, j] = p
            if not math.isnan(p):
                present += weights[j]
        row_base = 0.0
        row_z = 0.0
        for j in range(members):
            if math.isnan(scores[i, j]) or present == 0.0:
                continue
            share = weights[j] / present
            logits[j] = logit_of(scores[i, j])
            shares[i, j] = share
            contributions[i, j] = share * (logits[j] - logit_means[j])
            row_base += share * logit_means[j]
            row_z += share * logits[j]
        coverage[i] = present / total
        if present == 0.0 or coverage[i] < quorum - _QUORUM_SLACK:
            base[i] = z[i] = score[i] = math.nan
        else:
            base[i] = row_base
            z[i] = row_z
            score[i] = _final_score(row_z, final)
    return scores, shares, contributions, base, z, score, coverage


@njit(cache=True, nogil=True, fastmath=False)
def _left_out(member_scores, score, final, weights):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    rows, members = member_scores.shape
    out = np.empty((rows, members), np.float64)
    logits = np.empty(members, np.float64)
    for i in range(rows):
        for j in range(members):
            logits[j] = logit_of(member_scores[i, j])
        for left in range(members):
            if math.isnan(score[i]) or math.isnan(member_scores[i, left]):
                out[i, left] = score[i]
                continue
            present = 0.0
            for j in range(members):
                if j != left and not math.isnan(logits[j]):
                    present += weights[j]
            if present == 0.0:
                out[i, left] = math.nan
                continue
            z = 0.0
            for j in range(members):
                if j != left and not math.isnan(logits[j]):
                    z += (weights[j] / present) * logits[j]
            out[i, left] = _final_score(z, final)
    return out
