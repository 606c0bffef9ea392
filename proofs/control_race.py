"""control-race: two people and a monitor command at once while scorers die and start; everybody agrees on one history.

Three writers, each with its own view of the log, submit commands to a real Kafka without waiting for each other. Two
scorers are killed with `kill -9` and started again meanwhile. Afterwards, from the raw log and with no code of the
product: commands that count are at the offset that their author expected, and every author got the right answer. After
the race, the lineup of both scorers, and of a third that starts only then, follows from the log by plain bookkeeping,
and so does every state that any of them published on `serving-state`.

`N` is the number of commands. With fewer than by default, one scorer takes part in the race, and dies once.
"""

from __future__ import annotations

import copy
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import msgspec

from proofs.kit import Context, Result, Scorer, read_topic, services, train_cards, wait_until
from stream_scorer.control.commands import catch_up, submit
from stream_scorer.control.state import History
from stream_scorer.ensemble.registry import keep
from stream_scorer.ensemble.reweigh import reweigh
from stream_scorer.kafka.control_log import ControlLog
from stream_scorer.kafka.topics import Topics
from stream_scorer.records import Command, DisabledMember, ScorerStatus, ServedVersion, ServingState

N = 300
KILLS = 6
# Commands after the race that each wait for their serving state. During the race states may be skipped: a scorer that
# starts, or is slow, publishes the newest one only.
PACED, SMALL_PACED = 20, 5
WRITERS = (("ann", "person"), ("ben", "person"), ("monitor", "monitor"))
_PATIENCE_S = 90.0
_ACTIONS = (
    "promote", "promote", "confirm", "rollback", "canary", "canary", "shadow", "stop", "disable", "enable", "hold",
    "release", "retire",
)  # fmt: skip


def run(context: Context) -> Result:
    """See the module."""
    n = context.n or N
    kills = KILLS if n >= N else 1
    paced = PACED if n >= N else SMALL_PACED
    result = Result()
    cache, versions = context.folder / "cache", []
    train_cards(context.folder, seed=context.seed, transactions=30_000)
    for number in range(3):
        folder = context.folder / f"v{number}"
        reweigh(context.folder / "ensemble", {"xgb": 0.1 + number}, folder, number)
        versions.append(ServedVersion(*keep(folder, cache)))
    # One more that cannot be loaded: scorers that should serve it keep the old one.
    versions.append(ServedVersion("local-000000000000", "0" * 64))
    topics = Topics()
    with services("kafka", "redis", partitions=2) as (_stack, at):
        bootstrap = str(at.kafka)

        def scorer(name: str) -> Scorer:
            return Scorer(
                context.folder,
                at,
                instance=name,
                ensemble=context.folder / "v0",
                arguments=["--cache", str(cache)],
                sabotage="stale-commands" if context.broken else None,
            )

        scorers = [scorer(name) for name in (("one", "two") if n >= N else ("one",))]
        late = scorer("late")
        try:
            for each in scorers:
                each.start()
            wait_until(
                "a scorer has issued the first command", lambda: len(read_topic(bootstrap, topics.control)) > 0, 60
            )
            answers, killed = _race(context, bootstrap, topics.control, versions, n, kills, scorers)
            answers += _settle(bootstrap, topics.control, versions[:3])
            answers += _one_by_one(bootstrap, topics, paced)
            late.start()
            alive = [*scorers, late]
            wait_until(
                "every scorer has followed all commands",
                lambda: all(
                    status is not None and status.wanted_offset >= answers[-1].offset
                    for status in (_statuses(bootstrap, topics).get(each.instance) for each in alive)
                ),
                _PATIENCE_S,
                pause_s=1.0,
            )
            statuses = _statuses(bootstrap, topics)
            raw = read_topic(bootstrap, topics.control)
            states = read_topic(bootstrap, topics.serving_state)
        finally:
            for each in (*scorers, late):
                each.close()
    result.at_least("commands", len(raw), n)
    result.at_least("kills_while_commands_came", killed, kills)
    _check_log(result, answers, raw.offset, raw.value, n)
    books, pages = Books(), {}
    for offset, value in zip(raw.offset, raw.value, strict=True):
        books.enter(offset, msgspec.json.decode(value or b""))
        pages[books.offset] = copy.deepcopy(books)
    wanted = books.in_play()
    result.figures["in_play"] = wanted
    result.check(
        "all scorers have the lineup that the log leads to",
        all(statuses[s.instance].in_play == wanted for s in alive),
    )
    result.check("at the same command", len({statuses[s.instance].control_offset for s in alive}) == 1)
    published = [Books.of(state) for state in states.decode(ServingState)]
    result.at_least("serving_states", len({state.offset for state in published}), paced + 1)
    result.check(
        "every serving state follows from the log up to its command",
        all(pages.get(state.offset) == state for state in published),
    )
    result.check("the last serving state is that of the whole log", published[-1] == books)
    return result


@dataclass(slots=True)
class Answer:
    """How a command ended, according to its author's client."""

    who: str
    offset: int
    counts: bool


