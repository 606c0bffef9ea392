"""What served at a time, and who decided it: the commands up to that time, by the broker's time of each.

found = served_at(records, 1_700_000_000_000)
found["cards"].state.champion, found["cards"].since["champion"].who
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

from stream_scorer.control.commands import LogEntry
from stream_scorer.control.state import Entry, History
from stream_scorer.records import Action, Author, Record, ServingState

# Parts of a serving state, each of which is the work of some command.
PARTS = ("champion", "last_good", "probation", "canary", "shadows", "withdrawn", "disabled", "hold")


class Decision(Record, frozen=True):
    """A command that counts. `at` is the author's clock, `timestamp` the broker's; it decides what served when."""

    offset: int
    action: Action
    who: str
    why: str
    author: Author
    at: int
    timestamp: int


class FirstScore(Record, frozen=True):
    """The first micro-batch under a command, `at` by the scorer's clock: one transaction, and its version."""

    at: int
    event_id: str
    version: str
    partition: int


class Served(Record, frozen=True):
    """What served of one ensemble at `time` (epoch ms).

    `decided` is the last command before it. `since` has, by part of the state (`PARTS`), the command that set it; parts
    that no command has changed are absent. `next` is the command that changed the state afterwards, null if none did.
    """

    ensemble: str
    time: int
    state: ServingState
    decided: Decision
    since: dict[str, Decision]
    next: Decision | None = None
    first_score: FirstScore | None = None


def served_at(records: Iterable[LogEntry], time: int) -> dict[str, Served]:
    """What served at `time`, by ensemble; ensembles without a command by then are absent.

    `records` are those of `control`, from its beginning, in the order of their offsets. A command counts from the
    broker's time of its record on, inclusive.
    """
    history, since = History(), dict[str, dict[str, Decision]]()
    last: dict[str, Decision] = {}
    later: dict[str, Decision] = {}
    rest = iter(records)
    for record in rest:
        if record.timestamp > time:
            rest = chain([record], rest)
            break
        name, decision = _apply(history, record, since)
        if decision is not None:
            last[name] = decision
    states = dict(history.states)
    for record in rest:
        name, decision = _apply(history, record, {})
        if decision is not None:
            later.setdefault(name, decision)
        if states.keys() <= later.keys():
            break
    return {
        name: Served(name, time, state, last[name], since.get(name, {}), later.get(name))
        for name, state in sorted(states.items())
    }


def _apply(history: History, record: LogEntry, since: dict[str, dict[str, Decision]]) -> tuple[str, Decision | None]:
    """Apply one record; the ensemble and the decision if it counts. `since` gets the parts that it changed."""
    before = dict(history.states)
    entry = history.add(record.offset, record.value, record.timestamp)
    if entry.command is None or entry.refused:
        return "", None
    name, decision = entry.command.ensemble, _decision(entry)
    old, new = before.get(name), history.states[name]
    for part in PARTS:
        had = _EMPTY.get(part) if old is None else getattr(old, part)
        if getattr(new, part) != had:
            since.setdefault(name, {})[part] = decision
    return name, decision


_EMPTY: dict[str, object] = {"probation": False, "shadows": [], "disabled": []}


def _decision(entry: Entry) -> Decision:
    command = entry.command
    assert command is not None
    return Decision(entry.offset, command.action, command.who, command.why, command.author, command.at, entry.timestamp)
