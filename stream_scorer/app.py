"""Wiring of a scorer: settings and parts in, a `Processor` out. The stages take values, never the settings."""

from __future__ import annotations

import gc
import hashlib
import logging
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from pathlib import Path
from types import FrameType

from stream_scorer.clock import SystemClock
from stream_scorer.control.aliases import CHAMPION, AliasMirror
from stream_scorer.control.collection import CollectionWatch
from stream_scorer.control.follower import Follower, ScorerIdentity
from stream_scorer.control.incidents import Incidents
from stream_scorer.control.label_watch import LabelWatch
from stream_scorer.control.liveness import StatusReader
from stream_scorer.control.recovery import require_never_served
from stream_scorer.control.verdict import Tolerances
from stream_scorer.control.verdicts import Verdicts
from stream_scorer.control.watch import Watch, WatchParts, WatchRules
from stream_scorer.ensemble.bulkhead import Bulkhead
from stream_scorer.ensemble.cache_cleanup import CacheCleanup
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.ensemble.manifest import manifest_digest, read_manifest
from stream_scorer.ensemble.watchdog import Watchdog
from stream_scorer.errors import BrokerUnavailable, SettingsError, StateUnavailable, StreamScorerError
from stream_scorer.features.engine import FeatureEngine
from stream_scorer.features.plan import reach_ms
from stream_scorer.incidents.detector import DetectedConditions
from stream_scorer.incidents.feeds import FeedRules
from stream_scorer.incidents.labels import LabelRules
from stream_scorer.incidents.log import IncidentLog
from stream_scorer.incidents.service_levels import ServiceRules
from stream_scorer.incidents.signals import SignalRules, Signals
from stream_scorer.incidents.webhook import Webhook, check_url
from stream_scorer.kafka.control_log import ControlLog, RecordWriter
from stream_scorer.kafka.ends import TopicEnds
from stream_scorer.kafka.follower import BacklogFollower
from stream_scorer.kafka.permissions import missing_permissions, to_command
from stream_scorer.kafka.range_reader import RangeReader
from stream_scorer.kafka.reader import GroupMember, InputReader
from stream_scorer.kafka.topic_config import find_problems, loses_commands
from stream_scorer.kafka.topics import TopicAdmin, Topics
from stream_scorer.kafka.transactions import TransactionPair
from stream_scorer.monitor.parts import PartRun
from stream_scorer.observability import metrics as m
from stream_scorer.observability.health import HealthServer
from stream_scorer.observability.liveness import Health
from stream_scorer.pipeline import histogram_text, pane_counts, sampling
from stream_scorer.pipeline.accounting import Account
from stream_scorer.pipeline.apply import Apply
from stream_scorer.pipeline.availability import Availability
from stream_scorer.pipeline.batch import MicroBatch, Sink, Stage
from stream_scorer.pipeline.catch_up import CLOSE, CatchUp
from stream_scorer.pipeline.commit import Commit
from stream_scorer.pipeline.committer import Committer, Turn
from stream_scorer.pipeline.cut import Inputs
from stream_scorer.pipeline.decode import Decode
from stream_scorer.pipeline.enrich import Enrich
from stream_scorer.pipeline.housekeeping import Housekeeping
from stream_scorer.pipeline.in_flight import InFlight
from stream_scorer.pipeline.note_committed import NoteCommitted
from stream_scorer.pipeline.policy import turned_segments, unused_policy
from stream_scorer.pipeline.ports import Reader
from stream_scorer.pipeline.probe import IdleCheck, WriteProbe
from stream_scorer.pipeline.processor import PROGRESS_LIMIT_S, Pacing, Processor
from stream_scorer.pipeline.publish import DEAD_LETTER_MARGIN_BYTES, OutputWriter, Publish
from stream_scorer.pipeline.score import Scoring
from stream_scorer.pipeline.starting_points import MAX_INLINE, StartingPoints, find_beginning, starting_points
from stream_scorer.pipeline.state_manager import OnProgress, StateManager
from stream_scorer.positions import Offsets, SourcePartition
from stream_scorer.records import ServedVersion
from stream_scorer.serde import lineage
from stream_scorer.serde.peek import times_of
from stream_scorer.settings import Settings
from stream_scorer.spec import CheckedSpec, load_spec
from stream_scorer.state.client import SCORING_CONNECT_TIMEOUT_S, SCORING_TIMEOUT_S, connect, connect_cluster
from stream_scorer.state.keys import rows_namespace
from stream_scorer.state.redis_rows import RedisRowStore, ShardedRedisRows
from stream_scorer.state.rows import Beginning, FeatureRows

