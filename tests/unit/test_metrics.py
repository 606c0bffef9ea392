"""The metrics of a process: histograms that take whole batches, and what a committed micro-batch counts."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client import Histogram as LibraryHistogram

from stream_scorer.clock import SystemClock
from stream_scorer.ensemble.lineup import Lineup
from stream_scorer.errors import RECORD_CODES
from stream_scorer.observability.histogram import Histogram
from stream_scorer.observability.metrics import (
    COMMITS,
    DEAD_LETTERS,
    DEGRADED,
    END_TO_END,
    FALLBACKS,
    LABELS_WITHOUT_ENTITY,
    PROCESS_METRICS,
    STAGE_SECONDS,
    WRONG_KEYS,
    Metric,
    Metrics,
)
from stream_scorer.pipeline.accounting import Account
from stream_scorer.pipeline.availability import REASONS
from stream_scorer.pipeline.batch import BatchDecisions, MicroBatch
from stream_scorer.pipeline.commit import Commit
from stream_scorer.positions import SourcePartition, Span
from stream_scorer.serde.raw import RawRecords
from tests.support.stages import CHECKED

BOUNDS = (0.01, 0.05, 0.2, 1.0)
NOW = 1_700_000_000_000


def samples(registry: CollectorRegistry) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in registry.collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def text(registry: CollectorRegistry) -> list[str]:
    return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]


@pytest.mark.parametrize("seed", range(5))
def test_a_batch_of_observations_counts_like_the_library_counts_each(seed: int) -> None:
    values = np.concatenate([np.random.default_rng(seed).exponential(0.2, 500), BOUNDS, [0.0]])
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    Histogram("x_seconds", "Help.", (), BOUNDS, registry=ours).observe_all(values)
    library = LibraryHistogram("x_seconds", "Help.", registry=theirs, buckets=BOUNDS)
    for value in values.tolist():
        library.observe(value)
    assert samples(ours) == pytest.approx(samples(theirs))


def test_single_observations_and_batches_add_up() -> None:
    registry = CollectorRegistry()
    series = Histogram("x_seconds", "Help.", (), BOUNDS, registry=registry)
    for value in (0.01, 0.06, 2.0):
        series.observe(value)
    series.observe_all(np.array([0.05, 0.06]))
    seen = samples(registry)
    assert [seen["x_seconds_bucket", (("le", le),)] for le in ("0.01", "0.05", "0.2", "1.0", "+Inf")] == [1, 2, 4, 4, 5]
    assert seen["x_seconds_sum", ()] == pytest.approx(2.18)


def test_the_text_format_is_that_of_the_library() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    mine = Histogram("x_seconds", "Help.", ("stage",), BOUNDS, registry=ours)
    library = LibraryHistogram("x_seconds", "Help.", ("stage",), registry=theirs, buckets=BOUNDS)
    assert text(ours) == text(theirs)
    for stage, value in (("read", 0.03), ("commit", 5.0), ("read", 0.05)):
        mine.labels(stage).observe(value)
        library.labels(stage).observe(value)
    assert text(ours) == text(theirs)


def test_a_series_needs_the_labels_of_its_family() -> None:
    family = Histogram("x_seconds", "Help.", ("stage",), BOUNDS, registry=CollectorRegistry())
    with pytest.raises(ValueError, match="stage"):
        family.labels()
    Metrics().observe(STAGE_SECONDS, 0.1, "read")


def test_two_families_of_one_name_are_refused() -> None:
    registry = CollectorRegistry()
    Histogram("x_seconds", "Help.", (), BOUNDS, registry=registry)
    with pytest.raises(ValueError, match="Duplicated"):
        Histogram("x_seconds", "Help.", (), BOUNDS, registry=registry)


def test_a_scrape_during_observations_sees_whole_batches() -> None:
    registry = CollectorRegistry()
    series, stop = Histogram("x_seconds", "Help.", (), BOUNDS, registry=registry), threading.Event()

    def observe() -> None:
        while not stop.is_set():
            series.observe_all(np.array([0.02, 0.1, 3.0]))

    thread = threading.Thread(target=observe)
    thread.start()
    try:
        for _ in range(200):
            seen = samples(registry)
            count = seen["x_seconds_count", ()]
            assert count % 3 == 0
            assert seen["x_seconds_bucket", (("le", "0.2"),)] * 3 == count * 2
            assert seen["x_seconds_sum", ()] == pytest.approx(count * 3.12 / 3)
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("catalogue", [(), (FALLBACKS,)])
def test_every_process_exposes_the_catalogued_process_metrics(catalogue: tuple[Metric, ...]) -> None:
    found = {name: value for (name, _), value in samples(Metrics(catalogue).registry).items()}
    exposed = {name for name in found if name.startswith("process_")}
    assert exposed == {metric.name for metric in PROCESS_METRICS}
    assert found["process_resident_memory_bytes"] > 1e6
    assert found["process_open_fds"] > 0


def committed(timestamps: list[int], rows: list[int], committed_at: int | None) -> MicroBatch:
    """A scored batch of transactions with these record timestamps; those at `rows` are no dead letters."""
    n = len(timestamps)
    records = RawRecords(
        "transactions", np.zeros(n, np.int32), np.arange(n), np.array(timestamps, np.int64), [None] * n, [b""] * n
    )
    batch = MicroBatch(records, RawRecords.empty("labels"), [Span(SourcePartition("transactions", 0), 0, n, -1)], None)
    batch.events = cast(Any, SimpleNamespace(transactions=SimpleNamespace(row=np.array(rows, np.int64))))
    batch.committed_at = committed_at
    return batch


def test_end_to_end_is_from_the_record_timestamp_to_the_commit_of_each_scored_transaction() -> None:
    metrics = Metrics()
    account = Account(metrics, CHECKED)
    # The third is a dead letter; the fourth has no timestamp; the last one comes from a clock that is ahead.
    batch = committed([NOW - 25, NOW - 400, NOW - 9_000, -1, NOW + 50], [0, 1, 3, 4], NOW)
    account.process(batch)
    seen = samples(metrics.registry)
    assert seen[f"{END_TO_END.name}_count", ()] == 3
    assert seen[f"{END_TO_END.name}_sum", ()] == pytest.approx(0.425)
    assert seen[f"{END_TO_END.name}_bucket", (("le", "0.2"),)] == 2
    assert seen[f"{END_TO_END.name}_bucket", (("le", "0.01"),)] == 1


def test_a_batch_that_was_not_committed_has_no_end_to_end_latency() -> None:
    metrics = Metrics()
    Account(metrics, CHECKED).process(committed([NOW - 25], [0], None))
    assert samples(metrics.registry)[f"{END_TO_END.name}_count", ()] == 0


def test_counters_of_events_exist_before_the_first_event_so_that_their_increase_shows_it() -> None:
    metrics = Metrics()
    Account(metrics, CHECKED)
    seen = samples(metrics.registry)
    assert seen[LABELS_WITHOUT_ENTITY.name, (("entity", "terminal"),)] == 0
    codes = {labels[0][1] for (name, labels), value in seen.items() if name == DEAD_LETTERS.name and value == 0}
    assert codes == set(RECORD_CODES)
    reasons = {labels[0][1] for (name, labels), value in seen.items() if name == DEGRADED.name and value == 0}
    assert reasons == {*filter(None, REASONS.values()), "features_stale", "features_partial"}


def test_wrong_record_keys_are_counted_and_logged_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics()
    account = Account(metrics, CHECKED)
    batch = committed([NOW] * 4, [0, 2, 3], NOW)
    batch.wrong_keys = [1, 2]
    for _ in range(2):
        account.process(batch)
    assert samples(metrics.registry)[WRONG_KEYS.name, ()] == 4
    (line,) = caplog.messages
    assert "2 of 3 transactions" in line
    assert "transactions[0] at offset 2" in line


def test_labels_without_an_id_are_counted_and_logged_once_per_entity(caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics()
    account = Account(metrics, CHECKED)
    batch = committed([], [], NOW)
    batch.labels = RawRecords("labels", np.zeros(3, np.int32), np.arange(7, 10), np.full(3, NOW), [None] * 3, [b""] * 3)
    cast(Any, batch.events).labels = SimpleNamespace(row=np.array([0, 2]))
    batch.labels_without = {"terminal": np.array([1])}
    for _ in range(2):
        account.process(batch)
    batch.scoring = False  # they were counted when they were scored
    account.process(batch)
    assert samples(metrics.registry)[LABELS_WITHOUT_ENTITY.name, (("entity", "terminal"),)] == 2
    (line,) = caplog.messages
    assert "1 of 2 labels lack the id of the entity terminal, such as labels[0] at offset 9" in line
    assert "the field terminal_id" in line


@pytest.mark.parametrize(
    ("champion", "canary", "arm", "listed", "expected"),
    [
        ([0.1, 0.2, 0.3], None, [0, 0, 0], None, 0),
        ([0.1, np.nan, np.nan], None, [0, 0, 0], None, 2),
        ([0.1, np.nan, np.nan], None, [0, 0, 0], [-1, 2, -1], 1),
        ([0.1, np.nan, np.nan], [np.nan, 0.2, np.nan], [1, 1, 0], None, 2),
    ],
)
def test_the_fallback_decides_what_has_neither_a_score_nor_a_list(
    champion: list[float], canary: list[float] | None, arm: list[int], listed: list[int] | None, expected: int
) -> None:
    results = [
        SimpleNamespace(scored=SimpleNamespace(score=np.array(score)), decision=np.zeros(3, np.int8))
        for score in (champion, canary)
        if score is not None
    ]
    rules = None if listed is None else SimpleNamespace(listed=np.array(listed, np.int8))
    decided = BatchDecisions(cast(Lineup, None), np.array(arm, np.int8), cast(Any, results), cast(Any, rules))
    assert decided.without_score() == expected


def test_a_scorer_that_has_committed_nothing_says_so() -> None:
    """The alert ScorerCommitsNothing compares with 0."""
    metrics = Metrics()
    Commit(metrics, SystemClock())
    for outcome in ("committed", "aborted"):
        assert metrics.registry.get_sample_value(COMMITS.name, {"outcome": outcome}) == 0.0
