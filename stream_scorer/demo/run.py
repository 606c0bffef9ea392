"""The demo: starts the stack, publishes history, trains, runs scorer and monitor on live traffic, checks the result."""

from __future__ import annotations

import itertools
import json
import os
import platform
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from rich.console import Console

from stream_scorer.clock import Clock, SystemClock
from stream_scorer.console import Steps
from stream_scorer.control.commands import catch_up, submit
from stream_scorer.control.state import History
from stream_scorer.demo.children import Child, Service
from stream_scorer.demo.incident import PROMOTE_AFTER, REASON, SecondAct, make_update, possible
from stream_scorer.demo.plan import PARTITIONS, SETTLE_DAYS, DemoPlan
from stream_scorer.demo.view import REFRESH_S, View, calendar_columns
from stream_scorer.demo.watch import Watcher
from stream_scorer.ensemble.manifest import manifest_digest, read_manifest
from stream_scorer.errors import StreamScorerError
from stream_scorer.kafka.control_log import ControlLog
from stream_scorer.kafka.open_loop import OpenLoopProducer
from stream_scorer.kafka.topics import TopicAdmin, Topics
from stream_scorer.observability.metrics import CAUGHT_UP, SERVING
from stream_scorer.records import Command, ServedVersion
from stream_scorer.reports.delivery import Delivery, delivery_of
from stream_scorer.reports.recording import Recording
from stream_scorer.reports.story import Check, Story, Truth
from stream_scorer.simulate import (
    FRAUD_KINDS,
    Labeller,
    LabellerConfig,
    Labels,
    Transactions,
    encode_keys,
    encode_labels,
    encode_values,
    generate_days,
)
from stream_scorer.simulate.config import DAY_MS
from stream_scorer.simulate.files import labels_writer, read_truth, transactions_writer
from stream_scorer.simulate.live import LiveConfig, LiveReport, LiveTraffic
from stream_scorer.spec import load_spec
from stream_scorer.spec.model import duration_ms
from stream_scorer.stack import LocalStack, StackAddresses

SPEC = Path(__file__).resolve().parent.parent / "simulate" / "cards.yaml"
SCRATCH = Path(".stream-scorer")
REPORT = Path("demo-report")
ENSEMBLE, ALIAS = "cards", "champion"
C = TypeVar("C", bound=Child)
T = TypeVar("T")
# Timeouts of the waits: several times the usual duration on two cores.
# A first start compiles its kernels, which takes half a minute of CPU time.
READY_S, DRAIN_S, MONITOR_S = 180.0, 60.0, 30.0
# The labeller waits for alerts for this long after the last transaction.
LAST_ALERTS_S = 1.0
# The monitor publishes every second if something changed: no record for this long means that it has finished.
SILENCE_S = 2.5
POLL_S = 0.1


@dataclass(frozen=True)
class _World:
    """The simulated data: a history with its labels, and the live transactions by day."""

    history: Transactions
    labels: Labels
    live: list[Transactions]
    labeller: Labeller


def run_demo(plan: DemoPlan, console: Console, *, clock: Clock | None = None, report: Path = REPORT) -> Story:
    """Run the demo in the working directory; progress goes to `console`, logs to ``<report>/logs``.

    All processes have ended when this returns or raises, also after Ctrl-C.

    Raises:
        StreamScorerError: a process did not start, ended unexpectedly, or did not finish in time.
    """
    clock = clock or SystemClock()
    steps = Steps(clock, lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True))
    # The folder comes first, so that it is removed last, after all processes that write to it.
    with _scratch() as folder, ExitStack() as ending:
        demo = _Demo(plan, console, clock, steps, folder, report, ending)
        return demo.run()


