"""monitor-crash: killing the monitor again and again changes no window, and a due rollback is issued once.

The closed loop of `monitor-thin` over days of event time. A version that alerts far more cards is promoted on the way.
Two monitors in mode `auto` run: the first one, with all parts (watch, windows, label joiner), is killed with `kill -9`
20 times, soon after its start, later, or with a transaction open. The second one, which counts windows and watches,
joins and leaves. FLUSHALL deletes the counters twice. Afterwards every figure of every window equals a recomputation
from the topics, a later record of a figure has a later revision, and `control` has one rollback.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from proofs.incident import minor_update_of, promotion
from proofs.kit import (
    Context,
    Monitor,
    Result,
    Scorer,
    log_ends,
    read_topic,
    services,
    train_cards,
    wait_drained,
    wait_until,
)
from proofs.monitor_labels import Recomputed
from proofs.monitor_recompute import NOT_RECOMPUTED, Logs, SubjectKey, recompute_all, wrong_figures
from proofs.monitor_thin import WINDOWS, kill_in_transaction, loop_traffic, wait_logged
from stream_scorer.control.commands import catch_up, submit
from stream_scorer.control.state import History
from stream_scorer.ensemble.registry import keep
from stream_scorer.kafka.control_log import ControlLog
from stream_scorer.kafka.topics import Topics
from stream_scorer.records import Incident, MonitorMetric, ServedVersion
from stream_scorer.simulate.live import LiveReport, LiveTraffic
from stream_scorer.stack import StackAddresses
from stream_scorer.state.client import connect

# Transactions, seconds that they take, and how often the first monitor is killed.
N, SECONDS, KILLS = 60_000, 200.0, 20
SMALL, SMALL_SECONDS, SMALL_KILLS = 20_000, 40.0, 3
# A third of the kills come this soon after a start, which takes some seconds; a third up to so much later.
SOON_S, LATER_S = 4.0, 12.0
LEAST_RISE = 0.35
QUIET_S, GIVE_UP_S = 4.0, 60.0


def run(context: Context) -> Result:
    """See the module. `n` is the number of transactions before duplicates."""
    n = context.n or N
    few = n <= SMALL
    result = Result()
    good, bad = context.folder / "good", context.folder / "bad"
    train_cards(good, seed=context.seed, transactions=30_000)
    minor_update_of(good, bad, LEAST_RISE)
    cache = context.folder / "cache"
    one, two = (ServedVersion(*keep(folder / "ensemble", cache)) for folder in (good, bad))
    with services("kafka", "redis") as (_stack, at), ThreadPoolExecutor(1) as pool:
        bootstrap, kills = str(at.kafka), SMALL_KILLS if few else KILLS
        scorer = Scorer(
            context.folder, at, instance="scorer", ensemble=good / "ensemble", arguments=["--cache", str(cache)]
        )
        first, second = (_monitor(context, at, good / "ensemble", name) for name in ("monitor", "monitor-2"))
        seconds = SMALL_SECONDS if few else SECONDS
        live = loop_traffic(context.seed, n, seconds, bootstrap, context.folder / "truth.parquet")
        log, history = ControlLog(bootstrap, Topics().control), History()

        def promote() -> None:
            catch_up(log, history, log.end())
            entry = submit(log, history, lambda offset: promotion(two, offset))
            assert not entry.refused, entry.refused
            result.figures["promoted_at"] = entry.offset

        def flush() -> None:
            connect(str(at.redis)).flushall()

        def leave() -> None:
            result.check("the second monitor ends with exit 0", second.stop(30) == 0)

        try:
            scorer.start()
            first.start()
            wait_logged(scorer, "assigned", 1)
            wait_logged(first, "monitoring", 1)
            traffic = pool.submit(live.run)
            killing = _Killing(context, bootstrap, first, live, traffic, n, kills)
            for share, action in ((0.15, second.start), (0.2, promote), (0.35, flush), (0.55, leave), (0.7, flush)):
                killing.until(share * n)
                action()
            killing.until(n)
            killing.last()
            report = traffic.result(timeout=300)
        finally:
            live.stop()
        context.say(f"sent {report.records} records, labels {dict(report.labels)}; {killing.kills} kills")
        wait_drained(bootstrap, [scorer], timeout_s=180)
        manifests = {
            version.manifest_sha256: json.loads((folder / "ensemble" / "manifest.json").read_text())
            for version, folder in ((one, good), (two, bad))
        }
        logs = Logs.read(bootstrap, Topics(), manifests[one.manifest_sha256])
        expected = recompute_all(logs, manifests, WINDOWS, one.version)
        records = _settled(bootstrap, first, expected, logs.horizon_ms)
        aborted = _aborted(bootstrap, Topics().outcomes)
        catch_up(log, history, log.end())
        log.close()
        incidents = [i for i in read_topic(bootstrap, Topics().incidents).decode(Incident) if i.kind == "verdict"]
        result.check("monitor and scorer end with exit 0", first.stop(10) == 0 == scorer.stop(10))
    result.figures |= {"kills_in_a_transaction": killing.in_transaction, "aborted_outcomes": aborted}
    result.at_least("kills_of_each_part", killing.kills, kills)
    if not few:
        result.check("aborted outcomes were there to be counted", aborted > 0)
    result.check("every record was scored once", len(set(logs.sources)) == len(logs.sources) == report.records)
    result.at_least("labels_joined", int((logs.verdict >= 0).sum()), 50 if few else 200)
    _check_windows(result, expected, records, logs.horizon_ms)
    _check_rollback(result, history, {incident.id for incident in incidents if incident.kind == "verdict"})
    return result


def _monitor(context: Context, at: StackAddresses, ensemble: Path, instance: str) -> Monitor:
    windows = [word for panes in WINDOWS for word in ("--window", str(panes))]
    joiner = ["--joiner"] if instance == "monitor" else ["--no-joiner"]
    return Monitor(
        context.folder,
        at,
        ensemble,
        instance=instance,
        arguments=["--emit-every", "0.5", "--mode", "auto", "--monitor-instance", instance, *joiner, *windows],
        sabotage="lose-applied-offsets" if context.broken else None,
    )


class _Killing:
    """Kills one monitor during `n` transactions, `most` times at most and evenly spread, and starts it at once."""

    def __init__(
        self,
        context: Context,
        bootstrap: str,
        victim: Scorer,
        live: LiveTraffic,
        traffic: Future[LiveReport],
        n: int,
        most: int,
    ) -> None:
        self._context, self._bootstrap, self._victim, self._live = context, bootstrap, victim, live
        self._traffic, self._n, self._most = traffic, n, most
        self._rng = np.random.default_rng(context.seed)
        self.kills = self.in_transaction = self._logged = 0

    def until(self, transactions: float) -> None:
        """Go on until so many transactions are sent; then the monitor runs."""
        while self._live.report.transactions < transactions and not self._traffic.done():
            if self.kills >= self._most * min(self._live.report.transactions / self._n + 0.1, 1.0):
                time.sleep(0.1)
                continue
            kind = self.kills % 3
            if kind == 2:
                self.in_transaction += kill_in_transaction(
                    self._victim, self._bootstrap, Topics().outcomes, patience_s=LATER_S
                )
            else:
                time.sleep(self._rng.uniform(0, SOON_S if kind == 0 else LATER_S))
                self._victim.require_running()
                self._victim.kill()
            self._start_again()

    def last(self) -> None:
        """Kill the monitor once more when it has counted for some seconds, and wait until it counts again."""
        self._wait_ready()
        time.sleep(SOON_S)
        self._victim.kill()
        self._start_again()
        self._wait_ready()

    def _start_again(self) -> None:
        self.kills += 1
        self._context.say(f"kill {self.kills} at {self._live.report.transactions} transactions")
        self._logged = self._victim.log.stat().st_size
        self._victim.start()

    def _wait_ready(self) -> None:
        def ready() -> bool:
            self._victim.require_running()
            return b"monitoring" in self._victim.log.read_bytes()[self._logged :]

        wait_until("the monitor is ready", ready, 120)


def _aborted(bootstrap: str, topic: str) -> int:
    return len(read_topic(bootstrap, topic, uncommitted=True)) - len(read_topic(bootstrap, topic))


def _settled(
    bootstrap: str, monitor: Scorer, expected: dict[SubjectKey, Recomputed], horizon_ms: int
) -> list[MonitorMetric]:
    """What the monitor published once it is silent; a while longer if that differs from `expected`."""
    topic = Topics().monitor_metrics
    end, since, began = -1, time.monotonic(), time.monotonic()
    while True:
        monitor.require_running()
        now = sum(log_ends(bootstrap, [topic]).values())
        if now != end:
            end, since = now, time.monotonic()
        elif time.monotonic() - since > QUIET_S:
            records: list[MonitorMetric] = read_topic(bootstrap, topic).decode(MonitorMetric)
            if not wrong_figures(expected, records, horizon_ms) or time.monotonic() - began > GIVE_UP_S:
                return records
        time.sleep(0.5)


def _check_windows(
    result: Result, expected: dict[SubjectKey, Recomputed], records: list[MonitorMetric], horizon_ms: int
) -> None:
    wrong = wrong_figures(expected, records, horizon_ms)
    result.figures |= {
        "figures_compared": len(expected),
        "different": {name: len(found) for name, found in wrong.items()},
    }
    result.figures["examples"] = [text for found in wrong.values() for text in found[:2]]
    result.at_least("figures_compared", len(expected), 500)
    result.check("every figure of every window equals the recomputation", not wrong)
    newest: dict[tuple[Any, ...], int] = {}
    earlier = 0
    for record in records:
        if record.metric in NOT_RECOMPUTED:
            continue
        key = (record.ensemble, record.version, record.arm, record.metric, record.dimension)
        key += (record.window_start, record.window_end)
        earlier += record.revision <= newest.get(key, 0)
        newest[key] = record.revision
    result.check("a later record of a figure has a later revision, also after FLUSHALL", earlier == 0)


def _check_rollback(result: Result, history: History, incidents: set[str]) -> None:
    commands = [
        (e.command, e.refused) for e in history.entries if e.command is not None and e.command.author == "monitor"
    ]
    rollbacks = [command for command, refused in commands if command.action == "rollback" and not refused]
    result.figures |= {"commands_of_monitors": len(commands), "refused": sum(bool(refused) for _, refused in commands)}
    result.figures["why"] = [command.why for command in rollbacks]
    result.check("the due rollback is issued exactly once", len(rollbacks) == 1)
    result.check("it has one incident", len(incidents) == 1)
