"""`stream-scorer ensemble promote|rollback|…`: commands to all scorers through the control topic."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from stream_scorer.cli.datasets import registered_dataset, topic_dataset
from stream_scorer.cli.formatting import percent
from stream_scorer.cli.options import reason_option, with_settings
from stream_scorer.console import make_table, plain, print_table
from stream_scorer.errors import CheckFailed, StreamScorerError, UsageError
from stream_scorer.observability.openlineage import Dataset, lineage_run
from stream_scorer.settings import SETTINGS_FILE, Settings
from stream_scorer.users import current_user

if TYPE_CHECKING:
    from stream_scorer.control.liveness import RunningScorers
    from stream_scorer.control.state import Entry, History
    from stream_scorer.ensemble.ensemble import Ensemble
    from stream_scorer.ensemble.manifest import Manifest
    from stream_scorer.kafka.control_log import ControlLog
    from stream_scorer.records import (
        Action,
        CanaryState,
        DisabledMember,
        Incident,
        ScorerStatus,
        ServedVersion,
        ServingState,
        VerdictRecord,
    )

_SETTINGS = ("kafka.bootstrap", "mlflow.url", "topics.prefix", "cache.dir")
_GATE_SETTINGS = ("gate.rules", "scorer.spec", "scorer.id_key")
# Number of commands that `status` shows; --json prints all that `History` keeps.
_SHOWN = 15


def _command(name: str, *more: str) -> Callable[[Callable[..., None]], click.Command]:
    """A click command that submits a control command: adds `--why`, `--who` and `--wait`, and the settings `more`."""

    def decorate(function: Callable[..., None]) -> click.Command:
        function = click.option(
            "--wait",
            "wait_s",
            type=click.FloatRange(0),
            default=10.0,
            show_default=True,
            help="Seconds to wait until all scorers apply the command; 0 does not wait.",
        )(function)
        function = click.option("--who", default=current_user, help="Author of the command; default: this user.")(
            function
        )
        function = reason_option("The reason; the control topic keeps it permanently.")(function)
        return click.command(name)(with_settings(*_SETTINGS, *more)(function))

    return decorate


@dataclass(frozen=True)
class _Found:
    """The version that a reference resolves to."""

    name: str
    version: ServedVersion
    manifest: Manifest


class _Console:
    """Submits commands: owns the control log and its history, and reads the status of scorers."""

    def __init__(self, settings: Settings) -> None:
        from stream_scorer.control.state import History
        from stream_scorer.kafka.control_log import ControlLog
        from stream_scorer.kafka.topics import TopicAdmin, Topics

        self.settings = settings
        self.topics = Topics.of(settings)
        bootstrap = settings.require("kafka.bootstrap")
        TopicAdmin(bootstrap).require(self.topics.control_topics())
        self.log = ControlLog(bootstrap, self.topics.control)
        self.history: History = History()

    def read(self) -> History:
        """The history up to the end of the log."""
        from stream_scorer.control.commands import catch_up

        catch_up(self.log, self.history, self.log.end())
        return self.history

    def state(self, name: str) -> ServingState:
        """The serving state of the ensemble `name`."""
        state = self.require_commands(name).states.get(name)
        if state is None:
            known = ", ".join(sorted(self.history.states)) or "none"
            raise UsageError(
                f"no version of {name!r} serves",
                hint=f"Ensembles that serve: {known}. Submit `stream-scorer ensemble promote {name}:VERSION --why …`, "
                "or start a scorer, which proposes its version.",
            )
        return state

    def require_commands(self, name: str) -> History:
        """What `read` returns. Raises `StreamScorerError` if the log has lost the commands of the ensemble `name`."""
        from stream_scorer.control.recovery import require_commands

        require_commands(self.log, self.read(), self.open_states, name)
        return self.history

    def open_states(self) -> ControlLog:
        """The topic `serving-state`, from its start."""
        from stream_scorer.kafka.control_log import ControlLog

        return ControlLog(self.settings["kafka.bootstrap"], self.topics.serving_state)

    def submit(self, name: str, action: Action, who: str, why: str, wait_s: float, **more: Any) -> int:
        """Submit a command, print whether it counts, wait until the scorers apply it, and return its offset."""
        from stream_scorer.control.commands import submit
        from stream_scorer.records import Command

        if action == "recover":
            self.read()
        else:
            self.require_commands(name)
        at = time.time_ns() // 1_000_000
        entry = submit(
            self.log,
            self.history,
            lambda offset: Command(
                ensemble=name, action=action, who=who, why=why, at=at, expected_offset=offset, **more
            ),
        )
        if entry.refused:
            raise StreamScorerError(f"the command at control offset {entry.offset} is refused: {entry.refused}")
        version = more.get("version")
        what = name if version is None else f"{name}:{_short(version)}"
        share = f" for {percent(more['share'])} of the entities" if "share" in more else ""
        click.echo(plain(f"{action} {what}{share}: accepted at control offset {entry.offset}"))
        if action in ("promote", "rollback"):
            self._move_alias(self.history.states[name])
        if wait_s:
            self._wait(name, entry, wait_s)
        return entry.offset

    def warn_unjudged(self, found: _Found, *, canary: bool = False) -> None:
        """Print a warning if a promotion or canary of `found` cannot be compared because of a disabled member."""
        state = self.read().states.get(found.name)
        if state is None or not state.disabled:
            return
        other = state.last_good if state.probation and not canary and state.last_good else state.champion
        try:
            before = _load_manifest(self.settings, found.name, other)
        except StreamScorerError:
            return  # the warning is no condition of the command
        off = {member.key: member.name for member in state.disabled}
        if names := ", ".join(sorted({off[key] for key in _lacking_in_one(found.manifest, before, off.keys())})):
            text = f"the monitor does not judge this version while {names} is disabled"
            click.echo(plain(f"{text}: version {other.version} does not have the same member"), err=True)

    def _move_alias(self, state: ServingState) -> None:
        """Move the alias `champion` in the registry to the version that serves, unless a setting forbids it."""
        from stream_scorer.control.aliases import CHAMPION
        from stream_scorer.ensemble.registry import set_alias

        if not state.champion.version.isdigit() or not self.settings["mlflow.champion_alias"]:
            return
        try:
            self.settings.refuse_mixed("mlflow.url")
            if url := self.settings["mlflow.url"]:
                set_alias(state.ensemble, CHAMPION, state.champion.version, url)
        except StreamScorerError as error:
            click.echo(f"the alias {CHAMPION} was not moved: {error.message}", err=True)

    def _wait(self, name: str, entry: Entry, wait_s: float) -> None:
        """Wait until every scorer has applied the command. Raises `StreamScorerError` if one has not."""
        deadline = time.monotonic() + wait_s
        versions = _put_in_play(entry)
        with _open_scorers(self.settings, self.topics.scorer_status, name) as reader:
            while True:
                reader.read()
                known = reader.scorers.known()
                done = all(seen.serves(entry.offset, versions) or seen.settled(entry.offset) for seen in known)
                if done or time.monotonic() > deadline:
                    break
        now = max(entry.timestamp, reader.scorers.now)
        missing = {seen.status.instance: seen.missing(entry.offset, now, versions) for seen in known}
        if not known:
            click.echo("no scorer is running: the command takes effect when one starts")
        for seen in known:
            applied = f"applied; versions in play: {', '.join(seen.status.in_play)}"
            applied += f" (note: {seen.status.problem})" if seen.status.problem else ""
            click.echo(plain(f"{seen.status.instance}: {missing[seen.status.instance] or applied}"))
        if late := ", ".join(instance for instance, text in missing.items() if text):
            raise StreamScorerError(
                f"not followed: the command is accepted, but not applied by {late}",
                hint="`stream-scorer ensemble status` shows the scorers and their problems.",
            )


def _put_in_play(entry: Entry) -> list[str]:
    """The version that a command puts in play, if any."""
    command = entry.command
    if command is None or command.version is None or command.action not in ("promote", "canary", "shadow"):
        return []
    return [command.version.version]


@contextmanager
def _open_console(settings: Settings) -> Iterator[_Console]:
    console = _Console(settings)
    try:
        yield console
    finally:
        console.log.close()


@contextmanager
def _open_scorers(settings: Settings, topic: str, name: str | None) -> Iterator[RunningScorers]:
    from stream_scorer.control.liveness import RunningScorers
    from stream_scorer.kafka.control_log import ControlLog

    log: ControlLog = ControlLog(settings["kafka.bootstrap"], topic)
    try:
        yield RunningScorers(log, name)
    finally:
        log.close()


def _open_incidents(settings: Settings, topic: str) -> list[Incident]:
    from stream_scorer.control.incidents import Incidents
    from stream_scorer.kafka.control_log import ControlLog
    from stream_scorer.kafka.topics import TopicAdmin

    if topic not in TopicAdmin(settings["kafka.bootstrap"]).partitions():
        return []
    incidents = Incidents(ControlLog(settings["kafka.bootstrap"], topic))
    try:
        return incidents.open()
    finally:
        incidents.close()


def _read_verdicts(settings: Settings, topic: str, history: History) -> list[VerdictRecord]:
    """The newest verdict on each version that is compared with another one now, or was last and is judged by labels."""
    from stream_scorer.control.collection import withdrawals
    from stream_scorer.control.incidents import incident_id
    from stream_scorer.control.probation import comparisons
    from stream_scorer.control.verdicts import read_verdicts
    from stream_scorer.kafka.control_log import ControlLog
    from stream_scorer.kafka.topics import TopicAdmin

    # By id, the time of the command that began the comparison: offsets repeat if `control` was created again.
    now = {incident_id(each): each.at for state in history.states.values() for each in comparisons(state, history)}
    now |= {found.id: found.at for found in withdrawals(history)}
    if topic not in TopicAdmin(settings["kafka.bootstrap"]).partitions():
        return []
    log: ControlLog = ControlLog(settings["kafka.bootstrap"], topic)
    try:
        found = read_verdicts(log)
    finally:
        log.close()
    last = {verdict.ensemble: key for key, verdict in found.items()}
    judged = [key for key, v in found.items() if v.labels is not None and last[v.ensemble] == key]
    current = [key for key, v in found.items() if key in now and v.began in (0, now[key])]
    return [v for key, v in found.items() if key in current or key in judged]


def _find(settings: Settings, reference: str) -> _Found:
    """Resolve `reference`, load the ensemble and run its self-test on this machine.

    Raises:
        ArtifactError: it does not load, or is registered under another name than that of its manifest.
    """
    from stream_scorer.ensemble.ensemble import Ensemble
    from stream_scorer.ensemble.registry import keep, parse_reference, resolve
    from stream_scorer.records import ServedVersion

    cache = Path(settings["cache.dir"]).expanduser()
    parsed = parse_reference(reference)
    folder, number = resolve(reference, settings["mlflow.url"], cache, stale_alias=False)
    ensemble = Ensemble.load(folder, version=number)
    if parsed.folder is not None:
        keep(folder, cache)
    else:
        ensemble.check_name(parsed.name)
    return _Found(parsed.name or ensemble.name, ServedVersion(number, ensemble.digest), ensemble.manifest)


_expect_rise = click.option(
    "--expect-rise",
    "expect_rise",
    metavar="SHARE",
    help="Change of alerted cards that the evaluation predicts, such as 10% or -0.05; tolerances are relative to it.",
)


def _gate_options(command: Callable[..., None]) -> Callable[..., None]:
    """The flags --skip-gate and --training-set."""
    skip_gate = click.option(
        "--skip-gate",
        "skip_gate",
        metavar="REASON",
        help="Promote without the check of the setting gate.rules; the control topic keeps the reason.",
    )
    training_set = click.option(
        "--training-set",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Training set for the rule leak of the gate, from `train --save-set`.",
    )
    return skip_gate(training_set(command))


def _pass_gate(settings: Settings, found: _Found, why: str, skip_gate: str | None, training_set: Path | None) -> str:
    """Run the gate if there is one. Returns the reason of the command, with the result of the gate.

    Raises:
        UsageError: a flag or a variable sets an empty path, which would skip the gate without a note on `control`.
        CheckFailed: a rule refuses the version, or another version serves since the gate began.
    """
    from stream_scorer.cli.gate import check_reason, gate_promotion

    check_reason(skip_gate)
    if skip_gate is not None:
        return f"{why} [gate skipped: {skip_gate}]"
    rules, source = settings["gate.rules"], settings.source("gate.rules")
    if not rules and source in ("default", SETTINGS_FILE):
        return why
    if not rules.strip():
        raise UsageError(
            f"gate.rules is empty (from {source})",
            hint="Name the rules file; --skip-gate REASON promotes without the gate.",
        )
    with _open_console(settings) as console:
        before = console.require_commands(found.name).states.get(found.name)
    # The version that is submitted, even if an alias moves meanwhile.
    candidate = _fetch(settings, found.name, found.version), found.version.version
    champion = None if before is None else _load(settings, found.name, before.champion)
    report = gate_promotion(settings, candidate, champion, training_set)
    with _open_console(settings) as console:
        now = console.read().states.get(found.name)
    if now is not None and (before is None or before.champion != now.champion):
        compared = "no version" if before is None else f"version {before.champion.version}"
        raise CheckFailed(
            f"the gate compared with {compared}, but {now.champion.version} serves now",
            hint="Repeat the command.",
        )
    return f"{why} [gate passed: rules {report.rules_sha256[:12]}]"


def _fetch(settings: Settings, name: str, version: ServedVersion) -> Path:
    """The folder of exactly this version: from the cache, else from the registry."""
    from stream_scorer.ensemble.registry import fetch

    cache = Path(settings["cache.dir"]).expanduser()
    return fetch(name, version.version, version.manifest_sha256, settings["mlflow.url"], cache)


def _load(settings: Settings, name: str, version: ServedVersion) -> Ensemble:
    from stream_scorer.ensemble.ensemble import Ensemble

    return Ensemble.load(_fetch(settings, name, version), version=version.version)


@_command("promote", *_GATE_SETTINGS)
@click.argument("reference")
@_expect_rise
@_gate_options
def promote(
    settings: Settings,
    reference: str,
    expect_rise: str | None,
    skip_gate: str | None,
    training_set: Path | None,
    why: str,
    who: str,
    wait_s: float,
) -> None:
    """Make REFERENCE (a folder, name@alias or name:version) the version that serves.

    With the setting gate.rules, it must pass these rules first; exit code 3 if it does not. It is on probation: the
    previous version scores the same transactions, for comparison and rollback.
    """
    expected = None if expect_rise is None else _rise(expect_rise)
    found = _find(settings, reference)

    def inputs() -> list[Dataset]:
        return [registered_dataset(settings, found.name, found.version.manifest_sha256)]

    with lineage_run("promote", inputs) as lineage:
        why = _pass_gate(settings, found, why, skip_gate, training_set)
        with _open_console(settings) as console:
            console.warn_unjudged(found)
            offset = console.submit(
                found.name, "promote", who, why, wait_s, version=found.version, expect_rise=expected
            )
            if lineage is not None:
                lineage.add(outputs=[topic_dataset(settings, console.topics.control, str(offset))])


@_command("weights", *_GATE_SETTINGS)
@click.argument("reference")
@click.argument("weights", nargs=-1, required=True, metavar="MEMBER=WEIGHT...")
@_gate_options
def weights(
    settings: Settings,
    reference: str,
    weights: tuple[str, ...],
    skip_gate: str | None,
    training_set: Path | None,
    why: str,
    who: str,
    wait_s: float,
) -> None:
    """Promote REFERENCE with other weights, as a new version. A registered REFERENCE gives a registered version.

    With the setting gate.rules, the new version must pass these rules first.
    """
    from stream_scorer.ensemble.registry import parse_reference, register, resolve
    from stream_scorer.ensemble.reweigh import reweigh

    wanted = dict(map(_weight, weights))
    cache = Path(settings["cache.dir"]).expanduser()
    folder, number = resolve(reference, settings["mlflow.url"], cache, stale_alias=False)
    with tempfile.TemporaryDirectory(prefix="stream-scorer-") as made:
        out = Path(made) / "ensemble"
        manifest = reweigh(folder, wanted, out, time.time_ns() // 1_000_000)
        parsed, new = parse_reference(reference), str(out)
        if parsed.registered:
            name = parsed.name
            text = ", ".join(f"{member}={weight:g}" for member, weight in wanted.items())
            tags = {"stream_scorer.weights_of": f"{name}:{number}", "stream_scorer.weights": text}
            new = f"{name}:{register(out, name, settings['mlflow.url'], tags=tags)}"
        total = sum(member.weight for member in manifest.members)
        click.echo(", ".join(f"{member.name} {member.weight / total:.1%}" for member in manifest.members))
        found = _find(settings, new)
        why = _pass_gate(settings, found, why, skip_gate, training_set)
    with _open_console(settings) as console:
        console.warn_unjudged(found)
        console.submit(found.name, "promote", who, why, wait_s, version=found.version)


@_command("confirm")
@click.argument("name")
@click.option("--canary", is_flag=True, help="Confirm the canary at its share; the share does not change.")
def confirm(settings: Settings, name: str, canary: bool, why: str, who: str, wait_s: float) -> None:
    """End the probation of the version of NAME that serves, and keep it."""
    with _open_console(settings) as console:
        state = console.state(name)
        if canary and state.canary is None:
            raise UsageError(f"{name} has no canary")
        version = state.canary.version if canary and state.canary is not None else None
        console.submit(name, "confirm", who, why, wait_s, version=version)


@_command("rollback")
@click.argument("name")
def rollback(settings: Settings, name: str, why: str, who: str, wait_s: float) -> None:
    """Return to the last good version of NAME. Scorers still have it in memory, so they download nothing."""
    with _open_console(settings) as console:
        console.submit(name, "rollback", who, why, wait_s)


@_command("recover")
@click.argument("name")
@click.option("--from", "reference", help="Recover only this version (name:version), if no state is recorded.")
def recover(settings: Settings, name: str, reference: str | None, why: str, who: str, wait_s: float) -> None:
    """Restore the state of NAME after the topic `control` has lost its commands.

    The state is the last one on `serving-state`. The command contains it, so that every reader serves it.
    """
    from stream_scorer.control.recovery import newest_state
    from stream_scorer.records import ServingState

    found = None if reference is None else _find(settings, reference)
    if found is not None and found.name != name:
        raise UsageError(f"{reference} is a version of {found.name}, not of {name}")
    with _open_console(settings) as console:
        if name in console.read().states:
            raise UsageError(f"the topic control has the state of {name!r}: there is nothing to recover")
        log = console.open_states()
        try:
            state = newest_state(log, name)
        finally:
            log.close()
        if found is not None and state is not None:
            raise UsageError(
                f"a state of {name} is recorded, in which {_short(state.champion)} serves: --from would lose its last "
                "good version, its retired versions, its disabled members and its hold",
                hint=f"Leave out --from. If another version is to serve, promote it afterwards: {reference}.",
            )
        if found is not None:
            state = ServingState(ensemble=name, control_offset=0, champion=found.version, who=who, why=why, at=0)
        if state is None:
            raise UsageError(f"no state of {name!r} is recorded", hint="Give the version with --from name:version.")
        console.submit(name, "recover", who, why, wait_s, state=state)
        _show_state(console.history.states[name])


@_command("canary")
@click.argument("reference")
@click.option(
    "--share", help="Share of the entities that the canary decides, such as 10% or 0.1; from 1 on with a percent sign."
)
@click.option("--ladder", is_flag=True, help="Let the monitor raise the share step by step (setting monitor.ladder).")
@click.option("--until", type=click.DateTime(), help="Event time (UTC) at which the canary ends.")
@click.option("--no-until", "endless", is_flag=True, help="Remove the end that the canary has.")
@click.option("--salt", help="Seed of the draw: another salt selects other entities.  [default: name:version]")
@_expect_rise
def canary(
    settings: Settings,
    reference: str,
    share: str | None,
    ladder: bool,
    until: datetime | None,
    endless: bool,
    salt: str | None,
    expect_rise: str | None,
    why: str,
    who: str,
    wait_s: float,
) -> None:
    """Let REFERENCE decide for a share of the entities. If the share grows, it keeps the entities that it has.

    A canary that is in play keeps its salt, its end and its expected change of alerts, unless they are given again.

    With --ladder, the first share is that of the ladder, unless --share gives another one. The monitor raises it after
    each confirmation, and promotes the version after the last one.
    """
    from stream_scorer.control.ladder import parse_ladder

    steps = parse_ladder(settings["monitor.ladder"]) if ladder else None
    if share is not None:
        fraction = _share(share)
    elif steps is not None:
        fraction = steps[0]
    else:
        raise UsageError("a canary needs --share or --ladder")
    if until is not None and endless:
        raise click.UsageError("Give either --until or --no-until.")
    given: dict[str, Any] = {
        "until": None if until is None else int(until.replace(tzinfo=UTC).timestamp() * 1_000),
        "salt": salt,
        "expect_rise": None if expect_rise is None else _rise(expect_rise),
    }
    _require_future(given["until"])
    found = _find(settings, reference)
    with _open_console(settings) as console:
        state = console.read().states.get(found.name)
        before = None if state is None else state.canary
        if before is not None and before.version == found.version and before.share < fraction and not before.confirmed:
            click.echo(f"the canary is not confirmed at its share of {percent(before.share)} yet", err=True)
        if before is not None and before.version == found.version:
            given = _keep_terms(before, given, endless=endless)
        console.warn_unjudged(found, canary=True)
        more = {"version": found.version, "share": fraction, "ladder": steps} | given
        console.submit(found.name, "canary", who, why, wait_s, **more)


def _require_future(until: int | None) -> None:
    """Raise `UsageError` for the end of a canary that would decide nothing."""
    if until is not None and until <= time.time_ns() // 1_000_000:
        raise UsageError(
            f"a canary until {_time(until)} (event time, UTC) decides no transaction from now on",
            hint="Give a later --until, or --no-until.",
        )


def _keep_terms(before: CanaryState, given: dict[str, Any], *, endless: bool) -> dict[str, Any]:
    """`given`, with the terms of the canary `before` of the same version for those that are None. Prints these."""
    kept: dict[str, Any] = {
        "until": None if endless else before.until,
        "salt": before.salt,
        "expect_rise": before.expect_rise,
    }
    kept = {name: value for name, value in kept.items() if given[name] is None and value is not None}
    _require_future(kept.get("until"))
    if kept:
        texts: dict[str, Callable[[Any], str]] = {
            "until": lambda until: f"the end at {_time(until)} (event time, UTC)",
            "salt": lambda salt: f"the salt {salt}",
            "expect_rise": lambda rise: f"the expected change of alerts of {100 * rise:+.4g} %",
        }
        click.echo(plain(f"the canary keeps {', '.join(texts[name](value) for name, value in kept.items())}"))
    return given | kept


@_command("shadow")
@click.argument("reference")
def shadow(settings: Settings, reference: str, why: str, who: str, wait_s: float) -> None:
    """Let REFERENCE score every transaction without deciding any. Changes nothing if it is a shadow already."""
    found = _find(settings, reference)
    with _open_console(settings) as console:
        state = console.read().states.get(found.name)
        if state is not None and found.version in state.shadows:
            click.echo(f"{found.name}:{found.version.version} is a shadow already")
            return
        console.submit(found.name, "shadow", who, why, wait_s, version=found.version)


@_command("stop")
@click.argument("name")
@click.argument("version")
def stop(settings: Settings, name: str, version: str, why: str, who: str, wait_s: float) -> None:
    """Stop the canary or shadow VERSION of NAME, also a version that the monitor withdrew and keeps in shadow."""
    with _open_console(settings) as console:
        state = console.state(name)
        canaries = [] if state.canary is None else [state.canary.version]
        withdrawn = [] if state.withdrawn is None else [state.withdrawn]
        served = _named([*canaries, *state.shadows, *withdrawn], version)
        console.submit(name, "stop", who, why, wait_s, version=served)


@_command("retire")
@click.argument("reference")
def retire(settings: Settings, reference: str, why: str, who: str, wait_s: float) -> None:
    """Exclude REFERENCE from serving permanently. It must not serve now.

    Its files need not be readable. A version of a folder is NAME:local-…, as `status` shows it.
    """
    with _open_console(settings) as console:
        name, version = _find_to_retire(settings, console.read(), reference)
        console.submit(name, "retire", who, why, wait_s, version=version)


def _find_to_retire(settings: Settings, history: History, reference: str) -> tuple[str, ServedVersion]:
    """The name and version of `reference`. Its files are not loaded: they may be damaged, or gone.

    A version in play is known by the state. Any other is looked up, or else known by the last command about it.
    """
    from stream_scorer.control.state import versions_of
    from stream_scorer.ensemble.manifest import read_manifest
    from stream_scorer.ensemble.registry import identify, parse_reference
    from stream_scorer.records import ServedVersion

    parsed = parse_reference(reference)
    state = history.states.get(parsed.name)
    for version in [] if state is None else versions_of(state):
        if version.version == parsed.version:
            return parsed.name, version
    try:
        found = identify(reference, settings["mlflow.url"], Path(settings["cache.dir"]).expanduser())
    except StreamScorerError as error:
        commands = [entry.command for entry in reversed(history.entries) if entry.command and not entry.refused]
        for command in commands:
            if command.version and (command.ensemble, command.version.version) == (parsed.name, parsed.version):
                return parsed.name, command.version
        if parsed.folder is not None:
            hint = "`stream-scorer ensemble status` shows its version: retire NAME:local-…, which needs no folder."
            raise UsageError(error.message, hint=hint) from None
        raise
    name = parsed.name if parsed.folder is None else read_manifest(parsed.folder).name
    return name, ServedVersion(*found)


@_command("disable")
@click.argument("name")
@click.argument("member")
@click.option(
    "--force",
    is_flag=True,
    help="Disable it even if the remaining weight is below the quorum; every decision is then the fallback.",
)
def disable(settings: Settings, name: str, member: str, force: bool, why: str, who: str, wait_s: float) -> None:
    """Exclude MEMBER from scoring, in every version of the ensemble NAME that is in play.

    The weights of the other members are renormalised. Members are excluded by digest, each by a command: a version that
    is put in play later has its member of this name, unless it is the same file.
    """
    with _open_console(settings) as console:
        state = console.state(name)
        manifests, unread = _manifests(settings, state)
        off = {disabled.key for disabled in state.disabled}
        wanted = [each for each in _members(manifests, member) if each.key not in off]
        if not wanted and not unread:
            raise UsageError(f"{member} is already disabled in every version in play")
        if not force:
            _check_quorum(state, manifests, member, off | {each.key for each in wanted})
        _submit_each(console, name, "disable", wanted, who, why, wait_s)
        _warn_unjudged(state, manifests, member, off | {each.key for each in wanted})
        _warn_not_calibrated(manifests, {each.key for each in wanted})
        if unread:
            raise StreamScorerError(
                f"version {', '.join(unread)} cannot be read here: if it has a member {member}, that is still called",
                hint="Repeat the command when the registry answers, or stop the version.",
            )


@_command("enable")
@click.argument("name")
@click.argument("member")
def enable(settings: Settings, name: str, member: str, why: str, who: str, wait_s: float) -> None:
    """Include a disabled MEMBER of NAME again, in every version."""
    with _open_console(settings) as console:
        disabled = [d for d in console.state(name).disabled if d.name == member]
        if not disabled:
            raise UsageError(f"{name} has no disabled member {member!r}")
        _submit_each(console, name, "enable", disabled, who, why, wait_s)


@_command("hold")
@click.argument("name")
def hold(settings: Settings, name: str, why: str, who: str, wait_s: float) -> None:
    """Refuse commands of monitors for NAME until `release`."""
    with _open_console(settings) as console:
        console.submit(name, "hold", who, why, wait_s)


@_command("release")
@click.argument("name")
def release(settings: Settings, name: str, why: str, who: str, wait_s: float) -> None:
    """Accept commands of monitors for NAME again."""
    with _open_console(settings) as console:
        console.submit(name, "release", who, why, wait_s)


@click.command("status")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@with_settings("kafka.bootstrap", "topics.prefix", "cache.dir", "mlflow.url")
def status(settings: Settings, name: str | None, as_json: bool) -> None:
    """Show the serving state (of NAME, or of every ensemble), verdicts, incidents, scorers and the last commands."""
    from stream_scorer.cli.formatting import verdict_facts

    with _open_console(settings) as console:
        history = console.read()
        if name is not None and not as_json:
            console.state(name)
        with _open_scorers(settings, console.topics.scorer_status, name) as reader:
            scorers = [seen.status for seen in reader.find()]
        incidents = [
            i
            for i in _open_incidents(settings, console.topics.incidents)
            if name in (None, i.ensemble) or not i.ensemble
        ]
        verdicts = [
            v for v in _read_verdicts(settings, console.topics.verdicts, history) if name in (None, v.ensemble)
        ]  # fmt: skip
    states = [state for key, state in sorted(history.states.items()) if name in (None, key)]
    entries = [e for e in history.entries if name is None or (e.command is not None and e.command.ensemble == name)]
    if as_json:
        commands = [msgspec.structs.asdict(e.command) if e.command else None for e in entries]
        log = [{"offset": e.offset, "refused": e.refused, "command": c} for e, c in zip(entries, commands, strict=True)]
        facts = {"states": states, "scorers": scorers, "incidents": incidents, "verdicts": verdicts, "log": log}
        click.echo(msgspec.json.encode(facts))
        return
    for state in states:
        _show_state(state)
    for verdict in verdicts:
        for label, fact in verdict_facts(verdict):
            click.echo(plain(f"{label:11} {fact}"))
    for incident in incidents:
        held = f" ({incident.held_back})" if incident.held_back else ""
        due = f"{incident.due} of {incident.version} is due{held}" if incident.due else f"{incident.kind}"
        click.echo(plain(f"{'incident':11} {due}: {incident.why}"))
    _show_table(
        ("scorer", "in play", "offset", "problem"),
        [(s.instance, ", ".join(s.in_play), str(s.control_offset), _problem(s)) for s in scorers],
        "no scorer is running",
    )
    rows = [_history_row(entry) for entry in entries[-_SHOWN:]]
    _show_table(("offset", "time (UTC)", "author", "command", "reason"), rows, "no commands")


COMMANDS = [
    promote, weights, confirm, rollback, canary, shadow, stop, retire, disable, enable, hold, release, recover, status,
]  # fmt: skip


def _history_row(entry: Entry) -> tuple[str, ...]:
    """The row of one command in the table of `status`."""
    c = entry.command
    if c is None:
        return str(entry.offset), "", "", "", f"REFUSED: {entry.refused}"
    more = [
        c.version.version if c.version is not None else "",
        c.member.name if c.member is not None else "",
        percent(c.share) if c.share is not None else "",
        f"({c.expect_rise:+.4g} alerts expected)" if c.expect_rise is not None else "",
        "(kept in shadow)" if c.keep else "",
    ]
    what = " ".join([c.action, *filter(None, more)])
    why = f"REFUSED: {entry.refused}" if entry.refused else c.why
    return str(entry.offset), _time(c.at), c.who, what, why


def _show_state(state: ServingState) -> None:
    facts = {
        state.ensemble: f"{_short(state.champion)} serves{', on probation' if state.probation else ''}",
        "last good": _short(state.last_good) if state.last_good else "none",
        "shadows": ", ".join(map(_short, state.shadows)),
        "withdrawn": f"{_short(state.withdrawn)} stays in shadow until labels have enough cards"
        if state.withdrawn
        else "",
        "disabled": ", ".join(member.name for member in state.disabled),
        "hold": f"{state.hold.who}: {state.hold.why}" if state.hold else "",
    }
    if (at := state.canary) is not None:
        until = f" until {_time(at.until)} (event time)" if at.until is not None else ""
        facts["canary"] = f"{_short(at.version)} decides for {percent(at.share)} of the entities{until}"
        facts["canary"] += ", confirmed" if at.confirmed else ""
        facts["ladder"] = _ladder(at)
    for label, fact in facts.items():
        if fact:
            click.echo(plain(f"{label:11} {fact}"))


def _ladder(canary: CanaryState) -> str:
    """The steps of a canary's ladder: which ones are reached, and the next one; empty without a ladder."""
    from stream_scorer.control.ladder import next_step

    step = next_step(canary)
    if step is None:
        return ""
    steps = ", ".join(map(percent, canary.ladder))
    what = "promotion" if step[0] == "promote" else percent(step[1])
    return f"steps {steps}; next: {what}, after {'the monitor acts' if canary.confirmed else 'a confirmation'}"


