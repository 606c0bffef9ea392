"""The slow verdict: what labels show about the cards on which two versions disagreed (ADR 0034).

Each card counts once, by its first alert, as in the fast verdict: `candidate` if only the version under test alerted
it, `baseline` if only the version that it is compared with did. At a fixed label age and in the order of event time,
the share of fraud among these two groups, their precision, is compared. Arrival order would depend on the outcome,
because labels of fraud arrive later than those of genuine transactions.

Whenever both groups have cards that are not used yet, they form a block. A wealth is multiplied by ``1 + b (ratio *
mean(baseline) - mean(candidate))``, where the means are those of the block's labels. If the precision of `candidate` is
at least `ratio` times that of `baseline`, its expectation is at most 1 for every b in (0, 1), so that by Ville's
inequality it reaches 1 / alpha with probability at most alpha at any number of looks. Blocks depend on the order of
cards and not on their labels. The reverse bet is the evidence against harm (bets as in `evidence`).

A card counts by who decided its first alert: silence means genuine if that was an approval, and nothing if it was an
alert. The candidate decided before its withdrawal, the baseline afterwards (ADR 0050).

Labels of the label age must be known: those of all sources (`label_progress`). Cards for which a source is missing do
not count.

If the baseline alerted too few cards alone for a decision, as where a version only adds alerts, the cards that
both alerted take its place, with a smaller ratio (ADR 0038). The choice depends on alerts and not on labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from stream_scorer.control.label_progress import Known
from stream_scorer.records import CommonAlert, Disagreement, LabelCounts, LabelledVerdict, LabelValue

# The version did harm if its own alerts have less than this share of the precision of the alerts that it lost.
RATIO = 0.5
# The same compared with alerts of both versions. Alerts that are only added are below the former threshold, where
# precision is lower than on average: lost alerts, which were near it as well, are assumed to have half of the average.
COMMON_RATIO = RATIO / 2
# Fewer cards that only the baseline alerted give fewer blocks, which decide only in extreme cases: if no new alert
# and half of the lost ones are fraud, 20 blocks just reach the evidence of 20 that a decision takes.
MIN_BASELINE = 20
# Each of the two results is wrong with at most this probability.
ALPHA = 0.05
_HOUR_MS = 3_600_000
_BETS = np.array([0.1, 0.25, 0.5, 0.75, 0.95])

Labels = Mapping[str, Sequence[tuple[int, LabelValue | None]]]
# The groups of cards by which versions alerted them.
Group = Literal["candidate", "baseline", "common"]
_GROUPS: Mapping[Group, str] = {"candidate": "only the candidate", "baseline": "only the baseline", "common": "both"}


def judge_labels(
    disagreements: Sequence[Disagreement],
    labels: Labels,
    known: Known,
    horizon_ms: int,
    *,
    common: Sequence[CommonAlert] = (),
) -> LabelledVerdict:
    """The verdict of the labels known so far.

    Args:
        labels: by event id the labels with the time of labelling, in order; None if a label was withdrawn.
        known: the time of labelling up to which labels are known.
        horizon_ms: the label age at which a card is judged.
        common: cards that both versions alerted; used only if the baseline alerted fewer than `MIN_BASELINE` alone.
    """
    cards: list[tuple[int, str, int, Group, bool]] = [
        (
            each.at,
            each.event_id,
            each.value,
            "candidate" if each.candidate else "baseline",
            each.candidate == each.shadow,
        )
        for each in disagreements
    ]
    reference: Group = "baseline"
    if common and sum(not each.candidate for each in disagreements) < MIN_BASELINE:
        reference = "common"
        cards += [(each.at, each.event_id, each.value, "common", False) for each in common]
    cards.sort()
    mature = [each for each in cards if each[0] + horizon_ms <= known.until]
    complete = [each for each in mature if each[0] + horizon_ms <= known.complete]
    counts: dict[Group, list[int]] = {"candidate": [0] * 5, "baseline": [0] * 5, "common": [0] * 5}
    lacking = mature[len(complete) :]
    for each in lacking:
        counts[each[3]][2] += 1
    blocks = _blocks(complete, labels, horizon_ms, counts, reference)
    harm, cleared = _log_evidence(blocks, RATIO if reference == "baseline" else COMMON_RATIO)
    decided = max(harm, cleared) >= -math.log(ALPHA)
    waiting = len(cards) - len(mature)
    missing = []
    if not decided:
        missing += [f"{waiting} cards have not reached the label age"] if waiting else []
        missing += [f"{len(lacking)} cards lack labels of a source"] if lacking else []
        missing += [f"newer labels of {', '.join(known.late)}"] if known.late and (waiting or lacking) else []
        missing += [
            f"labels of cards that {_GROUPS[name]} alerted"
            for name in ("candidate", reference)
            if not sum(counts[name][:2])
        ]
        missing += [] if missing else ["evidence from more cards"]
    return LabelledVerdict(
        ("harm" if harm > cleared else "cleared") if decided else "undecided",
        LabelCounts(*counts["candidate"]),
        LabelCounts(*counts["baseline"]),
        harm,
        cleared,
        horizon_ms,
        waiting,
        missing,
        LabelCounts(*counts["common"]) if reference == "common" else None,
        min(known.until, known.complete) // _HOUR_MS * _HOUR_MS,
    )


def _blocks(
    cards: Sequence[tuple[int, str, int, Group, bool]],
    labels: Labels,
    horizon_ms: int,
    counts: dict[Group, list[int]],
    reference: Group,
) -> list[tuple[float, float]]:
    """The precision of the candidate and of the `reference`, block by block. Adds the labels of `cards` to `counts`.

    `cards` have event time, event id, value, group, and whether the alert was approved.
    """
    blocks: list[tuple[float, float]] = []
    queues: dict[Group, list[int]] = {"candidate": [], reference: []}
    for at, event_id, value, group, approved in cards:
        label = _label_at(labels.get(event_id, ()), at + horizon_ms)
        if label is None and approved:
            label = "genuine"
        found = counts[group]
        if label is None:
            found[2] += 1
            continue
        fraud = label == "fraud"
        found[0 if fraud else 1] += 1
        found[3 if fraud else 4] += value
        if group not in queues:
            continue
        queues[group].append(fraud)
        if all(queues.values()):
            blocks.append((_mean(queues["candidate"]), _mean(queues[reference])))
            for queue in queues.values():
                queue.clear()
    return blocks


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values)


def describe(version: str, baseline: str, found: LabelledVerdict) -> str:
    """The verdict of labels in one sentence."""
    result = {
        "harm": "labels confirm the harm",
        "cleared": "labels clear it",
        "undecided": "labels do not decide yet",
    }[found.finding]
    text = (
        f"{result}: of the cards that only version {version} alerts, {_counts(found.candidate_only)}; of those that "
        f"only version {baseline} alerts, {_counts(found.baseline_only)}"
    )
    if found.common is None:
        return text
    return f"{text}; these are too few, so of those that both alert, {_counts(found.common)}"


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


def _log_evidence(blocks: Sequence[tuple[float, float]], ratio: float) -> tuple[float, float]:
    """Natural logarithms of the evidence for harm and against it; 0 without blocks.

    `blocks` have the precision of the candidate's group and of the one that it is compared with.
    """
    if not blocks:
        return 0.0, 0.0
    candidate, baseline = np.array(blocks).T
    gain = ratio * baseline - candidate
    harm = np.log1p(np.multiply.outer(_BETS, gain)).sum(axis=1)
    # The largest loss of the reverse bet is the ratio, so larger bets are possible.
    cleared = np.log1p(np.multiply.outer(_BETS / ratio, -gain)).sum(axis=1)
    return tuple(float(np.logaddexp.reduce(logs) - math.log(len(_BETS))) for logs in (harm, cleared))  # type: ignore[return-value]
