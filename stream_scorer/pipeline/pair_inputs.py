"""Compares the members of two versions on one micro-batch: outputs, weights, and inputs as each member sees them.

Sums are integers, so that they do not depend on how transactions were split into batches (ADR 0034).
"""

from __future__ import annotations

import numpy as np

from stream_scorer.arrays import Bools, Floats, Ints
from stream_scorer.ensemble.combine import References
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.ensemble.manifest import Input
from stream_scorer.ensemble.pair import BinnedSums, InputComparison, MemberPlan, PairPlan
from stream_scorer.pipeline.batch import MicroBatch
from stream_scorer.pipeline.card_alerts import entity_ids, evidence_rows
from stream_scorer.pipeline.policy import Policy
from stream_scorer.records import MemberPair, PairDifferences, PreparedInput
from stream_scorer.spec.model import CheckedSpec

Rows = Ints | slice
# Scores are counted in thousandths on the scale of the link.
UNIT = 1_000.0
# Members with more inputs than this have no counts of answers: the summary would grow too large.
MAX_INPUTS = 200


class PairCounter:
    """Compares a version with the versions that its evidence is about."""

    def __init__(self, checked: CheckedSpec) -> None:
        self._checked = checked
        # By the digests of both versions; only those of the last batch are kept.
        self._comparers: dict[tuple[str, str], PairComparer] = {}

    def count(self, batch: MicroBatch, version: int, chosen: Rows) -> dict[str, PairDifferences]:
        """By the baseline: the differences on the `chosen` transactions, those that `version` decided.

        Compared are a version on probation with the last good one, and a canary with the champion.
        """
        decided, events = batch.decided, batch.events
        assert decided is not None and events is not None
        lineup = decided.lineup
        baselines = [0] if version else [] if lineup.last_good is None else [lineup.last_good]
        before, self._comparers = self._comparers, {}
        found: dict[str, PairDifferences] = {}
        for index in baselines:
            candidate, baseline = lineup.versions[version], lineup.versions[index]
            key = candidate.digest, baseline.digest
            comparer = before.get(key) or PairComparer(candidate, baseline, self._checked)
            self._comparers[key] = comparer
            counts = np.zeros(len(decided.arm), np.bool_)
            counts[chosen] = True
            ids = entity_ids(batch, self._checked)
            counts &= evidence_rows(batch, ids, version, index)
            differences = comparer.compare(batch, version, index, counts)
            if differences is not None:
                found[baseline.version] = differences
        return found


