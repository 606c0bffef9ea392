"""`stream-scorer incident`: list and show incidents, write a page about one, and close one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from stream_scorer.cli.groups import CommandGroup
from stream_scorer.cli.options import reason_option, with_settings
from stream_scorer.console import plain
from stream_scorer.errors import UsageError
from stream_scorer.records import (
    INCIDENT_KINDS,
    NOT_A_RECORD,
    Command,
    Incident,
    MonitorMetric,
    Record,
    ScoreSummary,
)
from stream_scorer.settings import Settings
from stream_scorer.users import current_user

if TYPE_CHECKING:
    from stream_scorer.incidents.log import IncidentLog, IncidentTable
    from stream_scorer.reports.incident_page import IncidentRecords

R = TypeVar("R", bound=Record)
_SHOWN = 100


@click.group(cls=CommandGroup)
def incident() -> None:
    """List, show and close incidents (docs/incidents.md)."""


@incident.command("list")
@click.option("--all", "everything", is_flag=True, help="Also the closed ones.")
@click.option("--kind", type=click.Choice(INCIDENT_KINDS), help="Only this kind.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@with_settings("kafka.bootstrap", "topics.prefix")
def list_command(settings: Settings, everything: bool, kind: str | None, as_json: bool) -> None:
    """List the open incidents, oldest first."""
    from stream_scorer.console import columns

    found = [
        each
        for each in incident_table(settings).newest.values()
        if (everything or each.closed is None) and kind in (None, each.kind)
    ]
    if as_json:
        click.echo(msgspec.json.encode({"incidents": found}).decode())
        return
    if not found:
        click.echo(f"no {'' if everything else 'open '}incidents{f' of kind {kind}' if kind else ''}", err=True)
        return
    rows = [["id", "state", "kind", "opened (UTC)", "subject", "transactions", "what changed"], *map(_row, found)]
    for text in columns(rows):
        click.echo(plain(text))


@incident.command("show")
@click.argument("incident_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="One JSON document, with all records of the incident.")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Also write the page to this file.")
@with_settings("kafka.bootstrap", "topics.prefix")
def show_command(settings: Settings, incident_id: str, as_json: bool, html: Path | None) -> None:
    """Show what happened in incident ID, who is affected, what was done, and what it saved."""
    from stream_scorer.reports.incident_page import facts

    history = _history(settings, incident_id)
    if as_json:
        click.echo(msgspec.json.encode({"incident": history[-1], "records": history}).decode())
    else:
        found = [("incident", history[-1].id), ("kind", history[-1].kind), *facts(history[-1])]
        width = max(len(label) for label, _ in found)
        for label, text in found:
            click.echo(plain(f"{label:{width}}  {text}"))
    if html is not None:
        _write_page(settings, history, html)


@incident.command("page")
@click.argument("incident_id", metavar="ID")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="File to write; by default ID.html."
)
@with_settings("kafka.bootstrap", "topics.prefix")
def page_command(settings: Settings, incident_id: str, output: Path | None) -> None:
    """Write one self-contained HTML page about incident ID, made from the topics alone."""
    history = _history(settings, incident_id)
    path = output or Path(f"{safe_name(history[-1].id)}.html")
    _write_page(settings, history, path)
    click.echo(plain(str(path)))


@incident.command("close")
@click.argument("incident_id", metavar="ID")
@reason_option("The reason; the topic of incidents keeps it permanently.")
@click.option("--who", default=current_user, help="Who closes it; default: this user.")
@with_settings("kafka.bootstrap", "topics.prefix")
def close_command(settings: Settings, incident_id: str, why: str, who: str) -> None:
    """Close incident ID, whose condition the monitor does not see end.

    For a feed that is gone for good, for example. Everything that waits for it goes on, such as the ladder of a canary.
    The monitor opens another incident only when the condition begins anew.
    """
    from stream_scorer.clock import SystemClock

    with _open_log(settings) as log:
        closed = log.close_by(incident_id, who, why, SystemClock().now_ms())
    click.echo(plain(f"{closed.id} is closed by {who}: {why}"))


def safe_name(incident_id: str) -> str:
    """The id as a file name: anyone who may write to the topic can give any id."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", incident_id).lstrip(".-")[:200] or "incident"


