"""The report of an evaluation as one self-contained HTML page, under the headings of a model-risk review.

The headings follow the supervisory guidance on model risk management (Federal Reserve SR 11-7): conceptual soundness,
ongoing monitoring, outcomes analysis, effective challenge.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from stream_scorer import __version__
from stream_scorer.evaluation.bootstrap import MIN_CARDS
from stream_scorer.evaluation.result import Evaluation, PairResult, VersionResult
from stream_scorer.reports import evaluation_tables as tables
from stream_scorer.reports.evaluation_tables import (
    Table,
    blocked_genuine,
    bounded,
    difference,
    hours,
    money,
    name_of,
    spread,
    when,
)
from stream_scorer.reports.pages import drawing, number, percent, render, require_plots
from stream_scorer.reports.plots import PALETTE, drawn, make_figure, show_legend, show_times
from stream_scorer.spec.gate_rules import LOWER_IS_BETTER

if TYPE_CHECKING:
    from markupsafe import Markup

# Bins with fewer transactions than this have no dot in the calibration plot.
MIN_BIN_ROWS = 20
_DAY = "day"
# Plots leave out days after the year 9999, which only wrong event times have: `datetime` has no such days.
_DAY_LENGTH = len("9999-12-31")
_LAST_MS = 253_402_300_800_000
# The differences that a finding names.
_JUDGED = ("average_precision", "recall", "precision", "false_positive_rate", "blocked_genuine_rate", "value_caught")


def page(result: Evaluation) -> str:
    """The whole page. Raises `SettingsError` if matplotlib or Jinja2 is missing."""
    require_plots()
    return render(
        "evaluation.html.j2",
        result=result,
        version=__version__,
        min_cards=MIN_CARDS,
        min_bin_rows=MIN_BIN_ROWS,
        horizon_days=result.label_horizon_ms / 86_400_000,
        as_of=when(result.labels_as_of),
        first=when(result.first_event_time),
        last=when(result.last_event_time),
        findings=findings(result),
        cards=[(name_of(v), _card(result, v)) for v in result.versions],
        versions=tables.versions_table(result),
        budgets=tables.budgets_table(result),
        members=tables.members_table(result),
        cases=_cases_table(result),
        groups=[_groups_table(result, dimension) for dimension in _dimensions(result)],
        ages=_groups_table(result, "label age"),
        pairs=[
            (pair, [tables.differences_table(pair), tables.sides_table(pair), tables.moved_table(pair)])
            for pair in result.candidates
        ],
        drawings=_drawings(result),
    )


def findings(result: Evaluation) -> list[str]:
    """Per candidate, one sentence on whether its ranking and its alerts differ from the champion's.

    A difference without an interval is not judged: too few cards, nothing to compare, or no replicates.
    """
    candidates = zip(result.versions[1:], result.candidates, strict=True)
    return [_finding(pair, result.versions[0], version) for version, pair in candidates]


def _finding(pair: PairResult, champion: VersionResult, candidate: VersionResult) -> str:
    better, worse, open_, unknown = [], [], [], []
    for name in _JUDGED:
        found = pair.differences[name]
        title = tables.DIFFERENCES[name]
        if found.low is None or found.high is None:
            unknown.append(title)
        elif found.low <= 0 <= found.high:
            open_.append(title)
        elif (found.low > 0) != (name in LOWER_IS_BETTER):
            better.append(f"{title} {difference(name, found)}")
        else:
            worse.append(f"{title} {difference(name, found)}")
    parts = [f"better: {', '.join(better)}"] if better else []
    parts += [f"worse: {', '.join(worse)}"] if worse else []
    parts += [f"no difference shown: {', '.join(open_)}"] if open_ else []
    parts += [f"not judged: {', '.join(unknown)}"] if unknown else []
    if champion.missing or candidate.missing:
        parts.append(
            f"average precision leaves out transactions without a score: {candidate.missing:,} of the candidate, "
            f"{champion.missing:,} of the champion"
        )
    return f"Version {pair.candidate} against {pair.champion}: {'; '.join(parts)}."


def _card(result: Evaluation, v: VersionResult) -> list[list[str]]:
    """The model card of a version: what it is, and what the evaluation found."""
    cards = v.card_precision[0] if v.card_precision else None
    return [
        ["role", "champion" if v is result.versions[0] else "candidate"],
        ["purpose", "Score card transactions for fraud; alerts go to review or are blocked."],
        ["formula", v.formula],
        ["members", ", ".join(v.members)],
        ["thresholds", f"review from {number(v.review)}, block from {number(v.block)}"],
        ["trained on transactions until", when(v.trained_until)],
        ["digest of the manifest", v.sha256],
        ["average precision", spread(v.average_precision)],
        ["ROC AUC", spread(v.roc_auc)],
        ["precision of alerts", spread(v.intervals["precision"], share=True)],
        ["recall of alerts", spread(v.intervals["recall"], share=True)],
        ["false-positive rate, bounds", bounded(v.alerts)],
        ["blocks, and genuine ones, bounds", f"{v.alerts.blocks:,}, and {blocked_genuine(v.alerts)}"],
        ["amount caught and lost", f"{money(v.alerts.value_caught)} and {money(v.alerts.value_lost)}"],
        ["Brier score", "-" if v.calibration.brier is None else f"{v.calibration.brier:.5f}"],
        [
            "card precision per day",
            "-" if cards is None else f"{percent(cards.value)} of {cards.k} cards, {cards.days} days",
        ],
        ["transactions without a score", f"{v.missing:,}"],
        ["evaluated after its training", _after_training(result, v)],
    ]


def _after_training(result: Evaluation, v: VersionResult) -> str:
    """Whether the transactions are later than the training rows; figures on training rows are too good."""
    if result.first_time is None:
        return "-"
    if result.first_time > v.trained_until:
        return "yes, all transactions"
    if (result.last_event_time or 0) <= v.trained_until:
        return "no: the version may have been trained on these transactions, so its figures are too good"
    return "in part: the range begins before the end of its training data, so its figures are too good"


def _cases_table(result: Evaluation) -> Table:
    headings = ["version", "!cases", "!detected", "!by the first fraud", "!median time of detected",
                "!90 % of detected within",
                "!amount before detection"]  # fmt: skip
    rows = [
        [
            name_of(v), f"{d.cases:,}", f"{d.detected:,}", f"{d.at_first:,}", hours(d.median_ms), hours(d.p90_ms),
            money(d.value_before),
        ]
        for v in result.versions
        for d in (v.detection,)
    ]  # fmt: skip
    return "fraud cases", headings, rows


def _dimensions(result: Evaluation) -> list[str]:
    names = dict.fromkeys(group.dimension for group in result.versions[0].groups)
    return [name for name in names if name not in (_DAY, "label age")]


def _groups_table(result: Evaluation, dimension: str) -> Table:
    headings = [dimension, "version", "!transactions", "!labelled", "!frauds", "!alerts", "!precision", "!recall",
                "!FPR bounds", "!blocks", "!genuine blocked", "!caught", "!lost"]  # fmt: skip
    rows = []
    for v in result.versions:
        for group in v.groups:
            a = group.alerts
            if group.dimension == dimension:
                rows.append(
                    [
                        group.value, v.label, f"{a.transactions:,}", f"{a.labelled:,}", f"{a.frauds:,}",
                        f"{a.alerts:,}", percent(a.precision), percent(a.recall), bounded(a), f"{a.blocks:,}",
                        blocked_genuine(a), money(a.value_caught), money(a.value_lost),
                    ]
                )  # fmt: skip
    # The values in their order, which is not that of the alphabet, each with all versions.
    order = list(dict.fromkeys(row[0] for row in rows))
    return dimension, headings, sorted(rows, key=lambda row: order.index(row[0]))


def _drawings(result: Evaluation) -> dict[str, Markup]:
    return {
        "calibration": drawing(_calibration(result)),
        "alerts": drawing(_daily(result, "alert_rate")),
        "recall": drawing(_daily(result, "recall")),
        "cards": drawing(_card_precision(result)),
    }


def _colours(result: Evaluation) -> list[tuple[VersionResult, str]]:
    return [(v, PALETTE[place % len(PALETTE)]) for place, v in enumerate(result.versions)]


def _calibration(result: Evaluation) -> str:
    figure, (axes,) = make_figure(1, 1)
    for v, colour in _colours(result):
        bins = [b for b in v.calibration.bins if b.rows >= MIN_BIN_ROWS and b.mean_score is not None]
        points = [(b.mean_score, b.fraud_rate) for b in bins if b.mean_score and b.fraud_rate]
        axes.plot(*zip(*points, strict=True), "o-", color=colour, label=v.label, markersize=4) if points else None
    axes.plot([1e-4, 1.0], [1e-4, 1.0], linestyle=":", color="#808080", linewidth=1.0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("mean score of the bin")
    axes.set_ylabel("fraud rate of the bin")
    show_legend(axes)
    return drawn(figure, "calibration")


def _daily(result: Evaluation, what: str) -> str:
    figure, (axes,) = make_figure(1, 1)
    for v, colour in _colours(result):
        days = [(group.value, group.alerts) for group in v.groups if group.dimension == _DAY]
        days = [(day, a) for day, a in days if len(day) == _DAY_LENGTH]
        if what == "recall":
            points = [(day, a.recall) for day, a in days if a.recall is not None]
        else:
            points = [(day, a.alerts / a.transactions) for day, a in days if a.transactions]
        times = [datetime.fromisoformat(day) for day, _ in points]
        axes.plot(times, [value for _, value in points], "o-", color=colour, label=v.label, markersize=3)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("recall of alerts" if what == "recall" else "alerts per transaction")
    show_times(axes, "day (UTC)")
    show_legend(axes)
    return drawn(figure, f"daily-{what}")


def _card_precision(result: Evaluation) -> str:
    figure, (axes,) = make_figure(1, 1)
    for v, colour in _colours(result):
        for found in v.card_precision[:1]:
            points = [(when(day), p) for day, p in found.by_day if day < _LAST_MS]
            times = [datetime.fromisoformat(day) for day, _ in points]
            axes.plot(times, [p for _, p in points], "o-", color=colour, label=v.label, markersize=3)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("card precision")
    show_times(axes, "day (UTC)")
    show_legend(axes)
    return drawn(figure, "cards")