class PairComparer:
    """Compares a `candidate` with a `baseline`; made once per pair."""

    def __init__(self, candidate: Ensemble, baseline: Ensemble, checked: CheckedSpec) -> None:
        manifest = candidate.manifest
        self._candidate, self._baseline = candidate, baseline
        self._plan = plan = PairPlan.between(manifest, baseline.manifest)
        self._policy = Policy(checked)
        codes = {derived.name for derived in checked.spec.derived if derived.function == "code"}
        columns = {name: place for place, name in enumerate(manifest.features)}
        self._columns = {
            member.name: np.array([columns[name] for name in manifest.members[member.index].inputs], np.int64)
            for member in plan.members
        }
        self._categories = {
            member.name: [name for name in manifest.members[member.index].inputs if name in codes]
            for member in plan.members
        }
        self._binned = BinnedSums(manifest.features, manifest.reference_profile)
        pairs = [pair for member in plan.members for pair in member.inputs]
        self._inputs = InputComparison(manifest.features, manifest.reference_profile, pairs)

    @property
    def equal(self) -> bool:
        """Whether nothing differs that alerts depend on."""
        return self._plan.equal

    def compare(self, batch: MicroBatch, version: int, baseline: int, counts: Bools) -> PairDifferences | None:
        """The differences on the transactions `counts` ``(n,) bool``; None without any.

        If no difference is known, they have the number of transactions only.

        `version` and `baseline` are the indices of the two versions in the lineup of the batch.
        """
        decided, enriched = batch.decided, batch.enriched
        assert decided is not None and enriched is not None
        rows = np.flatnonzero(counts)
        if not len(rows):
            return None
        if self.equal:
            return PairDifferences(len(rows))
        mine, base = decided.results[version], decided.results[baseline]
        thresholds = self._candidate.manifest.thresholds
        review = np.broadcast_to(self._policy.review(thresholds, decided.rules), len(counts))[rows]
        alert = mine.decision[rows] > 0
        scores = mine.scored.member_scores[rows]
        theirs = self._plan.of_baseline(base.scored.member_scores[rows], scores.shape[1])
        changed = self._candidate.what_if(scores, theirs, self._plan.scenarios) >= review[:, None]
        squares = _squares(alert, changed)
        either = np.flatnonzero(alert | (base.decision[rows] > 0))
        alerted = rows[either]
        linked, linked_theirs = self._linked(scores), self._linked(theirs, self._plan.scenarios.references)
        prepared = [self._inputs.count(enriched.matrix, each).reshape(-1, 9).tolist() for each in (rows, alerted)]
        found: dict[str, MemberPair] = {}
        start = 0
        for place, member in enumerate(self._plan.members):
            own = {what: squares[k].tolist() for k, (at, what) in enumerate(self._plan.subjects) if at == place}
            stop = start + len(member.inputs)
            a, b = linked[:, member.index], linked_theirs[:, member.index]
            answers, answered = self._answers(enriched.matrix, alerted, member, (a - b)[either])
            found[member.name] = MemberPair(
                member.weights,
                own.get("output", []),
                own.get("weight", []),
                own.get("member", []),
                _sums(a, b) if member.output else [],
                answers,
                answered,
                self._categories[member.name],
                {
                    name: PreparedInput(_parameters(one), _parameters(two), *counted)
                    for (name, one, two), *counted in zip(
                        member.inputs, prepared[0][start:stop], prepared[1][start:stop], strict=True
                    )
                },
                member.added,
                member.removed,
                member.coefficients,
                member.ranked,
            )
            start = stop
        return PairDifferences(
            len(rows),
            found,
            self._policy_square(batch, version, rows, alert),
            self._combination_square(batch, (version, baseline), rows, alert),
            [] if self._plan.combination is None else self._plan.combination.changes,
        )

    def _linked(self, member_scores: Floats, references: References | None = None) -> Floats:
        """Scores on the scale of the link, in whole thousandths; not computed if no output differs."""
        if not any(member.output for member in self._plan.members):
            return member_scores
        return np.rint(UNIT * self._candidate.linked(member_scores, references))

    def _answers(
        self, features: Floats, alerted: Ints, member: MemberPlan, difference: Floats
    ) -> tuple[dict[str, list[int]], list[int]]:
        """See `MemberPair.answers` and `MemberPair.answered`; `difference` ``(a,)`` is that of the rows `alerted`."""
        known = ~np.isnan(difference)
        alerted = alerted[known]
        inputs = self._candidate.manifest.members[member.index].inputs
        if not member.output or not len(alerted) or len(inputs) > MAX_INPUTS:
            return {}, []
        values = difference[known].astype(np.int64)
        columns = self._columns[member.name]
        bins = self._binned.bins(features[alerted], columns)
        width = int(self._binned.n_edges.max(initial=0)) + 2
        cells = (bins + np.arange(len(columns)) * width).ravel()
        rows = np.bincount(cells, minlength=len(columns) * width)
        # Sums stay far below 2^53, so that they are exact in float64.
        sums = np.bincount(cells, np.repeat(values, len(columns)), minlength=len(rows)).astype(np.int64)
        found: dict[str, list[int]] = {}
        used = np.flatnonzero(rows)
        table = np.column_stack([used % width, rows[used], sums[used]])
        stops = np.searchsorted(used, np.arange(1, len(columns) + 1) * width).tolist()
        start = 0
        for name, stop in zip(inputs, stops, strict=True):
            found[name] = table[start:stop].ravel().tolist()
            start = stop
        return found, [len(values), int(values.sum()), int((values * values).sum())]

    def _policy_square(self, batch: MicroBatch, version: int, rows: Ints, alert: Bools) -> list[int]:
        decided = batch.decided
        assert decided is not None
        if not self._plan.policy:
            return []
        thresholds = self._baseline.manifest.thresholds
        scored = decided.results[version].scored
        review = np.broadcast_to(self._policy.review(thresholds, decided.rules), len(scored.z))[rows]
        incomplete = self._candidate.incomplete(scored.member_scores[rows])
        changed = self._baseline.finish(scored.z[rows], incomplete) >= review
        square: list[int] = _squares(alert, changed[:, None])[0].tolist()
        return square

    def _combination_square(self, batch: MicroBatch, pair: tuple[int, int], rows: Ints, alert: Bools) -> list[int]:
        decided, combination = batch.decided, self._plan.combination
        assert decided is not None
        if combination is None:
            return []
        mine, theirs = (decided.results[version].scored.member_scores for version in pair)
        review = np.broadcast_to(self._policy.review(self._baseline.manifest.thresholds, decided.rules), len(mine))[
            rows
        ]
        scores = self._baseline.what_if(theirs[rows], combination.of_candidate(mine[rows]), combination.scenario)
        square: list[int] = _squares(alert, scores >= review[:, None])[0].tolist()
        return square


def _squares(alert: Bools, changed: Bools) -> Ints:
    """``(s, 4)``: alerts of a candidate by each column of `changed`: both, own only, changed only, neither."""
    both = (alert[:, None] & changed).sum(axis=0)
    candidate, baseline, n = int(alert.sum()), changed.sum(axis=0), len(alert)
    return np.column_stack([both, candidate - both, baseline - both, n - candidate - baseline + both])


def _sums(a: Floats, b: Floats) -> list[int]:
    """See `MemberPair.scores`. `a` and `b` are whole numbers, NaN where a score is missing."""
    known = ~np.isnan(a + b)
    x, y = a[known].astype(np.int64), b[known].astype(np.int64)
    return [len(x), int(x.sum()), int(y.sum()), int((x * x).sum()), int((y * y).sum()), int((x * y).sum())]


def _parameters(entry: Input) -> list[float | None]:
    return [entry.impute, entry.low, entry.high, entry.offset, entry.scale]
