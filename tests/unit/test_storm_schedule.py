"""Schedules of the storm: the same seed gives the same schedule, and shrinking keeps what fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from proofs.storm_schedule import Action, Kind, Schedule, counts, generate, load, overlapping, save, shrink

KINDS = [
    Kind("kill", "processes", ("one", "two"), 0, 4_000, weight=3),
    Kind("flush", "redis", weight=1),
    Kind("slow", "redis", (), 1_000, 8_000, weight=2, choices={"milliseconds": (3, 30)}),
]
ACTIONS = [Action(1_000 * i, "kill", "one", 0, i) for i in range(64)]


def test_a_schedule_depends_on_its_seed_only() -> None:
    first, again, other = (generate(seed, 120_000, 150, KINDS) for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_actions_start_in_order_within_the_run_and_end_with_it() -> None:
    for seed in range(20):
        actions = generate(seed, 60_000, 150, KINDS).actions
        assert [a.at_ms for a in actions] == sorted(a.at_ms for a in actions)
        assert all(a.at_ms >= 3_000 and a.at_ms + a.duration_ms <= 60_000 for a in actions)
        assert all((a.target in ("one", "two")) == (a.kind == "kill") for a in actions)
        assert all(a.parameters.get("milliseconds") in (3, 30) for a in actions if a.kind == "slow")


def test_the_rate_of_actions_gives_a_full_run_its_number() -> None:
    total = sum(len(generate(seed, 300_000, 150, KINDS).actions) for seed in range(1, 13))
    assert total >= 2_300


def test_kinds_occur_as_often_as_their_weights_say() -> None:
    found = counts(generate(1, 600_000, 150, KINDS).actions)
    assert found["kill"] == pytest.approx(3 * found["flush"], abs=3)
    assert found["slow"] == pytest.approx(2 * found["flush"], abs=2)


def test_a_saved_schedule_is_read_back(tmp_path: Path) -> None:
    schedule = generate(3, 60_000, 150, KINDS)
    save(schedule, tmp_path / "deep" / "schedule.json")
    assert load(tmp_path / "deep" / "schedule.json") == schedule


def test_actions_overlap_if_they_have_a_time_in_common() -> None:
    assert overlapping([]) == 0
    assert overlapping([(0, 1), (2, 3)]) == 0
    assert overlapping([(0, 10), (2, 3), (5, 6), (11, 12)]) == 3
    assert overlapping([(0, 1), (1, 1), (4, 5)]) == 2


def test_nothing_is_left_of_a_schedule_that_fails_without_any_action() -> None:
    assert shrink(ACTIONS, lambda _: True, 10) == ([], 1)


@pytest.mark.parametrize("needed", [{5}, {5, 6}, {0, 63}, {3, 17, 40}])
def test_shrinking_finds_the_actions_that_are_needed(needed: set[int]) -> None:
    left, runs = shrink(ACTIONS, lambda actions: needed <= {a.seed for a in actions}, 500)
    assert {a.seed for a in left} == needed
    assert [a.at_ms for a in left] == sorted(a.at_ms for a in left)
    assert runs < 150


def test_shrinking_stops_after_the_runs_that_it_may_make_and_keeps_a_failing_part() -> None:
    ran: list[int] = []

    def fails(actions: list[Action]) -> bool:
        ran.append(len(actions))
        return {3, 40} <= {a.seed for a in actions}

    left, runs = shrink(ACTIONS, fails, 6)
    assert runs == len(ran) == 6
    assert {3, 40} <= {a.seed for a in left}


def test_a_schedule_that_never_fails_again_stays_whole() -> None:
    assert shrink(ACTIONS, lambda _: False, 1_000)[0] == ACTIONS


def test_there_are_kinds_of_every_group_and_each_ends_by_itself() -> None:
    from proofs.storm_actions import KINDS as REAL

    assert len(REAL) >= 25
    assert {kind.group for kind in REAL} == {"processes", "broker", "redis", "control", "data", "environment"}
    assert all(0 <= kind.min_ms <= kind.max_ms <= 40_000 and kind.weight > 0 for kind in REAL)
    wanted = counts(Schedule(1, 300_000, 150, generate(1, 300_000, 150, REAL).actions).actions)
    assert set(wanted) == {kind.name for kind in REAL}
