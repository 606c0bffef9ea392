"""Builds the training set from Parquet files of transactions and labels, with features by the serving kernel.

Records pass through the decoders of the scorer, so training rejects the same records as serving.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream_scorer.errors import UsageError
from stream_scorer.features.history import build_features
from stream_scorer.parquet import TimeColumns, read_rows, whole_time
from stream_scorer.serde.columns import join_labels, join_transactions
from stream_scorer.serde.decoder import LabelDecoder, Labels, TransactionDecoder, Transactions
from stream_scorer.serde.files import (
    LABEL_TIMES,
    label_kinds,
    labels_required,
    transaction_kinds,
    transactions_required,
)
from stream_scorer.serde.label_ranks import source_rank
from stream_scorer.serde.rejections import MAX_SHARE, Rejections, too_many
from stream_scorer.spec.model import CheckedSpec, duration_ms
from stream_scorer.state.rows import Beginning
from stream_scorer.train.recipe import Progress, TrainingSet
from stream_scorer.train.rows import ALL_TIMES, Period, choose_rows

# Rows decoded at a time: bounds the memory of the intermediate Python objects (about 1 kB per row).
_CHUNK = 50_000
# An optional column of transactions, unless it is a field of the spec: what a scorer decided.
_DECISION = "decision"
_YEAR_2000 = 946_684_800_000
_COMPLETE = Beginning()

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LabelledHistory:
    """Decoded transactions and labels, the rank of each label's source ``(n_labels,)``, and the rejected records.

    `source` names the origin of the transactions in messages. `blocked` has the ids of transactions with the decision
    block, as far as decisions are known. `beginning`: from when on topics that lost their beginning are complete.
    """

    source: str
    transactions: Transactions
    labels: Labels
    ranks: NDArray[np.int64]
    refused: int
    beginning: Beginning = _COMPLETE
    blocked: frozenset[str] = frozenset()


def read_training_set(
    transactions: Path,
    labels: Path,
    spec: CheckedSpec,
    on_progress: Progress | None = None,
    period: Period = ALL_TIMES,
) -> TrainingSet:
    """Read the training set from two Parquet files; see `make_training_set`.

    Raises:
        UsageError: a file is missing, lacks a column or has no times, no usable transaction is left, or more
            than 5 % of the transactions or labels are rejected.
        SettingsError: pyarrow is not installed.
    """
    return make_training_set(read_history(transactions, labels, spec), spec, on_progress, period)


def read_history(transactions: Path, labels: Path, spec: CheckedSpec) -> LabelledHistory:
    """Read and decode two Parquet files. Raises `UsageError`, `SettingsError`; see `read_training_set`."""
    decoded, refused, blocked = _read_transactions(transactions, spec)
    known, ranks, refused_labels = _read_labels(labels, spec)
    return LabelledHistory(str(transactions), decoded, known, ranks, refused + refused_labels, blocked=blocked)


def make_training_set(
    read: LabelledHistory, spec: CheckedSpec, on_progress: Progress | None = None, period: Period = ALL_TIMES
) -> TrainingSet:
    """Compute the features of a history, and join the labels.

    A transaction's label is its last one by (source rank, labelled_at), see `_keys`; without a label it is presumed
    genuine, or left out if it was blocked. Transactions younger than the spec's label horizon at the end of the history
    are excluded, as their frauds are not yet known.

    Raises:
        UsageError: no usable transaction is left.
    """
    if len(read.transactions) == 0:
        raise UsageError(f"{read.source}: no transaction can be decoded with spec {spec.spec.name}")
    history = build_features(
        spec,
        read.transactions,
        read.labels,
        on_progress=None if on_progress is None else lambda done, total: on_progress("features", done, total),
    )
    keys, given = _keys(read, spec.spec.partition_entity)
    label, labelled_at = _join(keys, given, read.labels, read.ranks)
    unmatched = _unmatched(read, keys, given)
    horizon = duration_ms(spec.spec.labels.horizon)
    once = ~history.duplicate
    _check_own_labels(read.source, spec, labelled_at[once], history.event_time[once])
    blocked = (labelled_at < 0) & _among(read.blocked, history.event_id)
    labelled_at = np.where(labelled_at < 0, history.event_time + horizon, labelled_at)
    newest, last_label = int(history.event_time[-1]), int(read.labels.labelled_at.max(initial=0))
    if newest - last_label > horizon:
        _log.warning(
            "%s: the newest label is %.1f days older than the newest transaction, the label horizon is %s: frauds that "
            "are not reported yet count as genuine. Is the label file old, or a transaction in the future?",
            read.source, (newest - last_label) / 86_400_000, spec.spec.labels.horizon,
        )  # fmt: skip
    if last_label - newest > horizon:
        _log.warning(
            "%s: the newest label (%s) is more than the label horizon of %s younger than the newest transaction (%s), "
            "so every transaction counts as mature. Is one label in the future, or a file of transactions missing?",
            read.source, _day(last_label), spec.spec.labels.horizon, _day(newest),
        )  # fmt: skip
    end = max(newest, last_label)
    mature = history.event_time <= end - horizon
    usable = mature & ~history.duplicate
    if not usable.any():
        raise UsageError(
            f"{read.source}: every transaction is younger than the label horizon of {spec.spec.labels.horizon}",
            hint="Train on a longer history, or lower labels.horizon in the spec."
            if newest >= _YEAR_2000
            else f"The newest transaction is of {_day(newest)}: times are epoch milliseconds. Are these seconds?",
        )
    chosen = choose_rows(read.source, spec, history, usable, blocked, read.beginning, period)
    keep = chosen.keep
    entity = _entities(spec, read.transactions)
    return TrainingSet(
        history.matrix[keep],
        spec.features,
        label[keep],
        history.event_time[keep],
        read.refused,
        int(history.duplicate.sum()),
        int((~mature).sum()),
        [history.event_id[index] for index in np.flatnonzero(keep).tolist()],
        None if entity is None else entity[keep],
        labelled_at[keep],
        chosen.outside,
        chosen.blocked,
        chosen.incomplete,
        unmatched,
    )


def _among(ids: frozenset[str], event_id: Sequence[str]) -> NDArray[np.bool_]:
    return np.array([each in ids for each in event_id], np.bool_) if ids else np.zeros(len(event_id), np.bool_)


def _check_own_labels(
    source: str, spec: CheckedSpec, labelled_at: NDArray[np.int64], event_time: NDArray[np.int64]
) -> None:
    """Look for labels that are in the features of their own transactions. `labelled_at` is -1 without a label.

    Raises:
        UsageError: more than 5 % of the labelled transactions have such a label.
    """
    labelled = labelled_at >= 0
    early = int((labelled & (labelled_at <= event_time)).sum())
    if not early or not spec.instant_label_views:
        return
    text = (
        f"{source}: {early:,} of {int(labelled.sum()):,} labelled transactions have a label that was given when they "
        f"happened or before. It is in their own features (views {', '.join(spec.instant_label_views)})"
    )
    if early <= labelled.sum() * MAX_SHARE:
        _log.warning("%s.", text)
        return
    raise UsageError(
        text,
        hint="labelled_at is the time at which the label became known (`data convert --label-delay 7d` sets it). If "
        "labels are known at once, give the views a delay.",
    )


def _day(time_ms: int) -> str:
    return f"{datetime.fromtimestamp(time_ms / 1_000, UTC):%Y-%m-%d}"


def _join(
    keys: Sequence[Hashable], given: Sequence[Sequence[Hashable]], labels: Labels, ranks: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """``(n,)`` each: the last label by (source rank, labelled_at), and since when the event has it; -1 without a label.

    `keys` has the key of each transaction, `given` those of each label, see `_keys`. A confirmation, such as the
    chargeback of a fraud that an analyst has found, does not change since when.
    """
    counts: dict[Hashable, tuple[int, bool, int]] = {}
    order = np.argsort(labels.labelled_at, kind="stable")
    columns = (ranks[order].tolist(), labels.fraud[order].tolist(), labels.labelled_at[order].tolist())
    for place, rank, verdict, at in zip(order.tolist(), *columns, strict=True):
        for key in given[place]:
            before = counts.get(key)
            if before is None or rank >= before[0]:
                since = before[2] if before is not None and before[1] == verdict else at
                counts[key] = rank, verdict, since
    found = [counts.get(key, (0, False, -1)) for key in keys]
    fraud = np.array([verdict for _, verdict, _ in found], np.bool_)
    return fraud, np.array([since for _, _, since in found], np.int64)


def _unmatched(read: LabelledHistory, keys: Sequence[Hashable], given: Sequence[Sequence[Hashable]]) -> int:
    """How many labels within the time of the history are of no transaction; warns if they are more than 5 %."""
    time, at = read.transactions.event_time, read.labels.event_time
    within = np.flatnonzero((at >= time.min()) & (at <= time.max())).tolist()
    known = set(keys)
    lost = [place for place in within if known.isdisjoint(given[place])]
    if too_many(len(lost), len(within)):
        _log.warning(
            "%s: %d of %d labels within the time of the history are of no transaction, such as %r. Do both have the "
            "same ids, with the same case, zeros and spaces? Are transactions missing?",
            read.source, len(lost), len(within), read.labels.event_id[lost[0]],
        )  # fmt: skip
    return len(lost)


def _keys(read: LabelledHistory, entity: str | None) -> tuple[list[Hashable], list[list[Hashable]]]:
    """By what transactions, in the order of `build_features`, and labels join: the event id.

    Where transactions of several ids of the partition entity have one event id, the key is both. A label without this
    entity, or with one that no such transaction has, is of all of them.
    """
    ids, label_ids = read.transactions.event_id, read.labels.event_id
    owners = read.transactions.entity_ids[entity] if entity is not None else [None] * len(ids)
    first: dict[str, str | None] = {}
    shared: dict[str, set[str | None]] = {}
    for event_id, owner in zip(ids, owners, strict=True):
        if first.setdefault(event_id, owner) != owner:
            shared.setdefault(event_id, {first[event_id]}).add(owner)
    order = np.argsort(read.transactions.event_time, kind="stable").tolist()
    keys: list[Hashable] = [(ids[i], owners[i]) if ids[i] in shared else ids[i] for i in order]
    given: list[list[Hashable]] = [[event_id] for event_id in label_ids]
    if not shared:
        return keys, given
    unclear = 0
    for place, owner in enumerate(read.labels.entity_ids[entity or ""]):
        among = shared.get(label_ids[place], set())
        if among:
            unclear += owner not in among
            given[place] = [(label_ids[place], each) for each in ({owner} if owner in among else among)]
    _log.warning(
        "%s: %d event ids, such as %r, are of transactions of several ids of %s. Training joins labels by both ids; %d "
        "labels, which lack a matching %s, count for all of these transactions. The monitor and `evaluate` join by the "
        "event id alone: make it unique.",
        read.source, len(shared), next(iter(shared)), entity, unclear, entity,
    )  # fmt: skip
    return keys, given


def _entities(spec: CheckedSpec, transactions: Transactions) -> NDArray[np.int64] | None:
    """``(n,)``: a number for each id of the partition entity, in the order of `build_features`: by time.

    Ids are numbered by their first occurrence, because pseudonyms may have another order in every run.
    """
    if spec.spec.partition_entity is None:
        return None
    given = transactions.entity_ids[spec.spec.partition_entity]
    numbers: dict[Hashable, int] = {}
    # Transactions without an id have nothing in common.
    order = np.argsort(transactions.event_time, kind="stable").tolist()
    keys = (row if given[row] is None else given[row] for row in order)
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)


def _read_transactions(path: Path, spec: CheckedSpec) -> tuple[Transactions, int, frozenset[str]]:
    """The transactions, the number of rejected ones, and the ids with `block` in the optional column `decision`."""
    shape = spec.spec.transaction
    decoder = TransactionDecoder(spec)
    parts: list[Transactions] = []
    rejections = Rejections("transactions")
    checked = TimeColumns(path, [shape.time])
    blocked: set[str] = set()
    for rows in read_rows(path, {_DECISION: "string"} | transaction_kinds(spec), transactions_required(spec), _CHUNK):
        # A file has no Kafka timestamps: pass the event times, so that the check of event times always succeeds.
        times = np.array([whole_time(row[shape.time]) for row in rows], np.int64)
        checked.take(rows)
        if _DECISION not in shape.fields:
            blocked |= {str(row[shape.id]) for row in rows if row.pop(_DECISION, None) == "block"}
        part, bad = decoder.decode([msgspec.json.encode(row) for row in rows], times)
        parts.append(part)
        rejections.add(bad, len(rows))
    checked.require()
    refused = rejections.close(path)
    return concatenate_transactions(parts), refused, frozenset(blocked)


def _read_labels(path: Path, spec: CheckedSpec) -> tuple[Labels, NDArray[np.int64], int]:
    decoder = LabelDecoder(spec)
    by_source = spec.spec.labels.source_rank
    parts: list[Labels] = []
    ranks: list[int] = []
    rejections = Rejections("labels")
    checked = TimeColumns(path, LABEL_TIMES)
    for rows in read_rows(path, label_kinds(spec), labels_required(spec), _CHUNK):
        for row in rows:
            row["source"] = row.get("source") or ""
        # A file has no Kafka timestamps: only `event_time` is compared, with `labelled_at`.
        times = np.array([whole_time(row["labelled_at"]) for row in rows], np.int64)
        checked.take(rows)
        part, bad = decoder.decode([msgspec.json.encode(row) for row in rows], times)
        parts.append(part)
        ranks += [source_rank(by_source, rows[index]["source"]) for index in part.row.tolist()]
        rejections.add(bad, len(rows))
    checked.require()
    refused = rejections.close(path)
    return concatenate_labels(parts), np.array(ranks, np.int64), refused


def concatenate_transactions(parts: list[Transactions]) -> Transactions:
    """All transactions of `parts`, in order. Raises `UsageError` if there are no parts."""
    if not parts:
        raise UsageError("the history contains no transactions")
    return join_transactions(parts)


def concatenate_labels(parts: list[Labels]) -> Labels:
    """All labels of `parts`, in order. Raises `UsageError` if there are no parts."""
    if not parts:
        raise UsageError("the history contains no labels", hint="Training needs known frauds.")
    return join_labels(parts)
