"""The check that scoring goes on fails if the scorer pauses, but not if the machine does."""

from __future__ import annotations

import numpy as np
import pytest

from proofs.kit import Result
from proofs.throughout import Promise, check_throughout

BEGAN, ENDED = 10_000, 20_000
ARRIVED = np.arange(0, 30_000, 5)


@pytest.mark.parametrize(
    ("arrived", "stands_still", "holds"),
    [
        (ARRIVED, (0, 0), True),
        (ARRIVED, (BEGAN, ENDED), False),  # all of them are scored when it is over
        (ARRIVED, (BEGAN, BEGAN + 1_500), True),
        (ARRIVED, (BEGAN + 3_000, BEGAN + 5_500), False),
        (ARRIVED[(ARRIVED < 14_000) | (ARRIVED > 17_000)], (14_000, 17_000), True),  # nothing arrives either
    ],
)
def test_a_scorer_that_stands_still_is_noticed(arrived: np.ndarray, stands_still: tuple[int, int], holds: bool) -> None:
    began, ended = stands_still
    scored_at = np.where((arrived >= began) & (arrived < ended), ended, arrived) + 30
    result = Result()
    check_throughout(result, "a fault", (arrived, scored_at), (BEGAN, ENDED), Promise())
    assert result.ok == holds, result
