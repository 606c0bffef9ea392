"""Rules on the paired evaluation: quality against the champion, and fairness between segments."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from stream_scorer.evaluation.result import Alerts, Evaluation, Interval, VersionResult
from stream_scorer.gate.result import RuleResult, at_most, not_measured
from stream_scorer.spec.gate_rules import LOWER_IS_BETTER, OF_GENUINE, WITHOUT_LABELS, Fairness, Quality

# The champion comes first in an evaluation.
_CHAMPION, _CANDIDATE = 0, 1
_NO_LABELS = "no transaction of the range has a label"
# These leave out transactions without a score, so a version without scores for hard ones would look better.
_RANKING = ("average_precision", "roc_auc")


def quality(rule: Quality, evaluation: Evaluation) -> RuleResult:
    """The candidate's loss against the champion in one metric."""
    name = f"quality.{rule.metric}"
    if not evaluation.candidates:
        return not_measured(name, rule.max_loss, "there is no champion to compare with")
    # By running time, as `--start`: a late transaction after the training data is no row of it.
    trained_until, first = evaluation.versions[_CANDIDATE].trained_until, evaluation.first_time
    if first is not None and first <= trained_until:
        return not_measured(
            name, rule.max_loss, f"the candidate was trained on this range; start after {_time(trained_until)}"
        )
    missing = _missing(rule, evaluation) or _unscored(rule, evaluation)
    if missing:
        return not_measured(name, rule.max_loss, missing)
    difference = evaluation.candidates[0].differences.get(rule.metric, Interval(None))
    if difference.value is None:
        return not_measured(name, rule.max_loss, f"undefined on this range with {evaluation.frauds:,} known frauds")
    before, after = (_figure(version, rule.metric) for version in evaluation.versions[:2])
    reason = f"{_shown(after)}, the champion {_shown(before)}; {evaluation.frauds:,} frauds"
    worse_end = difference.high if rule.metric in LOWER_IS_BETTER else difference.low
    if rule.evidence == "interval":
        if worse_end is None:
            return not_measured(name, rule.max_loss, f"no interval: too few cards ({evaluation.frauds:,} known frauds)")
        reason += f"; change {_shown(difference.value)}, 95 % {_shown(difference.low)} to {_shown(difference.high)}"
    else:
        worse_end = difference.value
    loss = worse_end if rule.metric in LOWER_IS_BETTER else -worse_end
    # In this order, so that a NaN stays one, which refuses.
    return at_most(name, 0.0 if loss <= 0.0 else loss, rule.max_loss, reason)


def _missing(rule: Quality, evaluation: Evaluation) -> str:
    """What the range lacks; empty if it has enough."""
    if evaluation.transactions < rule.min_rows:
        return f"{evaluation.transactions:,} transactions, {rule.min_rows:,} are needed"
    if rule.metric in OF_GENUINE and not evaluation.labelled:
        return _NO_LABELS
    mature = evaluation.mature_share or 0.0
    if rule.metric not in WITHOUT_LABELS and mature < rule.min_mature:
        return (
            f"{mature:.0%} of the transactions are older than the label horizon, {rule.min_mature:.0%} are needed: "
            "train with --until, and let the range begin there"
        )
    if rule.metric in LOWER_IS_BETTER:
        return ""
    if not evaluation.frauds:
        return "the range has no known fraud"
    if rule.evidence == "interval" and evaluation.fraud_cards < rule.min_fraud_cards:
        return f"{evaluation.fraud_cards:,} cards with a known fraud, {rule.min_fraud_cards:,} are needed"
    return ""


def _unscored(rule: Quality, evaluation: Evaluation) -> str:
    """What is wrong if a ranking covers fewer transactions of the candidate than of the champion; else empty."""
    before, after = (version.missing for version in evaluation.versions[:2])
    if rule.metric not in _RANKING or after <= before:
        return ""
    return (
        f"the candidate gives no score for {after:,} of {evaluation.transactions:,} transactions, the champion for "
        f"{before:,}: too few of its members answer (quorum)"
    )


