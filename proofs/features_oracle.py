"""features-oracle: served features equal a brute-force recomputation, on every transaction of 21 days of the Handbook.

A scorer on a real Kafka and Redis, four partitions each, is warmed with everything from 2018-04-01 on and then serves
07-25..08-14. The features in its contribution records are compared with the definitions of the Handbook's chapter 3,
written out row by row with numpy masks over an entity's whole history: the customer's 1, 7 and 30-day count and mean
amount, the terminal's 1, 7 and 30-day count and risk seven days back. Counts are equal, means and rates to 1e-9.

The days are sent three at a time: less than the seven days for which a terminal's features wait, so that what a
terminal of several partitions should see is in the rows whatever partition is read first.

The data are not part of the project: STREAM_SCORER_HANDBOOK names the Parquet file. `N` is the number of days.
"""

from __future__ import annotations

import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.handbook.load import DAY_MS, LABEL_DELAY_MS, SPEC, Handbook, day_number, read, records
from proofs.handbook_live import DAY_TIMEOUT_S, data_file, labels_due, offline_features, wait_warm
from proofs.kit import Context, Result, Scorer, publish, read_lineage, services, wait_drained
from stream_scorer.kafka.topics import Topics
from stream_scorer.spec import load_spec
from stream_scorer.stack import StackAddresses

FIRST, DAYS = day_number(date(2018, 7, 25)), 21
DAYS_AT_A_TIME = 3
WINDOWS_DAYS = (1, 7, 30)
TOLERANCE = 1e-9
# The data have about 9,600 transactions a day; nearly half of all terminals had a fraud in some window.
MIN_ROWS_A_DAY, MIN_ROWS_AT_RISK_A_DAY = 7_500, 30
# Days the serving ensemble is trained on. How well it scores does not matter here, only that it serves.
TRAINED_DAYS = 21


def run(context: Context) -> Result:
    """See the module."""
    days = context.n or DAYS
    result = Result()
    data = read(data_file(), days=FIRST + days)
    ensemble = _train(context, data)
    with services("kafka", "redis") as (_stack, at):
        served = _serve(context, result, at, ensemble, data, days)
    started = time.monotonic()
    rows = np.flatnonzero(data.day >= FIRST)
    wanted = by_brute_force(data, rows)
    context.say(f"recomputed {len(rows):,} rows by brute force in {time.monotonic() - started:.0f} s")
    _compare(result, data, rows, served, wanted, days)
    return result


def _train(context: Context, data: Handbook) -> Path:
    from stream_scorer.train.recipe import Recipe, TrainingSet
    from stream_scorer.train.train import train_ensemble

    checked = load_spec(SPEC)
    early = data.take(data.day < TRAINED_DAYS)
    history = offline_features(checked, early)
    out = context.folder / "ensemble"
    training_set = TrainingSet(history.matrix, checked.features, early.fraud, early.event_time)
    train_ensemble(training_set, checked, out, Recipe(context.seed))
    return out


def _serve(
    context: Context, result: Result, at: StackAddresses, ensemble: Path, data: Handbook, days: int
) -> dict[str, list[float | None]]:
    """The features of each event id, as published."""
    bootstrap, topics = str(at.kafka), Topics()
    scorer = Scorer(
        context.folder, at, instance="scorer", ensemble=ensemble, spec=SPEC, arguments=["--start", "latest"],
        sabotage="lose-entries" if context.broken else None,
    )  # fmt: skip
    wait_warm(context, result, at, scorer, data, FIRST)
    started = time.monotonic()
    for low in range(FIRST, FIRST + days, DAYS_AT_A_TIME):
        high = min(low + DAYS_AT_A_TIME, FIRST + days)
        publish(bootstrap, topics.labels, *records(labels_due(data, low, high)))
        wait_drained(bootstrap, [scorer], timeout_s=DAY_TIMEOUT_S)
        part = data.take((data.day >= low) & (data.day < high))
        publish(bootstrap, topics.transactions, *records(part.transactions()))
        wait_drained(bootstrap, [scorer], timeout_s=DAY_TIMEOUT_S)
        context.say(f"days {low - FIRST + 1} to {high - FIRST} of {days}: {len(part):,} transactions served")
    result.figures["seconds_served"] = round(time.monotonic() - started, 1)
    result.check("the scorer ends with exit 0", scorer.stop() == 0)
    lineage = read_lineage(bootstrap, topics)
    result.figures["lineage_rows"] = len(lineage)
    return {row.event_id: row.features for row in lineage}


