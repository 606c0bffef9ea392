"""handbook-live: quality on the Fraud Detection Handbook's transactions, by the live path.

Members are trained on 2018-07-25..07-31. The broker then holds everything from 04-01 on, which only warms the features
of a scorer that starts at the end of the log; 08-08..08-14 are produced day by day, frauds labelled a week after they
happened, and scored live. As in the Handbook, a test day is judged without the cards known to be compromised by then (a
fraud in the training week, or since then on a day at least 8 before); the whole population stands beside it.

The data set is not shipped: STREAM_SCORER_HANDBOOK names a copy, by default the one in ../shared/data.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from examples.handbook.loader import SPEC, Handbook, load
from proofs.kit import (
    ROOT,
    Context,
    Result,
    Scorer,
    log_ends,
    publish,
    read_topic,
    services,
    wait_drained,
    wait_until,
)
from stream_scorer.features.history import build_features
from stream_scorer.kafka.topics import Topics
from stream_scorer.records import Contribution
from stream_scorer.serde.tables import labels_from_columns, transactions_from_columns
from stream_scorer.spec import load_spec
from stream_scorer.state.client import connect
from stream_scorer.train.train import train_ensemble

TRAIN_FIRST, TRAIN_LAST = 115, 121  # 2018-07-25 .. 07-31, days since 04-01
TEST_FIRST, TEST_LAST = 129, 135  # 2018-08-08 .. 08-14
KNOWN_AFTER = 8
MIN_AUC, MIN_AP = 0.86, 0.60
MIN_ROWS, MIN_FRAUDS = 50_000, 300


def data_path() -> Path:
    """Where the data set should be."""
    return Path(
        os.environ.get("STREAM_SCORER_HANDBOOK") or ROOT.parent / "shared" / "data" / "handbook_transactions.parquet"
    )


def run(context: Context) -> Result:
    """See the module. `n` is not used: the data set decides."""
    result = Result()
    data = load(data_path(), days=TEST_LAST + 1)
    context.say(f"{len(data)} transactions, {int(data.fraud.sum())} frauds")
    checked = load_spec(SPEC)
    frauds = np.flatnonzero(data.fraud)
    history = build_features(
        checked,
        transactions_from_columns(checked, data.columns()),
        labels_from_columns(checked, data.label_columns(frauds)),
    )
    training = np.flatnonzero((data.day >= TRAIN_FIRST) & (data.day <= TRAIN_LAST))
    train_ensemble(
        history.matrix[training],
        checked.features,
        data.fraud[training],
        data.event_time[training],
        checked,
        context.folder / "ensemble",
        context.seed,
    )
    context.say(f"trained on {len(training)} transactions, {int(data.fraud[training].sum())} frauds")
    live = _disturbed(data, context.seed) if context.broken else data
    with services("kafka", "redis") as (_stack, at):
        _serve(context, live, frauds, at)
        records = read_topic(str(at.kafka), Topics().contributions).decode(Contribution)
        dead = len(read_topic(str(at.kafka), Topics().dead_letters))
    row = np.array([int(r.event_id[1:]) for r in records])
    score = np.full(len(data), np.nan)
    score[row] = [r.score for r in records]
    served = np.array([[np.nan if v is None else v for v in r.features] for r in records])
    different = int((~np.isclose(served, history.matrix[row], rtol=1e-9, atol=0, equal_nan=True)).any(axis=1).sum())
    test = np.flatnonzero((data.day >= TEST_FIRST) & (data.day <= TEST_LAST))
    result.check("every test transaction is scored once", sorted(row.tolist()) == test.tolist() and dead == 0)
    result.check("served features equal those of the whole history", different == 0)
    result.figures |= {"rows_with_other_features": different, "dead_letters": dead}
    for name, rows in (("filtered", _unknown_cards(data, test)), ("all", test)):
        result.figures |= {f"{name}_{key}": value for key, value in _quality(data, score, rows).items()}
    result.at_least("filtered_n", result.figures["filtered_n"], MIN_ROWS)
    result.at_least("filtered_frauds", result.figures["filtered_frauds"], MIN_FRAUDS)
    result.at_least("filtered_auc", result.figures["filtered_auc"], MIN_AUC)
    result.at_least("filtered_ap", result.figures["filtered_ap"], MIN_AP)
    return result


def _serve(context: Context, data: Handbook, frauds: Any, at: Any) -> None:
    bootstrap, topics = str(at.kafka), Topics()
    warm_labels = frauds[data.day[frauds] + 7 < TEST_FIRST]
    publish(bootstrap, topics.labels, *data.labels(warm_labels))
    warm = np.flatnonzero(data.day < TEST_FIRST)
    publish(bootstrap, topics.transactions, *data.transactions(warm))
    scorer = Scorer(
        context.folder,
        at,
        instance="scorer",
        ensemble=context.folder / "ensemble",
        spec=SPEC,
        arguments=["--start", "latest"],
    )
    scorer.start()
    ends = sum(log_ends(bootstrap, [topics.transactions, topics.labels]).values())
    client = connect(str(at.redis))

    def caught_up() -> bool:
        scorer.require_running()
        marks = [mark for mark in client.mget(client.keys("*:mark:*") or ["-"]) if mark]
        return sum(struct.unpack("<qq", mark)[0] for mark in marks) >= ends

    wait_until("the features are warm", caught_up, 400, 0.5)
    context.say(f"features warmed from {len(warm)} transactions and {len(warm_labels)} labels")
    for day in range(TEST_FIRST, TEST_LAST + 1):
        publish(bootstrap, topics.labels, *data.labels(frauds[data.day[frauds] == day - 7]))
        wait_drained(bootstrap, [scorer], timeout_s=60)
        publish(bootstrap, topics.transactions, *data.transactions(np.flatnonzero(data.day == day)))
        wait_drained(bootstrap, [scorer], timeout_s=60)
        context.say(f"day {day - TEST_FIRST + 1} of {TEST_LAST - TEST_FIRST + 1} scored")
    assert scorer.stop() == 0


def _unknown_cards(data: Handbook, test: Any) -> Any:
    """The test rows of cards not known to be compromised on their day."""
    keep = []
    week = data.fraud & (data.day >= TRAIN_FIRST) & (data.day <= TRAIN_LAST)
    for day in range(TEST_FIRST, TEST_LAST + 1):
        since = data.fraud & (data.day > TRAIN_LAST) & (data.day <= day - KNOWN_AFTER)
        known = np.unique(data.customer[week | since])
        today = test[data.day[test] == day]
        keep.append(today[~np.isin(data.customer[today], known)])
    return np.concatenate(keep)


def _quality(data: Handbook, score: Any, rows: Any) -> dict[str, float]:
    """Means over the test days, as the Handbook reports, and over all rows at once."""
    days = [rows[data.day[rows] == day] for day in range(TEST_FIRST, TEST_LAST + 1)]
    return {
        "n": len(rows),
        "frauds": int(data.fraud[rows].sum()),
        "auc": float(np.mean([roc_auc_score(data.fraud[d], score[d]) for d in days])),
        "ap": float(np.mean([average_precision_score(data.fraud[d], score[d]) for d in days])),
        "pooled_auc": float(roc_auc_score(data.fraud[rows], score[rows])),
        "pooled_ap": float(average_precision_score(data.fraud[rows], score[rows])),
    }


def _disturbed(data: Handbook, seed: int) -> Handbook:
    """The same transactions at other terminals and with other amounts, from the first test day on."""
    rng = np.random.default_rng(seed)
    terminal, amount = data.terminal.copy(), data.amount.copy()
    late = np.flatnonzero(data.day >= TEST_FIRST)
    terminal[late] = rng.permutation(terminal[late])
    amount[late] = rng.permutation(amount[late])
    return Handbook(data.event_time, data.day, data.customer, terminal, amount, data.fraud)
