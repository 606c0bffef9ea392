"""The report on a replay, as one record and as lines of text."""

from __future__ import annotations

from stream_scorer.records import Record
from stream_scorer.replay.compare import Difference
from stream_scorer.replay.quality import Figures, Quality


class ReplayReport(Record, frozen=True):
    """Counts, decisions, quality (null without labels) and, if requested, the comparison with the served records.

    `scores_sha256` is over the canonical bytes of every score and contribution, in order: two replays of the same
    input, spec and ensemble have the same. `incomplete` counts the records that are not compared because their features
    were served as partial and are not partial in the replay.
    """

    out: str
    ensemble: str
    version: str
    transactions: int
    labels: int
    labels_refused: int
    warmed: int
    scored: int
    dead_letters: int
    duplicates: int
    decisions: dict[str, int]
    scores_sha256: str
    seconds: float
    quality: Quality | None
    compared: int | None
    different: int | None
    first_difference: Difference | None
    incomplete: int | None = None


HEADINGS = (
    "", "AP", "AUC", "precision (review)", "recall (review)", "precision (block)", "recall (block)",
)  # fmt: skip


def table_rows(quality: Quality) -> list[tuple[str, ...]]:
    """One row per member, then the ensemble, with the columns `HEADINGS`."""
    return [_row(figures) for figures in [*quality.members, quality.ensemble]]


def summary_lines(report: ReplayReport) -> list[str]:
    """The report in a few sentences."""
    decisions = ", ".join(f"{count:,} {decision}" for decision, count in report.decisions.items())
    lines = [
        f"{report.ensemble} {report.version}: {report.scored:,} transactions scored ({decisions}), "
        f"{report.warmed:,} for features only, {report.labels:,} labels, {report.dead_letters:,} that cannot be read, "
        f"{report.duplicates:,} duplicates, in {report.seconds:.1f} s",
        f"canonical sha256 {report.scores_sha256}",
    ]
    if report.quality is None:
        lines.append("no labels: quality not computed")
    else:
        lines.append(report.quality.statement)
    if report.labels_refused:
        lines.append(f"{report.labels_refused:,} labels cannot be read and count as absent")
    if report.compared is not None:
        lines.append(f"compared with what was served: {report.compared:,} records, {report.different or 0:,} different")
    if report.incomplete:
        lines.append(
            f"{report.incomplete:,} records not compared: they were served with partial features: retention had "
            "cut the log when the scorer built its rows"
        )
    return lines


def _row(figures: Figures) -> tuple[str, ...]:
    values = (
        figures.average_precision, figures.roc_auc,
        figures.review.precision, figures.review.recall, figures.block.precision, figures.block.recall,
    )  # fmt: skip
    return (figures.name, *("-" if value is None else f"{value:.3f}" for value in values))
