"""Made-up runs for tests of reports."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from stream_scorer.records import Action, Alert, Command, Incident, MonitorMetric, ServedVersion
from stream_scorer.reports.recording import Contributions, ControlRecord, DeadLetters, Inputs, Places, Recording, Scores
from stream_scorer.reports.story import Check, Story, Truth, Update

HOUR = 3_600_000
START = 1_760_000_400_000 // HOUR * HOUR


def places(*pairs: tuple[int, int]) -> Places:
    return Places.of(list(pairs))


def metric(name: str, dimension: str, start: int, hours: int, **more: Any) -> MonitorMetric:
    facts: dict[str, Any] = {
        "revision": 1, "closed": True, "ensemble": "cards", "version": "1", "value": None, "low": None, "high": None,
        "numerator": None, "denominator": None, "rows": 500, "label_age": None, "statistics": {},
    }  # fmt: skip
    return MonitorMetric(
        metric=name, dimension=dimension, window_start=start, window_end=start + hours * HOUR, **(facts | more)
    )


def make_story(n: int = 200, *, event_id: str = "e-{}", seed: int = 3) -> Story:
    """A run of `n` scored transactions on two partitions; every tenth is fraud, every twentieth event a second copy."""
    rng = np.random.default_rng(seed)
    partition = np.sort(np.arange(n) % 2)
    offset = np.concatenate([100 + np.arange((partition == p).sum()) for p in (0, 1)])
    ids = [event_id.format(i - 1 if i % 20 == 19 else i) for i in range(n)]
    duplicate = np.arange(n) % 20 == 19
    kind = np.where(np.arange(n) % 10 == 0, 1 + (np.arange(n) // 10) % 2, 0)
    contribution = rng.normal(0, 0.3, (n, 2)) + 3.0 * (kind > 0)[:, None]
    base = np.full(n, -3.0)
    z = base + contribution.sum(axis=1)
    score = 1 / (1 + np.exp(-z))
    timestamp = START + 10 * np.arange(n)
    scored_at = timestamp + 7
    decision = np.where(score >= 0.9, 2, np.where(score >= 0.5, 1, 0))
    event_time = START + np.arange(n) * 24 * HOUR // n
    contributions = Contributions(
        partition, Places(partition, offset), ids, scored_at + 5, base, z, score,
        1 / (1 + np.exp(3.0 - 2 * contribution)), np.full((n, 2), 0.5), contribution, ["gbdt", "xgb"],
        np.zeros(n, np.int64), ["1"], np.full(n, -1), np.arange(n, dtype=np.int64),
    )  # fmt: skip
    scores = Scores(
        partition, ids, event_time, scored_at, decision, np.zeros(n, np.int64), duplicate, np.zeros(n, bool),
        np.full(n, 1234), [("cards", "1")],
    )  # fmt: skip
    dead = DeadLetters(places((0, 500)), ["not_json"])
    inputs = Inputs(
        Places(np.append(partition, 0), np.append(offset, 500)), np.append(timestamp, START).astype(np.int64)
    )
    metrics = [
        metric("alert_rate", "review+block", START, 1, value=0.1),
        metric("alert_rate", "review+block", START, 24, value=0.1),
        metric("fpr", "review+block", START, 24, low=0.5, high=0.6, label_age=50 * HOUR, revision=1),
        metric("fpr", "review+block", START, 24, low=0.0, high=0.1, label_age=50 * HOUR, revision=2),
        metric("drift_score", "score", START, 24, value=0.05, statistics={"sufficient": 1}),
        metric("drift_score", "hour", START, 24, value=0.9, statistics={"sufficient": 1}),
        metric("drift_score", "amount", START, 24, value=0.2, statistics={"sufficient": 1}),
        metric("drift_score", "rare", START, 24, value=0.8, statistics={"sufficient": 0}),
    ]
    alerts: list[Alert] = []
    first = ~duplicate
    return Story(
        title="a run",
        recording=Recording(inputs, contributions, scores, dead, alerts, metrics),
        truth=Truth([i for i, f in zip(ids, first, strict=True) if f], event_time[first], kind[first].astype(np.int8)),
        ensemble="cards", version="1", review=0.5, block=0.9, pane_ms=HOUR, horizon_ms=48 * HOUR,
        calendar=frozenset({"hour"}), labels={"analyst": 3}, kinds=("genuine", "stolen_card", "device_farm"),
        sent={"transactions": n, "duplicates": int(duplicate.sum()), "garbage": 1, "late_alerts": 0}, rate=100.0,
        training={"members": [{"name": "gbdt", "weight": 0.5, "feature_set": "all"}]},
        steps={"starting": 1.0, "live traffic": 2.0}, total_s=3.0, machine="2 cores",
        checks=[Check("exactly once", True, "all of them")],
    )  # fmt: skip


def with_incident(story: Story, *, rolled_back: bool = True) -> Story:
    """The same run, its rows 100 to 149 decided by version 2; version 1 is scored too and alerts none of them."""
    mine = (np.arange(len(story.recording.contributions.version)) >= 100) & (np.arange(200) < 150)
    contributions = replace(
        story.recording.contributions,
        version=mine.astype(np.int64),
        versions=["1", "2"],
        other=np.where(mine, 0, -1),
    )
    began = int(contributions.arrival[mine].min()) - 1_000

    def command(action: Action, **more: object) -> Command:
        return Command(ensemble="cards", action=action, at=0, expected_offset=0, **more)  # type: ignore[arg-type]

    promote = command("promote", who="ann", why="better", version=ServedVersion("2", "0" * 64))
    rollback = command("rollback", who="watcher", why="<worse>; member gbdt makes 9 more", author="monitor")
    commands = [ControlRecord(0, 5, command("promote", who="x", why="first", version=ServedVersion("1", "0" * 64)))]
    commands += [ControlRecord(1, began, promote)]
    commands += [ControlRecord(2, began + 1_200, rollback)] if rolled_back else []
    record = Incident(
        id="cards-1", ensemble="cards", opened=began + 1_100, why="counted", version="2", member="gbdt",
        input="amount_log", difference="reads <amount_log> at 1.5 times its scale",
        baseline="1", candidate_only=9, baseline_only=1,
        both=1_040, closed=began + 1_300, ended="rolled back",
    )  # fmt: skip
    return replace(
        story,
        recording=replace(
            story.recording, contributions=contributions, commands=commands, incidents=[record] if rolled_back else []
        ),
        update=Update("2", "gbdt", "amount_log", 1.5, 0.5, 0.67, 0.31),
    )
