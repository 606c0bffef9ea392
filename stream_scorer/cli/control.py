"""`stream-scorer ensemble promote|rollback|…`: commands to every scorer, by the control topic."""

from __future__ import annotations

import getpass
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from stream_scorer.cli.options import with_settings
from stream_scorer.errors import StreamScorerError, UsageError
from stream_scorer.settings import Settings

if TYPE_CHECKING:
    from stream_scorer.control.state import Entry, History
    from stream_scorer.ensemble.manifest import Manifest
    from stream_scorer.kafka.control_log import ControlLog
    from stream_scorer.records import Action, DisabledMember, Incident, ScorerStatus, ServedVersion, ServingState

# A scorer says every 5 s that it is there; one that has not for three times as long is gone.
SILENT_MS = 15_000
_SETTINGS = ("kafka.bootstrap", "mlflow.url", "topics.prefix", "cache.dir")
CHAMPION = "champion"
# Commands that `status` shows; --json has all that are remembered.
_SHOWN = 15


def _command(name: str) -> Callable[[Callable[..., None]], click.Command]:
    """A command that is given to scorers: with `--why`, `--who` and `--wait`."""

    def decorate(function: Callable[..., None]) -> click.Command:
        function = click.option(
            "--wait",
            "wait_s",
            type=click.FloatRange(0),
            default=10.0,
            show_default=True,
            help="How many seconds to wait for scorers to follow; 0: not at all.",
        )(function)
        function = click.option("--who", default=getpass.getuser, help="Who says so; default: this user.")(function)
        function = click.option("--why", required=True, help="The reason, kept for ever.")(function)
        return click.command(name)(with_settings(*_SETTINGS)(function))

    return decorate


@dataclass(frozen=True)
class _Found:
    """What a reference named."""

    name: str
    version: ServedVersion
    manifest: Manifest


class _Desk:
    """Where a command is given: the log, its history, and who listens."""

    def __init__(self, settings: Settings) -> None:
        from stream_scorer.control.state import History
        from stream_scorer.kafka.control_log import ControlLog
        from stream_scorer.kafka.topics import TopicAdmin, Topics

        self.settings = settings
        self.topics = Topics(settings["topics.prefix"])
        bootstrap = settings.require("kafka.bootstrap")
        TopicAdmin(bootstrap).require(self.topics.control_topics())
        self.log = ControlLog(bootstrap, self.topics.control)
        self.history: History = History()

    def read(self) -> History:
        """The history up to now."""
        from stream_scorer.control.commands import catch_up

        catch_up(self.log, self.history, self.log.end())
        return self.history

    def state(self, name: str) -> ServingState:
        """What is to serve as `name`."""
        state = self.read().states.get(name)
        if state is None:
            known = ", ".join(sorted(self.history.states)) or "none"
            raise UsageError(f"nothing serves as {name!r}", hint=f"There is: {known}. A first scorer says what serves.")
        return state

    def submit(self, name: str, action: Action, who: str, why: str, wait_s: float, **more: Any) -> None:
        """Give a command, say what became of it, and wait for scorers."""
        from stream_scorer.control.commands import submit
        from stream_scorer.records import Command

        self.read()
        at = time.time_ns() // 1_000_000
        entry = submit(
            self.log,
            self.history,
            lambda offset: Command(
                ensemble=name, action=action, who=who, why=why, at=at, expected_offset=offset, **more
            ),
        )
        if entry.refused:
            raise StreamScorerError(f"refused, at offset {entry.offset} of control: {entry.refused}")
        click.echo(f"{action} {name}: counts, at offset {entry.offset} of control")
        if action in ("promote", "rollback"):
            self._mirror(self.history.states[name])
        if wait_s:
            self._wait(name, entry.offset, wait_s)

    def _mirror(self, state: ServingState) -> None:
        """Move the registry's alias to the champion."""
        from stream_scorer.ensemble.registry import set_alias

        if not state.champion.version.isdigit() or not self.settings["mlflow.url"]:
            return
        try:
            set_alias(state.ensemble, CHAMPION, state.champion.version, self.settings["mlflow.url"])
        except StreamScorerError as error:
            click.echo(f"the alias {CHAMPION} was not moved: {error.message}", err=True)

    def _wait(self, name: str, offset: int, wait_s: float) -> None:
        deadline = time.monotonic() + wait_s
        with _scorers(self.settings, self.topics.scorer_status, name) as statuses:
            while True:
                found = statuses()
                late = [s for s in found if s.wanted_offset < offset]
                if not found or not late or time.monotonic() > deadline:
                    break
        if not found:
            click.echo("no scorer is running: it takes effect when one starts")
        for status in found:
            click.echo(f"{status.instance}: {_said(status, offset)}")
        if late or any(status.problem for status in found):
            raise StreamScorerError("not every scorer is where it should be; the command stands")


