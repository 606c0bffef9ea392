"""Checks versions that decided against the commands of an archive."""

from __future__ import annotations

from stream_scorer.audit.archive import Archive
from stream_scorer.audit.findings import Findings
from stream_scorer.control.state import History
from stream_scorer.records import ServedVersion, ServingState
from stream_scorer.replay.recorded import CLOCK_SKEW_MS, control_records
from stream_scorer.serde.lineage import LineageHeader, LineageVersion


class Commands:
    """The serving states by control offset, and the check of lineage against them."""

    def __init__(self, archive: Archive, findings: Findings) -> None:
        self._findings = findings
        # By ensemble and offset: the state after a command that counts, and the broker's time of the command.
        self._states: dict[tuple[str, int], tuple[ServingState, int]] = {}
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
