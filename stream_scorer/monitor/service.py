"""One monitor process: the label joiner in a thread, the Faust app in the event loop, and the metrics server."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stream_scorer.clock import Clock
from stream_scorer.errors import SettingsError
from stream_scorer.kafka.topics import TopicAdmin, Topics
from stream_scorer.kafka.transactional_loop import TransactionalLoop
from stream_scorer.monitor.app import AppSettings, MonitorApp, source_name
from stream_scorer.monitor.joiner import Joiner, JoinerCounts, JoinerService, JoinRules
from stream_scorer.monitor.joiner_store import JoinerStore
from stream_scorer.monitor.judge import Judge
from stream_scorer.monitor.metrics import JOINED
from stream_scorer.monitor.rates import Assumptions
from stream_scorer.monitor.reference import ReferenceSource
from stream_scorer.monitor.windows import WindowRules
from stream_scorer.observability.health import HealthServer
from stream_scorer.observability.metrics import Metrics
from stream_scorer.settings import Settings
from stream_scorer.spec.model import CheckedSpec, PipelineSpec, duration_ms
from stream_scorer.state.client import connect, ping
from stream_scorer.state.counters import CounterStore

# SIGTERM must stop the process within 10 s; the joiner finishes its batch in milliseconds.
JOIN_THREAD_S = 4.0
COUNTS_EVERY_S = 1.0

_log = logging.getLogger("stream_scorer.monitor")


@dataclass(frozen=True)
class MonitorSettings:
    """The settings of one monitor, apart from the spec. Times in seconds; `metrics_port` None: no server.

    `joins` is true in exactly one monitor of a group; further ones only count windows.
    """

    bootstrap: str
    redis: str
    state_dir: Path
    topic_prefix: str
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

    @classmethod
    def of(cls, settings: Settings) -> MonitorSettings:
        """The monitor's part of `settings`. Raises `SettingsError` if an address is not set."""
        port = settings["metrics.port"]
        return cls(
            bootstrap=settings.require("kafka.bootstrap"),
            redis=settings.require("redis.url"),
            state_dir=Path(settings["monitor.state_dir"]).expanduser(),
            topic_prefix=settings["topics.prefix"],
            group=settings["monitor.group"],
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
        )


def run_monitor(
    settings: MonitorSettings,
    checked: CheckedSpec,
    references: ReferenceSource,
    clock: Clock,
    metrics: Metrics,
    *,
    on_ready: Callable[[str], None],
) -> JoinerCounts:
    """Run until SIGTERM or SIGINT. Calls `on_ready` once the joiner and the counters read from their positions.

    Raises:
        StreamScorerError: Kafka or Redis does not answer, a topic is missing, or a part of the monitor failed.
    """
    topics = Topics(settings.topic_prefix)
    admin = TopicAdmin(settings.bootstrap)
    counts = admin.require(topics.monitor_topics(), same_count=False)
    client = connect(settings.redis)
    ping(client, settings.redis)
    try:
        settings.state_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"the state folder {settings.state_dir}: {error.strerror}") from None
    join_rules, rules = _rules(settings, checked.spec)
    # The namespace contains the topic id, so that a recreated topic is counted from zero.
    namespace = settings.namespace or f"stream-scorer:{settings.group}:{admin.topic_id(topics.score_summaries)}"
    # Counters outlive every record that can still change them, plus the longest outage to survive.
    ttl_s = (2 * rules.horizon_ms + rules.allowed_lateness_ms) // 1000 + settings.max_outage_s
    store = CounterStore(client, namespace, ttl_s=ttl_s)
    judge = Judge(
        store,
        rules,
        references,
        clock,
        metrics,
        name=settings.instance,
        sources={p: source_name(topics.score_summaries, p) for p in range(counts[topics.score_summaries])},
        idle_s=settings.idle_s,
    )
    # Faust logs the start and stop of every service under the module of its class, our own classes included.
    for noisy in ("faust", "mode", "stream_scorer.monitor.transport"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    joining = _Joining(settings, topics, counts, join_rules, clock)
    try:
        # The app is created inside the running event loop.
        asyncio.run(
            _run(
                settings,
                lambda: MonitorApp(_app_settings(settings, topics), store, judge, clock, metrics),
                joining,
                metrics,
                on_ready,
            )
        )
    finally:
        joining.stop()
        client.close()
    return joining.counts


def _rules(settings: MonitorSettings, spec: PipelineSpec) -> tuple[JoinRules, WindowRules]:
    """The rules of the joiner and of the windows, from the spec and the settings."""
    join_rules = JoinRules(
        pane_ms=duration_ms(spec.monitor.pane),
        horizon_ms=duration_ms(spec.labels.horizon),
        allowed_lateness_ms=duration_ms(spec.time.allowed_lateness),
        source_rank=spec.labels.source_rank,
    )
    rules = WindowRules(
        pane_ms=join_rules.pane_ms,
        allowed_lateness_ms=join_rules.allowed_lateness_ms,
        horizon_ms=join_rules.horizon_ms,
        window_panes=settings.window_panes,
        assumed=settings.assumed,
    )
    return join_rules, rules


def _app_settings(settings: MonitorSettings, topics: Topics) -> AppSettings:
    return AppSettings(
        bootstrap=settings.bootstrap,
        group=settings.group,
        instance=settings.instance,
        summaries=topics.score_summaries,
        outcomes=topics.outcomes,
        metrics_topic=topics.monitor_metrics,
        state_dir=settings.state_dir,
        emit_every_s=settings.emit_every_s,
    )


async def _run(
    settings: MonitorSettings,
    make_app: Callable[[], MonitorApp],
    joining: _Joining,
    metrics: Metrics,
    on_ready: Callable[[str], None],
) -> None:
    """Run the joiner's thread, the health server and the Faust app until a signal or a failure."""
    app = make_app()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, app.stop)
    if settings.joins:
        joining.start(lambda error: loop.call_soon_threadsafe(app.fail, error))
    else:
        joining.ready.set()
    health = None
    if settings.metrics_port is not None:
        health = HealthServer(
            settings.metrics_host,
            settings.metrics_port,
            metrics.registry,
            lambda: (app.ready and joining.ready.is_set(), "" if app.ready else "no partitions assigned yet"),
        )
    reporting = asyncio.create_task(_report(app, joining, metrics, on_ready, health.port if health else None))
    try:
        await app.run()
    finally:
        reporting.cancel()
        joining.stop()
        if health is not None:
            health.close()


