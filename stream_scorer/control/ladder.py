"""The ladder of a canary: ascending shares of the entities, each of which needs a confirmation of its own.

The last step is the promotion: its probation compares the versions on all entities.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from stream_scorer.errors import UsageError
from stream_scorer.records import CanaryState

Step = tuple[Literal["canary", "promote"], float]
# Least last share of a ladder that a person writes. The log accepts any.
MIN_LAST_SHARE = 0.02


def parse_ladder(text: str) -> list[float]:
    """The shares in a text such as `1, 5, 25, 50, 100` (percent). Raises `UsageError`.

    Fractions such as `0.01, 0.5, 1` are refused: read as percentages, they would promote after 1 %.
    """
    try:
        shares = [float(part.strip().removesuffix("%")) / 100 for part in text.split(",")]
    except ValueError:
        shares = []
    problem = check_ladder(shares)
    if not problem and shares[-1] < MIN_LAST_SHARE:
        problem = f"after its last share of {100 * shares[-1]:.4g} % the version would be promoted"
    if problem:
        raise UsageError(
            f"{text!r} is not a ladder: {problem}", hint="Write ascending percentages, as in 1,5,25,50,100."
        )
    return shares


def check_ladder(shares: Sequence[float]) -> str:
    """What is wrong with a ladder; empty if nothing is."""
    if not shares:
        return "it has no shares"
    if not all(0.0 < share <= 1.0 for share in shares):
        return "a share must be above 0 and at most 100 %"
    if any(after <= before for before, after in zip(shares, shares[1:], strict=False)):
        return "the shares must ascend"
    return ""


def next_step(canary: CanaryState) -> Step | None:
    """The command that follows the confirmation of `canary` at its share, and its share; None without a ladder.

    After the last share of the ladder, or where the next one is all entities, it is the promotion.
    """
    if not canary.ladder:
        return None
    share = next((share for share in canary.ladder if share > canary.share), 1.0)
    return ("promote", 1.0) if share >= 1.0 else ("canary", share)
