"""The scorer's side of control: a thread follows the log and keeps the lineup that the commands ask for.

New versions are loaded, checked, self-tested and warmed in threads of their own (`control/loader.py`) while scoring
continues. Then the control thread replaces one reference, and the next micro-batch uses the new lineup. If a version
fails, `scorer-status` reports it and the previous lineup stays. A third thread publishes, because a broker that does
not confirm a record would otherwise delay the next command.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from stream_scorer.clock import Clock
from stream_scorer.control.commands import CommandLog, LogEntry, catch_up
from stream_scorer.control.health import scorer_health
from stream_scorer.control.loader import Loader, Result
from stream_scorer.control.outbox import Outbox
from stream_scorer.control.recovery import lost_commands
from stream_scorer.control.state import History, versions_of
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.ensemble.lineup import Lineup, Split
from stream_scorer.errors import StreamScorerError
from stream_scorer.observability import metrics as m
from stream_scorer.observability.liveness import Health
from stream_scorer.records import AuditRecord, Command, LoadedMember, ScorerStatus, ServedVersion, ServingState

_log = logging.getLogger(__name__)
# Longest wait for the next command. It also bounds the time until a stop, or a loaded version, takes effect.
READ_WAIT_S = 0.2
# The same at a start, when nothing is scored yet.
_START_WAIT_S = 0.02
# Longest time that a start waits for versions other than the champion. After it, scoring starts without them.
MAX_START_WAIT_S = 30.0
HEARTBEAT_S = 2.0
_PUBLISH_EVERY_S = 0.2
# Longest times without progress: the control thread waits `READ_WAIT_S`, the publisher for the broker's timeouts.
_CONTROL_LIMIT_S, _PUBLISHER_LIMIT_S = 30.0, 120.0


@dataclass(frozen=True, slots=True)
class ScorerIdentity:
    """Which scorer this is (`instance` in `group`), and the ensemble whose commands it follows."""

    ensemble: str
    instance: str
    group: str


@dataclass(frozen=True, slots=True)
class _Available:
    """The part of a serving state that is loaded: its lineup (None without the champion) and the versions in it.

    `problems` has a sentence for each version that is refused, `loading` the versions that are not loaded yet.
    """

    lineup: Lineup | None
    served: list[ServedVersion]
    problems: list[str]
    loading: list[str]


class Follower:
    """Follows the control log and owns the lineup of this scorer.

    Args:
        initial_version: the version that this scorer proposes if the log has no command for its ensemble. Raises
            `StreamScorerError` if the ensemble has served before.
        load: loads and checks a version. Raises `StreamScorerError`. Runs in several threads at once.
        publish: writes a record: topic (`serving_state`, `scorer_status`, `audit`), key, value (None deletes the key).
    """

    def __init__(
        self,
        identity: ScorerIdentity,
        log: CommandLog,
        initial_version: Callable[[], ServedVersion],
        load: Callable[[ServedVersion], Ensemble],
        publish: Callable[[str, str, bytes | None], object],
        clock: Clock,
        metrics: m.Metrics,
        health: Health,
    ) -> None:
        self._pulse = health.watch("control", _CONTROL_LIMIT_S)
        self._publisher_pulse = health.watch("control-publisher", _PUBLISHER_LIMIT_S)
        self._identity = identity
        self._log = log
        self._initial_version = initial_version
        self._loader = Loader(load, clock)
        self._outbox = Outbox(publish, clock)
        self._clock = clock
        self._metrics = metrics
        self._history = History()
        self._refused: dict[ServedVersion, tuple[str, str]] = {}
        self._lineup: Lineup | None = None
        self._served: list[ServedVersion] = []
        self._problem, self._read_problem = "", ""
        self._loading: list[str] = []
        self._reported: tuple[str, list[str]] = "", []
        self._status_at = 0.0
        self._stop = threading.Event()
        self._to_publish = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, name="control", daemon=True),
            threading.Thread(target=self._run_publisher, name="control-publisher", daemon=True),
        ]

    @property
    def lineup(self) -> Lineup:
        """The lineup that the next micro-batch uses."""
        assert self._lineup is not None
        return self._lineup

    @property
    def digests(self) -> list[str]:
        """Manifest digests of the versions that this scorer serves or must be able to serve."""
        state = self._history.states.get(self._identity.ensemble)
        wanted = [] if state is None else versions_of(state)
        return [version.manifest_sha256 for version in [*wanted, *self._served]]

    @property
    def missing(self) -> str:
        """What readiness lacks: a scorer that cannot read the log would miss a rollback."""
        return f"control cannot be read: {self._read_problem}" if self._read_problem else ""

    def start(self) -> None:
        """Read the log to its end, load the lineup that it asks for, and start to follow it.

        Commands that arrive meanwhile count: a rollback replaces a version that is still loading.

        Raises:
            StreamScorerError: the version that is to serve cannot be loaded or is refused.
        """
        catch_up(self._log, self._history, self._log.end())
        if self._identity.ensemble not in self._history.states:
            self._propose()
        self._load_first_lineup()
        self._publish_state()
        self._flush()
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop following, and delete this scorer's status."""
        self._stop.set()
        self._to_publish.set()
        self._pulse.end()
        self._publisher_pulse.end()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(2 * READ_WAIT_S + 2.0)
        self._outbox.close("scorer_status", self._identity.instance)
        self._log.close()

    def _load_first_lineup(self) -> None:
        """Set the lineup. Raises `StreamScorerError` if the champion cannot be loaded or is refused."""
        give_up = self._clock.monotonic() + MAX_START_WAIT_S
        while self._lineup is None:
            state = self._history.states[self._identity.ensemble]
            self._loader.want(versions_of(state))
            self._collect()
            found = self._available(state)
            champion = self._loader.get(state.champion)
            if isinstance(champion, StreamScorerError):
                raise champion
            if found.lineup is not None and (not found.loading or self._clock.monotonic() > give_up):
                self._serve(state, found)
                return
            for record in self._log.read(_START_WAIT_S):
                self._read(record)

    def _propose(self) -> None:
        """Propose the version that this scorer's settings name. If several scorers propose, the first proposal counts.

        Raises:
            StreamScorerError: the version cannot be loaded or is refused, or `control` has lost commands. Then nothing
                is proposed.
        """
        if self._history.incomplete:
            raise lost_commands(self._identity.ensemble)
        try:
            version = self._load_initial_version()
        except StreamScorerError:
            # Another scorer may have proposed meanwhile: its state follows its command, which is in the log by now.
            catch_up(self._log, self._history, self._log.end())
            if self._identity.ensemble not in self._history.states:
                raise
            return
        catch_up(self._log, self._history, self._log.end())
        while self._identity.ensemble not in self._history.states:
            expected = self._history.next_offset
            command = Command(
                ensemble=self._identity.ensemble,
                action="promote",
                who=self._identity.instance,
                why="first start: the setting scorer.ensemble names this version",
                at=self._clock.now_ms(),
                expected_offset=expected,
                author="scorer",
                version=version,
            )
            offset = self._log.append(self._identity.ensemble, msgspec.json.encode(command))
            catch_up(self._log, self._history, offset + 1)

    def _load_initial_version(self) -> ServedVersion:
        version = self._initial_version()
        self._loader.want([version])
        while (found := self._loader.get(version)) is None:
            self._stop.wait(_START_WAIT_S)
            self._collect()
        if isinstance(found, StreamScorerError):
            raise found
        return version

    def _run(self) -> None:
        while not self._stop.is_set():
            self._pulse.beat()
            try:
                self._follow(changed=self._read_new())
            except Exception:  # A scorer that stops following cannot be rolled back, so the thread survives any error.
                _log.exception("control: unexpected error")
                self._stop.wait(1.0)

    def _read_new(self) -> bool:
        """Read the next records; whether there were any. An error of the log is a problem that the status reports."""
        try:
            records = self._log.read(READ_WAIT_S)
        except StreamScorerError as error:
            if self._read_problem != error.message:
                _log.error("control: %s", error.message)
            self._read_problem = error.message
            self._stop.wait(READ_WAIT_S)
            return False
        self._read_problem = ""
        for record in records:
            self._read(record)
        return bool(records)

    def _read(self, record: LogEntry) -> None:
        entry = self._history.add(record.offset, record.value, record.timestamp)
        if entry.refused:
            self._metrics.count(m.CONTROL_REFUSED, 1)
            _log.warning("control: the command at offset %d is refused: %s", entry.offset, entry.refused)

    def _follow(self, *, changed: bool) -> None:
        """Load what the newest state asks for, and serve as much of it as is loaded."""
        state = self._history.states[self._identity.ensemble]
        wanted = versions_of(state)
        self._loader.want(wanted, keep=self._served, retry_now=changed)
        self._refused = {version: refusal for version, refusal in self._refused.items() if version in wanted}
        if self._collect() or changed:
            self._serve(state, self._available(state))
        if changed:
            self._publish_state()
        elif self._reported != self._report or self._clock.monotonic() - self._status_at > HEARTBEAT_S:
            self._publish_status()

    def _collect(self) -> bool:
        """Audit the versions that were loaded or refused; whether there were any."""
        results = self._loader.collect()
        for version, result in results:
            self._audit_result(version, result)
        return bool(results)

    def _available(self, state: ServingState) -> _Available:
        """The part of `state` whose versions are loaded."""
        found: dict[ServedVersion, Ensemble] = {}
        problems, loading = [], []
        for version in versions_of(state):
            result = self._loader.get(version)
            if isinstance(result, Ensemble):
                found[version] = result
            elif result is None:
                loading.append(version.version)
            else:
                problems.append(f"{version.version} is refused: {result.message}")
        if state.champion not in found:
            return _Available(None, [], problems, loading)
        deciding, split, canary = [state.champion], None, state.canary
        if canary is not None and canary.version in found:
            deciding.append(canary.version)
            split = Split(canary.share, canary.salt, canary.until)
        shadows = [version for version in state.shadows if version in found]
        # The last good version stays loaded after its probation too: a rollback must not have to load anything.
        last_good = state.last_good if state.probation and state.last_good in found else None
        if last_good is not None and last_good not in deciding + shadows:
            shadows.append(last_good)
        withdrawn = state.withdrawn if state.withdrawn in found else None
        if withdrawn is not None:
            shadows.append(withdrawn)
        served = [*deciding, *shadows]
        disabled = frozenset(member.key for member in state.disabled)
        last, kept = (None if each is None else served.index(each) for each in (last_good, withdrawn))
        lineup = Lineup(tuple(found[v] for v in served), split, disabled, state.control_offset, last, kept)
        return _Available(lineup, served, problems, loading)

    def _serve(self, state: ServingState, found: _Available) -> None:
        """Use the lineup of `found`, if the champion is loaded.

        While versions are loading, the previous lineup stays if `found` scores like it: the new one follows when it is
        complete. Any other change, such as a rollback, takes effect now.
        """
        before, lineup, problems = self._lineup, found.lineup, found.problems
        self._loading = found.loading
        if lineup is None and before is not None and state.champion.version not in found.loading:
            problems = [*problems, f"{before.champion.version} still serves"]
        self._problem = "; ".join(problems)
        if lineup is None:
            self._reduce(state)
            return
        complete = not found.loading and (before is None or lineup.control_offset != before.control_offset)
        if before is not None and _same(lineup, before) and not complete:
            return
        lineup.pool  # noqa: B018  built here, so that the first micro-batch does not build it
        self._lineup, self._served = lineup, found.served
        self._loader.want(versions_of(state), keep=self._served)  # drops the versions that left play
        self._report_lineup(before)

    def _reduce(self, state: ServingState) -> None:
        """Let the previous champion go on until the new one is loaded, only with what `state` still asks for.

        Nothing else watches or stops a canary that left play. Disabled members must not wait for a champion either.
        """
        before = self._lineup
        if before is None:
            return
        lineup, served = _reduced(before, self._served, state)
        if _same(lineup, before):
            return
        lineup.pool  # noqa: B018  as in `_serve`
        self._lineup, self._served = lineup, served
        self._loader.want(versions_of(state), keep=served)
        self._report_lineup(before)

    def _audit_result(self, version: ServedVersion, result: Result) -> None:
        if isinstance(result, StreamScorerError):
            refusal = getattr(result, "code", "unavailable"), result.message
            if self._refused.get(version) != refusal:  # retries with the same result are audited once
                self._refused[version] = refusal
                _log.error("%s is refused: %s", version.version, result.message)
                self._audit(version, [], *refusal)
            return
        self._refused.pop(version, None)
        members = [LoadedMember(m.name, m.format, m.sha256) for m in result.manifest.members]
        self._audit(version, members, "", "")

    def _audit(self, version: ServedVersion, members: list[LoadedMember], refused: str, message: str) -> None:
        record = AuditRecord(
            self._clock.now_ms(),
            self._identity.instance,
            self._identity.group,
            self._identity.ensemble,
            version.version,
            version.manifest_sha256,
            members,
            refused,
            message,
        )
        self._outbox.append("audit", self._identity.ensemble, msgspec.json.encode(record))

    def _report_lineup(self, before: Lineup | None) -> None:
        lineup, metrics = self.lineup, self._metrics
        for old in () if before is None else before.versions:
            metrics.set(m.IN_PLAY, 0, old.name, old.version)
            metrics.set(m.SERVING, 0, old.name, old.version)
        for ensemble in lineup.versions:
            metrics.set(m.IN_PLAY, 1, ensemble.name, ensemble.version)
        metrics.set(m.SERVING, 1, lineup.champion.name, lineup.champion.version)
        metrics.set(m.CONTROL_OFFSET, lineup.control_offset or 0)
        champion, *others = [f"{ensemble.version} ({ensemble.digest[:12]})" for ensemble in lineup.versions]
        _log.info(
            "%s serves version %s%s; control offset %s",
            lineup.champion.name,
            champion,
            f", with {', '.join(others)} in play" if others else "",
            lineup.control_offset,
        )
        decided = () if before is None else before.versions[: before.deciding]
        for ensemble in lineup.versions[: lineup.deciding]:
            if ensemble.notice and ensemble not in decided:
                _log.warning("version %s: %s", ensemble.version, ensemble.notice)

    def _publish_state(self) -> None:
        state = self._history.states[self._identity.ensemble]
        self._outbox.replace("serving_state", self._identity.ensemble, msgspec.json.encode(state))
        self._publish_status()

    @property
    def _report(self) -> tuple[str, list[str]]:
        """What is wrong, and which versions are loading."""
        return "; ".join(filter(None, [self._read_problem, self._problem])), self._loading

    def _publish_status(self) -> None:
        self._status_at, lineup = self._clock.monotonic(), self.lineup
        self._reported = problem, loading = self._report
        self._metrics.set(m.CONTROL_PROBLEM, int(bool(problem)))
        status = ScorerStatus(
            self._identity.instance,
            self._identity.group,
            self._identity.ensemble,
            [ensemble.version for ensemble in lineup.versions],
            -1 if lineup.control_offset is None else lineup.control_offset,
            self._history.states[self._identity.ensemble].control_offset,
            problem,
            self._clock.now_ms(),
            loading,
            scorer_health(self._metrics),
        )
        self._outbox.replace("scorer_status", self._identity.instance, msgspec.json.encode(status))
        self._to_publish.set()

    def _run_publisher(self) -> None:
        while not self._stop.is_set():
            self._publisher_pulse.beat()
            self._to_publish.wait(_PUBLISH_EVERY_S)
            self._to_publish.clear()
            try:
                self._flush()
            except Exception:  # the records stay in the outbox; the thread must survive
                _log.exception("control: records could not be published")
                self._stop.wait(1.0)

    def _flush(self) -> None:
        try:
            self._outbox.flush()
        finally:
            self._metrics.set(m.CONTROL_UNPUBLISHED, self._outbox.waiting)