def _race(
    context: Context,
    bootstrap: str,
    topic: str,
    versions: list[ServedVersion],
    n: int,
    kills: int,
    scorers: list[Scorer],
) -> tuple[list[Answer], int]:
    answers: list[Answer] = []
    failures: list[BaseException] = []

    def write(number: int, who: str, author: Any) -> None:
        rng, log, history = random.Random(context.seed * 10 + number), ControlLog(bootstrap, topic), History()
        try:
            catch_up(log, history, log.end())
            for _ in range(n // len(WRITERS)):
                entry = submit(log, history, _some(rng, who, author, versions))
                answers.append(Answer(who, entry.offset, not entry.refused))
                # Its view ends at its own command. Half of the time it reads on before the next one, as people do.
                time.sleep(rng.uniform(0, 0.3))
                if rng.random() < 0.5:
                    catch_up(log, history, log.end())
        except BaseException as error:
            failures.append(error)
        finally:
            log.close()

    threads = [threading.Thread(target=write, args=(i, who, author)) for i, (who, author) in enumerate(WRITERS)]
    for thread in threads:
        thread.start()
    killed = 0
    rng = random.Random(context.seed)
    while any(thread.is_alive() for thread in threads):
        if killed < kills:
            victim = scorers[killed % len(scorers)]
            time.sleep(rng.uniform(0.2, 1.5))
            victim.require_running()
            victim.kill()
            victim.start()
            killed += any(thread.is_alive() for thread in threads)
            context.say(f"{killed} kills, {len(answers)} commands")
        time.sleep(0.05)
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return answers, killed


def _some(rng: random.Random, who: str, author: Any, versions: list[ServedVersion]) -> Any:
    action: Any = rng.choice(_ACTIONS)
    if action == "retire" and rng.random() < 0.9:
        action = "shadow"
    # The version that cannot be loaded may be a shadow only: as champion it would stop the race at its first turn.
    pool = versions if action == "shadow" else versions[:3]
    version = rng.choice(pool) if action in ("promote", "canary", "shadow", "stop") else None
    if action == "retire":
        version = versions[3]
    member = DisabledMember(*rng.choice((("xgb", "1" * 64), ("mlp", "2" * 64))))
    return lambda offset: Command(
        ensemble="cards",
        action=action,
        who=who,
        why="a race",
        at=0,
        expected_offset=offset,
        author=author,
        version=version,
        member=member if action in ("disable", "enable") else None,
        share=rng.choice((0.1, 0.5)) if action == "canary" else None,
        keep=action == "rollback" and rng.random() < 0.7,
    )


def _settle(bootstrap: str, topic: str, versions: list[ServedVersion]) -> list[Answer]:
    """A last command, after which a version serves that can be loaded."""
    log, history, answers = ControlLog(bootstrap, topic), History(), []
    try:
        catch_up(log, history, log.end())
        rng = random.Random(0)
        state = history.states["cards"]
        version = next(v for v in versions if v not in (state.champion, state.last_good))
        make = _some(rng, "ann", "person", versions)
        entry = submit(
            log,
            history,
            lambda offset: msgspec.structs.replace(
                make(offset), action="promote", version=version, member=None, share=None
            ),
        )
        answers.append(Answer("ann", entry.offset, not entry.refused))
    finally:
        log.close()
    return answers


def _one_by_one(bootstrap: str, topics: Topics, count: int) -> list[Answer]:
    """Commands that always count, each after the serving state of the one before."""
    log, history, answers = ControlLog(bootstrap, topics.control), History(), []
    try:
        catch_up(log, history, log.end())
        held = history.states["cards"].hold is not None
        for number in range(count):
            action: Any = "release" if held == (number % 2 == 0) else "hold"
            entry = submit(
                log,
                history,
                lambda offset, action=action: Command(
                    ensemble="cards", action=action, who="ann", why="one by one", at=0, expected_offset=offset,
                    author="person",
                ),
            )  # fmt: skip
            answers.append(Answer("ann", entry.offset, not entry.refused))
            wait_until(f"serving-state follows {action}", lambda: _state_of(bootstrap, topics, answers[-1].offset), 60)
    finally:
        log.close()
    return answers


def _state_of(bootstrap: str, topics: Topics, offset: int) -> bool:
    states = read_topic(bootstrap, topics.serving_state).decode(ServingState)
    return any(state.control_offset == offset for state in states)


def _check_log(result: Result, answers: list[Answer], offsets: list[int], values: list[bytes | None], n: int) -> None:
    log = {o: msgspec.json.decode(v or b"") for o, v in zip(offsets, values, strict=True)}
    result.check("the log has no holes", sorted(log) == list(range(len(log))))
    counted = [a for a in answers if a.counts]
    stale = [o for o, command in log.items() if command["expected_offset"] != o]
    result.figures["counted"], result.figures["stale"] = len(counted), len(stale)
    result.at_least("stale_commands", len(stale), n // 10)
    result.check(
        "commands that count are at the offset that their author expected", not {a.offset for a in counted} & set(stale)
    )
    result.check("every command is in the log once, by its author", all(log[a.offset]["who"] == a.who for a in answers))
    result.check("no two commands got the same offset", max(Counter(a.offset for a in answers).values()) == 1)
    books = Books()
    right = {o: books.enter(o, command) for o, command in sorted(log.items())}
    result.check("every author got the right answer", all(right[a.offset] == a.counts for a in answers))
    result.figures["actions_that_counted"] = dict(Counter(log[a.offset]["action"] for a in counted))


@dataclass(slots=True)
class Books:
    """The state that follows from the log by the rules of docs/control.md."""

    champion: str = ""
    last_good: str = ""
    probation: bool = False
    canary: str = ""
    shadows: list[str] = field(default_factory=list)
    withdrawn: str = ""
    disabled: set[str] = field(default_factory=set)
    retired: set[str] = field(default_factory=set)
    held: bool = False
    offset: int = -1
    unloadable: frozenset[str] = field(default=frozenset({"local-000000000000"}), compare=False)

    @classmethod
    def of(cls, state: ServingState) -> Books:
        """The state in a record of `serving-state`."""
        canary, last_good = state.canary, state.last_good
        return cls(
            champion=state.champion.version,
            last_good=last_good.version if last_good else "",
            probation=state.probation,
            canary=canary.version.version if canary else "",
            shadows=[shadow.version for shadow in state.shadows],
            withdrawn=state.withdrawn.version if state.withdrawn else "",
            disabled={member.name for member in state.disabled},
            retired={f"local-{digest[:12]}" for digest in state.retired},
            held=state.hold is not None,
            offset=state.control_offset,
        )

    def in_play(self) -> list[str]:
        """The versions that can be loaded, the champion first; the last good one on probation, or a withdrawn one."""
        found = [self.champion, self.canary, *self.shadows, self.last_good if self.probation else "", self.withdrawn]
        return list(dict.fromkeys(v for v in found if v and v not in self.unloadable))

    def enter(self, offset: int, command: dict[str, Any]) -> bool:
        """Whether it counts."""
        counts = command["expected_offset"] == offset and self._apply(command)
        if counts:
            self.offset = offset
        return counts

    def _apply(self, c: dict[str, Any]) -> bool:
        action, v = c["action"], (c["version"] or {}).get("version", "")
        if not self.champion:
            self.champion = v if action == "promote" else ""
            return action == "promote"
        if c["author"] == "monitor" and (self.held or action in ("hold", "release", "promote", "canary")):
            # A monitor may raise the share of a confirmed canary only, and this race has no confirmed canary.
            return False
        member = (c["member"] or {}).get("name", "")
        others = [self.canary, *self.shadows]
        possible = {
            "promote": v not in (self.champion, *self.retired)
            and v != (self.last_good if self.probation else self.champion),
            "confirm": self.probation and v in ("", self.champion),
            "rollback": bool(self.last_good) and v in ("", self.champion),
            "canary": v not in (self.champion, *self.retired),
            "shadow": v not in (self.champion, *others, *self.retired) and len(self.shadows) < 4,
            "stop": v in (*others, self.withdrawn),
            "retire": v != self.champion and v not in self.retired,
            "disable": member not in self.disabled,
            "enable": member in self.disabled,
            "hold": True,
            "release": self.held,
        }[action]
        if not possible:
            return False
        if action == "promote":
            self.last_good, self.probation = (self.last_good if self.probation else self.champion), True
            self.champion, self.canary = v, ""
        elif action == "confirm":
            self.probation = False
        elif action == "rollback":
            kept = c.get("keep", False) and c["author"] == "monitor" and self.probation
            self.withdrawn = self.champion if kept else ""
            self.shadows = [s for s in self.shadows if s != self.last_good]
            self.champion, self.last_good, self.probation, self.canary = self.last_good, "", False, ""
        if action in ("promote", "canary", "stop", "retire"):
            self.shadows = [s for s in self.shadows if s != v]
            self.canary = "" if self.canary == v else self.canary
        if action in ("promote", "canary") or (action in ("shadow", "stop", "retire") and v == self.withdrawn):
            self.withdrawn = ""
        if action == "canary":
            self.canary = v
        elif action == "shadow":
            self.shadows.append(v)
        elif action == "retire":
            self.retired.add(v)
            if v == self.last_good:
                self.last_good, self.probation = "", False
        elif action in ("disable", "enable"):
            self.disabled ^= {member}
        elif action in ("hold", "release"):
            self.held = action == "hold"
        return True


def _statuses(bootstrap: str, topics: Topics) -> dict[str, ScorerStatus]:
    """The newest status of each scorer."""
    content, out = read_topic(bootstrap, topics.scorer_status), {}
    for key, value in zip(content.key, content.value, strict=True):
        name = (key or b"").decode()
        out.pop(name, None)
        if value:
            out[name] = msgspec.json.decode(value, type=ScorerStatus)
    return out