def _said(status: ScorerStatus, offset: int) -> str:
    if status.wanted_offset < offset:
        return "has not heard of it yet"
    return status.problem or f"in force, {', '.join(status.in_play)}"


@contextmanager
def _desk(settings: Settings) -> Iterator[_Desk]:
    desk = _Desk(settings)
    try:
        yield desk
    finally:
        desk.log.close()


@contextmanager
def _scorers(settings: Settings, topic: str, name: str | None) -> Iterator[Callable[[], list[ScorerStatus]]]:
    """A look at who runs: each call reads on and gives the scorers that were heard of lately."""
    from stream_scorer.kafka.control_log import ControlLog
    from stream_scorer.records import ScorerStatus

    log: ControlLog = ControlLog(settings["kafka.bootstrap"], topic)
    decode = msgspec.json.Decoder(ScorerStatus).decode
    known: dict[str, ScorerStatus] = {}
    end, at = log.end(), 0

    def look() -> list[ScorerStatus]:
        nonlocal at
        while True:
            records = log.read(0.2)
            for record in records:
                at = record.offset + 1
                known.pop(record.key, None)
                if record.value is not None:
                    known[record.key] = decode(record.value)
            if at >= end or (not records and log.end() <= at):
                break
        now = time.time_ns() // 1_000_000
        alive = [s for s in known.values() if now - s.at < SILENT_MS and name in (None, s.ensemble)]
        return sorted(alive, key=lambda status: status.instance)

    try:
        yield look
    finally:
        log.close()


def _open_incidents(settings: Settings, topic: str) -> list[Incident]:
    from stream_scorer.control.incidents import Incidents
    from stream_scorer.kafka.control_log import ControlLog
    from stream_scorer.kafka.topics import TopicAdmin

    if topic not in TopicAdmin(settings["kafka.bootstrap"]).partitions():
        return []
    book = Incidents(ControlLog(settings["kafka.bootstrap"], topic))
    try:
        return book.open()
    finally:
        book.close()


def _find(settings: Settings, reference: str) -> _Found:
    """What `reference` names, loaded and tested here first."""
    from stream_scorer.ensemble.ensemble import Ensemble
    from stream_scorer.ensemble.registry import keep, parse_reference, resolve
    from stream_scorer.records import ServedVersion

    cache = Path(settings["cache.dir"]).expanduser()
    parsed = parse_reference(reference)
    folder, number = resolve(reference, settings["mlflow.url"] or None, cache)
    ensemble = Ensemble.load(folder, version=number)
    if parsed.folder is not None:
        keep(folder, cache)
    return _Found(parsed.name or ensemble.name, ServedVersion(number, ensemble.digest), ensemble.manifest)


@_command("promote")
@click.argument("reference")
def promote(settings: Settings, reference: str, why: str, who: str, wait_s: float) -> None:
    """Let REFERENCE (name:version, name@alias or a folder) serve; it is on probation beside the one before."""
    found = _find(settings, reference)
    with _desk(settings) as desk:
        desk.submit(found.name, "promote", who, why, wait_s, version=found.version)