_log = logging.getLogger(__name__)
# A thread looks for a stop every half second, unless it waits for the registry or the disk.
STOP_THREAD_S = 2.0


def load_serving_ensemble(settings: Settings, checked: CheckedSpec) -> Ensemble:
    """The ensemble that `scorer.ensemble` names, checked against the spec. Raises `ArtifactError`."""
    from stream_scorer.ensemble.registry import resolve

    directory, version = resolve(
        settings["scorer.ensemble"], settings["mlflow.url"], Path(settings["cache.dir"]).expanduser()
    )
    ensemble = Ensemble.load(directory, version=version)
    ensemble.check_features(checked.features, checked.feature_hash)
    return ensemble


def input_partitions(settings: Settings) -> tuple[Topics, list[SourcePartition]]:
    """The topics, and every partition of the inputs.

    Raises:
        UsageError: the topics do not exist with equal counts, or the group may be that of another installation.
    """
    settings.group("scorer.group")
    topics = Topics.of(settings)
    counts = TopicAdmin(settings.require("kafka.bootstrap")).require(topics.scorer_topics())
    inputs = [SourcePartition(t, p) for t in (topics.transactions, topics.labels) for p in range(counts[t])]
    return topics, inputs


def make_store(
    settings: Settings, checked: CheckedSpec, engine: FeatureEngine, topics: Topics, inputs: list[SourcePartition]
) -> FeatureRows:
    """The feature rows of this group, spec and topic, without asking Redis: scoring starts also while it is away.

    Raises:
        StateUnavailable: a Redis Cluster does not answer. Its client must know the nodes.
    """
    url, shards, group = settings.require("redis.url"), settings["redis.shards"], settings.group("scorer.group")
    connected = connect_cluster if settings["redis.cluster"] else connect
    client = connected(url, timeout_s=SCORING_TIMEOUT_S, connect_timeout_s=SCORING_CONNECT_TIMEOUT_S)
    admin = TopicAdmin(settings["kafka.bootstrap"])
    # Offsets of a topic that was created again mean other records.
    topic_ids = [admin.topic_id(name) for name in topics.inputs()]
    store = RedisRowStore(
        client,
        rows_namespace(group, checked.rows_hash, topic_ids, checked.pseudonyms.fingerprint),
        inputs,
        labels_topic=topics.labels,
        horizon_ms=reach_ms(checked),
        about=f"group {group}, spec {checked.spec.name} with features {checked.feature_hash[:12]}",
    )
    return store if shards == 1 else ShardedRedisRows.over(store, engine.sharding(shards))


def open_log(settings: Settings) -> RangeReader:
    """A reader of the inputs' ranges, for one use."""
    return RangeReader(settings["kafka.bootstrap"], client_id="stream-scorer-features")


def _warm(engine: FeatureEngine) -> None:
    """Compile the loops of all stages, or load them from their cache, before the first batch has to wait for them."""
    engine.warm()
    for part in (pane_counts, sampling, histogram_text, lineage):
        part.warm()