def _reduced(before: Lineup, served: list[ServedVersion], state: ServingState) -> tuple[Lineup, list[ServedVersion]]:
    """`before`, whose versions are `served`, with its champion and what else of it `state` has in play.

    A canary decides nothing meanwhile: nobody compares it with a champion that no longer serves.
    """
    canary = state.canary
    last_good = state.last_good if state.probation else None
    wanted = {*state.shadows, last_good, state.withdrawn, canary.version if canary is not None else None}
    kept = [0, *(index for index in range(1, len(served)) if served[index] in wanted)]
    disabled = frozenset(member.key for member in state.disabled)

    def place(index: int | None, still: ServedVersion | None) -> int | None:
        return kept.index(index) if index is not None and served[index] == still else None

    last, withdrawn = place(before.last_good, last_good), place(before.withdrawn, state.withdrawn)
    versions = tuple(before.versions[index] for index in kept)
    lineup = Lineup(versions, None, disabled, before.control_offset, last, withdrawn)
    return lineup, [served[index] for index in kept]


def _same(lineup: Lineup, other: Lineup) -> bool:
    """Whether both score alike: they differ in the control offset at most."""
    return (
        [id(version) for version in lineup.versions] == [id(version) for version in other.versions]
        and lineup.split == other.split
        and lineup.last_good == other.last_good
        and lineup.withdrawn == other.withdrawn
        and lineup.disabled == other.disabled
    )
