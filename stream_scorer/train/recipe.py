"""The inputs of training: the training set and the options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from stream_scorer.ensemble.manifest import Link
from stream_scorer.errors import UsageError
from stream_scorer.spec.model import CheckedSpec
from stream_scorer.spec.training import CalibratorName, CombinerName

# Stage, completed steps, total steps.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Rows by time: features ``(n, n_features)``, label ``(n,)`` bool, event_time ``(n,)`` epoch ms.

    `names` are the feature names. The counts are of excluded records: `refused` could not be decoded, `duplicates`
    repeated an event id, `immature` were younger than the label horizon, `outside` were not in the period of training,
    and `blocked` were blocked and have no label. `incomplete` rows look back to before the history. `unmatched` labels
    are of no transaction of the history. `event_id` has ``n`` ids, or none for a set that was not read from history.

    Attributes:
        entity: ``(n,) int64``, a number from 0 for each id of the partition entity; None without such an entity.
        labelled_at: ``(n,) int64`` epoch ms, since when the row has its label; without a label, the time plus the label
            horizon. None if it is that time for all rows.
    """

    features: NDArray[np.float64]
    names: list[str]
    label: NDArray[np.bool_]
    event_time: NDArray[np.int64]
    refused: int = 0
    duplicates: int = 0
    immature: int = 0
    event_id: list[str] = field(default_factory=list)
    entity: NDArray[np.int64] | None = None
    labelled_at: NDArray[np.int64] | None = None
    outside: int = 0
    blocked: int = 0
    incomplete: int = 0
    unmatched: int = 0

    def check(self, spec: CheckedSpec) -> None:
        """Raise `UsageError` if the features are not the spec's, or the columns differ in length."""
        if self.names != spec.features:
            raise UsageError("the training matrix does not have the spec's features, in the spec's order")
        n = len(self.features)
        if (self.features.shape, self.label.shape, self.event_time.shape) != ((n, len(self.names)), (n,), (n,)):
            shapes = f"features {self.features.shape}, labels {self.label.shape} and times {self.event_time.shape}"
            raise UsageError(f"{shapes} do not fit")


@dataclass(frozen=True, slots=True)
class AlertRates:
    """The target shares of transactions with the decision review or block, and block alone, for fitting thresholds."""

    review: float
    block: float

    def __post_init__(self) -> None:
        """Raises `UsageError` unless ``0 < block <= review < 1``."""
        if not 0.0 < self.block <= self.review < 1.0:
            raise UsageError(
                f"alert rates: block {self.block} and review {self.review} are not 0 < block <= review < 1"
            )


@dataclass(frozen=True, slots=True)
class Recipe:
    """The options of training.

    Attributes:
        name: of the ensemble; by default, the name of the spec.
        alert_rates: the targets of the thresholds; by default, the thresholds of the spec's policy apply.
        calibrator: of each member.
        combiner, link: the combination of members (`stream_scorer.ensemble.combine`); stacking needs the link logit.
    """

    seed: int
    name: str | None = None
    alert_rates: AlertRates | None = None
    calibrator: CalibratorName = "platt"
    combiner: CombinerName = "weighted-mean"
    link: Link = "logit"

    def __post_init__(self) -> None:
        """Raises `UsageError` for stacking with a link other than logit."""
        if self.combiner == "stacking" and self.link != "logit":
            raise UsageError(f"stacking of {self.link}s may leave [0, 1]: its link is logit")
