"""The report of `stream-scorer ensemble compose`."""

from __future__ import annotations

import msgspec

from stream_scorer.ensemble.manifest import Thresholds
from stream_scorer.train.own.check import Agreement


class MemberReport(msgspec.Struct, frozen=True, kw_only=True):
    """One member: its file and digest, what it was compared with, its time for one micro-batch, and its metrics.

    `sha256` and `size` (bytes) are of the given file. Metrics are on the holdout, None if it has no frauds.
    """

    name: str
    file: str
    file_format: str
    format: str
    sha256: str
    size: int
    inputs: int
    calibrator: str
    weight: float
    average_precision: float | None
    roc_auc: float | None
    log_loss: float | None
    batch_ms: float
    agreements: list[Agreement]
    notes: list[str]


class ComposeReport(msgspec.Struct, frozen=True, kw_only=True):
    """The composed ensemble: `rows` transactions after `trained_until` were used, the last `holdout` for metrics."""

    out: str
    name: str
    run_id: str
    rows: int
    positives: int
    immature: int
    holdout: int
    fitted: list[str]
    formula: str
    thresholds: Thresholds
    metrics: dict[str, float]
    members: list[MemberReport]
