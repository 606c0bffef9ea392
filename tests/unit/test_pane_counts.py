"""Counts of a micro-batch by source partition and pane: compiled, against one row at a time."""

from __future__ import annotations

from collections import defaultdict

import msgspec
import numpy as np

from stream_scorer.pipeline.histogram_text import HistogramText
from stream_scorer.pipeline.pane_counts import DecidedRows, GroupCounts, count_panes
from stream_scorer.pipeline.sampling import mix, sparse_counts

PANE_MS = 60_000
MEMBERS, OTHERS = 3, 2


def rows_of(n: int, panes: int, chosen: float = 1.0) -> DecidedRows:
    rng = np.random.default_rng([n, panes])
    return DecidedRows(
        np.flatnonzero(rng.random(n) < chosen),
        rng.integers(0, 4, n),
        rng.integers(0, panes * PANE_MS, n),
        rng.integers(0, 2**40, n),
        rng.integers(0, 3, n).astype(np.int8),
        rng.random(n) < 0.2,
        rng.random(n) < 0.2,
        rng.random(n) < 0.2,
        rng.integers(0, 2**MEMBERS, n),
        rng.random((n, MEMBERS)) < 0.5,
        rng.integers(0, 3, (OTHERS, n)).astype(np.int8),
    )


def one_at_a_time(rows: DecidedRows) -> list[GroupCounts]:
    found: dict[tuple[int, int], list[int]] = defaultdict(list)
    for row in rows.chosen.tolist():
        found[int(rows.span[row]), int(rows.event_time[row]) // PANE_MS * PANE_MS].append(row)
    out = []
    for (span, pane), mine in sorted(found.items()):
        alert = rows.decision[mine] > 0

        def table(other: np.ndarray, alert: np.ndarray = alert) -> list[int]:
            return [int((a & b).sum()) for a in (alert, ~alert) for b in (other, ~other)]

        out.append(
            GroupCounts(
                span,
                pane,
                max(rows.event_time[mine].tolist()),
                len(mine),
                *(int(flags[mine].sum()) for flags in (rows.duplicate, rows.degraded, rows.fallback)),
                [int((rows.decision[mine] == code).sum()) for code in range(3)],
                [sum(rows.value[mine][rows.decision[mine] == code].tolist()) for code in range(3)],
                [int((rows.member_alerts[mine] >> k & 1).sum()) for k in range(MEMBERS)],
                [table(rows.alert_without[mine, k]) for k in range(MEMBERS)],
                [table(rows.others[k, mine] > 0) for k in range(OTHERS)],
            )
        )
    return out


def test_counts_are_those_of_the_rows_one_at_a_time() -> None:
    for rows in (rows_of(300, 40), rows_of(300, 2, chosen=0.3), rows_of(1, 1)):
        counted, group_of = count_panes(rows, PANE_MS)
        assert counted == one_at_a_time(rows)
        assert [(counted[g].span, counted[g].pane) for g in group_of.tolist()] == [
            (int(rows.span[row]), int(rows.event_time[row]) // PANE_MS * PANE_MS) for row in rows.chosen.tolist()
        ]


def test_no_rows_have_no_groups() -> None:
    counted, group_of = count_panes(rows_of(5, 1, chosen=0.0), PANE_MS)
    assert counted == []
    assert len(group_of) == 0


def test_sparse_lists_hold_the_cells_above_zero() -> None:
    counts = np.array([[[0, 2, 0], [0, 0, 0]], [[1, 0, 3], [0, 0, 300]]])
    assert sparse_counts(counts) == [[[1, 2], []], [[0, 1, 2, 3], [2, 300]]]
    assert sparse_counts(counts[:0]) == []


def test_text_of_histograms_is_the_encoding_of_their_lists() -> None:
    names, members = ["amount", 'an "odd"\nname', "größe"], ["a", "b"]
    counts = np.zeros((3, 6, 40), np.int64)
    rng = np.random.default_rng(5)
    counts[:2] = rng.integers(0, 3, (2, 6, 40)) * rng.integers(0, 10, (2, 6, 40)) ** 15
    texts = HistogramText(names, members).encode(counts)
    for (features, scores, score), lists in zip(texts, sparse_counts(counts), strict=True):
        assert bytes(features) == msgspec.json.encode(dict(zip(names, lists[:3], strict=True)))
        assert bytes(scores) == msgspec.json.encode(dict(zip(members, lists[3:5], strict=True)))
        assert bytes(score) == msgspec.json.encode(lists[5])
    assert HistogramText(names, members).encode(counts[:0]) == []


def test_hashes_are_mixed_by_splitmix64_with_the_key_between_two_rounds() -> None:
    def round_of(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    hashes = np.random.default_rng(1).integers(0, 2**64, 50, dtype=np.uint64)
    first, second = 0xFEDCBA9876543210, 0xF123456789ABCDEF
    expected = [round_of((round_of(one ^ first) + second) % 2**64) for one in hashes.tolist()]
    assert mix(hashes, (first, second)).tolist() == expected
