"""`stream-scorer cv`: cross-validation in order of time, the search over grids, and the holdout."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from stream_scorer.cli.history import history_options, read_history
from stream_scorer.cli.options import with_settings
from stream_scorer.cli.outputs import require_writable
from stream_scorer.clock import SystemClock
from stream_scorer.console import Progress, make_table, print_table
from stream_scorer.errors import UsageError
from stream_scorer.settings import Settings
from stream_scorer.spec.load import load_spec
from stream_scorer.spec.training import training_yaml
from stream_scorer.users import current_user

if TYPE_CHECKING:
    from stream_scorer.spec.training import CheckedTraining
    from stream_scorer.train.rows import Period
    from stream_scorer.train.search import CrossValidation, FoldReport, Holdout, HoldoutReport, Quality

# Candidates in the table, per member; `--json` has all.
_SHOWN = 5


@click.command()
@history_options
@click.option(
    "--training",
    type=click.Path(path_type=Path),
    required=True,
    help="Training spec (docs/training.md), or `default`.",
)
@click.option(
    "--jobs",
    type=click.IntRange(0),
    default=0,
    help="Fits at a time.  [default: 0, as many as cores and memory allow]",
)
@click.option(
    "--select", type=click.Path(path_type=Path, dir_okay=False), help="Write the training spec of the best candidates."
)
@click.option("--open-holdout", is_flag=True, help="Evaluate on the holdout, and record that it was opened.")
@click.option("--reason", default="", help="Why a holdout is opened again; recorded.")
@click.option(
    "--holdout-record",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File of the openings.  [default: holdout-openings.jsonl next to the training spec]",
)
@click.option("--json", "as_json", is_flag=True, help="The result as JSON.")
@with_settings("scorer.spec", "kafka.bootstrap", "topics.prefix")
def cv(
    settings: Settings,
    transactions: Path | None,
    labels: Path | None,
    from_topics: bool,
    period: Period,
    training: Path,
    jobs: int,
    select: Path | None,
    open_holdout: bool,
    reason: str,
    holdout_record: Path | None,
    as_json: bool,
) -> None:
    """Evaluate members and the ensemble of a training spec on prequential folds, and search over its grids.

    The holdout is not used, unless --open-holdout evaluates on it instead.
    """
    from stream_scorer.train.defaults import find_training
    from stream_scorer.train.from_spec import Options
    from stream_scorer.train.holdout import RECORD_NAME
    from stream_scorer.train.parallel import default_jobs
    from stream_scorer.train.search import cross_validate, evaluate_holdout

    if open_holdout and select:
        raise click.UsageError("--select needs the folds, --open-holdout does not evaluate them: run cv twice.")
    if reason and not open_holdout:
        raise click.UsageError("--reason needs --open-holdout.")
    require_writable(select)
    spec = load_spec(settings.require("scorer.spec"), secrets.token_hex())
    checked = find_training(training, spec)
    with Progress("cross-validation", None, SystemClock()) as progress:
        data = read_history(settings, spec, transactions, labels, from_topics, progress, period)
        options = Options(jobs or default_jobs(data.features.nbytes), progress.stage)
        if open_holdout:
            record = holdout_record or training.parent / RECORD_NAME
            opening = _Recorder(record, spec.spec.name, checked, reason)
            report = evaluate_holdout(data, spec, checked, options, opening)
        else:
            result, selected = cross_validate(data, spec, checked, options)
    if open_holdout:
        click.echo(msgspec.json.encode(report)) if as_json else _print_holdout(report, record)
        return
    # The result first: it took long, and must not be lost where `select` cannot be written.
    click.echo(msgspec.json.encode(result)) if as_json else _print_result(result)
    if select:
        try:
            select.write_text(training_yaml(selected), encoding="utf-8")
        except OSError as error:
            raise UsageError(f"cannot write {select}: {error}") from None
        click.echo(f"wrote {select}", err=as_json)


class _Recorder:
    """Records the opening of a holdout when it is called."""

    def __init__(self, path: Path, pipeline: str, training: CheckedTraining, reason: str) -> None:
        self._path, self._pipeline, self._training, self._reason = path, pipeline, training, reason

    def __call__(self, holdout: Holdout) -> None:
        from stream_scorer.train.holdout import Opening, record_opening

        record_opening(
            self._path,
            Opening(
                SystemClock().now_ms(),
                current_user(),
                self._pipeline,
                holdout.start,
                holdout.end,
                len(holdout.rows),
                holdout.sha256,
                self._training.sha256,
                self._reason,
            ),
        )


def _print_result(result: CrossValidation) -> None:
    print_table(_fold_table(result.folds))
    table = make_table(
        ("member", "hyperparameters", "!AP", "!± AP", "!AUC", "!CP@100", ""), [], title="Mean of the folds"
    )
    for search in result.members:
        order = sorted(
            range(len(search.candidates)),
            key=lambda index: (-getattr(search.candidates[index].mean, result.objective), index),
        )
        for index in order[:_SHOWN]:
            each = search.candidates[index]
            chosen = "best" if index == search.best and len(order) > 1 else ""
            table.add_row(
                search.name,
                ", ".join(f"{name} {value}" for name, value in each.parameters.items()) or "defaults",
                f"{each.mean.average_precision:.3f}",
                f"{_deviation(each.folds):.3f}",
                f"{each.mean.roc_auc:.3f}",
                _cards(each.mean),
                chosen,
            )
        table.add_section()
    print_table(table)
    rows: list[Any] = [(name, *_cells(figures)) for name, figures in result.ensemble_members.items()]
    table = make_table(
        ("", "!AP", "!AUC", "!CP@100"), rows, title="All folds but the oldest; the ensemble is fitted on earlier folds"
    )
    table.add_section()
    table.add_row("ensemble", *_cells(result.ensemble_mean))
    print_table(table)


def _fold_table(folds: list[FoldReport]) -> Any:
    rows = [
        (
            str(number), f"{_time(fold.train_start)} to {_time(fold.train_end)}", f"{fold.train_rows:,}",
            f"{fold.train_frauds:,}", f"{_time(fold.test_start)} to {_time(fold.test_end)}", f"{fold.test_rows:,}",
            f"{fold.test_frauds:,}",
        )
        for number, fold in enumerate(folds, 1)
    ]  # fmt: skip
    return make_table(("fold", "training", "!rows", "!frauds", "test", "!rows", "!frauds"), rows, title="Folds, UTC")


def _print_holdout(report: HoldoutReport, record: Path) -> None:
    rows = [
        (
            name, f"{figures['average_precision']:.3f}", f"{figures['roc_auc']:.3f}", f"{figures['log_loss']:.4f}",
            f"{figures['card_precision']:.3f}" if "card_precision" in figures else "-",
        )
        for name, figures in report.metrics.items()
    ]  # fmt: skip
    title = f"Holdout {_time(report.start)} to {_time(report.end)}: {report.rows:,} rows, {report.frauds:,} frauds"
    print_table(make_table(("", "!AP", "!AUC", "!log loss", "!CP@100"), rows, title=title))
    click.echo(f"recorded in {record}")


def _cells(figures: Quality) -> tuple[str, str, str]:
    return f"{figures.average_precision:.3f}", f"{figures.roc_auc:.3f}", _cards(figures)


def _cards(figures: Quality) -> str:
    return "-" if figures.card_precision is None else f"{figures.card_precision:.3f}"


def _deviation(folds: list[Quality]) -> float:
    import statistics

    return statistics.stdev(each.average_precision for each in folds)


def _time(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1_000, UTC):%Y-%m-%d %H:%M}"
