"""Which version decides, and that members are shared."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.ensemble.lineup import Lineup, MemberPool, Split, _keyed, place
from tests.support.ensembles import compose, reference

NOW = np.zeros(20_000, np.int64)
WHO = [f"customer-{i}" for i in range(20_000)]


@pytest.fixture
def ensemble(tmp_path: Path) -> Ensemble:
    compose(tmp_path / "e")
    return Ensemble.load(tmp_path / "e", version="1")


def chosen(ensemble: Ensemble, share: float, salt: str = "s", until: int | None = None) -> np.ndarray:
    return Lineup((ensemble, ensemble), Split(share, salt, until)).route(WHO, NOW) == 1


def test_shares_are_kept_nested_and_salted(ensemble: Ensemble) -> None:
    one, ten, fifty = (chosen(ensemble, share) for share in (0.01, 0.1, 0.5))
    for share, arm in ((0.01, one), (0.1, ten), (0.5, fifty)):
        assert abs(arm.mean() - share) < 4 * np.sqrt(share * (1 - share) / len(WHO))
    assert not (one & ~ten).any()
    assert not (ten & ~fifty).any()
    assert chosen(ensemble, 1.0).all()
    assert abs((ten & chosen(ensemble, 0.1, "other")).mean() - 0.01) < 0.004


def test_no_entity_and_a_time_past_the_end_mean_champion(ensemble: Ensemble) -> None:
    lineup = Lineup((ensemble, ensemble), Split(1.0, "s", until=1_000))
    assert lineup.route(["a", None, "b", "c"], np.array([0, 0, 999, 1_000])).tolist() == [1, 0, 1, 0]
    assert Lineup.of(ensemble).route(["a"], np.array([0])).tolist() == [0]


def test_the_place_of_an_entity_is_the_same_in_every_process() -> None:
    code = "from stream_scorer.ensemble.lineup import _keyed, place; print(place(_keyed('s'), 'customer-7'))"
    environment = os.environ | {"PYTHONHASHSEED": "1"}
    other = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert int(other.stdout) == place(_keyed("s"), "customer-7") == 12017424496975056149


def test_members_with_one_key_are_asked_once_and_a_changed_preparation_is_another_member(
    ensemble: Ensemble, tmp_path: Path
) -> None:
    compose(tmp_path / "again")
    again = Ensemble.load(tmp_path / "again", version="2")
    pool = MemberPool([ensemble, again])
    assert pool.names == ensemble.member_names
    again.member_keys[1] = "0" * 64
    pool = MemberPool([ensemble, again])
    assert pool.names == ["one", "two", "three", "two@2"]
    rows = reference(16)
    answers = [pool.predict_member(index, pool.checked(rows)) for index in range(len(pool))]
    assert np.array_equal(again.combine(pool.outputs_of(1, answers)).score, again.score(rows).score)
