"""An evaluation as a run on the MLflow server: parameters with all digests, metrics by version, and the report."""

from __future__ import annotations

import msgspec

from stream_scorer.ensemble.tracking import RunRecord
from stream_scorer.evaluation.result import Evaluation
from stream_scorer.reports.evaluation_tables import name_of, when

# The digest of the whole result as a tag, so that runs with equal results can be searched for.
DIGEST_TAG = "stream_scorer.evaluation_sha256"
RESULT_FILE, PAGE_FILE = "evaluation.json", "evaluation.html"


def run_record(result: Evaluation, page: str) -> RunRecord:
    """The run of `result`; `page` is its report, which contains the plots.

    Metrics are named by the label of a version: ``<label>.<figure>``, ``<candidate>.minus_champion.<figure>`` with
    ``.low`` and ``.high`` for the interval, and ``member.<name>.<figure>``. Money is in minor units. A figure that is
    undefined is left out.
    """
    champion = result.versions[0]
    return RunRecord(
        name=f"evaluate {', '.join(name_of(version) for version in result.versions)}",
        parameters=_parameters(result),
        metrics={name: float(value) for name, value in _metrics(result).items() if value is not None},
        files={RESULT_FILE: msgspec.json.encode(result), PAGE_FILE: page.encode()},
        tags={DIGEST_TAG: result.digests.all, "stream_scorer.champion": name_of(champion)},
    )


def _parameters(result: Evaluation) -> dict[str, str]:
    found = {
        "spec": result.spec,
        "spec_sha256": result.spec_sha256,
        "labels_as_of": when(result.labels_as_of),
        "transactions": str(result.transactions),
        "labelled": str(result.labelled),
        "frauds": str(result.frauds),
        "review_cost": str(result.review_cost),
        "replicates": str(result.replicates),
        "digest": result.digests.all,
        "digest.features": result.digests.features,
        "digest.scores": result.digests.scores,
        "digest.outcomes": result.digests.outcomes,
    }
    found |= {f"input.{name}": text for name, text in result.input.items()}
    return found | {f"version.{v.label}": f"{name_of(v)}, {v.sha256}" for v in result.versions}


def _metrics(result: Evaluation) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for v in result.versions:
        label = v.label
        found |= {
            f"{label}.average_precision": v.average_precision.value,
            f"{label}.roc_auc": v.roc_auc.value,
            f"{label}.precision": v.alerts.precision,
            f"{label}.recall": v.alerts.recall,
            f"{label}.false_positive_rate": v.alerts.false_positive_rate,
            f"{label}.alerts": v.alerts.alerts,
            f"{label}.blocks": v.alerts.blocks,
            f"{label}.blocked_genuine": v.alerts.blocked_genuine,
            f"{label}.value_caught": v.alerts.value_caught,
            f"{label}.value_lost": v.alerts.value_lost,
            f"{label}.saved": v.alerts.saved,
            f"{label}.brier": v.calibration.brier,
        }
    for pair in result.candidates:
        for name, difference in pair.differences.items():
            of = f"{pair.candidate}.minus_champion.{name}"
            found |= {of: difference.value, f"{of}.low": difference.low, f"{of}.high": difference.high}
    for member in result.members:
        found |= {
            f"member.{member.name}.average_precision": member.average_precision,
            f"member.{member.name}.roc_auc": member.roc_auc,
        }
    return found
