"""Feature skew: which recorded scores count, and what is reported where features changed or are missing."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stream_scorer.cli.features import _require_no_skew
from stream_scorer.ensemble.manifest import Series
from stream_scorer.errors import CheckFailed, UsageError
from stream_scorer.kafka.topics import Topics
from stream_scorer.positions import SourcePartition
from stream_scorer.replay.skew import FeatureSkew, Recomputed, SkewMeter, SkewReport, served_features
from stream_scorer.serde.lineage import LineageColumns, LineageHeader, LineageVersion, encode_lineage

# Times of the transactions: one per minute and partition, from this day on.
DAY = 1_740_787_200_000
VERSIONS = [LineageVersion("cards", "7", "champion", "logit", "m", "p", 0.3, 0.8)]


class Lineage:
    """A topic with two partitions of `scores` each, in records of ten. Those before `changed` have other features."""

    def __init__(self, changed: int, scores: int = 50) -> None:
        self._records: dict[SourcePartition, list[Any]] = {}
        for partition in range(2):
            records = self._records[SourcePartition("lineage", partition)] = []
            for low in range(0, scores, 10):
                names = ["old", "one"] if low < changed else ["new"]
                header = LineageHeader("transactions", names[0], "s", "0", VERSIONS, None, {}, [], names)
                offset, nothing = np.arange(low, low + 10), np.full(10, np.nan)
                features = np.repeat(offset[:, None].astype(np.float64), len(names), axis=1)
                columns = LineageColumns(
                    np.full(10, partition, np.int32), offset, ["e"] * 10, np.zeros(10, np.int8), features,
                    np.zeros(features.shape, np.int8), offset, offset, nothing, nothing,
                )  # fmt: skip
                records += encode_lineage(header, columns)

    def bounds(self, topic: str) -> dict[SourcePartition, tuple[int, int]]:
        return {source: (0, len(records)) for source, records in self._records.items()}

    def read(self, source: SourcePartition, start: int, stop: int) -> Iterator[Any]:
        records = self._records[source][start:stop]
        values, headers = [record.value for record in records], [record.headers for record in records]
        yield SimpleNamespace(offset=np.arange(start, stop), value=values, headers=headers)


def measured(lineage: Lineage, first: int, stop: int) -> SkewReport:
    """The comparison of the offsets ``[first, stop)`` of both partitions; partition 1 is half a minute later."""
    served = served_features(lineage, Topics(), "new")
    meter = SkewMeter(["new"], served, {"new": Series([10.0], [50, 50, 0])})
    for low in range(first, stop, 7):
        offset = np.repeat(np.arange(low, min(low + 7, stop)), 2)
        partition = np.tile(np.array([0, 1], np.int32), len(offset) // 2)
        time = DAY + 60_000 * offset + 30_000 * partition
        meter.add(Recomputed(partition, offset, time, offset[:, None].astype(np.float64), rejected=0))
    return meter.report()


def test_scores_with_other_features_count_only_within_the_range() -> None:
    found = measured(Lineage(changed=20), 23, 50)
    assert (found.scores, found.features[0].compared, found.features[0].different) == (54, 54, 0)
    # What follows the range does not matter either, where the range itself was not served or is no longer recorded.
    assert measured(Lineage(changed=100), -20, 0).scores == 0


def test_scores_with_other_features_within_the_range_are_refused_with_the_time_of_the_last_one() -> None:
    with pytest.raises(UsageError, match=r"14 of 74 scores have features other .* just before 2025-03-01T00:19:30.001"):
        measured(Lineage(changed=20), 13, 50)
    with pytest.raises(UsageError) as caught:
        measured(Lineage(changed=20), 19, 50)
    assert "--start 2025-03-01T00:19:30.001+00:00" in caught.value.hint
    with pytest.raises(UsageError, match="20 of 20 scores") as caught:
        measured(Lineage(changed=100), 0, 10)
    assert "the spec of that time" in caught.value.hint


def test_a_feature_that_no_score_has_fails_the_check_as_one_that_differs() -> None:
    def checked(*counts: tuple[str, int, int]) -> str:
        features = [FeatureSkew(name, compared, different, None, None, 0.0, []) for name, compared, different in counts]
        with pytest.raises(CheckFailed) as caught:
            _require_no_skew(SkewReport(100, 0, features), 0.01)
        return caught.value.message

    _require_no_skew(SkewReport(100, 0, [FeatureSkew("amount", 100, 1, None, None, 0.0, [])]), 0.01)
    absent = "nothing to compare for 2 features, which no score has: card.count_1d, card.mean_1d"
    assert checked(("amount", 100, 0), ("card.count_1d", 0, 0), ("card.mean_1d", 0, 0)) == absent
    both = checked(("amount", 100, 2), ("card.count_1d", 0, 0))
    assert both.startswith("1 features differ from the log in more than 1.00% of the scores: amount; nothing to")