@contextmanager
def scorer(settings: Settings, metrics: m.Metrics, health: Health) -> Iterator[Processor]:
    """A scorer configured by `settings`. Leaving the block stops its threads, in reverse order.

    Raises:
        UsageError, UnavailableError: with a hint what to do. A Redis that may evict rows is refused here only; one that
            is changed later, or was away, is not used (`probe_write`).
    """
    checked = load_spec(settings.require("scorer.spec"), settings["scorer.id_key"])
    engine = FeatureEngine(checked)
    topics, sources = input_partitions(settings)
    _warm(engine)
    store = make_store(settings, checked, engine, topics, sources)
    with suppress(StateUnavailable):  # the first look-up finds out, and degrades
        store.check_eviction_policy()
    housekeeping = Housekeeping(store.twin(), lambda: open_log(settings), [topics.transactions, topics.labels], metrics)
    limit = TopicAdmin(settings["kafka.bootstrap"]).message_limit(topics.dead_letters)
    writer = OutputWriter(
        topics,
        checked,
        SystemClock(),
        max_explained=settings["scorer.explain_alerts"],
        max_dead_letter=limit - DEAD_LETTER_MARGIN_BYTES,
    )
    availability, in_flight = Availability(metrics), InFlight()

    def start_catch_up(committed: dict[SourcePartition, int], on_progress: OnProgress) -> CatchUp:
        log = open_log(settings)
        return CatchUp(checked, engine, store.twin(), log, committed, topics.transactions, on_progress)

    # A crash leaves up to two batches; the rest of a catch-up adds its own, and another batch in between.
    max_inline = max(MAX_INLINE, CLOSE + 3 * settings["scorer.batch"])

    def beginning() -> Beginning:
        with closing(open_log(settings)) as log:
            return find_beginning(log, topics.transactions, topics.labels, checked)

    def find_start(reader: Reader, owned: list[SourcePartition], scored: Offsets) -> StartingPoints:
        return starting_points(reader, store, owned, sources, settings["scorer.start"], max_inline, beginning, scored)

    probe = WriteProbe(store.twin().probe_write)
    # On the same store as the batches: it knows the epoch in use and what was applied.
    idle_check = IdleCheck(lambda: store.read([]))
    state = StateManager(availability, in_flight, probe, idle_check, find_start, start_catch_up, metrics)
    with ExitStack() as lifetime:
        bulkhead = lifetime.enter_context(running_bulkhead(settings))
        follower = make_follower(settings, checked, topics, metrics, health)
        stages: list[Stage] = [
            Decode(checked),
            Enrich(engine, store, availability, in_flight),
            Scoring(lambda: follower.lineup, checked, metrics, bulkhead),
        ]
        processor = make_processor(
            settings,
            topics,
            stages,
            [Apply(store, in_flight)],
            writer.write,
            state,
            metrics,
            checked,
        )
        health.require(lambda: follower.missing)
        # Start these last, so that a scorer that fails to start never publishes a serving state.
        lifetime.callback(follower.close)
        follower.start()
        lifetime.callback(housekeeping.close)
        housekeeping.start()
        lifetime.enter_context(cleaning_cache(settings, lambda: follower.digests))
        yield processor


def cache_folder(settings: Settings) -> Path:
    """The folder of the disk cache of ensembles."""
    return Path(settings["cache.dir"]).expanduser()


def check_topic_settings(admin: TopicAdmin, topics: Topics) -> None:
    """Check the settings of the scorer's topics. Logs a warning for each wrong one.

    Raises:
        SettingsError: `control` would lose commands, after which scorers would serve the wrong version.
    """
    counts = admin.require(topics.control_topics()) | admin.require(topics.scorer_topics())
    try:
        configs = admin.configs(counts)
    except BrokerUnavailable:
        raise
    except StreamScorerError as error:
        _log.warning("the settings of the topics are not checked: %s", error.message)
        return
    for name, problems in find_problems(topics, configs, admin.replicas(), brokers=admin.brokers()).items():
        _log.warning("topic %s: %s", name, "; ".join(problems))
    if lost := loses_commands(configs[topics.control]):
        raise SettingsError(
            f"topic {topics.control}: {'; '.join(lost)}",
            hint=f"Run `kafka-configs.sh --alter --entity-type topics --entity-name {topics.control} --add-config "
            "cleanup.policy=delete,retention.ms=-1,retention.bytes=-1`.",
        )