def _problem(status: ScorerStatus) -> str:
    loading = f"loading {', '.join(status.loading)}" if status.loading else ""
    return "; ".join(filter(None, [loading, status.problem]))


def _show_table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]], none: str) -> None:
    if not rows:
        click.echo(none)
        return
    print_table(make_table(columns, rows))


def _short(version: ServedVersion) -> str:
    return f"{version.version} ({version.manifest_sha256[:12]})"


def _time(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1_000, UTC):%Y-%m-%d %H:%M:%S}"


def _share(text: str) -> float:
    share = _fraction(text, 0.0, 1.0)
    if not 0 < share <= 1:
        raise UsageError(f"{text!r} is not a share", hint="Write 0.1 or 10%: above 0 and at most 100%.")
    return share


def _fraction(text: str, low: float, high: float) -> float:
    """The number in `0.1` or `10%`; NaN for other text. From 1 on, it needs a percent sign: raises `UsageError`."""
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        return float("nan")
    if text.endswith("%"):
        return number / 100
    if abs(number) < 1:
        return number
    if meant := [f"{each:.6g}%" for each in (number, 100 * number) if low <= each / 100 <= high]:
        raise UsageError(f"{text} without a percent sign is ambiguous", hint=f"Write {' or '.join(meant)}.")
    return float("nan")


