"""handbook-live: quality on the Fraud Detection Handbook's transactions, by the live path.

Training as in the Handbook's chapter 3: members learn from 2018-07-25..07-31, the test is 08-08..08-14, and a fraud is
known 7 days after it happened. Training features come from the kernel that serves; test features from a scorer on a
real Kafka and Redis, warmed with everything since 04-01 that is on the topics when it starts, and then given the
test days one by one: the labels due that day, then its transactions.

Two populations are measured. The check uses the filtered one, which is the Handbook's: without the cards known to be
compromised by the day of the test, which a bank has blocked by then. The unfiltered one is a figure only.

The data are not part of the project: STREAM_SCORER_HANDBOOK names the Parquet file (see examples/handbook/README.md).
`N` is the number of test days.
"""

from __future__ import annotations

import os
import struct
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from examples.handbook.load import (
    LABEL_DELAY_MS,
    SPEC,
    START_MS,
    Handbook,
    compromised_by,
    day_number,
    read,
    records,
)
from proofs.kit import (
    ROOT,
    Context,
    DataMissing,
    Result,
    Scorer,
    log_ends,
    publish,
    read_lineage,
    read_topic,
    services,
    wait_drained,
    wait_until,
)
from stream_scorer.features.history import History, build_features
from stream_scorer.kafka.topics import Topics
from stream_scorer.quality import average_precision, roc_auc
from stream_scorer.records import Score
from stream_scorer.spec import CheckedSpec, load_spec
from stream_scorer.stack import StackAddresses
from stream_scorer.state.client import connect
from tests.support.tables import labels_from_columns, transactions_from_columns

DATA_NAME = "handbook_transactions.parquet"
DAY_MS = 86_400_000
TRAIN = (day_number(date(2018, 7, 25)), day_number(date(2018, 7, 31)))
TEST_FROM, TEST_DAYS = day_number(date(2018, 8, 8)), 7
MIN_AUC, MIN_AP = 0.86, 0.60
# What a day of the test brings at least; the data have about 9,600 transactions and 80 frauds a day.
MIN_ROWS_A_DAY, MIN_FRAUDS_A_DAY = 7_500, 30
WARM_TIMEOUT_S, DAY_TIMEOUT_S = 900, 180


def data_file() -> Path:
    """Where the Handbook's transactions are. Raises DataMissing."""
    path = Path(os.environ.get("STREAM_SCORER_HANDBOOK") or ROOT / ".." / "shared" / "data" / DATA_NAME)
    if not path.is_file():
        raise DataMissing(f"no Handbook data at {path}: set STREAM_SCORER_HANDBOOK (see examples/handbook/README.md)")
    return path


def run(context: Context) -> Result:
    """See the module."""
    days = context.n or TEST_DAYS
    result = Result()
    data = read(data_file(), days=TEST_FROM + days)
    checked = load_spec(SPEC)
    started = time.monotonic()
    offline = offline_features(checked, data)
    context.say(f"features of {len(data):,} transactions in {time.monotonic() - started:.0f} s")
    _train(context, result, checked, data, offline)
    test = data.take(data.day >= TEST_FROM)
    with services("kafka", "redis") as (_stack, at):
        scorer = Scorer(
            context.folder,
            at,
            instance="scorer",
            ensemble=context.folder / "ensemble",
            spec=SPEC,
            arguments=["--start", "latest"],
        )
        wait_warm(context, result, at, scorer, data, TEST_FROM)
        started = time.monotonic()
        for day in range(TEST_FROM, TEST_FROM + days):
            _day(context, at, scorer, data, day)
        result.figures["seconds_test"] = round(time.monotonic() - started, 1)
        result.check("the scorer ends with exit 0", scorer.stop() == 0)
        scores = _served(result, at, test, offline.matrix[data.day >= TEST_FROM])
    if scores is not None:
        _judge(result, data, test, scores)
    return result


def offline_features(checked: CheckedSpec, data: Handbook) -> History:
    """Features of the whole history; a transaction sees the labels given until then."""
    return build_features(
        checked,
        transactions_from_columns(checked, data.transactions()),
        labels_from_columns(checked, data.labels()),
    )


def _train(context: Context, result: Result, checked: CheckedSpec, data: Handbook, history: History) -> None:
    from stream_scorer.train.recipe import Recipe, TrainingSet
    from stream_scorer.train.train import train_ensemble

    assert history.event_id == data.event_id
    started = time.monotonic()
    week = (data.day >= TRAIN[0]) & (data.day <= TRAIN[1])
    training_set = TrainingSet(history.matrix[week], checked.features, data.fraud[week], data.event_time[week])
    train_ensemble(training_set, checked, context.folder / "ensemble", Recipe(context.seed))
    result.figures |= {
        "train_rows": int(week.sum()),
        "train_frauds": int(data.fraud[week].sum()),
        "seconds_train": round(time.monotonic() - started, 1),
    }
    context.say(f"trained on {int(week.sum()):,} transactions in {result.figures['seconds_train']} s")