def load_version(settings: Settings, checked: CheckedSpec, name: str, version: ServedVersion) -> Ensemble:
    """A version of the ensemble `name` that a command puts in play. Raises `StreamScorerError` if it must not serve."""
    from stream_scorer.ensemble.registry import fetch

    folder = fetch(name, version.version, version.manifest_sha256, settings["mlflow.url"], cache_folder(settings))
    ensemble = Ensemble.load(folder, version=version.version, explain=settings["scorer.explain_alerts"] > 0)
    ensemble.check_name(name)
    ensemble.check_features(checked.features, checked.feature_hash)
    if unused := unused_policy(checked.spec, ensemble.manifest):
        ensemble.notice = f"it decides by its manifest, not by the policy of the spec: {unused} (docs/policy.md)"
    if turned := turned_segments(checked.spec, ensemble.manifest):
        _log.warning(
            "%s: segments of the policy that are stricter than the thresholds of the spec are laxer than those of this "
            "version, or the reverse: %s. Adjust them to the thresholds of the version (docs/policy.md)",
            version.version, ", ".join(turned),
        )  # fmt: skip
    return ensemble


def make_follower(
    settings: Settings, checked: CheckedSpec, topics: Topics, metrics: m.Metrics, health: Health
) -> Follower:
    """The follower of `control`; `scorer.ensemble` names the ensemble, and the version to propose at first."""
    from stream_scorer.ensemble.registry import keep, parse_reference, resolve

    reference = parse_reference(settings["scorer.ensemble"])
    tracking_uri, cache = settings["mlflow.url"], cache_folder(settings)
    # A folder's ensemble is known by its digest only: kept, so that it is there whatever becomes of the folder.
    name = reference.name
    local = None
    if reference.folder is not None:
        name, local = read_manifest(reference.folder).name, ServedVersion(*keep(reference.folder, cache))

    def first() -> ServedVersion:
        states = ControlLog(bootstrap, topics.serving_state)
        try:
            require_never_served(states, name)
        finally:
            states.close()
        if local is not None:
            return local
        path, version = resolve(settings["scorer.ensemble"], tracking_uri, cache)
        return ServedVersion(version, manifest_digest(read_manifest(path)))

    bootstrap = settings["kafka.bootstrap"]
    check_topic_settings(TopicAdmin(bootstrap), topics)
    writer = RecordWriter(bootstrap)
    return Follower(
        ScorerIdentity(name, settings["scorer.instance"], settings.group("scorer.group")),
        ControlLog(bootstrap, topics.control),
        first,
        lambda version: load_version(settings, checked, name, version),
        lambda topic, key, value: writer.write(getattr(topics, topic), key, value),
        SystemClock(),
        metrics,
        health,
    )


