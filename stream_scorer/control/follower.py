"""The scorer's side of control: a thread follows the log and keeps the lineup that the commands ask for.

The thread loads, checks, self-tests and warms a new version while scoring continues. Then it replaces one reference,
and the next micro-batch uses the new lineup. If a version fails, `scorer-status` reports it and the previous lineup
stays.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from stream_scorer.clock import Clock
from stream_scorer.control.commands import CommandLog, catch_up
from stream_scorer.control.outbox import Outbox
from stream_scorer.control.state import History
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.ensemble.lineup import Lineup, Split
from stream_scorer.errors import ArtifactError, StreamScorerError
from stream_scorer.observability import metrics as m
from stream_scorer.records import AuditRecord, Command, LoadedMember, ScorerStatus, ServedVersion, ServingState

_log = logging.getLogger(__name__)
# Longest wait for the next command. It also bounds the time until a stop takes effect.
READ_WAIT_S = 0.2
# Interval at which a version that failed to load is tried again: the registry may be available again.
RETRY_S = 5.0
HEARTBEAT_S = 5.0


@dataclass(frozen=True, slots=True)
class ScorerIdentity:
    """Which scorer this is (`instance` in `group`), and the ensemble whose commands it follows."""

    ensemble: str
    instance: str
    group: str


class Follower:
    """Follows the control log and owns the lineup of this scorer.

    Args:
        initial_version: the version that this scorer proposes if the log has no command for its ensemble.
        load: loads and checks a version. Raises `StreamScorerError`.
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
    ) -> None:
        self._identity = identity
        self._log = log
        self._initial_version = initial_version
        self._load = load
        self._outbox = Outbox(publish, clock)
        self._clock = clock
        self._metrics = metrics
        self._history = History()
        self._loaded: dict[ServedVersion, Ensemble] = {}
        self._refused: dict[ServedVersion, tuple[str, str]] = {}
        self._lineup: Lineup | None = None
        self._problem = ""
        self._attempted_at = self._status_at = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)

    @property
    def lineup(self) -> Lineup:
        """The lineup that the next micro-batch uses."""
        assert self._lineup is not None
        return self._lineup

    def start(self) -> None:
        """Read the log to its end, load the lineup that it asks for, and start to follow it.

        Raises:
            StreamScorerError: the version that is to serve cannot be loaded or is refused.
        """
        ensemble = self._identity.ensemble
        catch_up(self._log, self._history, self._log.end())
        if ensemble not in self._history.states:
            self._propose()
        state = self._history.states[ensemble]
        self._lineup, self._problem = self._build_lineup(state)
        self._attempted_at = self._clock.monotonic()
        self._report_lineup(None)
        self._publish_state(state)
        self._flush()
        self._thread.start()

    def close(self) -> None:
        """Stop following, and delete this scorer's status."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(2 * READ_WAIT_S + 2.0)
        self._outbox.close("scorer_status", self._identity.instance)
        self._log.close()

    def _propose(self) -> None:
        """Propose the version that this scorer's settings name. If several scorers propose, the first proposal counts.

        Raises:
            StreamScorerError: the version cannot be loaded or is refused. Then nothing is proposed.
        """
        version = self._initial_version()
        self._loaded[version] = self._ensure_loaded(version)
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

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                records = self._log.read(READ_WAIT_S)
                for record in records:
                    entry = self._history.add(record.offset, record.value)
                    if entry.refused:
                        self._metrics.count(m.CONTROL_REFUSED, 1)
                        _log.warning("control: the command at offset %d is refused: %s", entry.offset, entry.refused)
                self._follow(changed=bool(records))
            except StreamScorerError as error:
                _log.warning("control: %s", error.message)
                self._stop.wait(1.0)
            except (
                Exception
            ):  # A scorer that stops following could not be rolled back, so the thread survives any error.
                _log.exception("control: unexpected error")
                self._stop.wait(1.0)

    def _follow(self, *, changed: bool) -> None:
        state, now = self._history.states[self._identity.ensemble], self._clock.monotonic()
        behind = self.lineup.control_offset != state.control_offset or self._problem
        if behind and (changed or now - self._attempted_at > RETRY_S):
            self._apply(state)
            changed = True
        if changed:
            self._publish_state(state)
        elif now - self._status_at > HEARTBEAT_S:
            self._publish_status(state)
        self._flush()

    def _apply(self, state: ServingState) -> None:
        """Build the lineup of `state` and use it. If the champion fails, the previous lineup stays."""
        self._attempted_at, before = self._clock.monotonic(), self.lineup
        try:
            lineup, self._problem = self._build_lineup(state)
        except StreamScorerError as error:
            self._problem = (
                f"{state.champion.version} is refused, {before.champion.version} still serves: {error.message}"
            )
            _log.error("%s", self._problem)
            return
        if (lineup.versions, lineup.control_offset) != (before.versions, before.control_offset):
            self._lineup = lineup
            self._report_lineup(before)

    def _build_lineup(self, state: ServingState) -> tuple[Lineup, str]:
        """The lineup of `state`, and its problems. A version other than the champion that fails to load is left out.

        Raises:
            StreamScorerError: the champion cannot be loaded or is refused.
        """
        loaded = {state.champion: self._ensure_loaded(state.champion)}
        problems = []

        def available(version: ServedVersion) -> bool:
            try:
                loaded[version] = self._ensure_loaded(version)
            except StreamScorerError as error:
                problems.append(f"{version.version} is refused: {error.message}")
                _log.error("%s", problems[-1])
            return version in loaded

        deciding, split, canary = [state.champion], None, state.canary
        if canary is not None and available(canary.version):
            deciding.append(canary.version)
            split = Split(canary.share, canary.salt, canary.until)
        shadows = [version for version in state.shadows if available(version)]
        # The last good version stays loaded after its probation too: a rollback must not have to load anything.
        if state.last_good is not None and available(state.last_good) and state.probation:
            shadows += [state.last_good] if state.last_good not in deciding + shadows else []
        self._loaded = loaded
        disabled = frozenset(member.key for member in state.disabled)
        lineup = Lineup(tuple(loaded[v] for v in [*deciding, *shadows]), split, disabled, state.control_offset)
        lineup.pool  # noqa: B018  built here, so that the first micro-batch does not build it
        return lineup, "; ".join(problems)

    def _ensure_loaded(self, version: ServedVersion) -> Ensemble:
        """The ensemble of `version`; loads it if necessary, and audits the result.

        Raises:
            StreamScorerError: it cannot be loaded or is refused.
        """
        found = self._loaded.get(version)
        if found is not None:
            return found
        try:
            found = self._load_checked(version)
        except StreamScorerError as error:
            refusal = getattr(error, "code", "unavailable"), error.message
            if self._refused.get(version) != refusal:  # retries with the same result are audited once
                self._refused[version] = refusal
                self._audit(version, [], *refusal)
            raise
        self._refused.pop(version, None)
        members = [LoadedMember(m.name, m.format, m.sha256) for m in found.manifest.members]
        self._audit(version, members, "", "")
        return found

    def _load_checked(self, version: ServedVersion) -> Ensemble:
        try:
            return self._load(version)
        except StreamScorerError:
            raise
        except Exception as error:  # a library reports a bad file with an exception of its own
            raise ArtifactError(f"{version.version} cannot be loaded: {type(error).__name__}: {error}") from error

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

    def _publish_state(self, state: ServingState) -> None:
        self._outbox.replace("serving_state", self._identity.ensemble, msgspec.json.encode(state))
        self._publish_status(state)

    def _publish_status(self, state: ServingState) -> None:
        self._status_at, lineup = self._clock.monotonic(), self.lineup
        self._metrics.set(m.CONTROL_PROBLEM, int(bool(self._problem)))
        status = ScorerStatus(
            self._identity.instance,
            self._identity.group,
            self._identity.ensemble,
            [ensemble.version for ensemble in lineup.versions],
            -1 if lineup.control_offset is None else lineup.control_offset,
            state.control_offset,
            self._problem,
            self._clock.now_ms(),
        )
        self._outbox.replace("scorer_status", self._identity.instance, msgspec.json.encode(status))

    def _flush(self) -> None:
        try:
            self._outbox.flush()
        finally:
            self._metrics.set(m.CONTROL_UNPUBLISHED, self._outbox.waiting)
