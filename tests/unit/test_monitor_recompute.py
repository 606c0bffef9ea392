"""Proofs compare all fields of a record of the monitor, apart from its revision."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from proofs.monitor_labels import Recomputed, maturity_figures
from proofs.monitor_recompute import differs
from stream_scorer.records import MonitorMetric

HOUR, HORIZON = 3_600_000, 48 * 3_600_000
NEWEST = HOUR + HORIZON
PUBLISHED = MonitorMetric(
    "fpr", "block", 0, HOUR, 7, True, "cards", "1", 0.02, 0.01, 0.03, 2, 100, 120, HORIZON, {"unknown": 4},
    "champion", 0.015, 0.025, 1.0, True, {"analyst": 5},
)  # fmt: skip
WANTED = Recomputed(0.02, 2, 100, 0.01, 0.03, (0.015, 0.025), {"unknown": 4}, True, {"analyst": 5}, True, True, NEWEST)


@pytest.mark.parametrize(
    "change",
    [
        {"value": 0.021}, {"value": None}, {"low": 0.0}, {"high": None}, {"numerator": 3}, {"denominator": 99},
        {"interval_low": 0.01}, {"interval_high": None}, {"statistics": {"unknown": 3}}, {"statistics": {}},
        {"label_sources": {"analyst": 4}}, {"label_sources": {}}, {"closed": False}, {"final": False},
        {"label_age": HORIZON - 1, "final": False}, {"label_age": HORIZON + 1}, {"label_age": None},
        {"maturity": 0.9}, {"maturity": None},
    ],
)  # fmt: skip
def test_a_record_that_is_wrong_in_one_field_differs(change: dict[str, Any]) -> None:
    assert not differs(PUBLISHED, WANTED, HORIZON)
    assert differs(msgspec.structs.replace(PUBLISHED, **change), WANTED, HORIZON)
    assert differs(None, WANTED, HORIZON) and differs(PUBLISHED, None, HORIZON)


def test_what_the_order_of_two_topics_decides_may_be_either() -> None:
    undecided = WANTED._replace(closed=None, final=None)
    early = msgspec.structs.replace(PUBLISHED, closed=False, final=False, label_age=HOUR, maturity=0.5)
    assert not differs(PUBLISHED, undecided, HORIZON) and not differs(early, undecided, HORIZON)
    assert differs(msgspec.structs.replace(early, maturity=1.5), undecided, HORIZON)
    ages = np.array([HOUR, HOUR, 3 * HOUR]), np.array([HOUR, 5 * HOUR, 3 * HOUR])
    point = maturity_figures(*ages, HORIZON)["label_maturity", "1/24"]._replace(final=True, newest=NEWEST)
    curve = msgspec.structs.replace(
        PUBLISHED, metric="label_maturity", low=None, high=None, denominator=3, interval_low=None, interval_high=None,
        label_sources={}
    )  # fmt: skip
    for numerator in (1, 2):
        published = msgspec.structs.replace(curve, numerator=numerator, value=numerator / 3)
        assert not differs(published, point, HORIZON)
        assert differs(published, point._replace(final=False), HORIZON)
        assert differs(msgspec.structs.replace(published, value=0.5), point, HORIZON)
    assert differs(msgspec.structs.replace(curve, numerator=3, value=1.0), point, HORIZON)
    assert not differs(None, point._replace(final=False), HORIZON)
