"""Batches of an evaluation: features do not depend on their size, also where an entity has many labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stream_scorer.evaluation import batches as batches_module
from stream_scorer.evaluation.batches import Batches
from stream_scorer.evaluation.sources import from_files
from stream_scorer.features.engine import FeatureEngine
from stream_scorer.features.history import build_features
from stream_scorer.features.plan import reach_ms
from stream_scorer.features.shards import trim_time
from stream_scorer.kafka.topics import Topics
from stream_scorer.replay.pieces import Range
from stream_scorer.spec import parse_spec
from stream_scorer.spec.model import CheckedSpec
from stream_scorer.state.row_format import ENTRY_BYTES
from stream_scorer.state.rows import MemoryRowStore
from stream_scorer.train.dataset import read_history
from tests.support.small_history import SPEC_TEXT, write_history

# Windows that hold more labels of an entity than its row keeps exactly.
SPEC = parse_spec(SPEC_TEXT.replace("windows: [30ms, 60ms]", "windows: [300ms, 600ms]"))
ENGINE = FeatureEngine(SPEC)


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_history(tmp_path_factory.mktemp("history"), 900)


def features(history: tuple[Path, Path], batches: Batches) -> tuple[np.ndarray, int]:
    """The features of all transactions, and the number of batches."""
    return features_and_size(history, batches)[:2]


def features_and_size(
    history: tuple[Path, Path], batches: Batches, spec: CheckedSpec = SPEC
) -> tuple[np.ndarray, int, int]:
    """As `features`, and the largest number of entries in all rows."""
    engine = ENGINE if spec is SPEC else FeatureEngine(spec)
    longest: list[int] = []
    source, rows, found = from_files(*history, Topics(), spec, Range(), None, warm=False), MemoryRowStore(), []
    for batch in batches.of(source.runs()):
        enriched = engine.enrich(batch.events, rows)
        rows.apply(enriched.update)
        if batch.trims:
            rows.trim(trim_time(rows, reach_ms(spec)))
        found.append(enriched.matrix)
        longest.append(sum(map(len, rows.rows().values())) // ENTRY_BYTES)
    return np.vstack(found), len(found), max(longest)


def test_rows_are_trimmed_without_an_effect_on_features(
    history: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = parse_spec(SPEC_TEXT + "time: {allowed_lateness: 5ms}\n")
    whole, _, all_entries = features_and_size(history, Batches(spec, 64, 4_096), spec)
    monkeypatch.setattr(batches_module, "TRIM_EVERY", 50)
    for rows in (7, 64, 4_096):
        trimmed, count, entries = features_and_size(history, Batches(spec, rows, 4_096), spec)
        np.testing.assert_array_equal(trimmed, whole)
        assert count >= len(whole) // 50
        assert entries < all_entries / 2


def test_a_batch_ends_where_more_labels_than_a_row_keeps_would_change_a_value(history: tuple[Path, Path]) -> None:
    small, _ = features(history, Batches(SPEC, 5, 4_096))
    together, cuts = features(history, Batches(SPEC, 4_096, 4_096))
    np.testing.assert_array_equal(together, small)
    # Labels of genuine transactions, which are most, end no batch.
    counts_all = Batches(SPEC, 4_096, 4_096)
    counts_all._label_cuts._changing = lambda labels: list(range(len(labels)))  # type: ignore[method-assign]
    assert cuts < features(history, counts_all)[1]
    # Without the rule, values differ.
    unlimited = Batches(SPEC, 4_096, 4_096)
    unlimited._label_cuts._limit = 1 << 40
    assert (features(history, unlimited)[0] != small).any()


def test_a_training_set_has_no_label_that_was_given_later_whatever_the_batch_size(history: tuple[Path, Path]) -> None:
    read = read_history(*history, SPEC)
    single, *together = (
        build_features(SPEC, read.transactions, read.labels, batch=size).matrix for size in (1, 5, 4_096)
    )
    for each in together:
        np.testing.assert_array_equal(each, single)
