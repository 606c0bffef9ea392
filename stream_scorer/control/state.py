"""The serving state as a pure function of the records of `control`, so every reader computes the same state.

A command counts if its offset is the one that its author expected and the current state allows it. Any other command is
`Refused` by every reader and changes nothing.

    history = History()
    for offset, value in records:
        history.add(offset, value)
    history.states["cards"].champion
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
from msgspec.structs import replace

from stream_scorer.control.ladder import check_ladder, next_step
from stream_scorer.records import NOT_A_RECORD, Action, CanaryState, Command, Hold, ServedVersion, ServingState

# Each version in play costs its combiner and the members that it does not share with other versions.
MAX_SHADOWS = 4
# Bounds of the change of alerts that a command may declare.
MIN_EXPECTED_RISE, MAX_EXPECTED_RISE = -0.9, 10.0
# Number of records that `History` keeps for display; the log contains all.
MAX_ENTRIES = 1_000


@dataclass(frozen=True, slots=True)
class Entry:
    """A record of the log.

    Attributes:
        command: None if the record is not a command.
        refused: the reason of a refusal; empty if the command counts.
        timestamp: the broker's time of the record, ms.
    """

    offset: int
    command: Command | None
    refused: str
    timestamp: int = 0


class Refused(Exception):
    """The state does not allow the command; the message is the reason."""


@dataclass(slots=True)
class History:
    """The states that result from the log.

    Attributes:
        states: serving state by ensemble.
        next_offset: offset of the next record, unless another writer appends first.
        first_offset: offset of the first record; None before it.
        withdrawn_at: time of the last command of a monitor that withdrew a version which decided, by ensemble and
            action (`rollback` or `stop`), ms.
        starts: the last command that made a version champion or canary (`promote`, `rollback`, `canary`), by ensemble
            and action. After a `recover`, it stands for the commands that are lost. Both are kept apart from
            `entries`, which forgets old records.
        entries: the last `MAX_ENTRIES` records.
    """

    states: dict[str, ServingState] = field(default_factory=dict)
    next_offset: int = 0
    first_offset: int | None = None
    withdrawn_at: dict[tuple[str, Action], int] = field(default_factory=dict)
    starts: dict[tuple[str, Action], Entry] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)

    @property
    def incomplete(self) -> bool:
        """Whether the log has lost its beginning. Then an ensemble has no state before a `recover`."""
        return (self.next_offset if self.first_offset is None else self.first_offset) > 0

    def add(self, offset: int, value: bytes | None, timestamp: int = 0) -> Entry:
        """Apply the next record of the log."""
        if self.first_offset is None:
            self.first_offset = offset
        self.next_offset = offset + 1
        command, refused, before = None, "", None
        try:
            command = _decode(value or b"")
            if command.expected_offset != offset:
                raise Refused(f"it expects offset {command.expected_offset}: another command came first")
            state = before = self.states.get(command.ensemble)
            if state is None and self.incomplete and command.action != "recover":
                raise Refused(f"the commands before offset {self.first_offset} are lost: use recover first")
            self.states[command.ensemble] = follow(state, offset, command)
        except NOT_A_RECORD as error:
            refused = f"not a command: {error}"
        except Refused as error:
            refused = str(error)
        entry = Entry(offset, command, refused, timestamp)
        self.entries = [*self.entries[1 - MAX_ENTRIES :], entry]
        if command is not None and not refused:
            self._remember(entry, command, before)
        return entry

    def _remember(self, entry: Entry, command: Command, before: ServingState | None) -> None:
        # A version that was withdrawn before decides nothing: the end of its collection withdraws nothing.
        collected = before is not None and command.version is not None and command.version == before.withdrawn
        if command.author == "monitor" and command.action in ("rollback", "stop") and not collected:
            # The broker's clock, as of `starts`: a monitor whose clock is ahead would hold back every later rollback.
            self.withdrawn_at[command.ensemble, command.action] = entry.timestamp or command.at
        if command.action in ("promote", "canary", "rollback"):
            self.starts[command.ensemble, command.action] = entry
        if command.action == "recover":
            self._restart(entry, command)

    def _restart(self, entry: Entry, command: Command) -> None:
        """Begin the comparisons of a recovered state anew: the offsets of the commands that began them are lost."""
        state = self.states[command.ensemble]
        for action in ("promote", "canary", "rollback"):
            self.starts.pop((command.ensemble, action), None)
        if state.probation:
            began = replace(command, version=state.champion, expect_rise=state.expect_rise)
            self.starts[command.ensemble, "promote"] = Entry(entry.offset, began, "", entry.timestamp)
        if (canary := state.canary) is not None:
            began = replace(command, version=canary.version, expect_rise=canary.expect_rise)
            self.starts[command.ensemble, "canary"] = Entry(entry.offset, began, "", entry.timestamp)


_decode = msgspec.json.Decoder(Command).decode


def follow(state: ServingState | None, offset: int, command: Command) -> ServingState:
    """The state after `command`, whose offset is the expected one. Raises `Refused`."""
    source = {"control_offset": offset, "who": command.who, "why": command.why, "at": command.at}
    if not command.why.strip():
        raise Refused("it has no reason")
    if command.action == "recover":
        return replace(_recovered(command), **source)
    if state is None:
        if command.action != "promote":
            raise Refused(f"no version of {command.ensemble} serves yet")
        return ServingState(ensemble=command.ensemble, champion=_version(command), **source)  # type: ignore[arg-type]
    if command.author == "scorer":
        raise Refused(f"{state.champion.version} already serves: a scorer may propose only the first version")
    if command.author == "monitor" and state.hold is not None:
        raise Refused(f"{state.hold.who} put a hold on it: {state.hold.why}")
    change = _CHANGES[command.action](state, command)
    return replace(state, **change, **source)


def _recovered(command: Command) -> ServingState:
    """The state that a person restores. It replaces any other, so that readers of a damaged log agree again."""
    if command.author != "person":
        raise Refused("only a person can recover a state")
    if command.state is None or command.state.ensemble != command.ensemble:
        raise Refused(f"it has no state of {command.ensemble}")
    # The offsets that its collection needs are lost.
    return replace(command.state, withdrawn=None, recoveries=command.state.recoveries + 1)


def _promote(state: ServingState, command: Command) -> dict[str, object]:
    version = _allowed(state, command)
    _check_expectation(command)
    _check_step(state, command, 1.0)
    if version == state.champion:
        ending = "; to end its probation, use confirm" if state.probation else ""
        raise Refused(f"{version.version} already serves{ending}")
    # A version whose probation is not complete cannot become the last good version.
    last_good = state.last_good if state.probation else state.champion
    if last_good == version:
        raise Refused(f"{version.version} is the last good version: use rollback")
    return {
        "champion": version,
        "last_good": last_good,
        "probation": True,
        "expect_rise": command.expect_rise,
        "canary": None,
        "shadows": [shadow for shadow in state.shadows if shadow != version],
        "withdrawn": None,
    }


def _confirm(state: ServingState, command: Command) -> dict[str, object]:
    """End a probation; with the version of a canary, confirm the canary at its share."""
    canary, version = state.canary, command.version
    if canary is not None and version == canary.version:
        if canary.confirmed:
            raise Refused(f"{canary.version.version} is already confirmed at its share")
        return {"canary": replace(canary, confirmed=True)}
    if version is not None and version != state.champion:
        raise Refused(f"{version.version} is neither on probation nor a canary")
    if not state.probation:
        raise Refused(f"{state.champion.version} is not on probation")
    return {"probation": False, "expect_rise": None}


def _rollback(state: ServingState, command: Command) -> dict[str, object]:
    """Return to the last good version. A monitor may keep the version on probation in play, for labels (ADR 0050).

    A command that names a version is about that one: it must not end another one that serves by now.
    """
    if command.version is not None and command.version != state.champion:
        raise Refused(f"{command.version.version} does not serve")
    if state.last_good is None:
        raise Refused("there is no last good version")
    if state.last_good.manifest_sha256 in state.retired:
        raise Refused(f"{state.last_good.version} is retired")
    kept = command.keep and command.author == "monitor" and state.probation
    return {
        "champion": state.last_good,
        "last_good": None,
        "probation": False,
        "expect_rise": None,
        "canary": None,
        "shadows": [shadow for shadow in state.shadows if shadow != state.last_good],
        "withdrawn": state.champion if kept else None,
    }


def _canary(state: ServingState, command: Command) -> dict[str, object]:
    version = _allowed(state, command)
    if version == state.champion:
        ending = "; to end its probation, use confirm" if state.probation else ""
        raise Refused(f"{version.version} already serves{ending}")
    if command.share is None or not 0.0 < command.share <= 1.0:
        raise Refused("the share of a canary must be above 0 and at most 1")
    _check_expectation(command)
    if command.ladder is not None and (problem := check_ladder(command.ladder)):
        raise Refused(f"its ladder is invalid: {problem}")
    _check_step(state, command, command.share)
    salt = command.salt or f"{command.ensemble}:{version.version}"
    return {
        "canary": CanaryState(
            version, command.share, salt, command.until, ladder=command.ladder or [], expect_rise=command.expect_rise
        ),
        "shadows": [shadow for shadow in state.shadows if shadow != version],
        "withdrawn": None,
    }


def _shadow(state: ServingState, command: Command) -> dict[str, object]:
    version = _allowed(state, command)
    if version in _in_play(state) and version != state.withdrawn:
        raise Refused(f"{version.version} is already in play")
    if len(state.shadows) >= MAX_SHADOWS:
        raise Refused(f"there are already {MAX_SHADOWS} shadows: stop one first")
    return {
        "shadows": [*state.shadows, version],
        "withdrawn": None if version == state.withdrawn else state.withdrawn,
    }


def _stop(state: ServingState, command: Command) -> dict[str, object]:
    version = _version(command)
    if version not in _in_play(state)[1:]:
        raise Refused(f"{version.version} is neither canary nor shadow")
    return _without(state, version)


def _retire(state: ServingState, command: Command) -> dict[str, object]:
    """Exclude a version by its digest: the same files may be in play under another number."""
    digest = _version(command).manifest_sha256
    if digest == state.champion.manifest_sha256:
        raise Refused(f"{state.champion.version} serves: promote another version or roll back first")
    if digest in state.retired:
        raise Refused(f"{_version(command).version} is already retired")
    canary, withdrawn = state.canary, state.withdrawn
    change: dict[str, object] = {
        "retired": [*state.retired, digest],
        "canary": None if canary is not None and canary.version.manifest_sha256 == digest else canary,
        "shadows": [shadow for shadow in state.shadows if shadow.manifest_sha256 != digest],
        "withdrawn": None if withdrawn is not None and withdrawn.manifest_sha256 == digest else withdrawn,
    }
    if state.last_good is not None and state.last_good.manifest_sha256 == digest:
        change |= {"last_good": None, "probation": False, "expect_rise": None}
    return change


def _disable(state: ServingState, command: Command) -> dict[str, object]:
    if command.member is None:
        raise Refused("it names no member")
    if command.member in state.disabled:
        raise Refused(f"{command.member.name} is already disabled")
    return {"disabled": [*state.disabled, command.member]}


def _enable(state: ServingState, command: Command) -> dict[str, object]:
    if command.member not in state.disabled:
        raise Refused(f"{command.member.name if command.member else 'no member'} is not disabled")
    return {"disabled": [member for member in state.disabled if member != command.member]}


def _hold(_state: ServingState, command: Command) -> dict[str, object]:
    if command.author != "person":
        raise Refused("only a person can put a hold on an ensemble")
    return {"hold": Hold(command.who, command.why, command.at)}


def _release(state: ServingState, command: Command) -> dict[str, object]:
    if command.author != "person" or state.hold is None:
        raise Refused("there is no hold" if state.hold is None else "only a person can release a hold")
    return {"hold": None}


_CHANGES = {
    "promote": _promote,
    "confirm": _confirm,
    "rollback": _rollback,
    "canary": _canary,
    "shadow": _shadow,
    "stop": _stop,
    "retire": _retire,
    "disable": _disable,
    "enable": _enable,
    "hold": _hold,
    "release": _release,
}


def _check_step(state: ServingState, command: Command, share: float) -> None:
    """A monitor gives a version a larger share only by the ladder that a person gave it, after its confirmation."""
    canary = state.canary
    if command.author != "monitor":
        return
    if canary is None or canary.version != command.version or not canary.confirmed:
        raise Refused("a monitor may raise the share only of a confirmed canary")
    if next_step(canary) != (command.action, share):
        raise Refused("the ladder of the canary has another next step")


def _check_expectation(command: Command) -> None:
    if command.expect_rise is not None and not MIN_EXPECTED_RISE <= command.expect_rise <= MAX_EXPECTED_RISE:
        raise Refused(f"the expected rise must be between {MIN_EXPECTED_RISE:.0%} and {MAX_EXPECTED_RISE:.0%}")


def _version(command: Command) -> ServedVersion:
    if command.version is None:
        raise Refused("it names no version")
    return command.version


def _allowed(state: ServingState, command: Command) -> ServedVersion:
    version = _version(command)
    if version.manifest_sha256 in state.retired:
        raise Refused(f"{version.version} is retired")
    return version


def versions_of(state: ServingState) -> list[ServedVersion]:
    """The versions that scorers load, in the order of their importance: those in play, and the last good version."""
    last_good = [] if state.last_good is None else [state.last_good]
    champion, *others = _in_play(state)
    return list(dict.fromkeys([champion, *last_good, *others]))


def _in_play(state: ServingState) -> list[ServedVersion]:
    """The champion first, then canary, shadows and a withdrawn version."""
    canary = [] if state.canary is None else [state.canary.version]
    withdrawn = [] if state.withdrawn is None else [state.withdrawn]
    return [state.champion, *canary, *state.shadows, *withdrawn]


def _without(state: ServingState, version: ServedVersion) -> dict[str, object]:
    canary = state.canary
    return {
        "canary": None if canary is not None and canary.version == version else canary,
        "shadows": [shadow for shadow in state.shadows if shadow != version],
        "withdrawn": None if version == state.withdrawn else state.withdrawn,
    }
