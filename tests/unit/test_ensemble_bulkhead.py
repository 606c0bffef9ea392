"""Members that fail, hang and come back: scores go on without them, and with them when they can be trusted again."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stream_scorer.app import running_bulkhead
from stream_scorer.ensemble.breaker import FAILURES, LONGEST_PAUSE_S, PAUSE_S, TRIALS, Breaker, State
from stream_scorer.ensemble.bulkhead import BREAKER_OPEN, HERE_ROWS, Bulkhead
from stream_scorer.ensemble.ensemble import Ensemble, Scored
from stream_scorer.ensemble.lineup import DISABLED, MemberPool
from stream_scorer.ensemble.watchdog import Watchdog
from stream_scorer.errors import SettingsError
from stream_scorer.settings import load_settings
from tests.support.ensembles import compose, reference

ROWS = reference(64)


class Clock:
    now = 100.0

    def now_ms(self) -> int:
        return 0

    def monotonic(self) -> float:
        return self.now


class Isolated:
    """An ensemble scored behind a bulkhead."""

    def __init__(self, ensemble: Ensemble, clock: Clock, watchdog: Watchdog | None = None) -> None:
        self.ensemble, self.pool = ensemble, MemberPool([ensemble])
        self.bulkhead = Bulkhead(clock, budget_s=0.1, watchdog=watchdog)

    def score(self, rows: np.ndarray, disabled: frozenset[str] = frozenset()) -> Scored:
        return self.ensemble.combine(self.bulkhead.predict(self.pool, rows, disabled))

    @property
    def states(self) -> dict[str, State]:
        return self.bulkhead.states(self.pool)


class Odd:
    """A member in the place of another, that does what a test wants."""

    def __init__(self, member: Any) -> None:
        self._member = member
        self.calls = 0
        self.own_loops = False
        self.does: Callable[[np.ndarray], np.ndarray] = member.predict

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        self.calls += 1
        return self.does(inputs)

    def behave(self) -> None:
        self.does = self._member.predict


@pytest.fixture
def world(tmp_path: Path) -> Iterator[tuple[Isolated, Odd, Clock, Ensemble]]:
    compose(tmp_path / "e")
    ensemble, plain = (Ensemble.load(tmp_path / "e", version="1") for _ in range(2))
    odd = Odd(ensemble._members[1].member)
    object.__setattr__(ensemble._members[1], "member", odd)
    clock = Clock()
    yield Isolated(ensemble, clock), odd, clock, plain
    odd.behave()


def without_the_second(plain: Ensemble) -> np.ndarray:
    answers = [plain.predict_member(index, ROWS) for index in range(3)]
    answers[1] = type(answers[1]).none(len(ROWS), "gone")
    return plain.combine(answers).score


def raises(_inputs: np.ndarray) -> np.ndarray:
    raise RuntimeError("no")


FAULTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "raises": raises,
    "says NaN": lambda x: np.full(len(x), np.nan),
    "answers another shape": lambda x: np.zeros((len(x), 2)),
    "is out of range": lambda x: np.full(len(x), 1.5),
}


def test_healthy_members_score_as_without_a_bulkhead(world: tuple[Isolated, Odd, Clock, Ensemble]) -> None:
    bulkhead, _, _, plain = world
    for _ in range(3):
        scored = bulkhead.score(ROWS)
        assert np.array_equal(scored.score, plain.score(ROWS).score)
        assert not scored.failures
    assert set(bulkhead.states.values()) == {State.CLOSED}
    with pytest.raises(ValueError, match="features"):
        bulkhead.score(ROWS[:, :2])


@pytest.mark.parametrize("fault", FAULTS)
def test_a_member_that_fails_is_left_alone_tried_and_trusted_again(
    world: tuple[Isolated, Odd, Clock, Ensemble], fault: str
) -> None:
    bulkhead, odd, clock, plain = world
    odd.does = FAULTS[fault]
    for call in range(FAILURES + 3):
        scored = bulkhead.score(ROWS)
        assert np.array_equal(scored.score, without_the_second(plain))
        assert np.isnan(scored.member_scores[:, 1]).all()
        assert (scored.failures["two"] == BREAKER_OPEN) == (call >= FAILURES)
    assert odd.calls == FAILURES
    assert bulkhead.states["two"] is State.OPEN
    clock.now += PAUSE_S
    bulkhead.score(ROWS)  # on trial, and fails: a longer pause
    assert odd.calls == FAILURES + 1
    clock.now += PAUSE_S
    bulkhead.score(ROWS)
    assert odd.calls == FAILURES + 1
    odd.behave()
    clock.now += PAUSE_S
    for _ in range(TRIALS):
        assert bulkhead.score(ROWS).failures == {}
    assert bulkhead.states["two"] is State.CLOSED
    assert np.array_equal(bulkhead.score(ROWS).score, plain.score(ROWS).score)


def test_a_member_that_does_not_come_back_is_left_behind(world: tuple[Isolated, Odd, Clock, Ensemble]) -> None:
    bulkhead, odd, clock, plain = world
    release = threading.Event()

    def hangs(inputs: np.ndarray) -> np.ndarray:
        release.wait(20)
        return np.zeros(len(inputs))

    odd.does = hangs
    scored = bulkhead.score(ROWS)
    assert np.array_equal(scored.score, without_the_second(plain))
    assert "longer than 0.1 s" in scored.failures["two"]
    assert bulkhead.states["two"] is State.OPEN
    clock.now += 10 * LONGEST_PAUSE_S  # not called while its last call is still out, however long that takes
    assert bulkhead.score(ROWS).failures == {"two": BREAKER_OPEN}
    assert odd.calls == 1
    odd.behave()
    release.set()
    deadline = time.monotonic() + 10
    while bulkhead.score(ROWS).failures and time.monotonic() < deadline:
        time.sleep(0.01)
    assert np.array_equal(bulkhead.score(ROWS).score, plain.score(ROWS).score)


def test_a_batch_without_rows_is_neither_a_failure_nor_a_success(
    world: tuple[Isolated, Odd, Clock, Ensemble],
) -> None:
    bulkhead, odd, clock, _ = world
    odd.does = raises
    for _ in range(FAILURES):
        bulkhead.score(ROWS)
        bulkhead.score(ROWS[:0])
    assert bulkhead.states["two"] is State.OPEN
    clock.now += PAUSE_S
    for _ in range(TRIALS):
        bulkhead.score(ROWS[:0])
    assert bulkhead.states["two"] is State.TRIAL


def test_a_few_rows_without_an_answer_open_nothing(world: tuple[Isolated, Odd, Clock, Ensemble]) -> None:
    bulkhead, odd, _, _ = world
    odd.does = lambda x: np.where(np.arange(len(x)) < 10, np.nan, 0.5)
    for _ in range(3 * FAILURES):
        assert np.isnan(bulkhead.score(ROWS).member_scores[:, 1]).sum() == 10
    assert bulkhead.states["two"] is State.CLOSED


def test_pauses_double_up_to_the_longest_and_begin_anew_after_recovery() -> None:
    breaker, now = Breaker(), 0.0
    breaker.failed(now, at_once=True)
    for pause in (5.0, 10.0, 20.0, 40.0, 80.0, 80.0):
        assert not breaker.allows(now + pause - 0.01)
        now += pause
        assert breaker.allows(now)
        breaker.failed(now)
    now += LONGEST_PAUSE_S
    assert breaker.allows(now)
    for _ in range(TRIALS):
        breaker.succeeded()
    assert breaker.state is State.CLOSED
    for _ in range(FAILURES):
        breaker.failed(now)
    assert not breaker.allows(now + PAUSE_S - 0.01)
    assert breaker.allows(now + PAUSE_S)


def test_failures_count_in_a_row_only() -> None:
    breaker = Breaker()
    for _ in range(10):
        for _ in range(FAILURES - 1):
            breaker.failed(0.0)
        breaker.succeeded()
    assert breaker.state is State.CLOSED


_HANGS = """
import sys, threading, time
from pathlib import Path
from stream_scorer.ensemble.watchdog import Watchdog
dog = Watchdog(Path(sys.argv[1]), limit_s=0.3, slots=2)
one, two = "1" * 64, "2" * 64
print(dog.suspects(one), dog.suspects(two), flush=True)
for _ in range(3):
    dog.begin(0, one)
    time.sleep(0.15)
    dog.end(0)