def by_brute_force(data: Handbook, rows: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Each feature ``(len(rows),)`` by its definition; a transaction sees those before it in the data, and itself.

    A window of d days at t is ``(t - d, t]``; a terminal's lies seven days back, where a fraud is known by t.
    """
    customers, terminals = _places(data.customer_id), _places(data.terminal_id)
    out = {f"customer.{kind}_{d}d": np.full(len(rows), np.nan) for kind in ("count", "mean") for d in WINDOWS_DAYS}
    out |= {f"terminal.{kind}_{d}d": np.zeros(len(rows)) for kind in ("count", "label_rate") for d in WINDOWS_DAYS}
    for place, row in enumerate(rows.tolist()):
        now = int(data.event_time[row])
        mine = customers[data.customer_id[row]]
        mine = mine[mine <= row]
        theirs = terminals[data.terminal_id[row]]
        theirs = theirs[theirs <= row]
        my_time, their_time = data.event_time[mine], data.event_time[theirs]
        known = now - LABEL_DELAY_MS
        for d in WINDOWS_DAYS:
            inside = mine[(my_time > now - d * DAY_MS) & (my_time <= now)]
            out[f"customer.count_{d}d"][place] = len(inside)
            out[f"customer.mean_{d}d"][place] = int(data.amount[inside].sum()) / len(inside)
            inside = theirs[(their_time > known - d * DAY_MS) & (their_time <= known)]
            out[f"terminal.count_{d}d"][place] = len(inside)
            if len(inside):
                out[f"terminal.label_rate_{d}d"][place] = int(data.fraud[inside].sum()) / len(inside)
    return out


def _places(ids: list[str]) -> dict[str, NDArray[np.int64]]:
    """Rows of each id, ascending."""
    code, number = np.unique(np.array(ids), return_inverse=True)
    order = np.argsort(number, kind="stable")
    bounds = np.searchsorted(number[order], np.arange(len(code) + 1))
    return {str(name): order[bounds[i] : bounds[i + 1]] for i, name in enumerate(code)}


def _compare(
    result: Result,
    data: Handbook,
    rows: NDArray[np.int64],
    served: dict[str, list[float | None]],
    wanted: dict[str, NDArray[np.float64]],
    days: int,
) -> None:
    ids = [data.event_id[i] for i in rows.tolist()]
    result.check("every transaction is served once, and no other", served.keys() == set(ids)
                 and result.figures["lineage_rows"] == len(ids))  # fmt: skip
    names = load_spec(SPEC).features
    nothing: list[Any] = [None] * len(names)
    got = np.array([served.get(i, nothing) for i in ids], dtype=np.float64)
    figures: dict[str, float] = {}
    for name, column in wanted.items():
        with np.errstate(invalid="ignore"):
            error = np.abs(got[:, names.index(name)] - column) / np.maximum(np.abs(column), 1.0)
        figures[name] = float(np.nanmax(np.where(np.isnan(error), np.inf, error)))
        exact = ".count_" in name
        holds = figures[name] == 0.0 if exact else figures[name] <= TOLERANCE
        result.check(f"{name} {'is equal' if exact else f'to {TOLERANCE:g}'}", holds)
    result.figures["largest_error"] = max(figures.values())
    result.figures["values_compared"] = len(ids) * len(wanted)
    result.at_least("rows", len(ids), MIN_ROWS_A_DAY * days)
    at_risk = int((wanted["terminal.label_rate_30d"] > 0).sum())
    result.at_least("rows_at_terminals_with_known_fraud", at_risk, MIN_ROWS_AT_RISK_A_DAY * days)
