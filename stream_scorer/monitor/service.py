"""One monitor process: the watch, the windows and the label joiner, each a part of its own, and the metrics server.

The watch depends on Kafka only. The windows (the Faust app) also need Redis, the joiner also needs a disk. See
`stream_scorer.monitor.parts` for what happens when one of them fails.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sqlite3
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from stream_scorer.clock import Clock
from stream_scorer.errors import AccessDenied, StreamScorerError, UnavailableError
from stream_scorer.kafka.permissions import joiner_name
from stream_scorer.kafka.topics import TopicAdmin, Topics
from stream_scorer.kafka.transactional_loop import TransactionalLoop
from stream_scorer.monitor.app import AppSettings, MonitorApp, source_name
from stream_scorer.monitor.credentials import credentials
from stream_scorer.monitor.drift_feed import DriftFeed, OnDrift
from stream_scorer.monitor.event_loop import run_bounded
from stream_scorer.monitor.joiner import Joiner, JoinerCounts, JoinerService, JoinRules
from stream_scorer.monitor.joiner_store import JoinerStore, store_error
from stream_scorer.monitor.metrics import JOINED
from stream_scorer.monitor.parts import Part, PartRun, Parts
from stream_scorer.monitor.rates import Assumptions
from stream_scorer.monitor.reference import EnsembleReferences
from stream_scorer.monitor.window_reports import Partitions, WindowReporter
from stream_scorer.monitor.windows import WindowRules
from stream_scorer.observability.health import HealthServer
from stream_scorer.observability.metrics import Metrics
from stream_scorer.settings import Settings
from stream_scorer.spec.model import CheckedSpec, PipelineSpec, duration_ms
from stream_scorer.state.client import connect, ping, require_no_eviction
from stream_scorer.state.counters import CounterStore

# SIGTERM must stop the process within 10 s. The parts finish in milliseconds unless a service hangs.
STOP_S = 7.0
STOP_POLL_S = 0.1
COUNTS_EVERY_S = 1.0
PARTITIONS_EVERY_S = 60.0
# What counts are bound to besides their topics: panes of another length are other counts.
PANE_SETTING = "monitor.pane"

_log = logging.getLogger("stream_scorer.monitor")


@dataclass(frozen=True)
class MonitorSettings:
    """The settings of one monitor, apart from the spec. Times in seconds; `metrics_port` None: no server.

    `joins` is true in exactly one monitor of a group; further ones only count windows.
    """

    bootstrap: str
    redis: str
    state_dir: Path
    topics: Topics
    group: str
    instance: str
    namespace: str
    window_panes: tuple[int, ...]
    idle_s: float
    emit_every_s: float
    max_outage_s: int
    joins: bool
    metrics_host: str
    metrics_port: int | None
    assumed: Assumptions
    false_alarms_per_year: float = 4.0

    @classmethod
    def of(cls, settings: Settings) -> MonitorSettings:
        """The monitor's part of `settings`. Raises `SettingsError` if an address is not set."""
        port = settings["metrics.port"]
        return cls(
            bootstrap=settings.require("kafka.bootstrap"),
            redis=settings.require("redis.url"),
            state_dir=Path(settings["monitor.state_dir"]).expanduser(),
            topics=Topics.of(settings),
            group=settings.group("monitor.group"),
            instance=settings["monitor.instance"],
            namespace=settings["monitor.namespace"],
            window_panes=tuple(sorted({1, *settings["monitor.windows"]})),
            idle_s=settings["monitor.idle_after_s"],
            emit_every_s=settings["monitor.emit_every_s"],
            max_outage_s=settings["monitor.max_outage_s"],
            joins=settings["monitor.joiner"],
            metrics_host=settings["metrics.host"],
            metrics_port=port if port >= 0 else None,
            assumed=Assumptions(
                settings["monitor.unreported_cap"],
                settings["monitor.reviewer_miss"],
                settings["monitor.reviewer_false"],
            ),
            false_alarms_per_year=settings["monitor.false_alarms_per_year"],
        )


