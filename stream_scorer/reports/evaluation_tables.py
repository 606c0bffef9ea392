"""The tables of an evaluation, which the terminal and the page share."""

from __future__ import annotations

import numpy as np

from stream_scorer.evaluation.result import Alerts, Evaluation, Interval, PairResult, VersionResult
from stream_scorer.reports.pages import number, percent

Table = tuple[str, list[str], list[list[str]]]
DIFFERENCES = {
    "average_precision": "average precision",
    "roc_auc": "ROC AUC",
    "precision": "precision",
    "recall": "recall",
    "false_positive_rate": "false-positive rate",
    "alert_rate": "alert rate",
    "block_rate": "block rate",
    "blocked_genuine_rate": "blocked genuine rate",
    "value_caught": "amount caught",
}
_HOUR_MS = 3_600_000


def money(value: int) -> str:
    """Minor units as units with two decimal places, exact."""
    units, rest = divmod(abs(value), 100)
    return f"{'-' if value < 0 else ''}{units:,}.{rest:02}"


def when(time_ms: int | None) -> str:
    """A time in UTC, also after the year 9999; a dash for none (below 0: that of the newest label without labels)."""
    if time_ms is None or time_ms < 0:
        return "-"
    return str(np.datetime64(time_ms, "ms").astype("datetime64[m]")).replace("T", " ")


def spread(found: Interval, *, share: bool = False) -> str:
    """A figure with its interval."""
    show = percent if share else number
    if found.low is None or found.high is None:
        return show(found.value)
    return f"{show(found.value)} [{show(found.low)}, {show(found.high)}]"


def difference(name: str, found: Interval) -> str:
    """A signed difference with its interval."""
    if found.value is None:
        return "-"
    if name == "value_caught":
        signed = [f"{value / 100:+,.2f}" for value in (found.value, found.low, found.high) if value is not None]
    else:
        signed = [f"{value:+.4f}" for value in (found.value, found.low, found.high) if value is not None]
    return signed[0] if len(signed) == 1 else f"{signed[0]} [{signed[1]}, {signed[2]}]"


def bounded(alerts: Alerts) -> str:
    """The false-positive rate with its bounds: unlabelled alerts are all fraud, or all genuine."""
    low, high = alerts.false_positive_rate_low, alerts.false_positive_rate
    return "-" if low is None or high is None else f"{low:.3%} to {high:.3%}"


def blocked_genuine(alerts: Alerts) -> str:
    """The number of blocked genuine transactions, with its bounds: unlabelled blocks are all fraud, or all genuine."""
    return f"{alerts.blocked_genuine_low:,} to {alerts.blocked_genuine:,}"


def summary_lines(result: Evaluation) -> list[str]:
    """The evaluation in a few sentences."""
    unlabelled = result.transactions - result.labelled
    lines = [
        f"{result.transactions:,} transactions from {when(result.first_event_time)} to {when(result.last_event_time)}, "
        f"labels as of {when(result.labels_as_of)} ({result.labels_later:,} later ones ignored)",
        f"{result.labelled:,} have a label ({result.frauds:,} fraud, on {result.fraud_cards:,} cards); "
        f"the other {unlabelled:,} are presumed genuine",
        f"{result.duplicates:,} duplicates, {result.refused:,} records that cannot be read, {result.warmed:,} records "
        f"for features only; {result.labels_refused:,} labels that cannot be read",
        "amounts are minor units of the reference currency, divided by 100",
        f"digest {result.digests.all}",
    ]
    if result.resumed:
        lines.append(f"{result.resumed:,} transactions were complete from an earlier run")
    return lines


def tables(result: Evaluation) -> list[Table]:
    """The tables of the terminal."""
    found = [versions_table(result), budgets_table(result), members_table(result)]
    for pair in result.candidates:
        found += [differences_table(pair), sides_table(pair), moved_table(pair)]
    return found


def name_of(version: VersionResult) -> str:
    """Ensemble and version."""
    return f"{version.ensemble} {version.version}"


