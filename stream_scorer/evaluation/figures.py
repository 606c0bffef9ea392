"""From the pieces of a pass to the figures of its versions, members and candidates, in two readings of the pieces.

The first reading collects the frauds, which are rare, and the highest scores. The second one counts everything else.
Memory is bounded by the number of frauds, of changed decisions, and of the transactions of one day.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stream_scorer.arrays import Bools, Floats, Int8s, Ints
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.ensemble.lineup import MemberPool
from stream_scorer.evaluation.bootstrap import CardWeights, Replicates, interval
from stream_scorer.evaluation.calibration import Reliability
from stream_scorer.evaluation.cards import DAY_MS, DailyCards, detection
from stream_scorer.evaluation.counts import Cells, Ranking
from stream_scorer.evaluation.labels import FRAUD, UNLABELLED
from stream_scorer.evaluation.options import Options
from stream_scorer.evaluation.paired import ChangeFile, PairCounts
from stream_scorer.evaluation.result import AGE, AGE_NAMES, Alerts, Group, MemberResult, PairResult, VersionResult
from stream_scorer.evaluation.store import Columns, Store, usable
from stream_scorer.quality import ranking_of_counts
from stream_scorer.spec.model import CheckedSpec, duration_ms

# Called with the number of pieces that are read, and how many there are to read.
OnPiece = Callable[[int, int], None]
# Label ages in units of the spec's label horizon.
_AGES = (0.5, 1.0, 2.0, 4.0)


def _alerts_within(budget: float, rows: int) -> int:
    """How many alerts a share of the transactions allows. Not one less where 0.29 times 100 gives 28.999…"""
    return int(budget * rows + 1e-6)


@dataclass(slots=True)
class _Survey:
    """What the first reading collects: the columns of all frauds, and totals."""

    frauds: dict[str, list[NDArray[np.generic]]] = field(default_factory=dict)
    rows: int = 0
    labelled: int = 0
    first: int | None = None
    last: int | None = None
    first_time: int | None = None

    def column(self, name: str) -> NDArray[np.generic]:
        return np.concatenate(self.frauds[name]) if self.frauds.get(name) else np.zeros(0)


@dataclass(slots=True)
class _Version:
    """The running figures of one version."""

    ranking: Ranking
    total: Cells
    budgets: list[Cells]
    groups: dict[str, Cells]
    reliability: Reliability
    replicates: Replicates | None
    thresholds: list[float] = field(default_factory=list)


@dataclass(slots=True)
class _Member:
    ranking: Ranking
    budgets: list[Cells]
    thresholds: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of all pieces, and totals of the range."""

    versions: list[VersionResult]
    members: list[MemberResult]
    candidates: list[PairResult]
    rows: int
    labelled: int
    frauds: int
    fraud_cards: int
    first_event_time: int | None
    last_event_time: int | None
    first_time: int | None


