"""How the proof `drift-peers` counts false alarms, chooses thresholds and measures detectors, on alarms by hand."""

from __future__ import annotations

import pytest

from proofs.peer_scoring import Leveled, Scored, Tried, calibrate, detectors_of, episodes, measure, table


def scored(**streams: list[tuple[int, float]]) -> Scored:
    return Scored("one", "", 1.0, streams)


def test_alarms_of_a_day_are_one_episode() -> None:
    assert episodes([]) == []
    assert episodes([5, 6, 28, 29, 60]) == [5, 29, 60]


def test_the_most_sensitive_threshold_with_few_enough_false_alarms_is_chosen() -> None:
    detector = scored(a=[(0, 1.0), (50, 3.0), (100, 2.0)], b=[(0, 2.5)])
    # Above 2.0 there are the episodes of 3.0 and 2.5, above 1.0 also that of 2.0.
    assert calibrate(detector, ["a", "b"], 2) == 2.0
    assert calibrate(detector, ["a", "b"], 0) == 3.0
    assert calibrate(detector, ["a"], 5) == 1.0


def test_a_detector_without_a_strict_enough_level_has_no_threshold_and_finds_nothing() -> None:
    detector = Leveled("two", "", "0.1", {"0.01": {"a": [3]}, "0.1": {"a": [3, 40]}})
    assert calibrate(detector, ["a"], 0) is None
    assert calibrate(detector, ["a"], 1) == "0.01"
    assert calibrate(detector, ["a"], 9) == "0.1"
    assert measure(detector, None, {"a": 100}, [Tried("b", "a", "x", 50, True)]).f1 == 0.0


def test_f1_and_delay_count_changes_and_false_alarms() -> None:
    same = [(100, 0.0), (101, 5.0)]
    detector = scored(a=[(1, 9.0), (2, 9.0)], c=[*same, (102, 5.0)], d=[*same], e=[(124, 9.0)], same=same)
    tried = [
        Tried("c", "same", "large", 100, True),
        Tried("d", "same", "also without the change", 100, False),
        Tried("e", "same", "late", 100, False),
    ]
    found = measure(detector, 1.0, {"a": 876}, tried)
    assert found.delays == {"c": 3}
    assert (found.false_alarms, found.large, found.large_tried) == (1, 1, 1)
    # One found, one false alarm, two not found: an alarm a day after the change is too late.
    assert found.f1 == pytest.approx(2 / (2 + 1 + 2))
    line = found.line()
    assert line["false_alarms_per_year"] == 10.0
    assert "| one | 1 | 1 | 10 | 0.40 | 1 of 3 | 1 of 1 | 3 |" in table([line])


def test_results_of_a_program_are_read() -> None:
    entry = {"setting": "s", "default": 2, "scores": {"a": [[1, 3.0]]}}
    levels = {"setting": "s", "default": "x", "levels": {"x": {"a": [4]}}}
    first, second = detectors_of({"detectors": {"scored": entry, "leveled": levels}})
    assert first.alarms("a", first.default) == [1]
    assert second.alarms("a", second.default) == [4]
