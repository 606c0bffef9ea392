"""A candidate against the champion on the same transactions: which decisions changed, and which part moved them.

A part of the candidate (the output or the weight of a member, or both, the policy, or the combination of members) moves
a decision if the decision goes back to the champion's when only this part is as in the champion (`ensemble.pair`). What
counts is the threshold between the two decisions: that of blocks if both are alerts, else that of alerts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from stream_scorer.arrays import Bools, Floats, Int8s, Ints
from stream_scorer.ensemble.ensemble import Ensemble, MemberOutput, Scored
from stream_scorer.ensemble.lineup import MemberPool
from stream_scorer.ensemble.pair import PairPlan
from stream_scorer.evaluation.bootstrap import interval
from stream_scorer.evaluation.labels import FRAUD, GENUINE, UNLABELLED
from stream_scorer.evaluation.result import Interval, Moved, PairResult, Sides
from stream_scorer.evaluation.store import Columns
from stream_scorer.parquet import UnfinishedFile, import_pyarrow
from stream_scorer.records import DECISIONS

POLICY, COMBINATION, SEVERAL = "policy", "combination", "several"


class ChangeFile:
    """``changes.parquet``: one row per candidate and transaction whose decision changed. A context manager."""

    def __init__(self, path: Path) -> None:
        pa, pq = import_pyarrow()
        self._pa = pa
        text, whole, number = pa.string(), pa.int64(), pa.float64()
        names = ["event_id", "candidate", "event_time", "value", "label", "champion_decision", "candidate_decision",
                 "champion_score", "candidate_score", "moved_by"]  # fmt: skip
        types = [text, text, whole, whole, text, text, text, number, number, text]
        self._schema = pa.schema(list(zip(names, types, strict=True)))
        self._unfinished = UnfinishedFile(path)
        self._file = pq.ParquetWriter(self._unfinished.path, self._schema, compression="zstd")

    def add(self, columns: Columns) -> None:
        """Append rows."""
        self._file.write_table(self._pa.table(columns, schema=self._schema))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
            if kind is None:
                self._unfinished.complete()
        finally:
            self._unfinished.discard()


class PairCounts:
    """Counts for the candidate at `index` of the `versions` of `pool`, with their `labels`; the champion is at 0."""

    def __init__(self, versions: Sequence[Ensemble], labels: Sequence[str], index: int, pool: MemberPool) -> None:
        self._champion, self._candidate, self._index, self._pool = versions[0], versions[index], index, pool
        self._labels = labels[0], labels[index]
        self._plan = PairPlan.between(self._candidate.manifest, self._champion.manifest)
        self._rest = POLICY if self._plan.combination is None else COMBINATION
        thresholds = (version.manifest.thresholds for version in (self._champion, self._candidate))
        self._policy = self._plan.policy or len({each.block for each in thresholds}) > 1
        # By label, by decision of the champion, by decision of the candidate.
        self._sides = np.zeros((3, len(DECISIONS), len(DECISIONS)), np.int64)
        self._cards: list[tuple[Ints, Int8s, Bools]] = []
        self._moved = np.zeros((len(self._plan.subjects) + 1, 2), np.int64)
        self._unexplained = 0

    def add(self, piece: Columns, changes: ChangeFile | None) -> None:
        """Add the transactions of a piece, without duplicates."""
        before, after = piece["d0"], piece[f"d{self._index}"]
        np.add.at(self._sides, (piece["label"] - UNLABELLED, before, after), 1)
        rows = np.flatnonzero(before != after)
        if not len(rows):
            return
        gained = after[rows] > before[rows]
        both = (before[rows] > 0) & (after[rows] > 0)
        self._cards.append((piece["card"][rows[~both]], piece["label"][rows[~both]], gained[~both]))
        names = self._attribute(piece, rows, gained, both)
        if changes is not None:
            changes.add(self._changes(piece, rows, names))

    def _attribute(self, piece: Columns, rows: Ints, gained: Bools, both: Bools) -> list[str]:
        """Count which parts move the changed decisions; return one of them for each.

        `gained` decisions are stricter than the champion's. Where `both` versions alert, blocks change.
        """
        outputs = [MemberOutput(np.ascontiguousarray(piece[f"m{i}"][rows]), "", 0.0) for i in range(len(self._pool))]
        mine = self._candidate.combine(self._pool.outputs_of(self._index, outputs))
        theirs = self._champion.combine(self._pool.outputs_of(0, outputs))
        limit, champion_limit = (_limits(each, piece, rows, both) for each in (self._candidate, self._champion))
        columns = self._plan.of_baseline(theirs.member_scores, mine.member_scores.shape[1])
        scores = self._candidate.what_if(mine.member_scores, columns, self._plan.scenarios)
        back = (scores >= limit[:, None]) != gained[:, None]
        back = np.column_stack([back, (self._with_rest(mine, theirs) >= champion_limit) != gained])
        if self._plan.combination is None and not self._policy:
            back[:, -1] = False
        self._moved += np.stack([back[gained].sum(axis=0), back[~gained].sum(axis=0)], axis=1)
        self._unexplained += int((~back.any(axis=1)).sum())
        return self._causes(np.column_stack([scores, mine.score]), back, gained)

    def _with_rest(self, mine: Scored, theirs: Scored) -> Floats:
        """Scores of the candidate with the combination of the champion, or of the same z with its calibrator."""
        combination = self._plan.combination
        if combination is None:
            return self._champion.finish(mine.z, self._candidate.incomplete(mine.member_scores))
        columns = combination.of_candidate(mine.member_scores)
        return self._champion.what_if(theirs.member_scores, columns, combination.scenario)[:, 0]

    def _causes(self, scores: Floats, back: Bools, gained: Bools) -> list[str]:
        """Per changed decision, the member whose part moves its score the furthest, the rest, or several parts."""
        members = back[:, :-1]
        distance = np.where(gained[:, None], -scores[:, :-1], scores[:, :-1])
        distance = np.where(members, distance, -np.inf)
        names = [self._plan.members[at].name for at, _ in self._plan.subjects]
        best = distance.argmax(axis=1) if members.shape[1] else np.zeros(len(back), np.intp)
        found = []
        for row in range(len(back)):
            if members[row].any():
                found.append(names[int(best[row])])
            else:
                found.append(self._rest if back[row, -1] else SEVERAL)
        return found

    def _changes(self, piece: Columns, rows: Ints, names: list[str]) -> Columns:
        labels = {FRAUD: "fraud", GENUINE: "genuine", UNLABELLED: None}
        i = self._index
        return {
            "event_id": [piece["event_id"][row] for row in rows.tolist()],
            "candidate": [self._labels[1]] * len(rows),
            "event_time": piece["event_time"][rows],
            "value": piece["value"][rows],
            "label": [labels[label] for label in piece["label"][rows].tolist()],
            "champion_decision": [DECISIONS[d] for d in piece["d0"][rows].tolist()],
            "candidate_decision": [DECISIONS[d] for d in piece[f"d{i}"][rows].tolist()],
            "champion_score": piece["s0"][rows],
            "candidate_score": piece[f"s{i}"][rows],
            "moved_by": names,
        }

    def result(
        self,
        champion: dict[str, float | None],
        candidate: dict[str, float | None],
        champion_replicates: dict[str, Floats],
        candidate_replicates: dict[str, Floats],
    ) -> PairResult:
        """The result, from the figures of both versions and their paired replicates."""
        differences: dict[str, Interval] = {}
        for name, value in candidate.items():
            before = champion.get(name)
            change = None if value is None or before is None else value - before
            replicates = (
                candidate_replicates[name] - champion_replicates[name] if name in candidate_replicates else None
            )
            differences[name] = interval(change, replicates)
        subjects = [(self._plan.members[at].name, what) for at, what in self._plan.subjects]
        if self._policy or self._plan.combination is not None:
            subjects.append((self._rest, self._rest))
        moved = [
            Moved(name, what, int(gained), int(lost))
            for (name, what), (gained, lost) in zip(subjects, self._moved.tolist(), strict=False)
        ]
        return PairResult(
            champion=self._labels[0],
            candidate=self._labels[1],
            all=self._of(self._sides.sum(axis=0), None),
            frauds=self._of(self._sides[FRAUD - UNLABELLED], FRAUD),
            genuine=self._of(self._sides[GENUINE - UNLABELLED], GENUINE),
            unlabelled=self._of(self._sides[0], UNLABELLED),
            differences=differences,
            moved=sorted(moved, key=lambda each: -(each.gained + each.lost)),
            unexplained=self._unexplained,
        )

    def _of(self, sides: Ints, label: int | None) -> Sides:
        cards: list[Any] = [[], []]
        for card, labels, gained in self._cards:
            mine = np.ones(len(card), np.bool_) if label is None else labels == label
            for side in range(2):
                cards[side].append(card[mine & (gained if side == 0 else ~gained)])
        counts = [len(np.unique(np.concatenate(each))) if each else 0 for each in cards]
        return Sides(
            both=int(sides[1:, 1:].sum()),
            only_candidate=int(sides[0, 1:].sum()),
            only_champion=int(sides[1:, 0].sum()),
            neither=int(sides[0, 0]),
            to_block=int(sides[1, 2]),
            to_review=int(sides[2, 1]),
            cards_gained=counts[0],
            cards_lost=counts[1],
        )


def _limits(version: Ensemble, piece: Columns, rows: Ints, block: Bools) -> Floats:
    """The thresholds of a version for the `rows` of a piece: those of blocks where `block`, else those of alerts."""
    own = version.manifest.thresholds
    found = np.where(block, own.block, own.review)
    if "rule_review" in piece:
        rule = np.where(block, piece["rule_block"][rows], piece["rule_review"][rows])
        found = np.where(np.isnan(rule), found, rule)
    return found
