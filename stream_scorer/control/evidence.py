"""E-processes for the verdict on a version: evidence for a change of alerted cards that is valid at any time.

Each card that either version alerts is one observation: both versions alert it, only the candidate (the version under
test), or only the baseline (the version that it is compared with). `log_evidence` bets against the hypothesis
"candidate's alerts <= ratio * baseline's alerts": a wealth that starts at 1 is multiplied by ``1 + b * (candidate -
ratio * baseline)`` per card, whose expectation is at most 1 under the hypothesis for every b in (0, 1 / ratio). By
Ville's inequality the wealth ever reaches 1 / alpha with probability at most alpha, so the test allows any number of
looks. The wealth depends on three counts only, so it does not depend on how summaries were split into batches.

Sources: Waudby-Smith, Ramdas: Estimating means of bounded random variables by betting, JRSS B 2024 (bets, and their
mixture). Ramdas, Grunwald, Vovk, Shafer: Game-theoretic statistics and safe anytime-valid inference, 2023. Lindon,
Malek: Anytime-valid inference for multinomial count data, NeurIPS 2022 (`log_evidence_of_share`).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
# Bets as shares of the largest bet that cannot lose everything. The best bet is about the edge divided by the share of
# cards on which the versions disagree. The initial wealth is split evenly, so the total grows like the best one minus
# log(7) = 1.9.
_BETS = np.array([0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 0.95])
# Pseudo-counts of the prior of `log_evidence_of_share`: it expects shares within about sqrt(s (1 - s) / 100) of s.
_PRIOR = 100.0


def log_evidence(both: Counts, candidate_only: Counts, baseline_only: Counts, ratio: float) -> NDArray[np.float64]:
    """Natural logarithm of the evidence that the candidate alerts on more than `ratio` times the baseline's cards.

    Args:
        both, candidate_only, baseline_only: number of cards alerted by both versions, or by one only; all ``(n,)``.
        ratio: above 0.

    Returns:
        ``(n,)``; 0 without cards.
    """
    bets = _BETS / ratio
    logs = (
        np.multiply.outer(candidate_only, np.log1p(bets))
        + np.multiply.outer(both, np.log1p(bets * (1.0 - ratio)))
        + np.multiply.outer(baseline_only, np.log1p(-bets * ratio))
    )
    return np.asarray(np.logaddexp.reduce(logs, axis=-1) - math.log(len(_BETS)), dtype=np.float64)


def log_evidence_below(
    both: Counts, candidate_only: Counts, baseline_only: Counts, ratio: float
) -> NDArray[np.float64]:
    """The same for the evidence that the candidate alerts on fewer than `ratio` times the baseline's cards."""
    return log_evidence(both, baseline_only, candidate_only, 1.0 / ratio)


def log_evidence_of_share(inside: int, total: int, share: float) -> float:
    """Natural logarithm of the evidence that `inside` of `total` cards are not a random `share` of them.

    A beta-binomial mixture divided by the binomial likelihood. `share` is above 0 and at most 1.
    """
    outside = total - inside
    if share >= 1.0:
        return math.inf if outside else 0.0
    a, b = _PRIOR * share, _PRIOR * (1.0 - share)
    mixture = _log_beta(a + inside, b + outside) - _log_beta(a, b)
    return mixture - inside * math.log(share) - outside * math.log1p(-share)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
