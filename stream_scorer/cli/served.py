"""`stream-scorer ensemble at`: what served at a time, and who decided it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from stream_scorer.cli.decided import Decided, archive_option, open_decided
from stream_scorer.cli.formatting import percent, when
from stream_scorer.cli.options import with_settings
from stream_scorer.cli.times import parse_time
from stream_scorer.console import plain
from stream_scorer.errors import UsageError
from stream_scorer.settings import Settings

if TYPE_CHECKING:
    from stream_scorer.control.timeline import Decision, Served
    from stream_scorer.records import ServedVersion
    from stream_scorer.replay.recorded import ControlRecord


@click.command("at")
@click.argument("times", nargs=-1, required=True, metavar="TIME...")
@click.option("--name", help="Only this ensemble.")
@archive_option
@click.option("--json", "as_json", is_flag=True, help="One JSON document per line and time.")
@with_settings("kafka.bootstrap", "topics.prefix")
def at(settings: Settings, times: tuple[str, ...], name: str | None, archive: Path | None, as_json: bool) -> None:
    """Show what served at TIME (UTC), and the commands that decided it, by the brokers' clock."""
    from stream_scorer.clock import SystemClock
    from stream_scorer.replay.recorded import control_records

    moments = [parse_time("TIME", text) for text in times]
    if archive is None and max(moments) > (now := SystemClock().now_ms()):
        raise UsageError(f"{when(max(moments))} UTC is in the future", hint=f"It is {when(now)} UTC.")
    with open_decided(settings, archive, "stream-scorer-at", require=False) as decided:
        until = decided.until
        if until is not None and max(moments) >= until:
            raise UsageError(
                f"the archive {archive} ends at {when(until)} UTC, so it does not show what served at "
                f"{when(max(moments))}",
                hint="Name an earlier time, or a later archive.",
            )
        commands = list(control_records(decided.reader, decided.topics))
        if commands and commands[0].offset:
            click.echo(f"control begins at offset {commands[0].offset}: the commands before are lost", err=True)
        answers = [_answer(decided, commands, moment, name) for moment in moments]
    for moment, answer in zip(moments, answers, strict=True):
        if as_json:
            click.echo(msgspec.json.encode({"time": moment, "ensembles": answer, "known_until": until}).decode())
        elif not answer:
            click.echo(f"{when(moment)}: nothing served{f' of {name}' if name else ''}")
        for served in () if as_json else answer:
            for label, fact in _facts(served, until):
                click.echo(plain(f"{label:12} {fact}"))


def _answer(decided: Decided, commands: list[ControlRecord], moment: int, name: str | None) -> list[Served]:
    from stream_scorer.audit.first_score import first_score
    from stream_scorer.control.timeline import served_at

    served = served_at(commands, moment)
    out = []
    for ensemble, found in served.items():
        if name in (None, ensemble):
            try:
                first = first_score(decided.reader, decided.topics, ensemble, found.decided)
            except UsageError:  # no topic lineage
                first = None
            out.append(msgspec.structs.replace(found, first_score=first))
    return out


def _facts(served: Served, known_until: int | None) -> Iterator[tuple[str, str]]:
    """Lines of an answer: what served, and who decided it. Commands are known until `known_until`, None for now."""
    state = served.state
    yield served.ensemble, f"at {when(served.time)} UTC"
    values: Sequence[tuple[str, str]] = (
        ("champion", _version(state.champion)),
        ("last good", _version(state.last_good) if state.last_good else ""),
        ("probation", "yes" if state.probation else ""),
        (
            "canary",
            f"{_version(state.canary.version)} for {percent(state.canary.share)} of the entities"
            if state.canary
            else "",
        ),
        ("shadows", ", ".join(map(_version, state.shadows))),
        ("withdrawn", f"{_version(state.withdrawn)} in shadow" if state.withdrawn else ""),
        ("disabled", ", ".join(member.name for member in state.disabled)),
        ("hold", f"{state.hold.who}: {state.hold.why}" if state.hold else ""),
    )
    for label, value in values:
        if value:
            yield label, value
            if (by := served.since.get(label.replace(" ", "_"))) is not None and label != "probation":
                yield "", f"by {_decision(by)}"
    yield "in force", _decision(served.decided)
    if served.first_score is not None:
        first = served.first_score
        yield "first score", f"{when(first.at)}: event {first.event_id} by {first.version}"
    end = "now" if known_until is None else f"at least {when(known_until)} UTC, the end of the archive"
    yield "until", _decision(served.next) if served.next is not None else end


def _version(version: ServedVersion) -> str:
    return f"{version.version} ({version.manifest_sha256[:12]})"


def _decision(decision: Decision) -> str:
    by = f"{decision.action} by {decision.who} ({decision.author})"
    return f"{by} at {when(decision.timestamp)}, offset {decision.offset}: {decision.why}"
