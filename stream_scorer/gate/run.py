"""A complete gate: every declared rule, measured on one candidate."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stream_scorer.clock import Clock
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.errors import UsageError
from stream_scorer.gate.drift import drift, features_read
from stream_scorer.gate.leak import leak
from stream_scorer.gate.quality import fairness, quality
from stream_scorer.gate.result import GateReport, RuleResult, not_measured
from stream_scorer.gate.traffic import RowSample, Traffic, read_traffic, skew
from stream_scorer.gate.versions import cost, latency, load_candidate
from stream_scorer.replay.skew import Served, SkewMeter
from stream_scorer.replay.sources import ReplayInput
from stream_scorer.serde.rejections import MAX_SHARE, too_many
from stream_scorer.spec.gate_rules import Leak, Rules, check_names
from stream_scorer.spec.model import CheckedSpec
from stream_scorer.train.dataset import LabelledHistory
from stream_scorer.train.export import read_training_table

if TYPE_CHECKING:
    from stream_scorer.evaluation.result import Evaluation
    from stream_scorer.evaluation.sources import Source

# The rules that describe recent traffic, and so depend on whether it could be read.
_ON_RANGE = ("quality", "fairness", "drift", "skew")
# Called with the name of a stage, how much of it is done, and its total.
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Material:
    """What a gate reads. Each input is opened only if a rule needs it.

    Attributes:
        traffic: recent traffic, for drift, skew and latency. evaluation: the same range, with labels, for quality and
            fairness. history: all transactions and labels, for leaks.
        served: the features that live scorers recorded; None if there are none.
        training_set: the file that `train --save-set` wrote; None without one.
    """

    traffic: Callable[[], ReplayInput]
    evaluation: Callable[[], Source]
    history: Callable[[], LabelledHistory]
    served: Served | None = None
    training_set: Path | None = None


@dataclass(frozen=True, slots=True)
class _Run:
    """How an evaluation reports: `on_features` gets the features of its transactions."""

    clock: Clock
    progress: OnProgress
    on_features: Callable[[NDArray[np.float64]], None] | None


@dataclass(frozen=True, slots=True)
class _Measured:
    """The results of all rules but the self-test, and figures of the range, as in `GateReport`."""

    results: list[RuleResult] = field(default_factory=list)
    transactions: int = 0
    rejected: int = 0
    mature: float | None = None


def run_gate(
    rules: Rules,
    checked: CheckedSpec,
    candidate: tuple[Path, str],
    champion: Ensemble | None,
    material: Material,
    clock: Clock,
    on_progress: OnProgress | None = None,
) -> GateReport:
    """Check the candidate, given as its folder and version, against `rules`.

    If the candidate does not load, no other rule is measured.

    Raises:
        UsageError: the rules do not fit the spec, an input is invalid, or the candidate is the champion.
        BrokerUnavailable: the broker does not answer. SettingsError: an extra is missing.
    """
    check_names(rules, checked)
    started, progress = clock.monotonic(), on_progress or _ignore
    loaded, self_test = load_candidate(*candidate, checked)
    measured = _Measured()
    if loaded is not None:
        if champion is not None and champion.digest == loaded.digest:
            raise UsageError("the candidate is the champion", hint="Give another version.")
        measured = _measure(rules, checked, loaded, champion, material, clock, progress)
    results = [self_test, *measured.results]
    return GateReport(
        passed=all(result.verdict == "pass" for result in results),
        candidate=f"{loaded.name} {loaded.version}" if loaded is not None else candidate[1],
        champion=None if champion is None else f"{champion.name} {champion.version}",
        rules_sha256=rules.sha256,
        transactions=measured.transactions,
        rejected=measured.rejected,
        seconds=round(clock.monotonic() - started, 3),
        rules=results,
        mature=measured.mature,
    )


def _measure(
    rules: Rules,
    checked: CheckedSpec,
    candidate: Ensemble,
    champion: Ensemble | None,
    material: Material,
    clock: Clock,
    progress: OnProgress,
) -> _Measured:
    results: list[RuleResult] = []
    if rules.leak is not None:
        progress("recomputing the training set", 0, 1)
        results.append(_leak(rules.leak, candidate, material, checked))
    traffic, sample = None, RowSample(len(checked.features))
    # An evaluation computes the features too, but does not compare them with recorded ones.
    compares = rules.skew is not None and material.served is not None
    if compares or (rules.needs_features and not rules.needs_evaluation):
        traffic = _traffic(rules, checked, candidate, material, progress)
    evaluation = None
    if rules.needs_evaluation:
        on_features = sample.add if traffic is None and rules.needs_features else None
        evaluation = _evaluate(rules, checked, candidate, champion, material, _Run(clock, progress, on_features))
    rows = sample.rows if traffic is None else traffic.features
    if rules.skew is not None:
        results.append(skew(rules.skew, None if traffic is None else traffic.skew, features_read(candidate)))
    if rules.drift is not None:
        results.append(drift(rules.drift, candidate, rows))
    if rules.latency is not None:
        results.append(latency(rules.latency, candidate, champion, rows))
    if rules.cost is not None:
        results += cost(rules.cost, candidate, champion)
    transactions = rejected = copies = 0
    if evaluation is not None:
        results += [quality(rule, evaluation) for rule in rules.quality]
        results += [result for rule in rules.fairness for result in fairness(rule, evaluation)]
        transactions, rejected, copies = evaluation.transactions, evaluation.refused, evaluation.duplicates
    elif traffic is not None:
        transactions, rejected = traffic.transactions, traffic.rejected
    results = _if_readable(results, rejected, transactions + copies + rejected)
    return _Measured(results, transactions, rejected, None if evaluation is None else evaluation.mature_share)


def _if_readable(results: list[RuleResult], rejected: int, records: int) -> list[RuleResult]:
    """`results`; those on the range are not measured if too many of its `records` cannot be read."""
    if not too_many(rejected, records):
        return results
    reason = (
        f"{rejected:,} of {records:,} records of the range cannot be read, at most {MAX_SHARE:.0%} may be: correct "
        "them, or the spec, or give another range (docs/errors.md)"
    )
    return [
        not_measured(each.rule, each.limit, reason) if each.rule.partition(".")[0] in _ON_RANGE else each
        for each in results
    ]


def _leak(rule: Leak, candidate: Ensemble, material: Material, checked: CheckedSpec) -> RuleResult:
    if material.training_set is None:
        return not_measured("leak", 0.0, "no training set; give --training-set, a file of `train --save-set`")
    found = read_training_table(material.training_set, checked.features)
    return leak(rule, found, candidate.manifest.training, material.history(), checked)


def _traffic(
    rules: Rules, checked: CheckedSpec, candidate: Ensemble, material: Material, progress: OnProgress
) -> Traffic:
    meter = None
    if rules.skew is not None and material.served is not None:
        meter = SkewMeter(checked.features, material.served, candidate.manifest.reference_profile)
    source = material.traffic()
    return read_traffic(checked, source, meter, lambda done: progress("reading traffic", done, source.total))


def _evaluate(
    rules: Rules, checked: CheckedSpec, candidate: Ensemble, champion: Ensemble | None, material: Material, run: _Run
) -> Evaluation:
    """The paired evaluation; its files are not kept."""
    from stream_scorer.evaluation.job import evaluate
    from stream_scorer.evaluation.options import Options

    segments = tuple(dict.fromkeys(rule.segment for rule in rules.fairness))
    versions = [candidate] if champion is None else [champion, candidate]
    with tempfile.TemporaryDirectory(prefix="stream-scorer-gate-") as folder:
        return evaluate(
            material.evaluation(),
            checked,
            versions,
            Options(segments=segments),
            Path(folder) / "evaluation",
            run.clock,
            on_progress=run.progress,
            on_features=run.on_features,
        )


def _ignore(_stage: str, _done: int, _total: int) -> None:
    """No progress is shown."""
