"""The scorer's side of control: a thread follows the log and keeps the lineup that is in force here.

What is new is loaded, checked, self-tested and warmed beside scoring; then one reference is replaced, and the next
micro-batch takes it. What fails is told in `scorer-status`, and the lineup before goes on.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import msgspec

from stream_scorer.clock import Clock
from stream_scorer.control.commands import CommandLog, catch_up
from stream_scorer.control.state import History
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.ensemble.lineup import Lineup, Split
from stream_scorer.errors import ArtifactError, StreamScorerError
from stream_scorer.observability import metrics as m
from stream_scorer.records import AuditRecord, Command, LoadedMember, ScorerStatus, ServedVersion, ServingState

_log = logging.getLogger(__name__)
# How long one look at the log waits: also how soon a stop is noticed.
READ_WAIT_S = 0.2
# A version that could not be had is tried again: the registry may be back.
RETRY_S = 5.0
# How often a scorer says that it is there.
HEARTBEAT_S = 5.0


class Follower:
    """See the module.

    Args:
        ensemble: whose commands are followed. first: what this scorer proposes if there is no command yet.
        load: from a version to the ensemble, checked. Raises `StreamScorerError`.
        put: writes a note: topic (`serving_state`, `scorer_status`, `audit`), key, value; None when a scorer goes.
    """

    def __init__(
        self,
        log: CommandLog,
        ensemble: str,
        first: Callable[[], ServedVersion],
        load: Callable[[ServedVersion], Ensemble],
        put: Callable[[str, str, bytes | None], object],
        clock: Clock,
        metrics: m.Metrics,
        *,
        instance: str,
        group: str,
    ) -> None:
        self._log = log
        self._ensemble = ensemble
        self._first = first
        self._load = load
        self._put = put
        self._clock = clock
        self._metrics = metrics
        self._instance, self._group = instance, group
        self._history = History()
        self._loaded: dict[ServedVersion, Ensemble] = {}
        self._refused: dict[ServedVersion, tuple[str, str]] = {}
        self._lineup: Lineup | None = None
        self._problem = ""
        self._tried_at = self._told_at = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)

    @property
    def lineup(self) -> Lineup:
        """What is in force now."""
        assert self._lineup is not None
        return self._lineup

    def start(self) -> None:
        """Read the log to its end, bring what it says in force, and follow it from then on.

        Raises:
            StreamScorerError: what is to serve cannot be had, or is refused.
        """
        catch_up(self._log, self._history, self._log.end())
        if self._ensemble not in self._history.states:
            self._propose()
        state = self._history.states[self._ensemble]
        self._lineup, self._problem = self._line_up(state)
        self._tried_at = self._clock.monotonic()
        self._in_force(None)
        self._publish(state)
        self._thread.start()

    def close(self) -> None:
        """Stop following, and say that this scorer goes."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(2 * READ_WAIT_S + 2.0)
        try:
            self._put("scorer_status", self._instance, None)
        except StreamScorerError as error:
            _log.warning("%s", error.message)
        self._log.close()

    def _propose(self) -> None:
        """Say what this scorer's settings name; of several that start at once, one is heard.

        Raises:
            StreamScorerError: it cannot be had, or is refused. Then nothing is said.
        """
        first = self._first()
        self._loaded[first] = self._have(first)
        while self._ensemble not in self._history.states:
            expected = self._history.next_offset
            command = Command(
                ensemble=self._ensemble,
                action="promote",
                who=self._instance,
                why="the first scorer serves what its setting scorer.ensemble names",
                at=self._clock.now_ms(),
                expected_offset=expected,
                author="scorer",
                version=first,
            )
            offset = self._log.append(self._ensemble, msgspec.json.encode(command))
            catch_up(self._log, self._history, offset + 1)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                records = self._log.read(READ_WAIT_S)
                for record in records:
                    entry = self._history.add(record.offset, record.value)
                    if entry.refused:
                        self._metrics.count(m.CONTROL_REFUSED, 1)
                        _log.warning("the command at offset %d of control is refused: %s", entry.offset, entry.refused)
                self._follow(changed=bool(records))
            except StreamScorerError as error:
                _log.warning("following control: %s", error.message)
                self._stop.wait(1.0)
            except Exception:  # whatever it is, a scorer that no longer follows could not be rolled back
                _log.exception("following control")
                self._stop.wait(1.0)

    def _follow(self, *, changed: bool) -> None:
        state, now = self._history.states[self._ensemble], self._clock.monotonic()
        behind = self.lineup.control_offset != state.control_offset or self._problem
        if behind and (changed or now - self._tried_at > RETRY_S):
            self._bring(state)
            changed = True
        if changed:
            self._publish(state)
        elif now - self._told_at > HEARTBEAT_S:
            self._tell(state)

    def _bring(self, state: ServingState) -> None:
        """Bring what `state` says in force, as far as it can be had."""
        self._tried_at, before = self._clock.monotonic(), self.lineup
        try:
            lineup, self._problem = self._line_up(state)
        except StreamScorerError as error:
            self._problem = f"{state.champion.version} is refused, {before.champion.version} goes on: {error.message}"
            _log.error("%s", self._problem)
            return
        if (lineup.versions, lineup.control_offset) != (before.versions, before.control_offset):
            self._lineup = lineup
            self._in_force(before)

    def _line_up(self, state: ServingState) -> tuple[Lineup, str]:
        """The lineup of `state`, and what is wrong with it: whoever but the champion cannot be had is left out.

        Raises:
            StreamScorerError: the champion cannot be had or is refused.
        """
        kept = {state.champion: self._have(state.champion)}
        problems = []

        def had(version: ServedVersion) -> bool:
            try:
                kept[version] = self._have(version)
            except StreamScorerError as error:
                problems.append(f"{version.version} is refused: {error.message}")
                _log.error("%s", problems[-1])
            return version in kept

        deciding, split, canary = [state.champion], None, state.canary
        if canary is not None and had(canary.version):
            deciding.append(canary.version)
            split = Split(canary.share, canary.salt, canary.until)
        beside = [version for version in state.shadows if had(version)]
        # Kept after its probation too: going back must not have to load anything.
        if state.last_good is not None and had(state.last_good) and state.probation:
            beside += [state.last_good] if state.last_good not in deciding + beside else []
        self._loaded = kept
        disabled = frozenset(member.key for member in state.disabled)
        lineup = Lineup(tuple(kept[v] for v in [*deciding, *beside]), split, disabled, state.control_offset)
        lineup.panel  # noqa: B018  made here, not in the first micro-batch
        return lineup, "; ".join(problems)

    def _have(self, version: ServedVersion) -> Ensemble:
        """The version, loaded if it is not yet; whatever comes of loading is put on record."""
        found = self._loaded.get(version)
        if found is not None:
            return found
        try:
            found = self._loading(version)
        except StreamScorerError as error:
            refusal = getattr(error, "code", "unavailable"), error.message
            if self._refused.get(version) != refusal:  # tried again and again, told once
                self._refused[version] = refusal
                self._audit(version, [], *refusal)
            raise
        self._refused.pop(version, None)
        members = [LoadedMember(m.name, m.format, m.sha256) for m in found.manifest.members]
        self._audit(version, members, "", "")
        return found

    def _loading(self, version: ServedVersion) -> Ensemble:
        try:
            return self._load(version)
        except StreamScorerError:
            raise
        except Exception as error:  # a library's own idea of a bad file
            raise ArtifactError(f"{version.version} cannot be loaded: {type(error).__name__}: {error}") from error

    def _audit(self, version: ServedVersion, members: list[LoadedMember], refused: str, message: str) -> None:
        record = AuditRecord(
            self._clock.now_ms(),
            self._instance,
            self._group,
            self._ensemble,
            version.version,
            version.manifest_sha256,
            members,
            refused,
            message,
        )
        self._put("audit", self._ensemble, msgspec.json.encode(record))

    def _in_force(self, before: Lineup | None) -> None:
        lineup, metrics = self.lineup, self._metrics
        for old in () if before is None else before.versions:
            metrics.set(m.IN_PLAY, 0, old.name, old.version)
            metrics.set(m.SERVING, 0, old.name, old.version)
        for ensemble in lineup.versions:
            metrics.set(m.IN_PLAY, 1, ensemble.name, ensemble.version)
        metrics.set(m.SERVING, 1, lineup.champion.name, lineup.champion.version)
        metrics.set(m.CONTROL_OFFSET, lineup.control_offset or 0)
        told = [f"{ensemble.version} ({ensemble.digest[:12]})" for ensemble in lineup.versions]
        beside = f", in play beside it {', '.join(told[1:])}" if told[1:] else ""
        _log.info(
            "serving %s %s%s, by offset %s of control", lineup.champion.name, told[0], beside, lineup.control_offset
        )

    def _publish(self, state: ServingState) -> None:
        self._put("serving_state", self._ensemble, msgspec.json.encode(state))
        self._tell(state)

    def _tell(self, state: ServingState) -> None:
        self._told_at, lineup = self._clock.monotonic(), self.lineup
        self._metrics.set(m.CONTROL_PROBLEM, int(bool(self._problem)))
        status = ScorerStatus(
            self._instance,
            self._group,
            self._ensemble,
            [ensemble.version for ensemble in lineup.versions],
            -1 if lineup.control_offset is None else lineup.control_offset,
            state.control_offset,
            self._problem,
            self._clock.now_ms(),
        )
        self._put("scorer_status", self._instance, msgspec.json.encode(status))
