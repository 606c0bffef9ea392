"""The slow verdict: what labels show about the cards on which two versions disagreed (ADR 0034).

Each card counts once, by its first alert, as in the fast verdict: `served` if only the version under test alerted it,
`other` if only the other version did. At a fixed label age and in the order of event time, the share of fraud among
these two groups, their precision, is compared. Arrival order would depend on the outcome, because labels of fraud
arrive later than those of genuine transactions.

Whenever both groups have cards that are not used yet, they form a block. A wealth is multiplied by ``1 + b (ratio *
mean(other) - mean(served))``, where the means are those of the block's labels. If the precision of `served` is at least
`ratio` times that of `other`, its expectation is at most 1 for every b in (0, 1), so that by Ville's inequality it
reaches 1 / alpha with probability at most alpha at any number of looks. Blocks depend on the order of cards and
not on their labels. The reverse bet is the evidence against harm (bets as in `evidence`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from stream_scorer.records import Disagreement, LabelCounts, LabelledVerdict, LabelValue

# The version did harm if its own alerts have less than this share of the precision of the alerts that it lost.
RATIO = 0.5
# Each of the two results is wrong with at most this probability.
ALPHA = 0.05
_BETS = np.array([0.1, 0.25, 0.5, 0.75, 0.95])

Labels = Mapping[str, Sequence[tuple[int, LabelValue | None]]]


def judge_labels(
    disagreements: Iterable[Disagreement], labels: Labels, progress_ms: int, horizon_ms: int
) -> LabelledVerdict:
    """The verdict of the labels known so far.

    Args:
        labels: by event id the labels with the time of labelling, in order; None if a label was withdrawn.
        progress_ms: newest time of labelling of any transaction: labels up to it are known.
        horizon_ms: the label age at which a card is judged.
    """
    ordered = sorted(disagreements, key=lambda each: (each.at, each.event_id))
    mature = [each for each in ordered if each.at + horizon_ms <= progress_ms]
    counts = {True: [0] * 5, False: [0] * 5}
    blocks: list[tuple[float, float]] = []
    queues: tuple[list[int], list[int]] = ([], [])
    for each in mature:
        label = _label_at(labels.get(each.event_id, ()), each.at + horizon_ms)
        # The version under test decided: it approved the alerts of the other one, and silence after an approval
        # means a genuine transaction. Silence after an alert means nothing.
        if label is None and not each.served:
            label = "genuine"
        found = counts[each.served]
        if label is None:
            found[2] += 1
            continue
        fraud = label == "fraud"
        found[0 if fraud else 1] += 1
        found[3 if fraud else 4] += each.value
        queues[0 if each.served else 1].append(fraud)
        if queues[0] and queues[1]:
            blocks.append((sum(queues[0]) / len(queues[0]), sum(queues[1]) / len(queues[1])))
            queues[0].clear()
            queues[1].clear()
    harm, cleared = _log_evidence(blocks)
    decided = max(harm, cleared) >= -math.log(ALPHA)
    waiting = len(ordered) - len(mature)
    missing = []
    if not decided:
        missing += [f"{waiting} cards have not reached the label age"] if waiting else []
        missing += [
            f"{name} cards with a label" for name, on in (("served", True), ("other", False)) if not sum(counts[on][:2])
        ]
        missing += [] if missing else ["evidence from more cards"]
    return LabelledVerdict(
        ("harm" if harm > cleared else "cleared") if decided else "undecided",
        LabelCounts(*counts[True]),
        LabelCounts(*counts[False]),
        harm,
        cleared,
        horizon_ms,
        waiting,
        missing,
    )


def describe(version: str, other: str, found: LabelledVerdict) -> str:
    """The verdict of labels in one sentence."""
    result = {
        "harm": "labels confirm the harm",
        "cleared": "labels clear it",
        "undecided": "labels do not decide yet",
    }[found.finding]
    return (
        f"{result}: of the cards that only version {version} alerts, {_counts(found.served)}; of those that only "
        f"version {other} alerts, {_counts(found.other)}"
    )


def _counts(counts: LabelCounts) -> str:
    silent = f", {counts.silent:,} without a label" if counts.silent else ""
    return (
        f"{counts.fraud:,} are fraud ({counts.fraud_value:,} minor units) and {counts.genuine:,} genuine "
        f"({counts.genuine_value:,}){silent}"
    )


def _label_at(labels: Sequence[tuple[int, LabelValue | None]], until: int) -> LabelValue | None:
    """The last label that was given up to the time `until`."""
    known = [label for at, label in labels if at <= until]
    return known[-1] if known else None


def _log_evidence(blocks: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Natural logarithms of the evidence for harm and against it; 0 without blocks."""
    if not blocks:
        return 0.0, 0.0
    served, other = np.array(blocks).T
    gain = RATIO * other - served
    harm = np.log1p(np.multiply.outer(_BETS, gain)).sum(axis=1)
    # The largest loss of the reverse bet is RATIO, so larger bets are possible.
    cleared = np.log1p(np.multiply.outer(_BETS / RATIO, -gain)).sum(axis=1)
    return tuple(float(np.logaddexp.reduce(logs) - math.log(len(_BETS))) for logs in (harm, cleared))  # type: ignore[return-value]