def fairness(rule: Fairness, evaluation: Evaluation) -> list[RuleResult]:
    """The differences between the values of a field, in the candidate and from champion to candidate."""
    name = f"fairness.{rule.segment}"
    if rule.metric != "false_positive_rate":
        name += f".{rule.metric}"
    to_champion = f"{name}.to_champion"
    if rule.metric in OF_GENUINE and not evaluation.labelled:
        limits = ((name, rule.max_ratio), (to_champion, rule.max_ratio_to_champion))
        return [not_measured(each, limit, _NO_LABELS) for each, limit in limits if limit is not None]
    results = []
    groups = [_groups(rule, version) for version in evaluation.versions]
    if rule.max_ratio is not None:
        results.append(_between_values(name, rule, groups[-1]))
    if rule.max_ratio_to_champion is not None:
        if len(groups) < 2:
            results.append(
                not_measured(to_champion, rule.max_ratio_to_champion, "there is no champion to compare with")
            )
        else:
            results.append(_growth(to_champion, rule, groups[_CHAMPION], groups[_CANDIDATE]))
    return results


def _between_values(name: str, rule: Fairness, groups: dict[str, Alerts]) -> RuleResult:
    """The highest rate as a multiple of the lowest one."""
    assert rule.max_ratio is not None
    if len(groups) < 2:
        few = f"fewer than two values of {rule.segment} have {rule.min_rows:,} transactions"
        return not_measured(name, rule.max_ratio, few)
    rates = sorted((_rate(rule, alerts), value) for value, alerts in groups.items())
    (low, lowest), (high, highest) = rates[0], rates[-1]
    return at_most(name, high / low, rule.max_ratio, f"{highest} {high:.3%}, {lowest} {low:.3%}")


def _growth(name: str, rule: Fairness, before: dict[str, Alerts], after: dict[str, Alerts]) -> RuleResult:
    """By how much more the rate of one value grows than that of another one, as a ratio."""
    assert rule.max_ratio_to_champion is not None
    values = [
        value
        for value, alerts in after.items()
        if value in before and max(_found(rule, alerts), _found(rule, before[value])) >= rule.min_alerts
    ]
    if len(values) < 2:
        what = "blocks" if _of_blocks(rule) else "alerts"
        enough = f"{rule.min_rows:,} transactions and {rule.min_alerts} {what}"
        return not_measured(name, rule.max_ratio_to_champion, f"fewer than two values of {rule.segment} have {enough}")
    growth = sorted((_rate(rule, after[value]) / _rate(rule, before[value]), value) for value in values)
    reason = ", ".join(
        f"{value} {_rate(rule, before[value]):.3%} to {_rate(rule, after[value]):.3%}"
        for _, value in (growth[-1], growth[0])
    )
    return at_most(name, growth[-1][0] / growth[0][0], rule.max_ratio_to_champion, reason)


def _groups(rule: Fairness, version: VersionResult) -> dict[str, Alerts]:
    """The alerts of each value with enough transactions."""
    return {
        group.value: group.alerts
        for group in version.groups
        if group.dimension == rule.segment and group.alerts.transactions >= rule.min_rows
    }


def _of_blocks(rule: Fairness) -> bool:
    return rule.metric in ("block_rate", "blocked_genuine_rate")


def _found(rule: Fairness, alerts: Alerts) -> int:
    """The alerts, or the blocks, that the rate of the rule counts, of frauds too."""
    return alerts.blocks if _of_blocks(rule) else alerts.alerts


def _rate(rule: Fairness, alerts: Alerts) -> float:
    """Half an alert and half a silent transaction are added, so that a value without alerts has a rate above 0."""
    if rule.metric not in OF_GENUINE:
        return (_found(rule, alerts) + 0.5) / (alerts.transactions + 1.0)
    genuine = alerts.blocked_genuine if _of_blocks(rule) else alerts.alerts - alerts.caught
    return (genuine + 0.5) / (alerts.transactions - alerts.frauds + 1.0)


def _figure(version: VersionResult, metric: str) -> float | None:
    if metric in _RANKING:
        found: Interval = getattr(version, metric)
        return found.value
    value: float | None = getattr(version.alerts, metric)
    return value


def _shown(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.4g}"


def _time(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1_000, UTC):%Y-%m-%dT%H:%M:%S}"