def watch_run(settings: Settings, metrics: m.Metrics, who: str, label_age_ms: int) -> PartRun | None:
    """A function that watches probations and canaries until the event is set; None if `monitor.mode` is `off`.

    It needs Kafka and nothing else, and may be called again after a failure. Withdrawn versions are judged by labels of
    the age `label_age_ms`.

    Raises:
        UsageError: a topic is missing. BrokerUnavailable: the broker does not answer.
    """
    if settings["monitor.mode"] == "off":
        return None
    bootstrap, topics = settings.require("kafka.bootstrap"), Topics.of(settings)
    needed = [*topics.monitor_topics(), topics.control, topics.scorer_status, topics.incidents, topics.verdicts]
    TopicAdmin(bootstrap).require(needed, same_count=False)
    if settings["monitor.mode"] == "auto":
        _warn_if_no_commands(bootstrap, topics)

    def follow(since_ms: int) -> BacklogFollower:
        return BacklogFollower(bootstrap, topics.score_summaries, client_id="stream-scorer-watch", start=since_ms)

    def follow_labels(since_ms: int) -> BacklogFollower:
        return BacklogFollower(bootstrap, topics.outcomes, client_id="stream-scorer-labels", start=since_ms)

    def run(stop: threading.Event, on_ready: Callable[[], None]) -> None:
        with closing(RecordWriter(bootstrap, stop)) as writer:

            def write(key: str, value: bytes) -> None:
                writer.write(topics.verdicts, key, value)

            incidents = Incidents(ControlLog(bootstrap, topics.incidents, stop))
            verdicts = ControlLog(bootstrap, topics.verdicts, stop)
            parts = WatchParts(
                incidents=incidents,
                verdicts=Verdicts(write),
                labels=LabelWatch(verdicts, write, follow_labels, incidents.log, label_age_ms),
                collections=CollectionWatch(
                    lambda: ControlLog(bootstrap, topics.verdicts, stop), write, follow, metrics
                ),
                scorers=StatusReader(
                    lambda: ControlLog(bootstrap, topics.scorer_status, stop), SystemClock().monotonic
                ),
            )
            watch = Watch(
                ControlLog(bootstrap, topics.control, stop),
                follow,
                SystemClock(),
                metrics,
                who=who,
                rules=watch_rules(settings),
                parts=parts,
            )
            watch.run(stop, on_ready)

    return run


def _warn_if_no_commands(bootstrap: str, topics: Topics) -> None:
    """Warn if this user may not write to `control`: then each command of the monitor needs a person."""
    try:
        missing = missing_permissions(bootstrap, [to_command(topics)])
    except StreamScorerError as error:
        _log.warning("whether this user may write to %s could not be checked: %s", topics.control, error.message)
        return
    if missing:
        _log.warning(
            "monitor.mode is auto, but this user lacks %s: each command needs a person until it is granted "
            "(`stream-scorer topics acls --role monitor --mode auto`)",
            ", ".join(missing),
        )


def signals_run(
    settings: Settings, metrics: m.Metrics, more: Callable[[], DetectedConditions] = DetectedConditions
) -> PartRun | None:
    """A function that turns conditions on topics into incidents; None if `monitor.mode` is `off`.

    It needs Kafka and nothing else, and may be called again after a failure. `more` gives findings of other parts.
    """
    if settings["monitor.mode"] == "off":
        return None
    bootstrap, topics = settings.require("kafka.bootstrap"), Topics.of(settings)

    def follow(topic: str, since_ms: int) -> BacklogFollower:
        name = getattr(topics, topic)
        return BacklogFollower(bootstrap, name, client_id="stream-scorer-signals", start=since_ms)

    def run(stop: threading.Event, on_ready: Callable[[], None]) -> None:
        inputs = TopicAdmin(bootstrap).require([topics.transactions])
        ends = TopicEnds(bootstrap, inputs, client_id="stream-scorer-signals")
        log = IncidentLog(ControlLog(bootstrap, topics.incidents, stop))
        Signals(log, follow, ends, SystemClock(), metrics, signal_rules(settings), more).run(stop, on_ready)

    return run


def signal_rules(settings: Settings) -> SignalRules:
    """The limits of conditions in `settings`."""
    return SignalRules(
        FeedRules(
            settings["monitor.feed_silent_s"] * 1_000,
            settings["monitor.feed_late_s"] * 1_000,
            settings["monitor.max_dead_letters"] / 100,
        ),
        LabelRules(settings["monitor.labels_silent_s"] * 1_000),
        ServiceRules(settings["monitor.max_latency_ms"], settings["monitor.max_errors"] / 100),
    )


