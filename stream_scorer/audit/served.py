"""Checks versions that decided against the commands of an archive."""

from __future__ import annotations

from bisect import bisect_right

from stream_scorer.audit.archive import Archive
from stream_scorer.audit.findings import Findings
from stream_scorer.control.state import History
from stream_scorer.records import ServedVersion, ServingState
from stream_scorer.replay.recorded import CLOCK_SKEW_MS, control_records
from stream_scorer.serde.lineage import LineageHeader, LineageVersion

# A command must be in force after this time. Scorers apply a loaded version within a second; the rest is for loading,
# and for clocks of scorers, which set the time of the lineage.
IN_FORCE_WITHIN_MS = 300_000


class Commands:
    """The serving states by control offset, and the check of lineage against them."""

    def __init__(self, archive: Archive, findings: Findings) -> None:
        self._findings = findings
        # By ensemble and offset: the state after a command that counts, and the broker's time of the command.
        self._states: dict[tuple[str, int], tuple[ServingState, int]] = {}
        # By ensemble: the broker's times and the offsets of these commands. Time never runs back, so that they ascend.
        self._times: dict[str, tuple[list[int], list[int]]] = {}
        self._archived = {(v.ensemble, v.version, v.manifest_sha256) for v in archive.seal.versions}
        part = archive.part("control", 0)
        if part is None:
            findings.add("control", "the archive does not contain the topic control")
            return
        history = History()
        for record in control_records(archive, archive.topics):
            entry = history.add(*record)
            if entry.command is not None and not entry.refused:
                name = entry.command.ensemble
                self._states[name, record.offset] = history.states[name], record.timestamp
                times, offsets = self._times.setdefault(name, ([], []))
                times.append(max([record.timestamp, *times[-1:]]))
                offsets.append(record.offset)
        if history.incomplete:
            findings.note(f"control begins at offset {part.start}: the commands before were lost before the export")

    def check(self, header: LineageHeader, where: str, timestamp: int, scores: int) -> None:
        """Check that the versions which decided `scores` scores are those that the command in force put in play."""
        for version in header.versions:
            problem = self._problem(header, version, timestamp)
            if problem:
                self._findings.add("control", f"{where} ({scores:,} scores): {problem}", scores)
            if (version.ensemble, version.version, version.manifest_sha256) not in self._archived:
                name = f"{version.ensemble} {version.version}, manifest {version.manifest_sha256[:12]}…"
                self._findings.add("control", f"{where}: {name} decided, but the seal does not list it")

    def _problem(self, header: LineageHeader, version: LineageVersion, timestamp: int) -> str:
        name, offset = f"{version.ensemble} {version.version}", header.control_offset
        if offset is None:
            return f"{name} decided without a command"
        found = self._states.get((version.ensemble, offset))
        if found is None:
            return f"{name} decided under offset {offset} of control, which is no command that counts"
        state, commanded = found
        if timestamp < commanded - CLOCK_SKEW_MS:
            return f"{name} decided under offset {offset} of control before this command was submitted"
        if (newer := self._ignored(version.ensemble, offset, timestamp)) is not None:
            late = f"was submitted more than {IN_FORCE_WITHIN_MS // 60_000} minutes before"
            return f"{name} decided under offset {offset} of control, but offset {newer} {late} and decides otherwise"
        if version.arm == "champion":
            wanted: ServedVersion | None = state.champion
        else:
            wanted = None if state.canary is None else state.canary.version
        if wanted is None:
            return f"{name} decided as canary, but offset {offset} of control had no canary"
        if version.version != wanted.version:
            return f"{name} decided as {version.arm}, but offset {offset} of control had put {wanted.version} in play"
        if version.manifest_sha256 != wanted.manifest_sha256:
            return f"{name} decided with manifest {version.manifest_sha256[:12]}…, not {wanted.manifest_sha256[:12]}…"
        return ""

    def _ignored(self, ensemble: str, offset: int, timestamp: int) -> int | None:
        """The command that should have been in force at `timestamp`, if it decides otherwise than that at `offset`.

        Later commands without an effect on decisions, such as `hold`, are none: a scorer may still load their versions.
        """
        times, offsets = self._times[ensemble]
        place = bisect_right(times, timestamp - IN_FORCE_WITHIN_MS) - 1
        if place < 0 or offsets[place] <= offset:
            return None
        newest = offsets[place]
        old, new = (self._states[ensemble, each][0] for each in (offset, newest))
        return None if _deciding(old) == _deciding(new) else newest


def _deciding(state: ServingState) -> tuple[object, ...]:
    """The parts of a state that decide."""
    canary = state.canary
    by_canary = None if canary is None else (canary.version, canary.share, canary.salt, canary.until)
    return state.champion, by_canary, sorted(member.key for member in state.disabled)
