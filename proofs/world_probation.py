"""A probation that never ends by itself, during traffic that tests something else: the watch must not interfere."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from proofs.updates import Fault, Version
from proofs.worlds import Desk, Prepared, Stage
from stream_scorer.control.verdict import Tolerances
from stream_scorer.ensemble.lineup import Lineup
from stream_scorer.pipeline.batch import MicroBatch
from stream_scorer.records import ScoreSummary, ServedVersion
from stream_scorer.spec import CheckedSpec

# An update that hardly differs has this factor on the weight of one member.
REWEIGHED = 1.02


def reweighed(version: Version) -> Version:
    """`version` with a slightly higher weight of its first member."""
    return Fault("weight", version.manifest.member_names[0], None, REWEIGHED).apply(version)


def alerting_more(version: Version) -> Version:
    """`version` with half the threshold for review: a watch that reads the summaries must roll it back."""
    thresholds = version.manifest.thresholds
    lower = msgspec.structs.replace(thresholds, review=thresholds.review / 2)
    return replace(version, manifest=msgspec.structs.replace(version.manifest, thresholds=lower))


class Probation:
    """The version `new`, number 1, is on probation after `old`; the watch runs in mode `auto`."""

    def __init__(self, checked: CheckedSpec, old: Version, new: Version) -> None:
        one, two = old.ensemble("0"), new.ensemble("1")
        self._desk = Desk(Tolerances(min_rows=10**12), keep=False)
        self._desk.promote(ServedVersion(one.version, one.digest))
        offset = self._desk.promote(ServedVersion(two.version, two.digest))
        self._stage = Stage(Lineup((two, one), control_offset=offset, last_good=1), checked)

    def run(self, prepared: Prepared) -> tuple[MicroBatch, list[ScoreSummary]]:
        """Score a batch and let the watch read the summaries."""
        batch, summaries = self._stage.run(prepared)
        self._desk.clock.rows += prepared.rows
        self._desk.publish(summaries)
        self._desk.step()
        return batch, summaries

    @property
    def commands(self) -> list[str]:
        """The actions of the monitor's commands."""
        commands = [entry.command for entry in self._desk.history.entries if entry.command is not None]
        return [command.action for command in commands if command.author == "monitor"]