if sys.argv[2] == "hang":
    dog.begin(1, two)
    time.sleep(20)
dog.close()
"""


def test_the_watchdog_ends_a_scorer_that_hangs_and_names_the_member(tmp_path: Path) -> None:
    def live(how: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-c", _HANGS, str(tmp_path / "watch"), how], capture_output=True, text=True, timeout=30
        )
        return done.returncode, done.stdout.strip()

    assert live("hang") == (-signal.SIGKILL, "False False")
    assert live("well") == (0, "False True")  # the next one begins without it
    assert live("well") == (0, "False False")


def test_a_suspect_begins_with_an_open_breaker_and_a_suspect_that_does_not_serve_is_none(tmp_path: Path) -> None:
    compose(tmp_path / "e")
    ensemble = Ensemble.load(tmp_path / "e", version="1")
    for key, state in (("f" * 64, State.CLOSED), (ensemble.member_keys[1], State.OPEN)):
        (tmp_path / "watch.suspect").write_bytes(bytes.fromhex(key[:16]))
        dog = Watchdog(tmp_path / "watch", limit_s=5, slots=2)
        try:
            bulkhead = Isolated(ensemble, Clock(), dog)
            assert set(bulkhead.score(ROWS).failures) == ({"two"} if state is State.OPEN else set())
            assert bulkhead.states == {"one": State.CLOSED, "two": state, "three": State.CLOSED}
        finally:
            dog.close()


def test_a_disabled_member_is_not_called(world: tuple[Isolated, Odd, Clock, Ensemble]) -> None:
    bulkhead, odd, _, plain = world
    bulkhead.score(ROWS)
    calls = odd.calls
    scored = bulkhead.score(ROWS, frozenset([plain.member_keys[1]]))
    assert odd.calls == calls
    assert scored.failures == {"two": DISABLED}
    assert np.array_equal(scored.score, without_the_second(plain))
    assert bulkhead.states["two"] is State.CLOSED


def test_breakers_outlive_a_change_of_the_lineup(world: tuple[Isolated, Odd, Clock, Ensemble]) -> None:
    bulkhead, odd, _, plain = world
    odd.does = raises
    for _ in range(FAILURES):
        bulkhead.score(ROWS)
    wider = MemberPool([plain, bulkhead.ensemble])
    assert wider.keys == bulkhead.pool.keys
    assert bulkhead.bulkhead.predict(wider, ROWS)[1].reason == BREAKER_OPEN


def test_scores_do_not_depend_on_how_many_are_asked_at_once(tmp_path: Path) -> None:
    compose(tmp_path / "e")
    ensemble = Ensemble.load(tmp_path / "e", version="1")
    pool, many = MemberPool([ensemble]), reference(HERE_ROWS + 1)
    for threads in (1, 2, 3, 8):
        bulkhead = Bulkhead(Clock(), budget_s=1.0, threads=threads)
        for rows in (many, ROWS, many):
            scored = ensemble.combine(bulkhead.predict(pool, rows))
            assert np.array_equal(scored.score, ensemble.score(rows).score)


def test_only_a_member_that_cannot_hang_is_called_by_the_calling_thread_and_for_small_batches(
    world: tuple[Isolated, Odd, Clock, Ensemble],
) -> None:
    bulkhead, odd, _, _ = world
    callers: list[threading.Thread] = []

    def answers(inputs: np.ndarray) -> np.ndarray:
        callers.append(threading.current_thread())
        return np.full(len(inputs), 0.5)

    odd.does = answers
    small, large = reference(HERE_ROWS), reference(HERE_ROWS + 1)
    bulkhead.score(small)  # as a member of a library
    odd.own_loops = True
    bulkhead.score(small)
    bulkhead.score(large)
    assert [caller is threading.current_thread() for caller in callers] == [False, True, False]
    assert bulkhead.ensemble.cannot_hang(0)
    odd.does = raises
    for _ in range(FAILURES):
        assert "two" in bulkhead.score(small).failures
    assert bulkhead.score(small).failures == {"two": BREAKER_OPEN}


def test_of_two_that_are_asked_the_last_to_begin_is_the_suspect(tmp_path: Path) -> None:
    code = _HANGS.replace("    dog.begin(1, two)\n", "    dog.begin(1, two)\n    dog.begin(0, one)\n")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "w"), "hang"], capture_output=True, timeout=30)
    assert done.returncode == -signal.SIGKILL
    dog = Watchdog(tmp_path / "w", limit_s=5)
    try:
        assert (dog.suspects("1" * 64), dog.suspects("2" * 64)) == (True, False)
    finally:
        dog.close()


def test_a_watchdog_that_cannot_write_is_an_error_of_the_settings(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    settings = load_settings({"cache.dir": str(tmp_path / "cache")}, environment={}, directory=tmp_path)
    with pytest.raises(SettingsError, match=r"cache\.dir: cannot write"), running_bulkhead(settings):
        pass
