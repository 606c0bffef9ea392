"""The incident: a new version whose minor update raises alerts, and its automatic rollback by the monitor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from stream_scorer.demo.plan import DemoPlan
from stream_scorer.demo.update import changes_of_heaviest_member, minor_update
from stream_scorer.ensemble.manifest import Manifest, read_manifest
from stream_scorer.records import Incident
from stream_scorer.reports.recording import ControlRecord
from stream_scorer.reports.story import Check, Update
from stream_scorer.spec.model import CheckedSpec
from stream_scorer.train.dataset import read_training_set

# Share of the live transactions that is scored before the new version is promoted.
PROMOTE_AFTER = 0.25
# The monitor needs 100 to 400 alerted cards to distinguish a rise of alerts by 30 % from one by 5 %, its tolerance.
MIN_RISE, ALERTS = 0.3, 150
# The update is evaluated on this many of the newest rows of the history.
TRIAL_ROWS = 12_000
REASON = "retrained with the new feature pipeline; offline figures unchanged"


def possible(plan: DemoPlan) -> bool:
    """Whether half of the transactions after the promotion give the paired test enough alerts to detect the rise."""
    return plan.transactions * (1 - PROMOTE_AFTER) / 2 * plan.review_rate >= ALERTS


def make_update(folder: Path, checked: CheckedSpec) -> tuple[Path, Update] | None:
    """Write a copy of the ensemble in `folder` with a change that raises alerts; None if no change does."""
    source, out = folder / "ensemble", folder / "updated"
    features = read_training_set(folder / "transactions.parquet", folder / "labels.parquet", checked).features
    manifest = read_manifest(source)
    found = minor_update(source, out, features[-TRIAL_ROWS:], changes_of_heaviest_member(manifest), MIN_RISE)
    if found is None:
        return None
    change, rise = found
    before, after = _share(manifest, change.member), _share(read_manifest(out), change.member)
    return out, Update("", change.member, change.input, change.scale, before, after, rise)


def _share(manifest: Manifest, name: str) -> float:
    weights = {member.name: member.weight for member in manifest.members}
    return weights[name] / sum(weights.values())


class SecondAct:
    """Promotes the updated version after enough scores and shows the commands that follow.

    Args:
        update: the change, with the registered version. at: promote after this many scored transactions.
        promote: submits the command. show: takes a line for the terminal.
    """

    def __init__(self, update: Update, at: int, promote: Callable[[], None], show: Callable[[str], None]) -> None:
        self.update = update
        self._at, self._promote, self._show = at, promote, show
        self._promoted = False
        self._shown = 0

    def follow(self, scored: int, commands: list[ControlRecord]) -> None:
        """Promote when it is due, and show new commands. Raises `StreamScorerError` if the promotion fails."""
        if not self._promoted and scored >= self._at:
            self._promote()
            self._promoted = True
        for each in self._since_promotion(commands)[self._shown :]:
            command = each.command
            who = "the monitor" if command.author == "monitor" else command.who
            self._show(
                " ".join(f"{who}: {command.action} {command.ensemble} {each.version}".split()) + f": {command.why}"
            )
            self._shown += 1

    def checks(self, commands: list[ControlRecord], incidents: list[Incident]) -> list[Check]:
        """Whether the monitor rolled the update back, and whether its reason and its incident name the cause."""
        played = self._since_promotion(commands)
        # The rolled-back version stays in shadow. If labels have enough cards by then, the monitor stops it.
        if played and (played[-1].command.author, played[-1].command.action) == ("monitor", "stop"):
            played = played[:-1]
        actions = [(each.command.author, each.command.action) for each in played]
        why = played[-1].command.why if played else ""
        found = (i for i in incidents if i.kind == "verdict" and i.version == self.update.version)
        record = next(found, None)
        named = (record.member, record.input) if record is not None else (None, None)
        return [
            Check(
                "the monitor rolls the update back automatically, once",
                actions == [("person", "promote"), ("monitor", "rollback")],
                f"{(played[-1].at - played[0].at) / 1_000:.1f} s after its promotion"
                if len(played) > 1
                else "it is still in service",
            ),
            Check("the rollback names the member", f"member {self.update.member} " in why, why.rpartition("; ")[2]),
            Check(
                "the incident names the member and the input, and is closed",
                named == (self.update.member, self.update.input) and record is not None and record.closed is not None,
                record.difference if record is not None else "there is no incident",
            ),
        ]

    def _since_promotion(self, commands: list[ControlRecord]) -> list[ControlRecord]:
        """The promotion of the update and all later commands."""
        start = next((k for k, each in enumerate(commands) if each.version == self.update.version), len(commands))
        return commands[start:]