def webhook_run(settings: Settings, metrics: m.Metrics) -> PartRun | None:
    """A function that sends incidents to `monitor.webhook_url`; None without one, or if `monitor.mode` is `off`.

    Raises:
        SettingsError: the address is not one.
    """
    url = settings["monitor.webhook_url"]
    if not url or settings["monitor.mode"] == "off":
        return None
    check_url(url)
    bootstrap, topic = settings.require("kafka.bootstrap"), Topics.of(settings).incidents

    def run(stop: threading.Event, on_ready: Callable[[], None]) -> None:
        Webhook(url, IncidentLog(ControlLog(bootstrap, topic, stop)), SystemClock(), metrics).run(stop, on_ready)

    return run


def watch_rules(settings: Settings) -> WatchRules:
    """The rules of the watch in `settings`."""
    rise, fall = settings["monitor.max_rise"] / 100, settings["monitor.max_fall"] / 100
    tolerances = Tolerances(rise, fall, min_rows=settings["monitor.probation"])
    return WatchRules(
        settings["monitor.mode"], settings["monitor.cooldown_s"], tolerances, settings["monitor.grace_s"] * 1_000
    )


@contextmanager
def mirroring_aliases(settings: Settings) -> Iterator[None]:
    """Inside the block, a thread keeps the aliases of the registry `mlflow.url` at the versions that serve.

    Without a registry, or if `mlflow.champion_alias` is off, nothing does.
    """
    from stream_scorer.ensemble.registry import set_alias

    url, bootstrap = settings["mlflow.url"], settings.require("kafka.bootstrap")
    if not url or not settings["mlflow.champion_alias"]:
        yield
        return
    stop = threading.Event()
    mirror = AliasMirror(
        lambda: ControlLog(bootstrap, Topics.of(settings).control, stop),
        lambda name, version: set_alias(name, CHAMPION, version, url),
        SystemClock(),
    )
    with _running("aliases", mirror.run, stop):
        yield


@contextmanager
def cleaning_cache(settings: Settings, in_use: Callable[[], Iterable[str]] = list) -> Iterator[None]:
    """Inside the block, a thread bounds the disk cache of ensembles; see `CacheCleanup`."""
    with _running("cache-cleanup", CacheCleanup(cache_folder(settings), in_use, SystemClock()).run):
        yield