async def _report(
    app: MonitorApp, joining: _Joining, metrics: Metrics, on_ready: Callable[[str], None], port: int | None
) -> None:
    """Call `on_ready` once, then export the counters of the joiner every `COUNTS_EVERY_S`."""
    while not (app.ready and joining.ready.is_set()):
        await asyncio.sleep(0.05)
    on_ready(f"metrics on port {port}" if port else "no metrics port")
    while True:
        counts = joining.counts
        for kind in ("scores", "labels", "outcomes", "unreadable", "too_late", "replayed", "waiting", "rows"):
            metrics.set(JOINED, getattr(counts, kind), kind)
        await asyncio.sleep(COUNTS_EVERY_S)


class _Joining:
    """The thread of the joiner. It creates, uses and closes SQLite and the Kafka clients."""

    def __init__(
        self, settings: MonitorSettings, topics: Topics, partitions: dict[str, int], rules: JoinRules, clock: Clock
    ) -> None:
        self._settings = settings
        self._topics = topics
        self._inputs = [(t, n) for t in (topics.scores, topics.labels) for n in range(partitions[t])]
        self._rules = rules
        self._clock = clock
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.ready = threading.Event()
        self.counts = JoinerCounts()

    def start(self, on_failure: Callable[[BaseException], object]) -> None:
        def run() -> None:
            try:
                self._run()
            except Exception as error:
                _log.debug("joiner failed", exc_info=True)
                on_failure(error)

        self._thread = threading.Thread(target=run, name="joiner", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(JOIN_THREAD_S)

    def _run(self) -> None:
        settings = self._settings
        store = JoinerStore(settings.state_dir / "joiner.sqlite")
        name = f"{settings.group}-joiner-{settings.topic_prefix or 'default'}"
        try:
            joiner = Joiner(store, self._rules, scores=self._topics.scores, labels=self._topics.labels)
            self.counts = joiner.counts
            with TransactionalLoop(
                settings.bootstrap, self._clock, group=name, transactional_id=name, client_id=name
            ) as loop:
                service = JoinerService(
                    loop, store, joiner, self._clock, inputs=self._inputs, outcomes=self._topics.outcomes
                )
                service.run(self._stop, self.ready.set)
        finally:
            store.close()