@dataclass(frozen=True)
class IncidentParts:
    """What reports incidents: further parts by name, and what gets drift events, in the thread of the windows."""

    runs: Mapping[str, PartRun]
    on_drift: OnDrift


def run_monitor(
    settings: MonitorSettings,
    checked: CheckedSpec,
    references: EnsembleReferences,
    clock: Clock,
    metrics: Metrics,
    *,
    watch: PartRun | None,
    incidents: IncidentParts | None,
    on_ready: Callable[[str], None],
) -> None:
    """Run until SIGTERM or SIGINT. Calls `on_ready` once every part does its work.

    A part that fails restarts after a pause, and the others go on. `/readyz` reports each part.

    Args:
        watch: the watch on probations and canaries, None without one. It starts first. incidents: what reports other
            incidents than verdicts, None without it.

    Raises:
        StreamScorerError: at the start, Kafka does not answer, a topic is missing, or a setting is wrong; later, a
            topic has other partitions than at the start.
    """
    topics = settings.topics
    partitions = TopicAdmin(settings.bootstrap).require(topics.monitor_topics(), same_count=False)
    connect(settings.redis).close()  # refuses an address that is not one
    credentials(settings.bootstrap)  # refuses properties that the windows cannot use
    # Faust logs the start and stop of every service under the module of its class, our own classes included.
    for noisy in ("faust", "mode", "stream_scorer.monitor.transport"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    joining = _Joining(settings, topics, partitions, JoinRules.of(checked.spec), clock)
    windows = _Windows(
        settings,
        partitions,
        checked,
        references,
        clock,
        metrics,
        on_drift=incidents.on_drift if incidents is not None else lambda _events: None,
        labels_lost=lambda: joining.counts.labels_lost_before,
    )
    runs: list[tuple[str, PartRun]] = [("windows", windows.run)]
    if watch is not None:
        runs.insert(0, ("watch", watch))
    if settings.joins:
        runs.append(("joiner", joining.run))
    if incidents is not None:
        runs += incidents.runs.items()
    parts = Parts([Part(name, run, clock, metrics) for name, run in runs])
    asyncio.run(_run(settings, partitions, parts, joining, metrics, on_ready))


def _window_rules(settings: MonitorSettings, spec: PipelineSpec) -> WindowRules:
    """The rules of the windows, from the spec and the settings."""
    return WindowRules(
        pane_ms=duration_ms(spec.monitor.pane),
        allowed_lateness_ms=duration_ms(spec.time.allowed_lateness),
        horizon_ms=duration_ms(spec.labels.horizon),
        window_panes=settings.window_panes,
        assumed=settings.assumed,
        label_sources=frozenset(spec.labels.source_rank),
    )


def _app_settings(settings: MonitorSettings, topics: Topics, rules: WindowRules) -> AppSettings:
    return AppSettings(
        bootstrap=settings.bootstrap,
        group=settings.group,
        instance=settings.instance,
        summaries=topics.score_summaries,
        outcomes=topics.outcomes,
        metrics_topic=topics.monitor_metrics,
        state_dir=settings.state_dir,
        emit_every_s=settings.emit_every_s,
        label_sources=rules.label_sources,
        horizon_ms=rules.horizon_ms,
        pane_ms=rules.pane_ms,
    )


async def _run(
    settings: MonitorSettings,
    partitions: Mapping[str, int],
    parts: Parts,
    joining: _Joining,
    metrics: Metrics,
    on_ready: Callable[[str], None],
) -> None:
    """Run the health server and the parts until a signal, or until a topic has other partitions."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, ended.set)
    health = None
    if settings.metrics_port is not None:
        health = HealthServer(
            settings.metrics_host, settings.metrics_port, metrics.registry, parts.readiness, details=parts.details
        )
    parts.start()
    reporting = asyncio.create_task(_report(parts, joining, metrics, on_ready, health.port if health else None))
    watching = asyncio.create_task(watch_partitions(TopicAdmin(settings.bootstrap), partitions))
    watching.add_done_callback(lambda _task: ended.set())
    try:
        await ended.wait()
        if watching.done():
            watching.result()
    finally:
        reporting.cancel()
        watching.cancel()
        await asyncio.to_thread(parts.stop, STOP_S)
        if health is not None:
            health.close()


async def watch_partitions(admin: TopicAdmin, partitions: Mapping[str, int]) -> None:
    """Look up the partitions of the topics now and then. The parts would never read those that were added.

    Raises:
        StreamScorerError: a topic has other partitions.
    """
    while True:
        await asyncio.sleep(PARTITIONS_EVERY_S)
        try:
            found = await asyncio.to_thread(admin.require, [*partitions], same_count=False)
        except StreamScorerError:
            continue  # the parts report it
        changed = [
            f"{name}: {found[name]} instead of {count}" for name, count in partitions.items() if found[name] != count
        ]
        if changed:
            raise StreamScorerError(
                f"topics have other numbers of partitions than at the start ({', '.join(changed)})",
                hint="Start the monitor again. It then reads them all.",
            )


async def _report(
    parts: Parts, joining: _Joining, metrics: Metrics, on_ready: Callable[[str], None], port: int | None
) -> None:
    """Call `on_ready` once, then export the counters of the joiner every `COUNTS_EVERY_S`."""
    while not parts.running:
        await asyncio.sleep(0.05)
    on_ready(f"metrics on port {port}" if port else "no metrics port")
    while True:
        counts = joining.counts
        for kind in (
            "scores",
            "labels",
            "outcomes",
            "unreadable",
            "implausible",
            "too_late",
            "replayed",
            "waiting",
            "expired",
            "rows",
        ):
            metrics.set(JOINED, getattr(counts, kind), kind)
        await asyncio.sleep(COUNTS_EVERY_S)


def _make_state_dir(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StreamScorerError(f"the state folder {path}: {error.strerror}") from None


def ttl_s(rules: WindowRules, max_outage_s: int) -> int:
    """How long counts stay after their last change, in seconds.

    The first pane of the longest window is read as long as a record can change the last one, even after an outage.
    """
    window_ms = max(rules.window_panes) * rules.pane_ms
    return (window_ms + 2 * rules.horizon_ms + rules.allowed_lateness_ms) // 1000 + max_outage_s


class _Windows:
    """The part that counts windows. Each run connects to Redis and creates a Faust app in an event loop of its own."""

    def __init__(
        self,
        settings: MonitorSettings,
        partitions: dict[str, int],
        checked: CheckedSpec,
        references: EnsembleReferences,
        clock: Clock,
        metrics: Metrics,
        *,
        on_drift: OnDrift,
        labels_lost: Callable[[], int | None],
    ) -> None:
        self._settings = settings
        self._checked = checked
        self._topics = settings.topics
        self._partitions = partitions[settings.topics.score_summaries]
        self._rules = _window_rules(settings, checked.spec)
        self._references = references
        self._clock = clock
        self._metrics = metrics
        self._on_drift = on_drift
        self._labels_lost = labels_lost

    def run(self, stop: threading.Event, on_ready: Callable[[], None]) -> None:
        """Count until `stop`.

        Raises:
            StreamScorerError: Kafka or Redis does not answer, Redis has lost counts or may evict some, or the ensemble
                does not exist.
        """
        settings = self._settings
        _make_state_dir(settings.state_dir)
        client = connect(settings.redis)
        try:
            # Before Faust joins its group, so that an attempt without Redis costs little.
            ping(client, settings.redis)
            require_no_eviction(client)
            try:
                self._references.load_initial()
            except (UnavailableError, AccessDenied) as error:
                _log.warning("the first reference profile is not loaded: %s", error.message)
            ids = self._topic_ids()
            store = CounterStore(client, self._namespace(ids), ttl_s=ttl_s(self._rules, settings.max_outage_s))
            if not store.bind(ids | {PANE_SETTING: str(self._rules.pane_ms)}):
                text = "a topic of the windows was recreated, or %s has changed: everything is counted again"
                _log.warning(text, PANE_SETTING)
            reporter = self._window_reporter(store)
            make_app = lambda: MonitorApp(  # noqa: E731 - the app must be created inside the running event loop
                _app_settings(settings, self._topics, self._rules),
                store,
                reporter,
                self._published,
                self._clock,
                self._metrics,
                self._labels_lost,
            )
            try:
                run_bounded(_count(make_app, stop, on_ready))
            finally:
                reporter.end()
        finally:
            client.close()

    def _topic_ids(self) -> dict[str, str]:
        """The broker's ids of the topics that are counted, by name."""
        admin = TopicAdmin(self._settings.bootstrap)
        return {name: admin.topic_id(name) for name in (self._topics.score_summaries, self._topics.outcomes)}

    def _namespace(self, ids: Mapping[str, str]) -> str:
        settings = self._settings
        return settings.namespace or f"stream-scorer:{settings.group}:{ids[self._topics.score_summaries]}"

    def _published(self) -> bool:
        return TopicAdmin(self._settings.bootstrap).has_records(self._topics.monitor_metrics)

    def _window_reporter(self, store: CounterStore) -> WindowReporter:
        admin, summaries = TopicAdmin(self._settings.bootstrap), self._topics.score_summaries
        return WindowReporter(
            store,
            self._rules,
            self._references,
            self._clock,
            self._metrics,
            name=self._settings.instance,
            partitions=Partitions(
                {p: source_name(summaries, p) for p in range(self._partitions)},
                lambda partitions: admin.ends(summaries, partitions),
                self._settings.idle_s,
            ),
            drift=DriftFeed(
                store,
                self._checked,
                self._references,
                self._metrics,
                pane_ms=self._rules.pane_ms,
                false_alarms_per_year=self._settings.false_alarms_per_year,
                on_events=self._on_drift,
                clock=self._clock,
            ),
        )


async def _count(make_app: Callable[[], MonitorApp], stop: threading.Event, on_ready: Callable[[], None]) -> None:
    """Run one app until `stop` or a failure."""
    app = make_app()
    following = asyncio.create_task(_follow(app, stop, on_ready))
    try:
        await app.run()
    finally:
        following.cancel()


async def _follow(app: MonitorApp, stop: threading.Event, on_ready: Callable[[], None]) -> None:
    """Report that the app counts, and end it once `stop` is set."""
    while not stop.is_set():
        if app.ready:
            on_ready()
        await asyncio.sleep(STOP_POLL_S)
    app.stop()


class _Joining:
    """The part that joins labels. Each run creates, uses and closes SQLite and the Kafka clients in its thread."""

    def __init__(
        self, settings: MonitorSettings, topics: Topics, partitions: dict[str, int], rules: JoinRules, clock: Clock
    ) -> None:
        self._settings = settings
        self._topics = topics
        self._inputs = [(t, n) for t in (topics.scores, topics.labels) for n in range(partitions[t])]
        self._rules = rules
        self._clock = clock
        self.counts = JoinerCounts()

    def run(self, stop: threading.Event, on_ready: Callable[[], None]) -> None:
        """Join until `stop`.

        Raises:
            StreamScorerError: Kafka does not answer, or the store cannot be read or written.
        """
        path = self._settings.state_dir / "joiner.sqlite"
        _make_state_dir(self._settings.state_dir)
        store = JoinerStore(path)
        try:
            self._join(store, stop, on_ready)
        except sqlite3.Error as error:
            raise store_error(path, error) from error
        finally:
            store.close()

    def _join(self, store: JoinerStore, stop: threading.Event, on_ready: Callable[[], None]) -> None:
        settings = self._settings
        name = joiner_name(settings.group, settings.topics)
        joiner = Joiner(store, self._rules, self._clock, scores=self._topics.scores, labels=self._topics.labels)
        self.counts = joiner.counts
        with TransactionalLoop(
            settings.bootstrap, self._clock, group=name, transactional_id=name, client_id=name
        ) as loop:
            service = JoinerService(
                loop, store, joiner, self._clock, inputs=self._inputs, outcomes=self._topics.outcomes
            )
            service.run(stop, on_ready)