@_command("weights")
@click.argument("reference")
@click.argument("weights", nargs=-1, required=True, metavar="MEMBER=WEIGHT...")
def weights(settings: Settings, reference: str, weights: tuple[str, ...], why: str, who: str, wait_s: float) -> None:
    """Promote REFERENCE with other weights: a version of its own, registered where REFERENCE is."""
    from stream_scorer.ensemble.registry import parse_reference, register, resolve
    from stream_scorer.ensemble.reweigh import reweigh

    wanted = dict(map(_weight, weights))
    folder, number = resolve(reference, settings["mlflow.url"] or None, Path(settings["cache.dir"]).expanduser())
    with tempfile.TemporaryDirectory(prefix="stream-scorer-") as made:
        out = Path(made) / "ensemble"
        manifest = reweigh(folder, wanted, out, time.time_ns() // 1_000_000)
        name, new = parse_reference(reference).name, str(out)
        if name:
            told = ", ".join(f"{member}={weight:g}" for member, weight in wanted.items())
            tags = {"stream_scorer.weights_of": f"{name}:{number}", "stream_scorer.weights": told}
            new = f"{name}:{register(out, name, settings['mlflow.url'], tags=tags)}"
        total = sum(member.weight for member in manifest.members)
        click.echo(", ".join(f"{member.name} {member.weight / total:.1%}" for member in manifest.members))
        found = _find(settings, new)
    with _desk(settings) as desk:
        desk.submit(found.name, "promote", who, why, wait_s, version=found.version)


@_command("confirm")
@click.argument("name")
def confirm(settings: Settings, name: str, why: str, who: str, wait_s: float) -> None:
    """End the probation of what serves as NAME: it is good."""
    with _desk(settings) as desk:
        desk.submit(name, "confirm", who, why, wait_s)


@_command("rollback")
@click.argument("name")
def rollback(settings: Settings, name: str, why: str, who: str, wait_s: float) -> None:
    """Go back to the last good version of NAME. It is still loaded: nothing has to be fetched."""
    with _desk(settings) as desk:
        desk.submit(name, "rollback", who, why, wait_s)


@_command("canary")
@click.argument("reference")
@click.option("--share", required=True, help="Share of entities it decides for: 0.1 or 10%.")
@click.option("--until", type=click.DateTime(), help="Event time (UTC) from which the champion decides all again.")
@click.option("--salt", help="Name of the experiment; another salt draws other entities. Default: name:version.")
def canary(
    settings: Settings,
    reference: str,
    share: str,
    until: datetime | None,
    salt: str | None,
    why: str,
    who: str,
    wait_s: float,
) -> None:
    """Let REFERENCE decide for a share of the entities. A larger share keeps those it had."""
    part = _share(share)
    found = _find(settings, reference)
    end = None if until is None else int(until.replace(tzinfo=UTC).timestamp() * 1_000)
    with _desk(settings) as desk:
        desk.submit(found.name, "canary", who, why, wait_s, version=found.version, share=part, until=end, salt=salt)


@_command("shadow")
@click.argument("reference")
def shadow(settings: Settings, reference: str, why: str, who: str, wait_s: float) -> None:
    """Let REFERENCE score every transaction and decide none."""
    found = _find(settings, reference)
    with _desk(settings) as desk:
        desk.submit(found.name, "shadow", who, why, wait_s, version=found.version)


@_command("stop")
@click.argument("name")
@click.argument("version")
def stop(settings: Settings, name: str, version: str, why: str, who: str, wait_s: float) -> None:
    """Take the canary or shadow VERSION of NAME out of play."""
    with _desk(settings) as desk:
        state = desk.state(name)
        canaries = [] if state.canary is None else [state.canary.version]
        served = _named([*canaries, *state.shadows], version)
        desk.submit(name, "stop", who, why, wait_s, version=served)


@_command("retire")
@click.argument("reference")
def retire(settings: Settings, reference: str, why: str, who: str, wait_s: float) -> None:
    """Never let REFERENCE serve again. It must not be serving."""
    found = _find(settings, reference)
    with _desk(settings) as desk:
        desk.submit(found.name, "retire", who, why, wait_s, version=found.version)


@_command("disable")
@click.argument("name")
@click.argument("member")
@click.option("--force", is_flag=True, help="Even if what is left is below the quorum: then everything is fallback.")
def disable(settings: Settings, name: str, member: str, force: bool, why: str, who: str, wait_s: float) -> None:
    """Count on MEMBER of what serves as NAME no longer; the others' weights are renormalised."""
    with _desk(settings) as desk:
        state = desk.state(name)
        manifest = _champion(settings, state)
        wanted = _member(manifest, member)
        off = {d.key for d in state.disabled} | {wanted.key}
        left = _weight_without(manifest, off)
        if left < manifest.quorum and not force:
            raise UsageError(
                f"without {member} {left:.0%} of the weight is left, and the quorum is {manifest.quorum:.0%}",
                hint="Every decision would be the fallback. Roll back instead, or say --force.",
            )
        desk.submit(name, "disable", who, why, wait_s, member=wanted)


@_command("enable")
@click.argument("name")
@click.argument("member")
def enable(settings: Settings, name: str, member: str, why: str, who: str, wait_s: float) -> None:
    """Count on MEMBER again."""
    with _desk(settings) as desk:
        disabled = [d for d in desk.state(name).disabled if d.name == member]
        if not disabled:
            raise UsageError(f"no member {member!r} of {name} is disabled")
        desk.submit(name, "enable", who, why, wait_s, member=disabled[0])


@_command("hold")
@click.argument("name")
def hold(settings: Settings, name: str, why: str, who: str, wait_s: float) -> None:
    """Let no monitor act on NAME until it is released."""
    with _desk(settings) as desk:
        desk.submit(name, "hold", who, why, wait_s)


@_command("release")
@click.argument("name")
def release(settings: Settings, name: str, why: str, who: str, wait_s: float) -> None:
    """End a hold."""
    with _desk(settings) as desk:
        desk.submit(name, "release", who, why, wait_s)


@click.command("status")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@with_settings("kafka.bootstrap", "topics.prefix", "cache.dir", "mlflow.url")
def status(settings: Settings, name: str | None, as_json: bool) -> None:
    """What is to serve (of NAME, or of every ensemble), open incidents, what scorers do, and the last commands."""
    with _desk(settings) as desk:
        history = desk.read()
        with _scorers(settings, desk.topics.scorer_status, name) as look:
            scorers = look()
        incidents = [i for i in _open_incidents(settings, desk.topics.incidents) if name in (None, i.ensemble)]
    states = [state for key, state in sorted(history.states.items()) if name in (None, key)]
    entries = [e for e in history.entries if name is None or (e.command is not None and e.command.ensemble == name)]
    if as_json:
        told = [msgspec.structs.asdict(e.command) if e.command else None for e in entries]
        log = [{"offset": e.offset, "refused": e.refused, "command": c} for e, c in zip(entries, told, strict=True)]
        click.echo(msgspec.json.encode({"states": states, "scorers": scorers, "incidents": incidents, "log": log}))
        return
    if name is not None and not states:
        raise UsageError(f"nothing serves as {name!r}")
    for state in states:
        _show_state(state)
    for incident in incidents:
        held = f" ({incident.held_back})" if incident.held_back else ""
        click.echo(f"{'incident':11} {incident.due} of {incident.version} is due{held}: {incident.why}")
    _show_table(
        ("scorer", "in play", "offset", "problem"),
        [(s.instance, ", ".join(s.in_play), str(s.control_offset), s.problem) for s in scorers],
        "no scorer is running",
    )
    rows = [_told(entry) for entry in entries[-_SHOWN:]]
    _show_table(("offset", "when (UTC)", "who", "what", "why"), rows, "no commands")


COMMANDS = [promote, weights, confirm, rollback, canary, shadow, stop, retire, disable, enable, hold, release, status]


def _told(entry: Entry) -> tuple[str, ...]:
    """A line of the history."""
    c = entry.command
    if c is None:
        return str(entry.offset), "", "", "", f"REFUSED: {entry.refused}"
    more = [
        c.version.version if c.version is not None else "",
        c.member.name if c.member is not None else "",
        f"{c.share:.4g}" if c.share is not None else "",
    ]
    what = " ".join([c.action, *filter(None, more)])
    why = f"REFUSED: {entry.refused}" if entry.refused else c.why
    return str(entry.offset), _time(c.at), c.who, what, why


def _show_state(state: ServingState) -> None:
    facts = {
        state.ensemble: f"{_short(state.champion)} serves{', on probation' if state.probation else ''}",
        "last good": _short(state.last_good) if state.last_good else "none",
        "shadows": ", ".join(map(_short, state.shadows)),
        "disabled": ", ".join(member.name for member in state.disabled),
        "hold": f"{state.hold.who}: {state.hold.why}" if state.hold else "",
    }
    if (at := state.canary) is not None:
        until = f" until {_time(at.until)} (event time)" if at.until is not None else ""
        facts["canary"] = f"{_short(at.version)} decides for {at.share:.4g} of the entities{until}"
    for label, fact in facts.items():
        if fact:
            click.echo(f"{label:11} {fact}")


def _show_table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]], none: str) -> None:
    if not rows:
        click.echo(none)
        return
    table = Table(*columns, box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*row)
    Console(file=sys.stdout).print(table)


