"""`stream-scorer features`: export features, show an entity's, compare Redis with the log, rebuild and clean up."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click
import msgspec

from stream_scorer.cli.export import export
from stream_scorer.cli.groups import CommandGroup
from stream_scorer.cli.input_range import period, period_options
from stream_scorer.cli.options import with_settings
from stream_scorer.errors import CheckFailed, StreamScorerError, UsageError
from stream_scorer.settings import Settings

if TYPE_CHECKING:
    from stream_scorer.features.engine import FeatureEngine
    from stream_scorer.kafka.topics import Topics
    from stream_scorer.monitor.drift import Drift
    from stream_scorer.positions import SourcePartition
    from stream_scorer.replay.skew import SkewReport
    from stream_scorer.serde.raw import RawRecords
    from stream_scorer.spec import CheckedSpec
    from stream_scorer.state.rows import FeatureRows

# Interval between two reads of the group's committed offsets.
_POLL_S = 1.0
# How long a rebuild may take to stop.
_STOP_S = 10.0
_SKEW_BATCH = 1_024
_NEEDED = (
    "kafka.bootstrap",
    "redis.url",
    "redis.shards",
    "redis.cluster",
    "topics.prefix",
    "scorer.spec",
    "scorer.id_key",
    "scorer.group",
)


@click.group(cls=CommandGroup)
def features() -> None:
    """Export features for training, show those of an entity, compare them with the log, rebuild and clean up."""


features.add_command(export)


@features.command()
@click.option("--json", "as_json", is_flag=True, help="The report as JSON.")
@with_settings(*_NEEDED)
def check(settings: Settings, as_json: bool) -> None:
    """Recompute every row from the topics and compare it with Redis. Exit code 3 if one differs.

    Stop the scorers of the group first.
    """
    from stream_scorer.app import input_partitions, make_store, open_log
    from stream_scorer.clock import SystemClock
    from stream_scorer.console import Progress
    from stream_scorer.features.check import check_rows
    from stream_scorer.features.engine import FeatureEngine
    from stream_scorer.spec import load_spec

    checked = load_spec(settings.require("scorer.spec"), settings["scorer.id_key"])
    topics, inputs = input_partitions(settings)
    engine = FeatureEngine(checked)
    store = make_store(settings, checked, engine, topics, inputs)
    with open_log(settings) as reader, Progress("recomputing rows", None, SystemClock()) as progress:

        def read(source: SourcePartition, start: int, stop: int) -> Iterator[RawRecords]:
            for records in reader.read(source, start, stop):
                progress.advance(len(records))
                yield records

        found = check_rows(checked, engine, store, read, topics.labels)
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
    else:
        click.echo(
            f"{found.rows:,} rows compared with {found.records:,} records: {found.different:,} differ"
            + (f"; {found.folded:,} were compared by panes" if found.folded else "")
            + (f"; {found.expired:,} have expired" if found.expired else "")
        )
        for example in found.examples:
            click.echo(f"  {example}")
    if found.different:
        raise CheckFailed(
            f"{found.different} of {found.rows} rows differ from the log",
            hint="`stream-scorer features rebuild` rebuilds all rows from the log.",
        )


@features.command()
@with_settings(*_NEEDED)
def rebuild(settings: Settings) -> None:
    """Rebuild all rows from the log, then switch to them.

    The scorers of the group keep using the old rows until then.
    """
    from stream_scorer.app import input_partitions, make_store
    from stream_scorer.features.engine import FeatureEngine
    from stream_scorer.spec import load_spec

    checked = load_spec(settings.require("scorer.spec"), settings["scorer.id_key"])
    topics, inputs = input_partitions(settings)
    engine = FeatureEngine(checked)
    engine.warm()
    live = make_store(settings, checked, engine, topics, inputs)
    applied = live.open()
    if applied is None:
        raise UsageError(
            "Redis has no features of this group and spec", hint="Check --group and --spec, or start a scorer."
        )
    if not applied.complete:
        raise UsageError("the scorers of the group already rebuild their features", hint="Wait until they finish.")
    started = time.monotonic()
    records = _rebuild_rows(settings, checked, engine, live, topics, inputs)
    rate = records / (time.monotonic() - started)
    click.echo(f"{records:,} records processed at {rate:,.0f} per second; the scorers switch by themselves")


def _rebuild_rows(
    settings: Settings,
    checked: CheckedSpec,
    engine: FeatureEngine,
    live: FeatureRows,
    topics: Topics,
    inputs: list[SourcePartition],
) -> int:
    """Rebuild all rows in a new epoch, switch to it, and return the number of processed records.

    Raises:
        StreamScorerError: another process rebuilds the same features.
    """
    from stream_scorer.app import open_log
    from stream_scorer.clock import Deadline, SystemClock
    from stream_scorer.console import Progress
    from stream_scorer.pipeline.catch_up import CatchUp
    from stream_scorer.pipeline.starting_points import find_beginning
    from stream_scorer.positions import Span

    group, records = settings.group("scorer.group"), 0
    progress = Progress("rebuilding rows", None, SystemClock())

    def on_progress(more: int, remaining: int) -> None:
        nonlocal records
        records += more
        progress.stage("rebuilding rows", records, records + remaining)

    with progress, open_log(settings) as reader:
        committed = reader.committed(group, inputs)
        bounds = {s: at for topic in {source.topic for source in inputs} for s, at in reader.bounds(topic).items()}
        built = live.twin(beside=True)
        built.open()
        beginning = find_beginning(reader, topics.transactions, topics.labels, checked)
        built.init({source: bounds[source][0] for source in inputs}, committed, beginning)
        log = open_log(settings)
        work = CatchUp(checked, engine, built.twin(beside=True), log, committed, topics.transactions, on_progress)
        switched = False
        try:
            while not work.ready.wait(_POLL_S):
                if work.failure is not None:
                    raise work.failure
                built.keep()
                work.committed([Span(source, 0, at, -1) for source, at in reader.committed(group, inputs).items()])
            switched = work.stop(Deadline(_STOP_S)) and built.take_over()
        finally:
            work.stop(Deadline(_STOP_S))
            if not switched:
                built.give_up()
            live.delete_old_epochs()
    if not switched:
        raise StreamScorerError("another process rebuilds the same features", hint="Wait until it finishes.")
    return records


@features.command()
@click.option("--force", is_flag=True, help="Delete them even if that is most of the features.")
@with_settings(*_NEEDED)
def expire(settings: Settings, force: bool) -> None:
    """Delete the keys that no scorer will read again. One scorer of the group does this once an hour."""
    import threading

    from stream_scorer.app import input_partitions, make_store, open_log
    from stream_scorer.features.engine import FeatureEngine
    from stream_scorer.pipeline.housekeeping import expire_rows
    from stream_scorer.spec import load_spec
    from stream_scorer.state.rows import MAX_EXPIRED_SHARE

    checked = load_spec(settings.require("scorer.spec"), settings["scorer.id_key"])
    topics, inputs = input_partitions(settings)
    store = make_store(settings, checked, FeatureEngine(checked), topics, inputs)
    inputs_of = [topics.transactions, topics.labels]
    max_share = 1.0 if force else MAX_EXPIRED_SHARE
    deleted = expire_rows(store, lambda: open_log(settings), inputs_of, threading.Event(), max_share)
    click.echo(f"{deleted:,} keys deleted")


@features.command()
@period_options
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 1),
    default=0.01,
    show_default=True,
    help="Maximum share of scores in which a feature may differ from the log.",
)
@click.option("--json", "as_json", is_flag=True, help="The report as JSON.")
@with_settings(*_NEEDED[:1], *_NEEDED[2:-1], "scorer.ensemble", "mlflow.url", "cache.dir")
def skew(settings: Settings, start: str | None, end: str | None, tolerance: float, as_json: bool) -> None:
    """Compare recorded features with a recomputation from the log, and with the ensemble's training profile.

    Exit code 3 if a feature differs from the log in more than --tolerance of the scores, or if no score has it. Drift
    from the training profile is printed too and does not change the exit code.
    """
    from stream_scorer.app import load_serving_ensemble
    from stream_scorer.clock import SystemClock
    from stream_scorer.console import Progress
    from stream_scorer.kafka.range_reader import RangeReader
    from stream_scorer.kafka.topics import TopicAdmin, Topics
    from stream_scorer.monitor.drift import compare
    from stream_scorer.replay import sources
    from stream_scorer.replay.skew import measure_skew, served_features
    from stream_scorer.spec import load_spec

    scored = period(start, end, offsets_allowed=True)
    checked = load_spec(settings.require("scorer.spec"), settings["scorer.id_key"])
    topics = Topics.of(settings)
    TopicAdmin(settings.require("kafka.bootstrap")).require(
        [topics.transactions, topics.labels, topics.lineage], same_count=False
    )
    profile = load_serving_ensemble(settings, checked).manifest.reference_profile
    with RangeReader(settings["kafka.bootstrap"], client_id="stream-scorer-skew") as reader:
        source = sources.from_topics(reader, topics, checked, scored, _SKEW_BATCH, warm=True)
        served = served_features(reader, topics, checked.feature_hash)
        with Progress("comparing features", source.total, SystemClock()) as progress:
            report = measure_skew(checked, source.pieces, source.start, served, profile, progress)
    if not report.scores:
        raise CheckFailed("nothing to compare: the period contains no score")
    drift = {f.name: compare(f.counts, profile[f.name].counts) for f in report.features}
    if as_json:
        document = msgspec.to_builtins(report)
        for feature in document["features"]:
            of = drift[feature["name"]]
            feature |= {"drift_score": of.score, "psi": of.psi, "drift_sufficient": of.sufficient}
        click.echo(msgspec.json.encode(document).decode())
    else:
        _print_skew(report, drift)
    _require_no_skew(report, tolerance)


@features.command()
@click.argument("entity")
@click.argument("owner", metavar="ID")
@click.option("--at", type=click.DateTime(["%Y-%m-%dT%H:%M:%S"]), help="Values at this time (UTC).  [default: newest]")
@click.option("-n", "last", type=click.IntRange(0), default=10, show_default=True, help="Number of its last events.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@with_settings(*_NEEDED)
def show(settings: Settings, entity: str, owner: str, at: datetime | None, last: int, as_json: bool) -> None:
    """Show one entity (such as customer c-17): its features, and its last events and labels."""
    from stream_scorer.app import input_partitions, make_store
    from stream_scorer.features.engine import FeatureEngine
    from stream_scorer.spec import load_spec
    from stream_scorer.state.row_format import KIND, TIME, VALUE, unpack

    checked = load_spec(settings.require("scorer.spec"), settings["scorer.id_key"])
    topics, inputs = input_partitions(settings)
    engine = FeatureEngine(checked)
    keys = engine.row_keys(entity, owner)
    if not keys:
        names = ", ".join(checked.spec.entities) or "none"
        raise UsageError(f"the spec has no entity {entity!r}", hint=f"It has: {names}.")
    store = make_store(settings, checked, engine, topics, inputs)
    if store.open() is None:
        raise UsageError(
            "Redis has no features of this group and spec", hint="Check --group and --spec, or start a scorer."
        )
    stored, applied = store.read(keys)
    row = stored[0]
    if row is None:
        raise UsageError(f"Redis has no row for {entity} {owner!r}", hint="Write the id as it is on the topic.")
    entries = unpack(row)
    panes = int((entries[:, KIND] < -1).sum())
    entries = entries[entries[:, KIND] >= 0]
    newest = int(entries[:, TIME].max())
    now = newest if at is None else int(at.replace(tzinfo=UTC).timestamp() * 1_000)
    values, ages = engine.as_of(entity, stored, now), engine.ages_as_of(applied, topics.transactions, now)
    events = [
        {"time": int(e[TIME]), "amount": int(e[VALUE])}
        if e[KIND] == 0
        else {"time": int(e[TIME]), "labelled_at": int(e[KIND]), "fraud": int(e[VALUE])}
        for e in entries[len(entries) - min(last, len(entries)) :]
    ]
    document: dict[str, Any] = {
        "entity": entity,
        "id": owner,
        "at": now,
        "entries": len(entries),
        "panes": panes,
        "features": values,
        "age_ms": {name: ages[name][0] for name in values},
        "stale": [name for name in values if ages[name][1]],
        "last": events,
    }
    if as_json:
        click.echo(msgspec.json.encode(document).decode())
    else:
        _print_entity(document, newest)


def _print_entity(document: dict[str, Any], newest: int) -> None:
    """Print the features, last events and labels of one entity; `newest` is the event time of its newest entry."""
    size = f"{document['entries']} entries"
    if document["panes"]:
        size += f" and {document['panes']} panes of older entries"
    click.echo(
        f"{document['entity']} {document['id']}: {size}, newest {_shown(newest)}; features at {_shown(document['at'])}"
    )
    click.echo(f"  {'feature':32s} {'value':>12}  {'age':>8}")
    for name, value in document["features"].items():
        age = document["age_ms"][name]
        shown_age = "unknown" if age is None else _duration(age)
        stale = "  stale" if name in document["stale"] else ""
        click.echo(f"  {name:32s} {'none' if value != value else f'{value:g}':>12}  {shown_age:>8}{stale}")
    events = document["last"]
    click.echo(f"  {'event time':19s}  {'amount':>14}" if events else "  the row keeps no single events")
    for event in events:
        if "amount" in event:
            click.echo(f"  {_shown(event['time'])}  {event['amount']:>14,}")
        else:
            change = "labelled fraud" if event["fraud"] > 0 else "no longer fraud"
            click.echo(f"  {_shown(event['time'])}  {change} since {_shown(event['labelled_at'])}")


def _require_no_skew(report: SkewReport, tolerance: float) -> None:
    """Raise `CheckFailed` if a feature differs from the log, or was not compared because no score has it."""
    absent = [f.name for f in report.features if not f.compared]
    wrong = [f.name for f in report.features if f.different > tolerance * f.compared]
    failures, hints = [], []
    if wrong:
        failures.append(
            f"{len(wrong)} features differ from the log in more than {tolerance:.2%} of the scores: {', '.join(wrong)}"
        )
        hints.append("A backlog or late labels explain a difference. Otherwise run `features check`.")
    if absent:
        failures.append(f"nothing to compare for {len(absent)} features, which no score has: {', '.join(absent)}")
        hints.append("Scores lack features while Redis is away or rows are rebuilt: give a period with features.")
    if failures:
        raise CheckFailed("; ".join(failures), hint=" ".join(hints))


def _print_skew(report: SkewReport, drift: dict[str, Drift]) -> None:
    from stream_scorer.console import columns

    click.echo(f"{report.scores:,} scores, {report.without:,} of them without some of their features")
    lines = [["feature", "differ", "mean recorded", "mean from log", "max difference", "drift", "psi"]]
    for f in report.features:
        of = drift[f.name]
        lines.append(
            [
                f.name,
                f"{f.different / f.compared:.2%}" if f.compared else "-",
                *("-" if mean is None else f"{mean:.6g}" for mean in (f.mean_recorded, f.mean_recomputed)),
                f"{f.largest:.6g}",
                f"{of.score:.3f}" + ("" if of.sufficient else " (few)"),
                f"{of.psi:.3f}",
            ]
        )
    for line in columns(lines):
        click.echo(line)


def _duration(ms: int) -> str:
    """A duration in one unit."""
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000)):
        if ms >= 2 * size:
            return f"{ms / size:.1f} {unit}"
    return f"{ms / 1_000:.0f} s"


def _shown(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1_000, UTC).strftime("%Y-%m-%d %H:%M:%S")