class _Demo:
    def __init__(
        self,
        plan: DemoPlan,
        console: Console,
        clock: Clock,
        steps: Steps,
        folder: Path,
        report: Path,
        ending: ExitStack,
    ) -> None:
        self._plan = plan
        self._console = console
        self._clock = clock
        self._steps = steps
        self._folder = folder
        self._logs = report / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)
        self._ending = ending
        self._checked = load_spec(SPEC)
        self._truth = folder / "truth.parquet"

    def run(self) -> Story:
        steps, plan = self._steps, self._plan
        with (
            _Background(lambda: _simulate(plan, self._clock.now_ms(), self._folder)) as simulating,
            steps.step("starting the stack; simulating the history"),
        ):
            at = self._start_stack()
            world = simulating.result()
        steps.say(
            f"history: {len(world.history):,} transactions, {len(world.labels):,} labels by its end; "
            f"live: {sum(map(len, world.live)):,} transactions"
        )
        train, monitor = self._train(at), self._start_monitor(at)
        with steps.step("publishing the history, which fills the features"):
            _publish_history(str(at.kafka), world, self._clock)
        with steps.step("training five members, registering them in MLflow"):
            train.wait(lambda line: steps.say(f"  {line.strip()}") if " s  " in line[:12] else None)
            training = json.loads(train.log.read_text().splitlines()[-1])
        steps.say(f"registered {ENSEMBLE} version {training['version']} as {ENSEMBLE}@{ALIAS}")
        with steps.step("starting the scorer; it fills the features from the history"):
            scorer = self._start_scorer(at)
            act = self._second_act(at)
            self._wait_warm(scorer, monitor, len(world.history) + len(world.labels))
        loaded = _loaded(scorer)
        with Watcher(str(at.kafka), self._clock) as watcher:
            with steps.step(f"live traffic, {plan.rate:,.0f} transactions per second"):
                sent = self._live(at, world, watcher, scorer, monitor, act)
            with steps.step("draining"):
                self._drain(watcher, scorer, monitor, sent, act)
            with steps.step("stopping scorer and monitor"):
                codes = {child.name: child.stop() for child in (scorer, monitor)}
                # No process writes now, so all records in flight arrive, including doubled ones.
                _wait(lambda: watcher.quiet_s > 1.0, DRAIN_S, "the last records on the topics")
        with steps.step("recomputing every score from its record"):
            verified = self._verify(at)
        recording = watcher.recording()
        truth = read_truth(self._truth)
        return Story(
            title="stream_scorer demo",
            recording=recording,
            truth=Truth(truth["event_id"].tolist(), truth["event_time"], truth["fraud_kind"]),
            ensemble=ENSEMBLE,
            version=str(training["version"]),
            review=training["thresholds"]["review"],
            block=training["thresholds"]["block"],
            pane_ms=duration_ms(self._checked.spec.monitor.pane),
            horizon_ms=duration_ms(self._checked.spec.labels.horizon),
            calendar=calendar_columns(self._checked),
            labels=dict(sent.labels),
            kinds=FRAUD_KINDS,
            sent={
                "transactions": sent.transactions,
                "duplicates": sent.duplicates,
                "garbage": len(sent.garbage),
                "late_alerts": sent.late_alerts,
            },
            rate=plan.rate,
            training=training,
            steps=steps.seconds,
            total_s=steps.elapsed,
            machine=_machine(),
            checks=[
                *_checks(recording, sent, codes, loaded, str(training["version"]), act),
                verified,
            ],
            update=act.update if act is not None else None,
        )

    def _start_stack(self) -> StackAddresses:
        stack = LocalStack(data_dir=self._folder / "stack", on_progress=lambda text: self._steps.say(f"  {text}"))
        self._ending.enter_context(stack)
        at = stack.addresses
        TopicAdmin(str(at.kafka)).create_all(Topics(), PARTITIONS)
        return at

    def _train(self, at: StackAddresses) -> Child:
        plan, folder = self._plan, self._folder
        return self._child(
            Child,
            "train",
            ["train", "--spec", str(SPEC), "--bootstrap", str(at.kafka), "--mlflow", str(at.mlflow),
             "--seed", str(plan.seed), "--json",
             "--transactions", str(folder / "transactions.parquet"), "--labels", str(folder / "labels.parquet"),
             "--out", str(folder / "ensemble"), "--register", ENSEMBLE, "--alias", ALIAS,
             "--review-rate", str(plan.review_rate), "--block-rate", str(plan.block_rate)],
        )  # fmt: skip

    def _start_scorer(self, at: StackAddresses) -> Service:
        return self._child(
            Service,
            "scorer",
            ["run", *_places(at), "--start", "latest", "--instance", "demo", "--group", "stream-scorer",
             "--ensemble", f"{ENSEMBLE}@{ALIAS}", "--cache", str(self._folder / "scorer-cache")],
        )  # fmt: skip

    def _start_monitor(self, at: StackAddresses) -> Service:
        """Start the monitor, before an ensemble exists; it loads the profile of each version on its first score."""
        return self._child(
            Service,
            "monitor",
            ["monitor", *_places(at), "--state-dir", str(self._folder / "monitor"),
             "--cache", str(self._folder / "monitor-cache"), "--mode", "auto"],
        )  # fmt: skip

    def _second_act(self, at: StackAddresses) -> SecondAct | None:
        """Make and register the faulty version; None without an incident."""
        plan, steps = self._plan, self._steps
        if not plan.incident:
            return None
        if not possible(plan):
            steps.say("no incident: too few alerts are expected for the monitor to detect it")
            return None
        made = make_update(self._folder, self._checked)
        if made is None:
            steps.say("no incident: no minor change of the member with the highest weight raises alerts")
            return None
        folder, update = made
        register = self._child(
            Child,
            "register",
            ["ensemble", "register", str(folder), ENSEMBLE, "--why", REASON, "--mlflow", str(at.mlflow)],
        )
        register.wait(lambda _line: None)
        update = replace(update, version=register.log.read_text().split()[-1].rpartition(":")[2])
        steps.say(f"registered {ENSEMBLE} version {update.version}, a minor update: {update.summary}")

        served = ServedVersion(update.version, manifest_digest(read_manifest(folder)))

        def promote() -> None:
            _promote(str(at.kafka), served, self._clock)

        return SecondAct(update, int(plan.transactions * PROMOTE_AFTER), promote, steps.say)

    def _verify(self, at: StackAddresses) -> Check:
        """Recompute every score of all versions from its record, and compare."""
        name = "every score can be recomputed from its record"
        verify = self._child(
            Child,
            "verify",
            ["verify", "--bootstrap", str(at.kafka), "--mlflow", str(at.mlflow), "--topic-prefix", "",
             "--cache", str(self._folder / "scorer-cache")],
        )  # fmt: skip
        try:
            verify.wait(lambda _line: None)
        except StreamScorerError as error:
            return Check(name, False, error.message)
        return Check(name, True, verify.log.read_text().splitlines()[-1])

    def _child(self, kind: type[C], name: str, arguments: list[str]) -> C:
        child = kind(name, arguments, self._logs)
        self._ending.callback(child.stop)
        return child

    def _wait_warm(self, scorer: Service, monitor: Service, history: int) -> None:
        def warm() -> bool:
            ready = scorer.ready() and monitor.ready()
            return ready and (scorer.metric(CAUGHT_UP.name) or 0) >= history

        _wait(warm, READY_S, "scorer and monitor to be ready")

    def _live(
        self,
        at: StackAddresses,
        world: _World,
        watcher: Watcher,
        scorer: Service,
        monitor: Service,
        act: SecondAct | None,
    ) -> LiveReport:
        plan = self._plan
        config = LiveConfig(
            bootstrap=str(at.kafka),
            rate=plan.rate,
            duplicates=plan.duplicates,
            garbage=plan.garbage,
            seed=plan.seed,
            truth=self._truth,
            alerts_s=LAST_ALERTS_S,
            settle_ms=SETTLE_DAYS * DAY_MS,
        )
        traffic = LiveTraffic(config, world.live, world.labeller, clock=self._clock)
        with (
            _Background(traffic.run, stop=traffic.stop) as sending,
            View(self._console, self._clock, self._checked) as view,
        ):
            while not sending.ended:
                scorer.require_running()
                monitor.require_running()
                glance = watcher.glance()
                view.show(glance, self._steps.elapsed)
                if act is not None:
                    act.follow(glance.records_out, watcher.commands())
                time.sleep(REFRESH_S)
            return sending.result()

    def _drain(
        self, watcher: Watcher, scorer: Service, monitor: Service, sent: LiveReport, act: SecondAct | None
    ) -> None:
        def drained() -> bool:
            scorer.require_running()
            monitor.require_running()
            into, out = watcher.counts()
            return into >= sent.records and out >= into

        # The exactly-once check reports records that are still missing after that.
        _wait_at_most(drained, DRAIN_S)
        _wait_at_most(lambda: watcher.quiet_s > SILENCE_S and watcher.windows() > 0, MONITOR_S)
        if act is not None:
            act.follow(self._plan.transactions, watcher.commands())


