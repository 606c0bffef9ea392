"""The figures of labels of one window: of the ensemble, by money, by segment, and of each member alone.

Pure functions on counts, see `tally` for their names. Without any label in the window there are no figures, because no
label and no false positive look alike.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from stream_scorer.monitor import rates
from stream_scorer.monitor.clustered import intervals
from stream_scorer.records import DECISIONS, Decision

# The positive sets of the rates, by the name of the dimension.
POSITIVE_SETS: dict[str, tuple[Decision, ...]] = {"review+block": ("review", "block"), "block": ("block",)}
ALERTED: tuple[Decision, ...] = ("review", "block")

Counts = Mapping[str, int]

# The figures of labels.
RATES: dict[str, Callable[[rates.Labelled, rates.Assumptions], rates.Rate]] = {
    "fpr": rates.false_positive_rate,
    "precision": lambda counts, _assumed: rates.precision(counts),
    "false_discovery_rate": lambda counts, _assumed: rates.false_discovery_rate(counts),
    "recall": rates.recall,
    "false_positives_per_fraud": lambda counts, _assumed: rates.false_positives_per_fraud(counts),
}


class Figure(NamedTuple):
    """One figure of a window. `labelled` figures depend on labels; their record carries the age of the labels.

    `low` and `high` are bounds; `interval` is the interval of `value`, clustered by card (`clustered`).
    """

    metric: str
    dimension: str
    value: float | None
    low: float | None = None
    high: float | None = None
    numerator: int | None = None
    denominator: int | None = None
    labelled: bool = False
    statistics: Mapping[str, float | int | None] = {}
    interval: tuple[float, float] | None = None


def rate_figures(
    counts: Counts, members: Sequence[str], assumed: rates.Assumptions, *, labels_complete: bool
) -> list[Figure]:
    """Every figure of labels of one window.

    Args:
        members: names of the ensemble's members in the order of the manifest; empty if they are not known.
        labels_complete: whether all labels were counted. If not, figures have no values, because their bounds would not
            hold.
    """
    missing = "" if any(has_label(counts)) else "no_labels"
    if not labels_complete:
        missing = "incomplete_labels"
    found: list[Figure] = []
    for dimension, positive in POSITIVE_SETS.items():
        if missing:
            found += [Figure(name, dimension, None, labelled=True, statistics={missing: 1}) for name in RATES]
            continue
        found += _ensemble(dimension, counts, positive, assumed)
        found.append(_money(dimension, counts, positive))
        found += _segments(dimension, counts, positive, assumed)
    if not missing:
        found += _members(counts, members, assumed)
    return found


def has_label(counts: Counts) -> Iterable[bool]:
    """Per kind of labelled transaction, whether there is one."""
    return (counts.get(f"o:{d}:{label}", 0) > 0 for d in DECISIONS for label in ("fraud", "genuine"))


def label_sources(counts: Counts) -> dict[str, int]:
    """Labelled transactions by the source of their label."""
    found: dict[str, int] = {}
    for name, number in counts.items():
        if name.startswith("os:") and number:
            source = name.split(":", 3)[3]
            found[source] = found.get(source, 0) + number
    return dict(sorted(found.items()))


def labelled(counts: Counts, positive: Collection[Decision]) -> rates.Labelled:
    """The counts of one positive set."""
    positives = set(positive)
    by_probability: dict[float, int] = {}
    reviewed = reviewed_fraud = 0
    for name, number in counts.items():
        if not name.startswith("op:") or not number:
            continue
        _, decision, label, probability = name.split(":", 3)
        if decision in positives and label == "genuine":
            by_probability[float(probability)] = by_probability.get(float(probability), 0) + number
        elif decision == "approve":
            reviewed += number
            reviewed_fraud += number if label == "fraud" else 0
    return _labelled(
        {d: counts.get(f"d:{d}", 0) for d in DECISIONS},
        {(d, label): counts.get(f"o:{d}:{label}", 0) for d in DECISIONS for label in ("fraud", "genuine")},
        positives,
        duplicates=counts.get("dup", 0),
        fp_by_probability=by_probability,
        reviewed_negative=reviewed,
        reviewed_negative_fraud=reviewed_fraud,
        sampled=counts.get("rs", 0),
    )


def _labelled(
    decided: Mapping[str, int],
    labels: Mapping[tuple[str, str], int],
    positives: Collection[str],
    **more: int | Mapping[float, int],
) -> rates.Labelled:
    """Counts from the numbers by decision, and by decision and label."""
    negatives = [d for d in DECISIONS if d not in positives]

    def total(decisions: Iterable[str], label: str) -> int:
        return sum(labels.get((d, label), 0) for d in decisions)

    held = [d for d in negatives if d in ALERTED]
    n_held = sum(decided.get(d, 0) for d in held)
    return rates.Labelled(
        n_positive=sum(decided.get(d, 0) for d in positives),
        n_negative=sum(decided.get(d, 0) for d in negatives),
        tp=total(positives, "fraud"),
        fp=total(positives, "genuine"),
        fn=total(negatives, "fraud"),
        tn=total(negatives, "genuine"),
        held_silent=max(n_held - total(held, "fraud") - total(held, "genuine"), 0),
        **more,  # type: ignore[arg-type]
    )


def _ensemble(
    dimension: str, counts: Counts, positive: Collection[Decision], assumed: rates.Assumptions
) -> list[Figure]:
    sums, limits = labelled(counts, positive), intervals(counts, positive)
    found = []
    for name, rate in RATES.items():
        figure = _figure(name, dimension, rate(sums, assumed))
        interval = limits.get(name)
        if interval is not None:
            # A point estimate that needs the card groups, as that of the recall, comes from there.
            value = interval.value if figure.value is None else figure.value
            figure = figure._replace(value=value, interval=(interval.low, interval.high))
        found.append(figure)
    return found


def _figure(name: str, dimension: str, rate: rates.Rate, **statistics: int) -> Figure:
    return Figure(
        name, dimension, rate.value, rate.low, rate.high, rate.numerator, rate.denominator, True,
        dict(rate.statistics) | statistics,
    )  # fmt: skip


def _money(dimension: str, counts: Counts, positive: Collection[Decision]) -> Figure:
    """The false-positive rate by money, in minor units of the reference currency, with bounds at face value."""
    total = sum(counts.get(f"v:{d}", 0) for d in DECISIONS)
    fraud = sum(counts.get(f"ov:{d}:fraud", 0) for d in DECISIONS)
    wrong = sum(counts.get(f"ov:{d}:genuine", 0) for d in positive)
    caught = sum(counts.get(f"ov:{d}:fraud", 0) for d in positive)
    unknown = max(sum(counts.get(f"v:{d}", 0) for d in positive) - wrong - caught, 0)
    low, high = rates.ratio(wrong, total - fraud), rates.ratio(wrong + unknown, total - fraud)
    value = low if low == high else None
    return Figure(
        "fpr_money", dimension, value, low, high, wrong, total - fraud, True, {"unknown": unknown, "face_value": 1}
    )


def _segments(
    dimension: str, counts: Counts, positive: Collection[Decision], assumed: rates.Assumptions
) -> list[Figure]:
    """The false-positive rate of each segment or list of the policy. The allowances are those of the whole window."""
    found = []
    for rule in sorted({name.split(":")[1] for name in counts if name.startswith("sd:")}):
        sums = _labelled(
            {d: counts.get(f"sd:{rule}:{d}", 0) for d in DECISIONS},
            {(d, k): counts.get(f"so:{rule}:{d}:{k}", 0) for d in DECISIONS for k in ("fraud", "genuine")},
            set(positive),
        )
        if sums.total:
            found.append(_figure("segment_fpr", f"{dimension}/{rule}", _evidence(counts, sums, assumed)))
    return found


def _members(counts: Counts, members: Sequence[str], assumed: rates.Assumptions) -> list[Figure]:
    """The false-positive rate that each member would have alone, at the threshold for review.

    It is counterfactual: labels come from the alerts of the ensemble. What only the member alerts is approved and
    seldom reviewed, so it is mostly unknown, and the bounds are wide.
    """
    totals = {k: sum(counts.get(f"o:{d}:{k}", 0) for d in DECISIONS) for k in ("fraud", "genuine")}
    n = sum(counts.get(f"d:{d}", 0) for d in DECISIONS)
    silent_alerts = sum(
        counts.get(f"d:{d}", 0) - sum(counts.get(f"o:{d}:{k}", 0) for k in ("fraud", "genuine")) for d in ALERTED
    )
    found = []
    for place, name in enumerate(members):
        alerts = counts.get(f"ma:{name}", 0)
        tp, fp = (counts.get(f"mo:{place}:{k}", 0) for k in ("fraud", "genuine"))
        sums = rates.Labelled(
            n_positive=alerts,
            n_negative=n - alerts,
            duplicates=counts.get("dup", 0),
            tp=tp,
            fp=fp,
            fn=totals["fraud"] - tp,
            tn=totals["genuine"] - fp,
            held_silent=max(silent_alerts, 0),
        )
        rate = _evidence(counts, sums, assumed)
        found.append(_figure("member_fpr", name, rate, counterfactual=1))
    return found


def _evidence(counts: Counts, sums: rates.Labelled, assumed: rates.Assumptions) -> rates.Rate:
    """The rate of a part of the window; without bounds where the review sample contradicts the allowance."""
    rate = rates.false_positive_rate(sums, assumed)
    if rates.unreported_fraud(labelled(counts, ALERTED), assumed.unreported_cap)[1]:
        return rates.Rate(None, None, None, rate.numerator, rate.denominator, {"cap_overruled": 1})
    return rate
