"""A simulated history as Parquet files: transactions, truth and, optionally, the labels available at its end."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from stream_scorer.simulate.config import SimulationConfig
from stream_scorer.simulate.files import labels_writer, transactions_writer, truth_writer
from stream_scorer.simulate.generate import generate_days
from stream_scorer.simulate.labeller import Labeller, LabellerConfig


@dataclass
class ExportReport:
    """Progress of the export; `event_time_ms` is the event time of the newest transaction."""

    transactions: int = 0
    fraud: int = 0
    labels: int = 0
    event_time_ms: int = 0


def export(
    config: SimulationConfig,
    directory: Path,
    *,
    truth: Path | None = None,
    labels: LabellerConfig | None = None,
    on_progress: Callable[[ExportReport], None] | None = None,
) -> ExportReport:
    """Write ``transactions.parquet``, ``labels.parquet`` (if `labels`) and the truth (``truth.parquet``, or `truth`).

    Memory holds one day of event time and what its labels wait for. The labels are those of a history in which
    everything was approved, as known at its last transaction. Existing files are replaced.

    Raises `SettingsError` if a file cannot be written or pyarrow is missing.
    """
    report = ExportReport()
    labeller = Labeller(labels) if labels is not None else None
    with ExitStack() as stack:
        transactions_file = stack.enter_context(transactions_writer(directory / "transactions.parquet"))
        truth_file = stack.enter_context(truth_writer(truth or directory / "truth.parquet"))
        labels_file = stack.enter_context(labels_writer(directory / "labels.parquet")) if labeller else None
        for day in generate_days(config):
            transactions_file.write(day)
            truth_file.write(day)
            report.transactions += len(day)
            report.fraud += int((day.fraud_kind > 0).sum())
            if len(day):
                report.event_time_ms = int(day.event_time[-1])
                if labeller is not None and labels_file is not None:
                    labeller.observe(day)
                    known = labeller.advance(report.event_time_ms)
                    labels_file.write(known)
                    report.labels += len(known)
            if on_progress is not None:
                on_progress(report)
    return report