def _simulate(plan: DemoPlan, now_ms: int, folder: Path) -> _World:
    """Simulate the data and write the files that training reads."""
    days = list(generate_days(plan.simulation(now_ms)))
    everything = Transactions.concat(days)
    history = everything.slice(0, plan.history)
    labeller = Labeller(LabellerConfig(seed=plan.seed))
    labeller.observe(history)
    labels = labeller.advance(int(history.event_time[-1]))
    with transactions_writer(folder / "transactions.parquet") as file:
        file.write(history)
    with labels_writer(folder / "labels.parquet") as file:
        file.write(labels)
    ends = [0, *itertools.accumulate(map(len, days))]
    live = [
        everything.slice(max(start, plan.history), stop)
        for start, stop in itertools.pairwise(ends)
        if stop > plan.history
    ]
    return _World(history, labels, live, labeller)


def _places(at: StackAddresses) -> list[str]:
    return [
        "--bootstrap", str(at.kafka), "--redis", str(at.redis), "--mlflow", str(at.mlflow), "--spec", str(SPEC),
        "--topic-prefix", "",
    ]  # fmt: skip


def _publish_history(bootstrap: str, world: _World, clock: Clock) -> None:
    topics = Topics()
    with OpenLoopProducer(bootstrap, client_id="demo-history", clock=clock, sleep=time.sleep) as producer:
        producer.publish(topics.labels, encode_keys(world.labels.customer_id), encode_labels(world.labels))
        producer.publish(topics.transactions, encode_keys(world.history.customer_id), encode_values(world.history))


