"""The Handbook's spec gives the features of its chapter 3, held to the definitions written out plainly."""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from examples.handbook.load import (
    DAY_MS,
    SPEC,
    START_MS,
    Handbook,
    compromised_by,
    day_number,
    main,
    read,
    records,
)
from stream_scorer.features.history import build_features
from stream_scorer.serde.decoder import LabelDecoder, TransactionDecoder
from stream_scorer.spec import load_spec
from tests.support.tables import labels_from_columns, transactions_from_columns

ROOT = Path(__file__).parents[2]
REAL = Path(
    os.environ.get("STREAM_SCORER_HANDBOOK") or ROOT / ".." / "shared" / "data" / "handbook_transactions.parquet"
)
WINDOWS = (1, 7, 30)


def sample(seed: int, n: int = 500, days: int = 60) -> Handbook:
    rng = np.random.default_rng(seed)
    # Few distinct instants a day: several transactions of one entity share a second, and windows end on them.
    time = np.sort(rng.integers(0, days, n) * 86_400 + rng.choice([0, 1, 6 * 3_600 + 3_599, 7 * 3_600, 86_399], n))
    return Handbook(
        [f"hb-{i}" for i in range(n)],
        START_MS + time * 1_000,
        [f"c{i}" for i in rng.integers(0, 6, n)],
        [f"t{i}" for i in rng.integers(0, 5, n)],
        rng.integers(0, 50_000, n),
        rng.random(n) < 0.15,
    )


def by_definition(data: Handbook) -> np.ndarray:
    """Row by row, as chapter 3 defines the features. Windows of d days at time t are (t - d, t], as pandas' `rolling`.

    The customer's include the current transaction. The terminal's lie 7 days back, (t - 7 - d, t - 7], counts and
    risk alike, because labels are known only then; without a transaction in them the risk is 0.
    """
    out = []
    for i in range(len(data)):
        t = int(data.event_time[i])
        mine = [j for j in range(i + 1) if data.customer_id[j] == data.customer_id[i]]
        theirs = [j for j in range(i) if data.terminal_id[j] == data.terminal_id[i]]
        count, mean, terminal_count, risk = [], [], [], []
        for d in WINDOWS:
            inside = [j for j in mine if t - d * DAY_MS < data.event_time[j] <= t]
            count.append(len(inside))
            mean.append(sum(int(data.amount[j]) for j in inside) / len(inside))
            high = t - 7 * DAY_MS
            inside = [j for j in theirs if high - d * DAY_MS < data.event_time[j] <= high]
            terminal_count.append(len(inside))
            risk.append(sum(bool(data.fraud[j]) for j in inside) / len(inside) if inside else 0.0)
        day, second = divmod((t - START_MS) // 1_000, 86_400)
        weekend = day % 7 in (0, 6)  # 2018-04-01 was a Sunday
        night = second // 3_600 <= 6
        out.append([*count, *mean, *terminal_count, *risk, int(data.amount[i]), weekend, night])
    return np.array(out, dtype=np.float64)


def features(data: Handbook) -> np.ndarray:
    checked = load_spec(SPEC)
    return build_features(
        checked,
        transactions_from_columns(checked, data.transactions()),
        labels_from_columns(checked, data.labels()),
        batch=97,
    ).matrix


@pytest.mark.parametrize("seed", [1, 2])
def test_features_are_those_of_chapter_3(seed: int) -> None:
    data = sample(seed)
    wanted = by_definition(data)
    assert (wanted[:, 9:12] > 0).any(axis=0).all()  # every risk window has values
    np.testing.assert_array_equal(features(data), wanted)


def test_a_fraud_counts_from_the_moment_it_is_known_and_no_sooner() -> None:
    at = START_MS + 10 * DAY_MS
    times = [at, at + 7 * DAY_MS - 1_000, at + 7 * DAY_MS, at + 8 * DAY_MS - 1_000, at + 8 * DAY_MS]
    n = len(times)
    data = Handbook([str(i) for i in range(n)], np.array(times), [f"c{i}" for i in range(n)], ["t"] * n,
                    np.full(n, 100), np.array([True] + [False] * (n - 1)))  # fmt: skip
    risk_1d = features(data)[:, 9]
    assert risk_1d.tolist() == [0.0, 0.0, 1.0, 1.0, 0.0]


def test_records_decode_as_the_spec_says_and_labels_come_a_week_later() -> None:
    checked, data = load_spec(SPEC), sample(3, n=50)
    keys, values = records(data.transactions())
    decoded, rejected = TransactionDecoder(checked).decode(values, np.full(50, START_MS + 3_000 * DAY_MS))
    assert not rejected
    assert decoded.event_id == data.event_id
    assert keys == [c.encode() for c in data.customer_id]
    labels, rejected = LabelDecoder(checked).decode(records(data.labels())[1], data.labels()["labelled_at"])
    assert not rejected
    assert len(labels) == data.fraud.sum()
    assert labels.fraud.all()
    np.testing.assert_array_equal(labels.labelled_at - labels.event_time, 7 * DAY_MS)


def test_compromised_cards_are_known_after_the_delay_and_from_the_training_week_on() -> None:
    days = np.array([5, 10, 11, 12, 30])
    data = Handbook([str(i) for i in range(5)], START_MS + days * DAY_MS, list("abcde"), ["t"] * 5, np.ones(5, int),
                    np.array([True, True, False, True, True]))  # fmt: skip
    assert compromised_by(data, 19, 10) == {"b"}
    assert compromised_by(data, 20, 10) == {"b", "d"}
    assert compromised_by(data, 20, 0) == {"a", "b", "d"}
    assert day_number(date(2018, 8, 8)) == 129


@pytest.mark.skipif(not REAL.is_file(), reason="the Handbook's data are not here (STREAM_SCORER_HANDBOOK)")
def test_real_transactions_too() -> None:
    data = read(REAL, days=45)
    busiest = {t for t, _ in sorted(_counts(data.terminal_id).items(), key=lambda pair: -pair[1])[:4]}
    owners = {c for c, _ in sorted(_counts(data.customer_id).items(), key=lambda pair: -pair[1])[:4]}
    rows = [c in owners or t in busiest for c, t in zip(data.customer_id, data.terminal_id, strict=True)]
    few = data.take(np.array(rows))
    assert 500 < len(few) < 3_000
    np.testing.assert_array_equal(features(few), by_definition(few))


def _counts(ids: list[str]) -> dict[str, int]:
    return dict(zip(*(column.tolist() for column in np.unique(ids, return_counts=True)), strict=True))


def test_the_loader_writes_what_is_known_by_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    seconds = np.array([5, 20, 6, 8, 3]) * 86_400
    columns = {"t_seconds": seconds, "customer_id": [1] * 5, "terminal_id": [2] * 5, "amount_cents": [100] * 5,
               "fraud_scenario": [0, 1, 2, 3, 1]}  # fmt: skip
    pq.write_table(pa.table(columns), tmp_path / "source.parquet")
    monkeypatch.setattr(
        "sys.argv", ["load.py", str(tmp_path / "source.parquet"), str(tmp_path / "out"), "--until", "2018-04-14"]
    )
    main()
    transactions = pq.read_table(tmp_path / "out" / "transactions.parquet").to_pydict()
    assert transactions["event_time"] == [START_MS + d * DAY_MS for d in (3, 5, 6, 8)]
    assert transactions["event_id"] == ["hb-4", "hb-0", "hb-2", "hb-3"]
    # Day 13 is left out: the fraud of day 6 is known only then.
    assert pq.read_table(tmp_path / "out" / "labels.parquet").to_pydict()["event_id"] == ["hb-4"]