def _rise(text: str) -> float:
    from stream_scorer.control.state import MAX_EXPECTED_RISE, MIN_EXPECTED_RISE

    rise = _fraction(text, MIN_EXPECTED_RISE, MAX_EXPECTED_RISE)
    if not MIN_EXPECTED_RISE <= rise <= MAX_EXPECTED_RISE:
        bounds = f"from {MIN_EXPECTED_RISE:.0%} to {MAX_EXPECTED_RISE:.0%}"
        raise UsageError(f"{text!r} is not an expected change of alerts", hint=f"Write 10% or -0.05: {bounds}.")
    return rise


def _weight(text: str) -> tuple[str, float]:
    name, _, weight = text.partition("=")
    try:
        return name, float(weight)
    except ValueError:
        raise UsageError(f"{text!r} is not a weight", hint="Write MEMBER=WEIGHT, as in xgb=0.2.") from None


def _named(versions: list[ServedVersion], wanted: str) -> ServedVersion:
    for version in versions:
        if version.version == wanted:
            return version
    known = ", ".join(version.version for version in versions) or "none"
    raise UsageError(f"{wanted!r} is neither canary nor shadow", hint=f"Canary and shadows: {known}.")


def _load_manifest(settings: Settings, name: str, version: ServedVersion) -> Manifest:
    from stream_scorer.ensemble.manifest import read_manifest

    return read_manifest(_fetch(settings, name, version))


