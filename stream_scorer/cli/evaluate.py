"""`stream-scorer evaluate`: judge several versions of an ensemble on history, by the labels of a stated time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from stream_scorer.cli.datasets import ensemble_dataset, history_datasets, registered_dataset
from stream_scorer.cli.engine import check_engine, chosen_workers, engine_options
from stream_scorer.cli.input_range import check_input, input_options, period
from stream_scorer.cli.options import with_settings
from stream_scorer.cli.outputs import require_writable
from stream_scorer.cli.times import parse_time
from stream_scorer.errors import RegistryUnavailable, UsageError
from stream_scorer.observability.openlineage import Dataset, file_dataset, lineage_run
from stream_scorer.settings import Settings

if TYPE_CHECKING:
    from stream_scorer.ensemble.ensemble import Ensemble
    from stream_scorer.evaluation.distributed import Distribution
    from stream_scorer.evaluation.first_range import FirstRange
    from stream_scorer.evaluation.options import Options
    from stream_scorer.evaluation.result import Evaluation
    from stream_scorer.evaluation.sources import Source
    from stream_scorer.kafka.topics import Topics
    from stream_scorer.spec.model import CheckedSpec

_FILE = click.Path(path_type=Path, dir_okay=False)
# The bootstrap hashes it as a signed number of 64 bits.
MAX_SEED = 2**62


@click.command()
@click.argument("candidates", nargs=-1)
@input_options
@click.option(
    "--labels-as-of",
    help="Labels that were given until this time count: ISO time or epoch ms.  [default: all labels of the input]",
)
@click.option("--budgets", default="0.001,0.005,0.01", show_default=True, help="Alert budgets: shares of transactions.")
@click.option(
    "--cards-per-day",
    default="100",
    show_default=True,
    help="Number of cards per day (k) of the card precision; several with commas.",
)
@click.option(
    "--review-cost", type=click.IntRange(0), default=0, show_default=True, help="Cost of a review, in minor units."
)
@click.option(
    "--segments",
    help="Fields to group by, with commas.  [default: booleans, and categories with at most 50 values, that are not "
    "sensitive]",
)
@click.option(
    "--replicates",
    type=click.IntRange(0),
    default=200,
    show_default=True,
    help="Replicates of the bootstrap; 0 disables intervals.",
)
@click.option("--seed", type=click.IntRange(0, MAX_SEED), default=1, show_default=True, help="Seed of the bootstrap.")
@engine_options
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder for the files.")
@click.option("--html", type=_FILE, help="Write the report as one HTML page.")
@click.option("--experiment", help="Log a run with the report to this experiment of the MLflow server (--mlflow).")
@click.option("--json", "as_json", is_flag=True, help="The result as JSON.")
@with_settings(
    "kafka.bootstrap", "mlflow.url", "topics.prefix", "scorer.spec", "scorer.id_key", "scorer.ensemble", "cache.dir"
)
def evaluate(
    settings: Settings,
    candidates: tuple[str, ...],
    from_topics: bool,
    transactions: Path | None,
    labels: Path | None,
    start: str | None,
    end: str | None,
    warm: bool,
    labels_as_of: str | None,
    engine: str,
    workers: int | None,
    ray_address: str | None,
    out: Path,
    html: Path | None,
    experiment: str | None,
    as_json: bool,
    **measured: object,
) -> None:
    """Evaluate the champion (--ensemble) and CANDIDATES, such as cards:8 or a folder, in one pass over history.

    Features are computed once and each distinct member predicts once. A label that was given after --labels-as-of has
    no effect. An interrupted evaluation continues when the same command runs again. With --experiment, the MLflow
    server must answer before the evaluation begins.
    """
    check_input(from_topics, transactions, labels)
    check_engine(engine, workers, ray_address, from_topics=from_topics)
    _check_page(html)
    require_writable(html)
    scored = period(start, end, offsets_allowed=from_topics)
    as_of = None if labels_as_of is None else parse_time("--labels-as-of", labels_as_of)

    from stream_scorer.clock import SystemClock
    from stream_scorer.console import Progress
    from stream_scorer.evaluation import sources
    from stream_scorer.evaluation.first_range import FirstRange
    from stream_scorer.evaluation.job import evaluate as run
    from stream_scorer.evaluation.job import facts_of
    from stream_scorer.kafka.range_reader import RangeReader
    from stream_scorer.kafka.topics import Topics
    from stream_scorer.spec import load_spec

    checked = load_spec(settings.require("scorer.spec"), settings["scorer.id_key"])
    topics, clock, options = Topics.of(settings), SystemClock(), _options(measured)
    log = None if experiment is None else _open_run_log(settings.require("mlflow.url"), experiment)
    folders, versions = _versions(settings, checked, candidates)
    with lineage_run("evaluate", lambda: _inputs(settings, transactions, labels, folders, versions)) as lineage:
        with ExitStack() as stack:
            if transactions is None:
                bootstrap = settings.require("kafka.bootstrap")
                first = FirstRange(out, facts_of(checked, versions, options), _topic_ids(bootstrap, topics))
                reader = stack.enter_context(RangeReader(bootstrap, client_id="stream-scorer-evaluate"))
                source = sources.from_topics(reader, topics, checked, scored, as_of, warm=warm, first=first)
                _say_range(first)
            else:
                source = sources.from_files(transactions, labels, topics, checked, scored, as_of, warm=warm)
            where = stack.enter_context(_distribution(source, folders, engine, workers, ray_address))
            progress = stack.enter_context(Progress("scoring", source.total, clock))
            result = _not_empty(
                run(source, checked, versions, options, out, clock, on_progress=progress.stage, where=where)
            )
        # First, so that a page that cannot be written costs no figure.
        _show(result, as_json)
        _write_page(result, html)
        if lineage is not None:
            lineage.add(outputs=[Dataset("file", str(out.resolve()), result.digests.all)])
            lineage.add(outputs=[] if html is None else [file_dataset(html)])
    # Last, so that a server that is away by now costs no figure.
    if log is not None:
        log(result)


@contextmanager
def _distribution(
    source: Source, folders: list[Path], engine: str, workers: int | None, ray_address: str | None
) -> Iterator[Distribution | None]:
    """Where the evaluation runs; None for this process. Raises `UsageError`, or as `chosen_workers`."""
    from stream_scorer.evaluation.distributed import Distribution, require_parquet

    if engine == "ray":
        require_parquet(source)
    with chosen_workers(engine, workers, ray_address) as started:
        yield None if started is None else Distribution(started, folders)


def _topic_ids(bootstrap: str, topics: Topics) -> list[str]:
    """The ids of the input topics: offsets of a topic that was created again are others. Raises `UsageError`."""
    from stream_scorer.kafka.topics import TopicAdmin

    admin = TopicAdmin(bootstrap)
    admin.require(topics.inputs(), same_count=False)
    return [admin.topic_id(name) for name in topics.inputs()]


def _say_range(first: FirstRange) -> None:
    """Print to stderr what a later start of the same evaluation does with newer or expired records."""
    if first.newer:
        newer = f"{first.newer:,} newer offsets of the topics are left out"
        click.echo(f"using the offsets of the first start; {newer}: another --out includes them", err=True)
    if first.expired:
        click.echo("the topics no longer have the offsets of the first start: the evaluation begins again", err=True)


def _inputs(
    settings: Settings, transactions: Path | None, labels: Path | None, folders: list[Path], versions: list[Ensemble]
) -> list[Dataset]:
    """History and versions. An ensemble in a folder is the dataset that `train` has written."""
    from stream_scorer.ensemble.registry import LOCAL

    ensembles = [
        ensemble_dataset(folder, each.manifest)
        if each.version.startswith(LOCAL)
        else registered_dataset(settings, each.name, each.digest)
        for folder, each in zip(folders, versions, strict=True)
    ]
    return [*history_datasets(settings, transactions, labels), *ensembles]


def _versions(
    settings: Settings, checked: CheckedSpec, candidates: tuple[str, ...]
) -> tuple[list[Path], list[Ensemble]]:
    """The champion, then the candidates: their folders, and themselves. Raises `UsageError` if two are the same."""
    from stream_scorer.ensemble.ensemble import Ensemble
    from stream_scorer.ensemble.registry import resolve

    cache, folders, found = Path(settings["cache.dir"]).expanduser(), [], []
    of_digest: dict[str, str] = {}
    for reference in (settings["scorer.ensemble"], *candidates):
        folder, version = resolve(reference, settings["mlflow.url"], cache)
        ensemble = Ensemble.load(folder, version=version)
        ensemble.check_features(checked.features, checked.feature_hash)
        if (same := of_digest.get(ensemble.digest)) is not None:
            what = "the champion" if same == settings["scorer.ensemble"] else "another candidate"
            raise UsageError(
                f"{reference} is {what}: it has the same manifest as {same}",
                hint="Give another version. The champion is that of --ensemble.",
            )
        of_digest[ensemble.digest] = reference
        folders.append(folder)
        found.append(ensemble)
    return folders, found


def _options(measured: dict[str, object]) -> Options:
    """The options of the command as `Options`. Raises `click.UsageError`."""
    from stream_scorer.evaluation.options import Options

    def numbers(name: str, kind: type[int] | type[float]) -> list[float]:
        try:
            return [kind(part) for part in str(measured[name]).split(",")]
        except ValueError:
            raise click.UsageError(f"--{name.replace('_', '-')} {measured[name]}: not numbers with commas.") from None

    segments = measured["segments"]
    return Options(
        budgets=tuple(numbers("budgets", float)),
        cards_per_day=[int(k) for k in numbers("cards_per_day", int)],
        review_cost=int(str(measured["review_cost"])),
        segments=None if segments is None else tuple(str(segments).split(",")),
        replicates=int(str(measured["replicates"])),
        seed=int(str(measured["seed"])),
    )


def _not_empty(result: Evaluation) -> Evaluation:
    """`result`. Raises `UsageError` if nothing was evaluated."""
    if not result.transactions:
        raise UsageError(
            f"there is nothing to evaluate: no transaction of the input is in the range {result.input['range']} "
            f"({result.refused:,} cannot be read)",
            hint="Check --start and --end, the spec and the file.",
        )
    return result


def _check_page(html: Path | None) -> None:
    """Raise `SettingsError` now, not after hours, if a page is wanted and the extra `report` is missing."""
    if html is not None:
        from stream_scorer.reports.pages import require_plots

        require_plots()


def _write_page(result: Evaluation, path: Path | None) -> None:
    if path is None:
        return
    from stream_scorer.reports.evaluation import page
    from stream_scorer.reports.pages import write

    write(page(result), path)
    click.echo(f"wrote {path}", err=True)


def _open_run_log(tracking_uri: str, experiment: str) -> Callable[[Evaluation], None]:
    """Open the experiment; returns what logs a result to it.

    The experiment is opened before the transactions are scored: a wrong address or password costs seconds, not hours.

    Raises:
        SettingsError: an extra is missing. RegistryUnavailable, AccessDenied, ArtifactError: the server is away or
            refuses, now or when a result is logged.
    """
    from stream_scorer.ensemble.tracking import log_run, open_experiment
    from stream_scorer.reports.evaluation import page
    from stream_scorer.reports.evaluation_run import run_record
    from stream_scorer.reports.pages import require_plots

    require_plots()
    try:
        experiment_id = open_experiment(tracking_uri, experiment)
    except RegistryUnavailable as error:
        raise RegistryUnavailable(error.message, hint="Start it, or leave out --experiment.") from error

    def log(result: Evaluation) -> None:
        try:
            run_id = log_run(tracking_uri, experiment_id, run_record(result, page(result)))
        except RegistryUnavailable as error:
            hint = f"The results are complete in {result.out}: the same command logs them without scoring again."
            raise RegistryUnavailable(f"the run is not logged: {error.message}", hint=hint) from error
        click.echo(f"logged run {run_id} to the experiment {experiment}", err=True)

    return log


def _show(result: Evaluation, as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.encode(result).decode())
        return
    from stream_scorer.console import make_table, print_table
    from stream_scorer.reports.evaluation_tables import summary_lines, tables

    for line in summary_lines(result):
        click.echo(line)
    for title, headings, rows in tables(result):
        print_table(make_table(headings, rows, title=title))
    click.echo(f"wrote {result.out}")