def _row(each: Incident) -> list[str]:
    from stream_scorer.reports.incident_page import utc

    affected = each.affected
    transactions = "" if affected is None or affected.transactions is None else f"{affected.transactions:,}"
    state = "open" if each.closed is None else "closed"
    subject = each.subject or f"{each.ensemble} {each.version}"
    why = each.why if len(each.why) <= _SHOWN else f"{each.why[: _SHOWN - 1]}\N{HORIZONTAL ELLIPSIS}"
    return [each.id, state, each.kind, utc(each.opened), subject, transactions, why]


def incident_table(settings: Settings) -> IncidentTable:
    """The topic of incidents. Raises `UsageError` if there is none, or `BrokerUnavailable`."""
    with _open_log(settings) as log:
        return log.read()


def _open_log(settings: Settings) -> closing[IncidentLog]:
    """The log of incidents. Raises `UsageError` if there is no such topic, or `BrokerUnavailable`."""
    from stream_scorer.cli.topic_io import quiet_client
    from stream_scorer.incidents.log import IncidentLog
    from stream_scorer.kafka.control_log import ControlLog
    from stream_scorer.kafka.topics import TopicAdmin, Topics

    quiet_client()
    bootstrap, topic = settings.require("kafka.bootstrap"), Topics.of(settings).incidents
    TopicAdmin(bootstrap).require([topic])
    return closing(IncidentLog(ControlLog(bootstrap, topic), keep_history=True))


def _history(settings: Settings, incident_id: str) -> list[Incident]:
    """The records of an incident. Raises `UsageError` if there is none with this id."""
    history = incident_table(settings).history.get(incident_id)
    if not history:
        raise UsageError(
            f"there is no incident {incident_id!r}", hint="`stream-scorer incident list --all` lists all incidents."
        )
    return history


def _write_page(settings: Settings, history: list[Incident], path: Path) -> None:
    """Write the page. Raises `SettingsError` without the extra `report`, or if the file cannot be written."""
    from stream_scorer.reports.incident_page import incident_page
    from stream_scorer.reports.pages import require_plots, write

    require_plots()
    write(incident_page(_records(settings, history)), path)


def _records(settings: Settings, history: list[Incident]) -> IncidentRecords:
    """What the topics have about an incident, in an order that does not depend on how it is read."""
    from stream_scorer.kafka.topics import Topics
    from stream_scorer.reports.incident_page import IncidentRecords, Traffic, bounds_of

    topics, newest = Topics.of(settings), history[-1]
    start, end = bounds_of(newest)
    read = _stream(settings, topics.score_summaries, ScoreSummary, start, end)
    traffic = Traffic(newest, ((at, summary) for _, _, at, summary in read))
    metrics: list[MonitorMetric] = []
    if newest.kind == "drift":
        found = _read(settings, topics.monitor_metrics, MonitorMetric, start, end)
        metrics = [metric for _, _, metric in found if metric.ensemble == newest.ensemble]
    commands: list[tuple[int, Command]] = []
    if newest.ensemble:
        log = _read(settings, topics.control, Command, 0 if newest.kind == "verdict" else start, end)
        commands = [(offset, command) for _, offset, command in log if command.ensemble == newest.ensemble]
    return IncidentRecords(history, traffic, metrics, commands)


def _read(settings: Settings, topic: str, kind: type[R], start: int, end: int | None) -> list[tuple[int, int, R]]:
    """Timestamp, offset and record of a topic between two record timestamps (ms), in order of partition and offset."""
    found = sorted(_stream(settings, topic, kind, start, end), key=lambda each: each[:2])
    return [(at, offset, record) for _, offset, at, record in found]


def _stream(
    settings: Settings, topic: str, kind: type[R], start: int, end: int | None
) -> Iterator[tuple[int, int, int, R]]:
    """Partition, offset, timestamp and record of a topic between two record timestamps (ms), in no order."""
    from stream_scorer.cli.topic_io import TopicReader

    decode = msgspec.json.Decoder(kind).decode
    with TopicReader(settings["kafka.bootstrap"], topic, client_id="stream-scorer-incident", start=start) as reader:
        for record in _until(reader, end):
            try:
                decoded = decode(record.value or b"")
            except NOT_A_RECORD:
                continue
            yield record.partition, record.offset, record.timestamp_ms, decoded


def _until(reader: Any, end: int | None) -> Iterator[Any]:
    """The records up to the timestamp `end`, ms. Partitions are read interleaved, so all are read to their ends."""
    for record in reader.read_to_end():
        if end is None or record.timestamp_ms <= end:
            yield record