def _lacking_in_one(one: Manifest, other: Manifest, disabled: Set[str]) -> Set[str]:
    """The keys of `disabled` members that only one of two versions has: the monitor does not compare such versions."""
    from stream_scorer.ensemble.manifest import member_key

    keys = [{member_key(member) for member in manifest.members} for manifest in (one, other)]
    return (keys[0] ^ keys[1]) & disabled


def _manifests(settings: Settings, state: ServingState) -> tuple[dict[ServedVersion, Manifest], list[str]]:
    """The manifests of the versions that scorers hold, champion first, and the versions that cannot be read here.

    Raises:
        StreamScorerError: the champion cannot be read.
    """
    from stream_scorer.control.state import versions_of

    found: dict[ServedVersion, Manifest] = {}
    unread = []
    for version in versions_of(state):
        try:
            found[version] = _load_manifest(settings, state.ensemble, version)
        except StreamScorerError as error:
            if version == state.champion:
                raise
            click.echo(plain(f"version {version.version} cannot be read: {error.message}"), err=True)
            unread.append(version.version)
    return found, unread


def _members(manifests: dict[ServedVersion, Manifest], name: str) -> list[DisabledMember]:
    """The different members called `name`. Raises `UsageError` if there is none."""
    from stream_scorer.ensemble.manifest import member_key
    from stream_scorer.records import DisabledMember

    members = [member for manifest in manifests.values() for member in manifest.members]
    if name not in [member.name for member in members]:
        known = ", ".join(dict.fromkeys(member.name for member in members))
        ensemble = next(iter(manifests.values())).name
        raise UsageError(f"{ensemble} has no member {name!r}", hint=f"Its members: {known}.")
    return [DisabledMember(name, key) for key in dict.fromkeys(member_key(m) for m in members if m.name == name)]


