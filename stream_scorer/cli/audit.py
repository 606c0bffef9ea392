"""`stream-scorer audit`: export decisions into a sealed archive, and check one without any service."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from stream_scorer.cli.decided import tolerance_option
from stream_scorer.cli.groups import CommandGroup
from stream_scorer.cli.options import with_settings
from stream_scorer.cli.times import parse_time
from stream_scorer.errors import CheckFailed, UsageError
from stream_scorer.settings import Settings

if TYPE_CHECKING:
    from stream_scorer.audit.findings import AuditReport
    from stream_scorer.audit.seal import Seal

_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)


@click.group(cls=CommandGroup)
def audit() -> None:
    """Export the decisions of a period into a sealed archive; verify an archive without any service."""


@audit.command("export")
@click.argument("folder", type=_FOLDER)
@click.option("--from", "since", metavar="TIME", help="Start of the period (UTC).  [default: beginning of the topics]")
@click.option("--to", "until", metavar="TIME", help="End of the period (UTC), exclusive.  [default: now]")
@click.option("--after", type=_FOLDER, help="Archive that this one continues, without a gap.")
@click.option("--with-transactions", is_flag=True, help="Keep transactions and dead letters whole, not only digests.")
@click.option(
    "--without-models", is_flag=True, help="Keep the manifests of the versions that decided, not their models."
)
@click.option("--sign", "key_file", type=_FILE, help="Sign the seal with this key: Ed25519 (PEM) or a secret.")
@click.option("--json", "as_json", is_flag=True, help="The seal as JSON, without its blocks.")
@with_settings("kafka.bootstrap", "mlflow.url", "topics.prefix", "scorer.ensemble", "cache.dir")
def export(
    settings: Settings,
    folder: Path,
    since: str | None,
    until: str | None,
    after: Path | None,
    with_transactions: bool,
    without_models: bool,
    key_file: Path | None,
    as_json: bool,
) -> None:
    """Export the decisions of a period to FOLDER, which must not exist.

    Contains scores, contributions and lineage of the period, commands from the beginning, incidents, digests of
    transactions and dead letters, and the models that decided. The timestamps of the lineage records, by the scorer's
    clock, decide what belongs to the period.
    """
    from stream_scorer.audit.archive import Archive
    from stream_scorer.audit.export import Scope, Version, export_archive
    from stream_scorer.audit.models import find_version, keep_version
    from stream_scorer.audit.seal import ArchivedVersion
    from stream_scorer.audit.signature import Key, sign
    from stream_scorer.clock import SystemClock
    from stream_scorer.console import Progress
    from stream_scorer.kafka.range_reader import RangeReader
    from stream_scorer.kafka.topics import TopicAdmin, Topics

    if since is not None and after is not None:
        raise click.UsageError("--after begins where that archive ended: do not give --from.")
    now = SystemClock().now_ms()
    scope = Scope(
        None if since is None else parse_time("--from", since),
        now if until is None else parse_time("--to", until),
        None if after is None else Archive(after),
        with_transactions,
    )
    if scope.until > now:
        raise click.UsageError("--to is in the future.")
    begin = scope.since if scope.previous is None else scope.previous.seal.until
    if begin is not None and begin >= scope.until:
        raise click.UsageError("The period ends before it begins.")
    key = None if key_file is None else Key(key_file)
    if key is not None:
        key.sign("")  # a key that cannot sign is refused before the export
    topics = Topics.of(settings)
    TopicAdmin(settings.require("kafka.bootstrap")).require([topics.scores, topics.contributions, topics.lineage])
    TopicAdmin(settings["kafka.bootstrap"]).require([topics.control])

    def keep(root: Path, version: Version) -> ArchivedVersion:
        found = find_version(*version, settings["mlflow.url"], cache, settings["scorer.ensemble"])
        return keep_version(root, found, *version, with_models=not without_models)

    cache = Path(settings["cache.dir"]).expanduser()
    with (
        RangeReader(settings["kafka.bootstrap"], client_id="stream-scorer-audit") as reader,
        Progress("exporting records", None, SystemClock()) as progress,
    ):
        seal = export_archive(reader, topics, folder, scope, keep, now, progress)
    if key is not None:
        sign(folder, seal, key)
    _show_export(folder, seal, as_json)


def _show_export(folder: Path, seal: Seal, as_json: bool) -> None:
    if as_json:
        parts = [msgspec.structs.replace(part, blocks=[]) for part in seal.parts]
        click.echo(msgspec.json.encode(msgspec.structs.replace(seal, parts=parts)).decode())
        return
    counts = {
        topic: sum(part.records for part in seal.of_topic(topic))
        for topic in dict.fromkeys(p.topic for p in seal.parts)
    }
    click.echo(f"{folder}: " + ", ".join(f"{count:,} {topic}" for topic, count in counts.items()))
    click.echo("versions that decided: " + ", ".join(f"{v.ensemble} {v.version}" for v in seal.versions))
    click.echo(f"digest {seal.digest}")
    click.echo("Keep the digest where the author of the archive cannot change it; `audit verify --expect` compares it.")


@audit.command("verify")
@click.argument("folder", type=_FOLDER)
@click.option("--after", type=_FOLDER, help="Archive before this one: check that nothing is missing between them.")
@click.option("--expect", metavar="DIGEST", help="Digest of the seal as it was kept elsewhere.")
@click.option("--key", "key_file", type=_FILE, help="Check the signature with this public key (PEM) or secret.")
@click.option("--models", type=_FOLDER, help="Folder `ensembles` of another archive, for an archive without models.")
@click.option(
    "--spec", "specs", type=_FILE, multiple=True, help="Compare decisions with this spec's policy; repeatable."
)
@tolerance_option
@click.option("--json", "as_json", is_flag=True, help="The report as JSON.")
def verify(
    folder: Path,
    after: Path | None,
    expect: str | None,
    key_file: Path | None,
    models: Path | None,
    specs: tuple[Path, ...],
    tolerance: float,
    as_json: bool,
) -> None:
    """Check the archive in FOLDER without any service. Exit code 3 if anything differs.

    Checks digests and the hash chain, checks that each score has its contribution and lineage, recomputes each score,
    and checks that its version is the one that the commands had put in play.
    """
    from stream_scorer.audit.signature import Key
    from stream_scorer.audit.verify import Expected, verify_archive
    from stream_scorer.clock import SystemClock
    from stream_scorer.console import Progress
    from stream_scorer.spec import load_spec

    if expect is not None and not expect.strip():
        raise click.UsageError("--expect is empty: give the digest that was kept, or leave it out.")
    key = None if key_file is None else Key(key_file)
    wanted = Expected(after, (expect or "").strip().lower(), key, models, [load_spec(spec) for spec in specs])
    with Progress("checking files", None, SystemClock()) as progress:
        report = verify_archive(folder, wanted, tolerance, progress.stage)
    if as_json:
        click.echo(msgspec.json.encode(report).decode())
    else:
        _show_report(report)
    if report.different:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in report.by_kind.items())
        raise CheckFailed(f"the archive {folder} does not hold: {report.different:,} differences ({kinds})")
    if not report.scores:
        raise UsageError(f"the archive {folder} has no scores")


def _show_report(report: AuditReport) -> None:
    from stream_scorer.console import plain

    click.echo(", ".join(f"{count:,} {topic}" for topic, count in report.records.items()))
    versions = ", ".join(f"{count:,} by {version}" for version, count in report.scores.items())
    click.echo(f"scores: {versions or 'none'}; {report.recomputed:,} recomputed")
    click.echo(f"digest {report.digest}")
    click.echo(f"signature: {report.signature}")
    for note in report.notes:
        click.echo(plain(f"note: {note}"))
    for difference in report.first:
        click.echo(plain(f"{difference.kind}: {difference.what}"))
    if not report.different and report.scores:
        click.echo("The archive holds.")