class Accumulator:
    """See the module.

    Args:
        as_of: the time whose labels count, for label ages (epoch ms).
    """

    def __init__(
        self, checked: CheckedSpec, versions: Sequence[Ensemble], options: Options, store: Store, as_of: int
    ) -> None:
        self._checked, self._versions, self._options, self._store = checked, versions, options, store
        self._labels = labels_of([(version.name, version.version) for version in versions])
        self._pool = MemberPool(versions)
        self._as_of = as_of
        self._horizon = max(duration_ms(checked.spec.labels.horizon), 1)
        self._names = [f"s{i}" for i in range(len(versions))] + [f"m{i}" for i in range(len(self._pool))]
        self._segments = options.segments_of(checked)
        self._survey = _Survey()
        # Of all transactions, whatever was decided.
        self._all = Cells(1)
        # The days that have transactions, in order: a wrong event time far in the future must not need a row per day.
        self._days: list[int] = []

    def run(self, changes: Path, on_piece: OnPiece | None = None) -> Figures:
        """Read all pieces; write the changed decisions to `changes`."""
        steps, step = 3 * len(self._store.pieces), 0

        def progress() -> None:
            nonlocal step
            step += 1
            if on_piece is not None:
                on_piece(step, steps)

        needed = ["duplicate", "label", "event_time", "time", "value", "card", *self._names]
        needed += [f"d{i}" for i in range(len(self._versions))]
        for piece in self._store.read(needed):
            self._look(_without_duplicates(piece))
            progress()
        versions, members = self._begin()
        rankings = [each.ranking for each in versions] + [each.ranking for each in members]
        for piece in self._store.read(["duplicate", "label", *self._names]):
            piece = _without_duplicates(piece)
            fraud = piece["label"] == FRAUD
            for name, ranking in zip(self._names, rankings, strict=True):
                ranking.add(piece[name], fraud)
            progress()
        self._set_thresholds([*versions, *members])
        daily = DailyCards(len(versions), self._options.cards_per_day)
        pairs = [PairCounts(self._versions, self._labels, index, self._pool) for index in range(1, len(self._versions))]
        with usable(changes.parent), ChangeFile(changes) as file:
            for piece in self._store.read():
                piece = _without_duplicates(piece)
                self._count(piece, versions, members)
                scores = np.column_stack([piece[f"s{i}"] for i in range(len(versions))])
                daily.add(piece["time"], piece["card"], scores, piece["label"] == FRAUD)
                for pair in pairs:
                    pair.add(piece, file)
                progress()
        return self._figures(versions, members, daily, pairs)

    def _look(self, piece: Columns) -> None:
        survey, fraud = self._survey, piece["label"] == FRAUD
        n = len(fraud)
        if not n:
            return
        for name in ["event_time", "value", "card", *self._names, *(f"d{i}" for i in range(len(self._versions)))]:
            survey.frauds.setdefault(name, []).append(piece[name][fraud])
        first, last = int(piece["event_time"].min()), int(piece["event_time"].max())
        survey.first = first if survey.first is None else min(survey.first, first)
        survey.last = last if survey.last is None else max(survey.last, last)
        if survey.first_time is None:
            survey.first_time = int(piece["time"][0])
        survey.rows += n
        survey.labelled += int((piece["label"] != UNLABELLED).sum())

    def _begin(self) -> tuple[list[_Version], list[_Member]]:
        options, rows = self._options, self._survey.rows
        keep = max((_alerts_within(budget, rows) for budget in options.budgets), default=0)
        fields = self._checked.spec.transaction.fields
        sizes = {AGE: len(AGE_NAMES), "day": 1}
        sizes |= {name: len(fields[name].values or ["no", "yes"]) + 1 for name in self._segments}
        versions = []
        for index in range(len(self._versions)):
            fraud = self._survey.column(f"s{index}").astype(np.float64)
            replicates = Replicates(fraud, options.replicates, len(options.budgets)) if options.replicates else None
            versions.append(
                _Version(
                    Ranking(fraud, keep), Cells(1), [Cells(1) for _ in options.budgets],
                    {name: Cells(size) for name, size in sizes.items()}, Reliability(), replicates,
                )
            )  # fmt: skip
        members = [
            _Member(Ranking(self._survey.column(f"m{i}").astype(np.float64), keep), [Cells(1) for _ in options.budgets])
            for i in range(len(self._pool))
        ]
        return versions, members

    def _set_thresholds(self, subjects: Sequence[_Version | _Member]) -> None:
        for subject in subjects:
            subject.thresholds = [
                subject.ranking.threshold(_alerts_within(budget, self._survey.rows)) for budget in self._options.budgets
            ]

    def _count(self, piece: Columns, versions: list[_Version], members: list[_Member]) -> None:
        label, value, n = piece["label"], piece["value"], len(piece["label"])
        fraud, everything = label == FRAUD, np.zeros(n, np.int64)
        self._all.add(everything, label, np.zeros(n, np.int8), value)
        groups = self._group_columns(piece)
        cards = None
        if self._options.replicates:
            cards = CardWeights(piece["card"], self._options.replicates, self._options.seed)
        for index, version in enumerate(versions):
            score, decision = piece[f"s{index}"], piece[f"d{index}"]
            version.total.add(everything, label, decision, value)
            inside = [score >= threshold for threshold in version.thresholds]
            _add_alerts(version.budgets, inside, label, value)
            for name, group in groups.items():
                version.groups[name].grow(int(group.max(initial=0)) + 1)
                version.groups[name].add(group, label, decision, value)
            version.reliability.add(score, fraud)
            if cards is not None and version.replicates is not None:
                version.replicates.add(cards, score, fraud, decision, value, inside)
        for index, member in enumerate(members):
            score = piece[f"m{index}"]
            _add_alerts(member.budgets, [score >= threshold for threshold in member.thresholds], label, value)

    def _group_columns(self, piece: Columns) -> dict[str, Ints]:
        age = (self._as_of - piece["event_time"]) / self._horizon
        found: dict[str, Ints] = {
            AGE: np.searchsorted(np.array(_AGES), age, side="right").astype(np.int64),
            "day": self._day_places(piece["time"] // DAY_MS),
        }
        for name in self._segments:
            # Transactions without a value come last.
            size = len(self._checked.spec.transaction.fields[name].values or ["no", "yes"])
            codes = piece[f"segment_{name}"].astype(np.int64)
            found[name] = np.where(codes < 0, size, codes)
        return found

    def _day_places(self, days: Ints) -> Ints:
        """The place of each day (n,) among those found so far; running time never decreases."""
        newest = self._days[-1] if self._days else -1
        self._days += [day for day in np.unique(days).tolist() if day > newest]
        return np.searchsorted(np.array(self._days, np.int64), days)

    def _figures(
        self, versions: list[_Version], members: list[_Member], daily: DailyCards, pairs: list[PairCounts]
    ) -> Figures:
        survey = self._survey
        replicates = [v.replicates.figures() if v.replicates is not None else {} for v in versions]
        results = [self._version(index, version, replicates[index], daily) for index, version in enumerate(versions)]
        figures = [_compared(result) for result in results]
        return Figures(
            versions=results,
            members=[self._member(index, member) for index, member in enumerate(members)],
            candidates=[
                pair.result(figures[0], figures[index], replicates[0], replicates[index])
                for index, pair in enumerate(pairs, start=1)
            ],
            rows=survey.rows,
            labelled=survey.labelled,
            frauds=len(survey.column("value")),
            fraud_cards=len(np.unique(survey.column("card"))),
            first_event_time=survey.first,
            last_event_time=survey.last,
            first_time=survey.first_time,
        )

    def _version(
        self, index: int, version: _Version, replicates: dict[str, Floats], daily: DailyCards
    ) -> VersionResult:
        ensemble, options, survey = self._versions[index], self._options, self._survey
        manifest = ensemble.manifest
        precision, auc = ranking_of_counts(version.ranking.frauds, version.ranking.genuine)
        segmented = bool(self._checked.spec.policy.segments)
        alerts = version.total.alerts(
            0, review_cost=options.review_cost, threshold=None if segmented else manifest.thresholds.review
        )
        budgets = self._budgets(version)
        cases = detection(
            survey.column("card").astype(np.int64),
            survey.column("event_time").astype(np.int64),
            survey.column("value").astype(np.int64),
            survey.column(f"d{index}").astype(np.int8) > 0,
            options.case_gap_days,
        )
        return VersionResult(
            ensemble=ensemble.name,
            version=ensemble.version,
            label=self._labels[index],
            sha256=ensemble.digest,
            members=ensemble.member_names,
            formula=manifest.formula,
            review=manifest.thresholds.review,
            block=manifest.thresholds.block,
            trained_until=manifest.training.last_event_time,
            missing=version.ranking.missing,
            average_precision=interval(precision, replicates.get("average_precision")),
            roc_auc=interval(auc, replicates.get("roc_auc")),
            alerts=alerts,
            intervals={
                name: interval(getattr(alerts, name), replicates.get(name))
                for name in ("precision", "recall", "false_positive_rate", "value_caught")
            },
            budgets=budgets,
            budget_recall=[
                interval(found.recall, replicates.get(f"budget_recall_{i}")) for i, found in enumerate(budgets)
            ],
            calibration=version.reliability.result(),
            card_precision=daily.result(index),
            detection=cases,
            groups=self._groups(version),
        )

    def _budgets(self, subject: _Version | _Member) -> list[Alerts]:
        return [
            cells.with_rest(self._all).alerts(
                0, review_cost=self._options.review_cost, threshold=threshold, budget=budget
            )
            for cells, threshold, budget in zip(subject.budgets, subject.thresholds, self._options.budgets, strict=True)
        ]

    def _groups(self, version: _Version) -> list[Group]:
        found = []
        for name, cells in version.groups.items():
            for place in range(len(cells.rows)):
                if cells.rows[place].any():
                    alerts = cells.alerts(place, review_cost=self._options.review_cost)
                    found.append(Group(name, self._value_name(name, place), alerts))
        return found

    def _value_name(self, dimension: str, place: int) -> str:
        if dimension == AGE:
            return AGE_NAMES[place]
        if dimension == "day":
            return str(np.datetime64(self._days[place], "D"))
        values = self._checked.spec.transaction.fields[dimension].values or ["no", "yes"]
        return values[place] if place < len(values) else "none"

    def _member(self, index: int, member: _Member) -> MemberResult:
        key, name = self._pool.keys[index], self._pool.names[index]
        users = [label for label, v in zip(self._labels, self._versions, strict=True) if key in v.member_keys]
        owner = next(v for v in self._versions if key in v.member_keys)
        precision, auc = ranking_of_counts(member.ranking.frauds, member.ranking.genuine)
        return MemberResult(
            name=name,
            format=owner.manifest.members[owner.member_keys.index(key)].format,
            versions=users,
            missing=member.ranking.missing,
            average_precision=precision,
            roc_auc=auc,
            budgets=self._budgets(member),
        )


def labels_of(versions: Sequence[tuple[str, str]]) -> list[str]:
    """What the versions, given as ensemble and version, are called: by the version alone if that is unambiguous."""
    numbers = [version for _, version in versions]
    if len(set(numbers)) == len(numbers):
        return numbers
    return [f"{ensemble}.{version}" for ensemble, version in versions]


def _add_alerts(budgets: Sequence[Cells], inside: Sequence[Bools], label: Int8s, value: Ints) -> None:
    """Add the transactions inside each budget, which are few: see `Cells.with_rest`."""
    for cells, alert in zip(budgets, inside, strict=True):
        rows = np.flatnonzero(alert)
        cells.add(np.zeros(len(rows), np.int64), label[rows], np.ones(len(rows), np.int8), value[rows])


def _compared(result: VersionResult) -> dict[str, float | None]:
    """The figures that a candidate is compared by, named as the replicates are."""
    alerts = result.alerts
    found = {
        "average_precision": result.average_precision.value,
        "roc_auc": result.roc_auc.value,
        "precision": alerts.precision,
        "recall": alerts.recall,
        "false_positive_rate": alerts.false_positive_rate,
        "alert_rate": alerts.alert_rate,
        "block_rate": alerts.block_rate,
        "blocked_genuine_rate": alerts.blocked_genuine_rate,
        "value_caught": float(alerts.value_caught),
    }
    return found | {f"budget_recall_{i}": each.recall for i, each in enumerate(result.budgets)}


def _without_duplicates(piece: Columns) -> Columns:
    kept = ~piece["duplicate"]
    if kept.all():
        return piece
    rows = np.flatnonzero(kept)
    index = rows.tolist()
    return {
        name: [column[i] for i in index] if isinstance(column, list) else column[rows] for name, column in piece.items()
    }