def _check_quorum(
    state: ServingState, manifests: dict[ServedVersion, Manifest], member: str, disabled: set[str]
) -> None:
    """Raise `UsageError` if a version that decides, or would after a rollback, has too little weight left."""
    from stream_scorer.ensemble.combine import QUORUM_SLACK

    deciding = [state.champion, state.last_good, state.canary.version if state.canary is not None else None]
    for version, manifest in manifests.items():
        left = _weight_without(manifest, disabled)
        if version in deciding and left < manifest.quorum - QUORUM_SLACK:
            raise UsageError(
                f"without {member}, {left:.0%} of the weight of version {version.version} remains, and its quorum is "
                f"{manifest.quorum:.0%}",
                hint="Every decision of this version would be the fallback. Use rollback or stop instead, or --force.",
            )


def _warn_unjudged(
    state: ServingState, manifests: dict[ServedVersion, Manifest], member: str, disabled: set[str]
) -> None:
    """Print a warning for a version under comparison that is not judged while `member` is disabled."""
    compared = [state.champion] if state.probation else []
    compared += [state.canary.version] if state.canary is not None else []
    for version in compared:
        other = state.last_good if version == state.champion else state.champion
        if version not in manifests or other not in manifests:
            continue
        if _lacking_in_one(manifests[version], manifests[other], disabled):
            text = f"until `enable`, the monitor neither confirms nor withdraws version {version.version}"
            click.echo(plain(f"{text}: its {member} is not that of version {other.version}"), err=True)


