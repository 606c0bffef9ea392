"""Rules on the versions themselves: self-test, prediction time and size."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from stream_scorer.arrays import Floats
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.errors import ArtifactError
from stream_scorer.gate.result import RuleResult, at_most, not_measured
from stream_scorer.spec.gate_rules import Cost, Latency
from stream_scorer.spec.model import CheckedSpec

SELF_TEST = "self_test"
# The batch of a scorer under load. Each batch is scored `_ROUNDS` times by either version, and the fastest one counts,
# which excludes most of the load of other processes.
_BATCH, _BATCHES, _ROUNDS = 256, 4, 15


def load_candidate(folder: Path, version: str, checked: CheckedSpec) -> tuple[Ensemble | None, RuleResult]:
    """The candidate in `folder`, or None if it does not load, and the result of the rule `self_test`."""
    try:
        candidate = Ensemble.load(folder, version=version)
        candidate.check_features(checked.features, checked.feature_hash)
    except ArtifactError as error:
        return None, RuleResult(SELF_TEST, None, None, "refuse", f"{error.message} [{error.code}]")
    rows = len(candidate.manifest.self_test.score)
    return candidate, RuleResult(SELF_TEST, None, None, "pass", f"{rows} rows have the scores in the manifest")


def latency(
    rule: Latency,
    candidate: Ensemble,
    champion: Ensemble | None,
    rows: Floats,
    clock: Callable[[], float] = time.perf_counter,
) -> RuleResult:
    """The prediction time of the candidate on feature `rows` (n, k), as a multiple of the champion's.

    Both versions score the same batches of 256 rows in turns.
    """
    if champion is None:
        return not_measured("latency", rule.max_ratio, "there is no champion to compare with")
    if not len(rows):
        return not_measured("latency", rule.max_ratio, "the range has no transaction")
    fastest = np.full((2, _BATCHES), np.inf)
    batches = [np.ascontiguousarray(np.resize(part, (_BATCH, rows.shape[1]))) for part in _parts(rows)]
    for turn in range(_ROUNDS):
        for place, batch in enumerate(batches):
            for which in (0, 1) if turn % 2 else (1, 0):
                began = clock()
                (candidate, champion)[which].score(batch)
                fastest[which, place] = min(fastest[which, place], clock() - began)
    mine, theirs = fastest.sum(axis=1)
    size = _BATCH * _BATCHES / 1_000
    reason = f"{mine * 1e3 / size:.2f} ms per 1,000 transactions, the champion {theirs * 1e3 / size:.2f} ms"
    return at_most("latency", float(mine / theirs), rule.max_ratio, reason)


def cost(rule: Cost, candidate: Ensemble, champion: Ensemble | None) -> list[RuleResult]:
    """The size of the candidate's members."""
    mine, results = _size(candidate), []
    if rule.max_bytes is not None:
        largest = max(candidate.manifest.members, key=lambda member: member.size)
        reason = f"{len(candidate.member_names)} members; the largest is {largest.name} with {largest.size:,} bytes"
        results.append(at_most("cost.bytes", float(mine), float(rule.max_bytes), reason))
    if rule.max_ratio is not None:
        if champion is None:
            return [*results, not_measured("cost.ratio", rule.max_ratio, "there is no champion to compare with")]
        theirs = _size(champion)
        reason = f"{mine:,} bytes, the champion {theirs:,}"
        results.append(at_most("cost.ratio", mine / theirs, rule.max_ratio, reason))
    return results


def _parts(rows: Floats) -> list[Floats]:
    """`_BATCHES` parts of `rows`, each with a row; few rows are in several parts."""
    return [part if len(part) else rows for part in np.array_split(rows, _BATCHES)]


def _size(ensemble: Ensemble) -> int:
    return sum(member.size for member in ensemble.manifest.members)