@contextmanager
def _running(name: str, run: Callable[[threading.Event], None], stop: threading.Event | None = None) -> Iterator[None]:
    """Inside the block, a thread runs `run`; `stop` is what ends it."""
    stop = stop or threading.Event()
    thread = threading.Thread(target=run, args=(stop,), name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(STOP_THREAD_S)


@contextmanager
def running_bulkhead(settings: Settings) -> Iterator[Bulkhead]:
    """What keeps members apart, with its watchdog, which ends with the block.

    Raises:
        SettingsError: the watchdog cannot write to `cache.dir`.
    """
    timeout_ms, limit_s = settings["scorer.member_timeout_ms"], settings["scorer.watchdog_timeout_s"]
    threads = settings["scorer.member_threads"]
    with ExitStack() as lifetime:
        watchdog = None
        if limit_s:
            name = f"{settings.group('scorer.group')}-{settings['scorer.instance']}"
            path = Path(settings["cache.dir"]).expanduser() / "watch" / hashlib.sha256(name.encode()).hexdigest()[:16]
            try:
                watchdog = Watchdog(path, limit_s=limit_s, slots=threads)
            except OSError as error:
                raise SettingsError(
                    f"cache.dir: cannot write {path}: {error.strerror}",
                    hint="Set cache.dir to a folder that this user may write, or scorer.watchdog_timeout_s to 0.",
                ) from None
            lifetime.callback(watchdog.close)
        yield Bulkhead(SystemClock(), budget_s=timeout_ms / 1_000, threads=threads, watchdog=watchdog)


@contextmanager
def passthrough(settings: Settings, metrics: m.Metrics, _health: Health) -> Iterator[Processor]:
    """The exactly-once limit of this reader, committer and broker: every value goes to `scores` as it came."""
    topics, sources = input_partitions(settings)

    def write(batch: MicroBatch, sink: Sink) -> None:
        records = batch.transactions
        for partition, key, value in zip(records.partition.tolist(), records.key, records.value, strict=True):
            sink.produce(topics.scores, partition, key, value or b"")

    def find_start(reader: Reader, owned: list[SourcePartition], scored: Offsets) -> StartingPoints:
        return starting_points(reader, None, owned, sources, settings["scorer.start"], scored=scored)

    probe, idle_check = WriteProbe(lambda: None), IdleCheck(lambda: None)
    state = StateManager(Availability(metrics), InFlight(), probe, idle_check, find_start, None, metrics)
    yield make_processor(settings, topics, [], [], write, state, metrics, None)


def make_processor(
    settings: Settings,
    topics: Topics,
    stages: Sequence[Stage],
    after_commit: Sequence[Stage],
    write: Callable[[MicroBatch, Sink], None],
    state: StateManager,
    metrics: m.Metrics,
    checked: CheckedSpec | None,
) -> Processor:
    """A processor of the input topics that writes what `stages` computed. Without a spec, it reads no times."""
    bootstrap, group, instance = (
        settings["kafka.bootstrap"],
        settings.group("scorer.group"),
        settings["scorer.instance"],
    )
    times = {}
    if checked is not None:
        times = {topics.transactions: times_of(checked.spec.transaction.time), topics.labels: times_of("labelled_at")}
    producers = TransactionPair(bootstrap, f"{group}-{instance}")
    committer = Committer(
        [Commit(metrics, SystemClock()), *after_commit, NoteCommitted(state.note_committed), Account(metrics, checked)]
    )
    return Processor(
        make_reader=lambda assigned, revoked, stopping: InputReader(
            bootstrap,
            GroupMember(group, instance, static=True),
            [topics.transactions, topics.labels],
            on_assigned=assigned,
            on_revoked=revoked,
            stopping=stopping,
            times_of=times,
        ),
        producers=producers,
        stages=[*stages, Turn(committer), Publish(producers, write)],
        committer=committer,
        state=state,
        inputs=Inputs(topics.transactions, topics.labels),
        pacing=Pacing(settings["scorer.batch"], settings["scorer.pace_ms"] / 1_000),
        metrics=metrics,
    )


def run_processor(
    settings: Settings, make: Callable[[Settings, m.Metrics, Health], AbstractContextManager[Processor]]
) -> None:
    """Build with `make` and run until SIGTERM or SIGINT, with health and metrics served from the start.

    A signal during the start keeps the handler of the caller: a start may wait for the broker or for a model, and has
    nothing to finish.
    """
    metrics, health = m.Metrics(), Health(SystemClock())
    with _health(settings, metrics, health), make(settings, metrics, health) as processor:
        beat = health.watch("scoring", PROGRESS_LIMIT_S).beat
        health.require(lambda: _missing(processor))
        calm_garbage_collector()
        with stop_on_signal() as stop:
            processor.run(stop, beat=beat)
    _log.info("stopped")


def _missing(processor: Processor) -> str:
    ready, reason = processor.ready()
    return "" if ready else reason


@contextmanager
def _health(settings: Settings, metrics: m.Metrics, health: Health) -> Iterator[None]:
    port = settings["metrics.port"]
    if port < 0:
        yield
        return
    server = HealthServer(settings["metrics.host"], port, metrics.registry, health.ready, health.problems)
    host = settings["metrics.host"]
    _log.info("health and metrics on http://%s:%d", f"[{host}]" if ":" in host else host, server.port)
    try:
        yield
    finally:
        server.close()


def calm_garbage_collector() -> None:
    """Collect rarely: a micro-batch makes some 100,000 objects that die by reference count, and no cycles.

    With Python's defaults the collector walks them dozens of times a batch for nothing.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 20, 50)


@contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set; a second signal ends the process at once."""
    stop = threading.Event()

    def ask(_signum: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {s: signal.signal(s, ask) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