def _warn_not_calibrated(manifests: dict[ServedVersion, Manifest], disabled: set[str]) -> None:
    """Print a warning if versions with stacking have no calibrator for scores without the `disabled` members."""
    from stream_scorer.ensemble.manifest import Stacking, member_key

    found = []
    for version, manifest in manifests.items():
        used = {member_key(member) for member in manifest.members if member.weight > 0.0}
        if isinstance(manifest.combiner, Stacking) and not manifest.incomplete_calibrator and used & disabled:
            found.append(version.version)
    if found:
        text = "stacking without a calibrator for missing members: until `enable`, its thresholds may miss most frauds"
        click.echo(plain(f"version {', '.join(found)}: {text}"), err=True)


def _submit_each(
    console: _Console, name: str, action: Action, members: list[DisabledMember], who: str, why: str, wait_s: float
) -> None:
    """Submit a command for each of `members`, and then wait for the scorers."""
    for place, each in enumerate(members, start=1):
        console.submit(name, action, who, why, wait_s if place == len(members) else 0, member=each)


def _weight_without(manifest: Manifest, keys: set[str]) -> float:
    """Share of the weight that remains without the members of these keys."""
    from stream_scorer.ensemble.manifest import member_key

    left = sum(member.weight for member in manifest.members if member_key(member) not in keys)
    return left / sum(member.weight for member in manifest.members)