def _short(version: ServedVersion) -> str:
    return f"{version.version} ({version.manifest_sha256[:12]})"


def _time(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1_000, UTC):%Y-%m-%d %H:%M:%S}"


def _share(text: str) -> float:
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise UsageError(f"{text!r} is no share", hint="Write 0.1 or 10%: above 0, at most 1.")
    return share


def _weight(text: str) -> tuple[str, float]:
    name, _, weight = text.partition("=")
    try:
        return name, float(weight)
    except ValueError:
        raise UsageError(f"{text!r} is no weight", hint="Write MEMBER=WEIGHT, as in xgb=0.2.") from None


def _named(versions: list[ServedVersion], wanted: str) -> ServedVersion:
    for version in versions:
        if version.version == wanted:
            return version
    known = ", ".join(version.version for version in versions) or "none"
    raise UsageError(f"{wanted!r} is neither canary nor shadow", hint=f"In play beside the champion: {known}.")


def _champion(settings: Settings, state: ServingState) -> Manifest:
    from stream_scorer.ensemble.manifest import read_manifest
    from stream_scorer.ensemble.registry import fetch

    cache, served = Path(settings["cache.dir"]).expanduser(), state.champion
    folder = fetch(state.ensemble, served.version, served.manifest_sha256, settings["mlflow.url"] or None, cache)
    return read_manifest(folder)


def _member(manifest: Manifest, name: str) -> DisabledMember:
    from stream_scorer.ensemble.manifest import member_key
    from stream_scorer.records import DisabledMember

    for member in manifest.members:
        if member.name == name:
            return DisabledMember(name, member_key(member))
    raise UsageError(
        f"{manifest.name} has no member {name!r}", hint=f"Its members: {', '.join(manifest.member_names)}."
    )


def _weight_without(manifest: Manifest, keys: set[str]) -> float:
    """Share of the weight that is left without the members of these keys."""
    from stream_scorer.ensemble.manifest import member_key

    left = sum(member.weight for member in manifest.members if member_key(member) not in keys)
    return left / sum(member.weight for member in manifest.members)