def wait_warm(
    context: Context, result: Result, at: StackAddresses, scorer: Scorer, data: Handbook, first_day: int
) -> None:
    """Everything before `first_day` on the topics; then `scorer` starts at their end and warms its rows."""
    bootstrap, topics = str(at.kafka), Topics()
    before = data.take(data.day < first_day)
    started = time.monotonic()
    publish(bootstrap, topics.labels, *records(labels_due(before, 0, first_day)))
    publish(bootstrap, topics.transactions, *records(before.transactions()))
    context.say(f"{len(before):,} transactions published in {time.monotonic() - started:.0f} s")
    started = time.monotonic()
    scorer.start()
    ends = log_ends(bootstrap, [topics.transactions, topics.labels])

    def warm() -> bool:
        scorer.require_running()
        return _applied_offsets(str(at.redis)) == ends

    wait_until("the scorer's features are warm", warm, WARM_TIMEOUT_S, 1.0)
    seconds = time.monotonic() - started
    context.say(f"warm after {seconds:.0f} s")
    result.figures |= {"warmed": len(before), "seconds_warm": round(seconds, 1)}


def labels_due(data: Handbook, low: int, high: int) -> dict[str, Any]:
    """Labels given on days ``[low, high)``: of the frauds a week before."""
    due = (data.event_time + LABEL_DELAY_MS - START_MS) // DAY_MS
    return data.take((due >= low) & (due < high)).labels()


def _applied_offsets(redis_url: str) -> dict[tuple[str, int], int]:
    """Per input partition, up to which offset Redis holds its features."""
    client, found = connect(redis_url), {}
    for key in client.scan_iter(match="*:mark:*", count=10_000):
        topic, partition = key.decode().split(":mark:", 1)[1].rsplit(":", 1)
        packed = client.get(key)
        if packed is not None:
            found[topic, int(partition)] = struct.unpack_from("<q", packed)[0]
    return found


def _day(context: Context, at: StackAddresses, scorer: Scorer, data: Handbook, day: int) -> None:
    bootstrap, topics = str(at.kafka), Topics()
    today = data.take(data.day == day)
    columns = today.transactions()
    if context.broken:
        # Every transaction is at another one's terminal, so the history of terminals has no information.
        shuffled = np.random.default_rng(context.seed).permutation(len(today)).tolist()
        columns["terminal_id"] = [today.terminal_id[i] for i in shuffled]
    publish(bootstrap, topics.labels, *records(labels_due(data, day, day + 1)))
    wait_drained(bootstrap, [scorer], timeout_s=DAY_TIMEOUT_S)
    publish(bootstrap, topics.transactions, *records(columns))
    wait_drained(bootstrap, [scorer], timeout_s=DAY_TIMEOUT_S)
    context.say(f"day {day - TEST_FROM + 1}: {len(today):,} transactions, {int(today.fraud.sum())} frauds")


def _served(result: Result, at: StackAddresses, test: Handbook, offline: Any) -> np.ndarray[Any, Any] | None:
    """The final score of each test transaction; None if some have none."""
    topics, bootstrap = Topics(), str(at.kafka)
    scores = read_topic(bootstrap, topics.scores).decode(Score)
    lineage = read_lineage(bootstrap, topics)
    dead = len(read_topic(bootstrap, topics.dead_letters))
    place = {event_id: i for i, event_id in enumerate(test.event_id)}
    once = len(scores) == len(test) and {s.event_id for s in scores} == place.keys()
    different = sum(
        not np.array_equal([np.nan if v is None else v for v in c.features], offline[place[c.event_id]], equal_nan=True)
        for c in lineage
        if c.event_id in place
    )
    result.figures |= {
        "scored": len(scores),
        "dead_letters": dead,
        "duplicates": sum(s.duplicate for s in scores),
        "degraded": sum(bool(s.degraded) for s in scores),
        "feature_rows_unlike_offline": different,
    }
    result.check("every test transaction is scored once, nothing from the warm-up is", once)
    result.check("no dead letter, no duplicate, nothing degraded", not dead and not any(
        s.duplicate or s.degraded or s.score is None for s in scores
    ))  # fmt: skip
    result.check("live features equal those of the offline kernel", different == 0 and len(lineage) == len(test))
    if not once:
        return None
    served = np.full(len(test), np.nan)
    for s in scores:
        served[place[s.event_id]] = np.nan if s.score is None else s.score
    return served


def _judge(result: Result, data: Handbook, test: Handbook, score: np.ndarray[Any, Any]) -> None:
    days = sorted(set(test.day.tolist()))
    known = {day: compromised_by(data, day, TRAIN[0]) for day in days}
    everybody = np.ones(len(test), dtype=np.bool_)
    trusted = np.array([c not in known[d] for c, d in zip(test.customer_id, test.day.tolist(), strict=True)])
    for name, rows in (("filtered", trusted), ("unfiltered", everybody)):
        label, of = test.fraud[rows], score[rows]
        by_day = [test.day[rows] == day for day in days]
        figures = {
            "n": len(label),
            "frauds": int(label.sum()),
            "auc": roc_auc(of, label),
            "ap": average_precision(of, label),
            "auc_mean_of_days": float(np.mean([roc_auc(of[d], label[d]) for d in by_day])),
            "ap_mean_of_days": float(np.mean([average_precision(of[d], label[d]) for d in by_day])),
        }
        result.figures[name] = {k: round(v, 4) if isinstance(v, float) else v for k, v in figures.items()}
    filtered = result.figures["filtered"]
    result.at_least("filtered_n", filtered["n"], MIN_ROWS_A_DAY * len(days))
    result.at_least("filtered_frauds", filtered["frauds"], MIN_FRAUDS_A_DAY * len(days))
    result.at_least("filtered_auc", filtered["auc"], MIN_AUC)
    result.at_least("filtered_ap", filtered["ap"], MIN_AP)
