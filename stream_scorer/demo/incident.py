"""The second act: a new version with a minor update that goes wrong, and what the monitor does about it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from stream_scorer.demo.plan import DemoPlan
from stream_scorer.demo.update import minor_update, of_the_heaviest
from stream_scorer.ensemble.manifest import Manifest, read_manifest
from stream_scorer.reports.recording import Given
from stream_scorer.reports.story import Check, Update
from stream_scorer.spec.model import CheckedSpec
from stream_scorer.train.dataset import read_training_set

# Of the live transactions, the share that is scored before the new version is promoted.
BEFORE = 0.25
# By how much alerts are to rise: the paired test needs a few hundred alerts to tell such a rise from 5 %.
LEAST_RISE = 0.3
LEAST_ALERTS = 150
# Rows of the history on which the update is tried out; the newest.
TRIED_ON = 12_000
WHY = "retrained with the new feature pipeline; offline figures unchanged"


def possible(plan: DemoPlan) -> bool:
    """Whether there will be alerts enough for the paired test to see it within half of what is left."""
    return plan.transactions * (1 - BEFORE) / 2 * plan.review_rate >= LEAST_ALERTS


def make_update(folder: Path, checked: CheckedSpec) -> tuple[Path, Update] | None:
    """An ensemble beside the one in `folder`, with a change that raises alerts; None if no change does."""
    source, out = folder / "ensemble", folder / "updated"
    features = read_training_set(folder / "transactions.parquet", folder / "labels.parquet", checked).features
    manifest = read_manifest(source)
    found = minor_update(source, out, features[-TRIED_ON:], of_the_heaviest(manifest), LEAST_RISE)
    if found is None:
        return None
    change, rise = found
    before, after = _share(manifest, change.member), _share(read_manifest(out), change.member)
    return out, Update("", change.member, change.input, change.scale, before, after, rise)


def _share(manifest: Manifest, name: str) -> float:
    weights = {member.name: member.weight for member in manifest.members}
    return weights[name] / sum(weights.values())


class SecondAct:
    """Promotes the updated version once enough has been scored, and says what becomes of it.

    Args:
        update: with the version as registered. at: promote when so many transactions have been scored.
        promote: gives the command. say: a line for the person who watches.
    """

    def __init__(self, update: Update, at: int, promote: Callable[[], None], say: Callable[[str], None]) -> None:
        self.update = update
        self._at, self._promote, self._say = at, promote, say
        self._promoted = False
        self._told = 0

    def follow(self, scored: int, commands: list[Given]) -> None:
        """Do what is due. Raises `StreamScorerError` if the promotion fails."""
        if not self._promoted and scored >= self._at:
            self._promote()
            self._promoted = True
        for each in self._played(commands)[self._told :]:
            command = each.command
            who = "the monitor" if command.author == "monitor" else command.who
            self._say(
                " ".join(f"{who}: {command.action} {command.ensemble} {each.version}".split()) + f": {command.why}"
            )
            self._told += 1

    def checks(self, commands: list[Given]) -> list[Check]:
        """Whether it ended as it should."""
        played = self._played(commands)
        actions = [(each.command.author, each.command.action) for each in played]
        why = played[-1].command.why if played else ""
        return [
            Check(
                "the monitor rolls the update back by itself, once",
                actions == [("person", "promote"), ("monitor", "rollback")],
                f"{(played[-1].at - played[0].at) / 1_000:.1f} s after its promotion"
                if len(played) > 1
                else "it is still in service",
            ),
            Check("and names the member", f"member {self.update.member} " in why, why.rpartition("; ")[2]),
        ]

    def _played(self, commands: list[Given]) -> list[Given]:
        """Its promotion and all that came after."""
        start = next((k for k, each in enumerate(commands) if each.version == self.update.version), len(commands))
        return commands[start:]
