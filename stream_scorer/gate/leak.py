"""The rule on leaks: rows of the training set, recomputed with the serving kernel.

A column that differs contains something that a scorer does not have when the transaction arrives, such as a label that
was given later, or is computed by other code. In both cases the members were trained on values that they will not see.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stream_scorer.arrays import Bools, Floats
from stream_scorer.ensemble.manifest import Training
from stream_scorer.features.history import build_features
from stream_scorer.gate.result import RuleResult, at_most, not_measured
from stream_scorer.serde.columns import take_labels, take_transactions
from stream_scorer.serde.decoder import hash_ids
from stream_scorer.spec.gate_rules import Leak
from stream_scorer.spec.model import CheckedSpec
from stream_scorer.train.dataset import LabelledHistory
from stream_scorer.train.provenance import set_digest
from stream_scorer.train.recipe import TrainingSet

# The same rows in every run.
_SEED = 1
_NAMED = 5


@dataclass(frozen=True, slots=True)
class ColumnDifference:
    """One column of the training set that differs: in how many of the rows, and by how much at most."""

    name: str
    rows: int
    largest: float


def leak(
    rule: Leak, training_set: TrainingSet, training: Training, history: LabelledHistory, checked: CheckedSpec
) -> RuleResult:
    """The number of differing columns.

    Args:
        training: of the candidate's manifest. history: the transactions and labels that the set was made of, at least
            up to the last row that is compared.
    """
    if rule.same_set:
        digest = set_digest(training_set)
        if digest != training.data_sha256:
            return not_measured(
                "leak",
                0.0,
                f"the candidate was trained on another set ({training.data_sha256[:12]}, this one is {digest[:12]})",
            )
    n = len(training_set.label)
    if not n:
        return not_measured("leak", 0.0, "the training set is empty")
    drawn = np.sort(np.random.default_rng(_SEED).permutation(n)[: rule.rows])
    right, known = recompute([training_set.event_id[row] for row in drawn.tolist()], history, checked)
    absent = int((~known).sum())
    if absent:
        return not_measured(
            "leak", 0.0, f"{absent:,} of {len(drawn):,} rows of the training set are not among the transactions"
        )
    different = differences(training_set.names, training_set.features[drawn], right, rule.tolerance)
    named = "; ".join(
        f"{each.name} differs in {each.rows:,} of {len(drawn):,} rows, by up to {each.largest:.3g}"
        for each in different[:_NAMED]
    )
    reason = named or f"{len(training_set.names)} columns of {len(drawn):,} rows are equal"
    return at_most("leak", float(len(different)), 0.0, reason)


def recompute(event_ids: list[str], history: LabelledHistory, checked: CheckedSpec) -> tuple[Floats, Bools]:
    """The features (n, k) of the events by the serving kernel, and whether the history has each of them (n,)."""
    wanted = hash_ids(event_ids)
    time = history.transactions.event_time
    places = np.isin(history.transactions.id_hash, wanted)
    out, known = np.full((len(event_ids), len(checked.features)), np.nan), np.zeros(len(event_ids), np.bool_)
    if not places.any():
        return out, known
    # Nothing after the last of them has an effect.
    end = int(time[places].max())
    made = build_features(
        checked,
        take_transactions(history.transactions, np.flatnonzero(time <= end)),
        take_labels(history.labels, np.flatnonzero(history.labels.labelled_at <= end)),
    )
    rows = np.flatnonzero(~made.duplicate)
    hashes = hash_ids(made.event_id)[rows]
    order = np.argsort(hashes)
    place = np.minimum(np.searchsorted(hashes, wanted, sorter=order), len(order) - 1)
    found = order[place]
    known = hashes[found] == wanted
    out[known] = made.matrix[rows[found[known]]]
    return out, known


def differences(names: list[str], given: Floats, right: Floats, tolerance: float) -> list[ColumnDifference]:
    """The columns of `given` (n, k) that differ from `right` (n, k), those with most rows first."""
    same = np.isclose(given, right, rtol=tolerance, atol=tolerance, equal_nan=True)
    distance = np.where(same, 0.0, np.abs(given - right))
    found = [
        ColumnDifference(name, int(rows), float(largest))
        for name, rows, largest in zip(
            names, (~same).sum(axis=0), np.nan_to_num(distance, nan=np.inf).max(axis=0, initial=0.0), strict=True
        )
        if rows
    ]
    return sorted(found, key=lambda each: -each.rows)