def versions_table(result: Evaluation) -> Table:
    """One row per version: ranking, and alerts at its thresholds."""
    headings = ["version", "!AP", "!AUC", "!alerts", "!precision", "!recall", "!FPR bounds", "!blocks",
                "!genuine blocked", "!caught", "!lost", "!review cost"]  # fmt: skip
    rows = [
        [
            name_of(v), spread(v.average_precision), spread(v.roc_auc), f"{v.alerts.alerts:,}",
            percent(v.alerts.precision), percent(v.alerts.recall), bounded(v.alerts), f"{v.alerts.blocks:,}",
            blocked_genuine(v.alerts), money(v.alerts.value_caught), money(v.alerts.value_lost),
            money(v.alerts.review_cost),
        ]
        for v in result.versions
    ]  # fmt: skip
    return "versions, at their own thresholds", headings, rows


def budgets_table(result: Evaluation) -> Table:
    """One row per version and alert budget."""
    headings = ["version", "!budget", "!threshold", "!alerts", "!precision", "!recall", "!FPR bounds", "!caught"]
    rows = [
        [
            name_of(v), f"{a.budget:.2%}", number(a.threshold), f"{a.alerts:,}", percent(a.precision),
            spread(recall, share=True), bounded(a), money(a.value_caught),
        ]
        for v in result.versions
        for a, recall in zip(v.budgets, v.budget_recall, strict=True)
    ]  # fmt: skip
    return "alert budgets", headings, rows


def members_table(result: Evaluation) -> Table:
    """Each version and each distinct member by the same measures."""
    budgets = [a.budget or 0.0 for a in result.versions[0].budgets]
    headings = ["", "used by", "!AP", "!AUC", *(f"!recall at {budget:.2%}" for budget in budgets)]
    rows = [
        [name_of(v), "", number(v.average_precision.value), number(v.roc_auc.value)]
        + [percent(a.recall) for a in v.budgets]
        for v in result.versions
    ]
    rows += [
        [m.name, ", ".join(m.versions), number(m.average_precision), number(m.roc_auc)]
        + [percent(a.recall) for a in m.budgets]
        for m in result.members
    ]
    return "ensembles against their members", headings, rows


def differences_table(pair: PairResult) -> Table:
    """Candidate less champion."""
    rows = [
        [DIFFERENCES[name], difference(name, found)] for name, found in pair.differences.items() if name in DIFFERENCES
    ]
    return f"version {pair.candidate} less version {pair.champion}", ["", "!difference [95 % interval]"], rows


def sides_table(pair: PairResult) -> Table:
    """Which transactions and cards changed sides."""
    headings = [
        "",
        "!alert in both",
        "!only candidate",
        "!only champion",
        "!in neither",
        "!review to block",
        "!block to review",
        "!cards gained",
        "!cards lost",
    ]
    rows = [
        [name, *(f"{value:,}" for value in (s.both, s.only_candidate, s.only_champion, s.neither, s.to_block,
                                            s.to_review, s.cards_gained, s.cards_lost))]
        for name, s in (("all", pair.all), ("fraud", pair.frauds), ("genuine", pair.genuine),
                        ("unlabelled", pair.unlabelled))
    ]  # fmt: skip
    return f"decisions of version {pair.candidate} against version {pair.champion}", headings, rows


def moved_table(pair: PairResult) -> Table:
    """Which part of the candidate moved the decisions."""
    headings = ["member", "as in the champion", "!stricter decisions that go back", "!milder decisions that go back"]
    rows = [[m.member, m.part, f"{m.gained:,}", f"{m.lost:,}"] for m in pair.moved]
    rows.append(["no part alone", "", f"{pair.unexplained:,} do not go back", ""])
    return f"what moved the decisions of version {pair.candidate}", headings, rows


def hours(value: float | None) -> str:
    """Milliseconds as hours."""
    return "-" if value is None else f"{value / _HOUR_MS:,.1f} h"
