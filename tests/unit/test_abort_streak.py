"""Aborts in a row: batches shrink, and the scorer reports a loop until something is committed."""

from __future__ import annotations

from stream_scorer.pipeline.processor import ABORTS_OF_A_LOOP, _AbortStreak


def test_every_abort_halves_the_batch_down_to_one_record() -> None:
    streak = _AbortStreak()
    assert streak.shrink(1_000, 7) == 1_000
    for expected in (500, 250, 125):
        streak.add("too large", 7)
        assert streak.shrink(1_000, 7) == expected
    for _ in range(20):
        streak.add("too large", 7)
    assert streak.shrink(1_000, 7) == 1


def test_a_committed_batch_ends_the_streak() -> None:
    streak = _AbortStreak()
    for number in range(ABORTS_OF_A_LOOP):
        assert not streak.looping
        streak.add(f"abort {number}", 7)
    assert streak.looping
    assert streak.why == f"abort {ABORTS_OF_A_LOOP - 1}"
    assert streak.shrink(1_000, 8) == 1_000
    assert not streak.looping
    streak.add("another", 8)
    assert streak.length == 1