def _promote(bootstrap: str, version: ServedVersion, clock: Clock) -> None:
    """Promote as `stream-scorer ensemble promote` does, but without importing MLflow, which takes seconds."""
    log, history = ControlLog(bootstrap, Topics().control), History()
    try:
        catch_up(log, history, log.end())
        entry = submit(
            log,
            history,
            lambda offset: Command(
                ensemble=ENSEMBLE, action="promote", who="a data scientist", why=REASON, at=clock.now_ms(),
                expected_offset=offset, version=version,
            ),
        )  # fmt: skip
    finally:
        log.close()
    if entry.refused:
        raise StreamScorerError(f"the promotion was refused: {entry.refused}")


def _loaded(scorer: Service) -> set[tuple[str, str]]:
    """The (ensemble, version) pairs that the scorer serves, from its metrics."""
    return {
        (dict(labels)["ensemble"], dict(labels)["version"])
        for (name, labels), value in scorer.metrics().items()
        if name == SERVING.name and value
    }


def _checks(
    recording: Recording,
    sent: LiveReport,
    codes: dict[str, int],
    loaded: set[tuple[str, str]],
    version: str,
    act: SecondAct | None,
) -> list[Check]:
    delivery = delivery_of(recording)
    bad = {(b.partition, sent.starts[b.partition] + b.ordinal) for b in sent.garbage}
    dead = recording.dead.places
    refused = set(zip(dead.partition.tolist(), dead.offset.tolist(), strict=True))
    wanted = [(ENSEMBLE, version)]
    played = [] if act is None else [(ENSEMBLE, act.update.version)]
    windows = {(m.window_start, m.window_end) for m in recording.metrics}
    flagged = int(recording.scores.duplicate.sum())
    return [
        Check("exactly once", delivery.exact and delivery.inputs == sent.records, _verdict(delivery, sent)),
        Check("bad records, and no others, are dead letters", refused == bad, f"{len(refused):,} of {len(bad):,} sent"),
        Check("second copies are flagged", flagged == sent.duplicates, f"{flagged:,} of {sent.duplicates:,} sent"),
        Check(
            "the ensemble came from the registry",
            loaded == set(wanted) and recording.scores.versions == sorted(wanted + played),
            f"{ENSEMBLE}@{ALIAS}, version {version}, five members" if loaded else "the scorer serves no version",
        ),
        Check("the monitor published windows", bool(windows), f"{len(windows):,} windows"),
        Check(
            "scorer and monitor ended with exit code 0",
            all(code == 0 for code in codes.values()),
            ", ".join(f"{name} exit {code}" for name, code in codes.items()),
        ),
        *([] if act is None else act.checks(recording.commands, recording.incidents)),
    ]


def _verdict(delivery: Delivery, sent: LiveReport) -> str:
    if delivery.inputs != sent.records:
        return f"{sent.records:,} sent, but {delivery.verdict}"
    return delivery.verdict


def _machine() -> str:
    return f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"


@contextmanager
def _scratch() -> Iterator[Path]:
    SCRATCH.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="demo-", dir=SCRATCH)).resolve()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait_at_most(holds: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def _wait(holds: Callable[[], bool], seconds: float, what: str) -> None:
    if not _wait_at_most(holds, seconds):
        raise StreamScorerError(f"timed out after {seconds:.0f} s waiting for {what}")


class _Background(Generic[T]):
    """Runs `work` in a thread. Leaving the block stops and joins it; `result` waits and re-raises its error."""

    def __init__(self, work: Callable[[], T], *, stop: Callable[[], None] | None = None) -> None:
        self._work = work
        self._stop = stop
        self._value: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> _Background[T]:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._stop is not None:
            self._stop()
        self._thread.join()

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()

    def result(self) -> T:
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._value[0]

    def _run(self) -> None:
        try:
            self._value.append(self._work())
        except BaseException as error:
            self._error = error
