"""Microseconds per transaction and stage, from a scorer's ``/metrics``."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from stream_scorer.bench.results import Stages
from stream_scorer.observability.metrics import BATCH_RECORDS, MEMBER_SECONDS, STAGE_SECONDS

# In processing order; the second group runs on the committer's thread.
MAIN_STAGES = ("decode", "enrich", "score", "wait", "publish")
COMMITTER_STAGES = ("commit", "apply")
REST = "rest"


def rows_of(metrics: str) -> float:
    """Number of committed records, from a process's ``/metrics``."""
    samples = (sample for family in text_string_to_metric_families(metrics) for sample in family.samples)
    return sum(sample.value for sample in samples if sample.name == BATCH_RECORDS.name + "_sum")


def stages_of(metrics: str, wall_us: float) -> Stages:
    """The stages of a process that has only run one drain.

    Args:
        metrics: text of ``/metrics``. wall_us: wall time per transaction in microseconds; the part outside all stages
            is `rest`.
    """
    stages: dict[str, float] = {}
    members: dict[str, float] = {}
    rows = batches = 0.0
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            if sample.name == STAGE_SECONDS.name + "_sum":
                stages[sample.labels["stage"]] = sample.value
            elif sample.name == MEMBER_SECONDS.name:
                members[sample.labels["member"]] = sample.value
            elif sample.name == BATCH_RECORDS.name + "_sum":
                rows = sample.value
            elif sample.name == BATCH_RECORDS.name + "_count":
                batches = sample.value
    scale = 1e6 / max(rows, 1.0)
    main = {name: round(stages[name] * scale, 3) for name in MAIN_STAGES if name in stages}
    main[REST] = round(max(wall_us - sum(main.values()), 0.0), 3)
    return Stages(
        main,
        {name: round(stages[name] * scale, 3) for name in COMMITTER_STAGES if name in stages},
        {name: round(seconds * scale, 3) for name, seconds in members.items()},
        round(rows / max(batches, 1.0), 1),
    )
