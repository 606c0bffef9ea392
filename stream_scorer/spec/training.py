"""The types of a training spec: members, folds, combination and thresholds. `load_training` reads one from YAML."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import yaml
from msgspec import Meta

from stream_scorer.documents import InvalidNode, convert, hint_for, load_document, parse_yaml
from stream_scorer.errors import SpecError
from stream_scorer.spec.model import Duration, Node, keys_in

Algorithm = Literal["lightgbm", "lightgbm-forest", "xgboost", "logistic-regression", "neural-network"]
CalibratorName = Literal["platt", "isotonic", "beta"]
CombinerName = Literal["weighted-mean", "median", "trimmed-mean", "stacking"]
LinkName = Literal["logit", "probability", "rank"]
Objective = Literal["average_precision", "roc_auc", "card_precision"]
Parameter = bool | int | float | str | list[int]
# The name of a member is its file name, the name of a series and a metric label; see `ensemble.manifest.MemberName`.
MemberName = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_-]{0,40}$")]
EnsembleName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")]
Rate = Annotated[float, Meta(gt=0.0, lt=1.0)]
Seed = Annotated[int, Meta(ge=0, le=2**31 - 1)]
# A grid of more candidates than this is a mistake more often than an intention.
MAX_CANDIDATES = 200


class Folds(Node, frozen=True, omit_defaults=True):
    """Prequential folds: a training window, the label delay, a test window; each fold is one test window earlier.

    Source: the Fraud Detection Handbook, chapter 5. Without `test`, the test windows divide the last 40 % of the time
    range evenly. Without `train`, a fold trains on all rows before its delay. Without `delay`, it is the label horizon
    of the pipeline spec. With `exclude_compromised`, test rows of an entity with a fraud that was known at the
    beginning of the day do not count in the figures of `cv` and of the holdout, because its card would be blocked.
    Calibrators, weights, thresholds and the reference profile are fitted on all rows, as all are scored.
    """

    count: Annotated[int, Meta(ge=2, le=50)] = 4
    train: Duration | None = None
    test: Duration | None = None
    delay: Duration | None = None
    exclude_compromised: bool = False


class Sampling(Node, frozen=True, omit_defaults=True):
    """Trains on all frauds and on a random share `genuine` of the other rows, the same rows for the same seed."""

    genuine: Annotated[float, Meta(gt=0.0, le=1.0)]


class MemberTraining(Node, frozen=True, kw_only=True, omit_defaults=True):
    """One member to train.

    Attributes:
        features: a feature set of the pipeline spec, `all` for the union of its sets, or a list of feature patterns.
        parameters: hyperparameters that differ from the defaults of the algorithm (docs/training.md).
        grid: values per hyperparameter; `stream-scorer cv` evaluates all combinations.
        class_weight: the weight of a fraud relative to a genuine row; `balanced` gives both classes the same total.
        seed: of this member; by default the seed of the training spec.
    """

    name: MemberName
    algorithm: Algorithm
    features: str | list[str] = "all"
    parameters: dict[str, Parameter] = msgspec.field(default_factory=dict)
    grid: dict[str, Annotated[list[Parameter], Meta(min_length=1)]] = msgspec.field(default_factory=dict)
    class_weight: Literal["balanced"] | Annotated[float, Meta(gt=0.0)] | None = None
    sampling: Sampling | None = None
    calibrator: CalibratorName = "platt"
    seed: Seed | None = None


class Combination(Node, frozen=True, omit_defaults=True):
    """How members are combined; all of it is fitted on out-of-fold scores. Stacking needs the link `logit`."""

    method: CombinerName = "weighted-mean"
    link: LinkName = "logit"


class AlertRateTargets(Node, frozen=True, omit_defaults=True):
    """The shares of transactions with the decision review or block, and block alone, for fitted thresholds."""

    review_rate: Rate
    block_rate: Rate


class TrainingSpec(Node, frozen=True, kw_only=True, omit_defaults=True):
    """A complete training spec.

    Attributes:
        name: of the ensemble; by default, the name of the pipeline spec.
        folds: where members are evaluated, and what calibrators, weights and thresholds are fitted on.
        holdout: the length of the newest part of the history that `cv` does not use; `cv --open-holdout` opens it.
        refit: the rows that the serving members are fitted on: `all`, or only the newest `folds.train`.
        objective: the figure that the search over grids maximises, its mean over the folds.
        thresholds: targets; by default, the thresholds of the pipeline spec's policy apply.
    """

    version: Literal[1] = 1
    name: EnsembleName | None = None
    seed: Seed = 1
    folds: Folds = Folds()
    holdout: Duration | None = None
    refit: Literal["all", "window"] = "all"
    objective: Objective = "average_precision"
    members: Annotated[list[MemberTraining], Meta(min_length=1, max_length=32)]
    combination: Combination = Combination()
    thresholds: AlertRateTargets | None = None


@dataclass(frozen=True, slots=True)
class CheckedTraining:
    """A checked training spec, and the sha256 of its canonical JSON."""

    spec: TrainingSpec
    sha256: str

    def seed_of(self, member: MemberTraining) -> int:
        """The seed of a member."""
        return self.spec.seed if member.seed is None else member.seed


def load_training(path: Path) -> CheckedTraining:
    """Read and check the training spec at `path`. Raises `SpecError` with the file, the node and a hint."""
    hint = "Set --training to the path of a YAML file."
    return load_document(path, "training spec", parse_training, error=SpecError, hint=hint)


def parse_training(text: str) -> CheckedTraining:
    """Check the training spec in `text` (YAML). Raises `SpecError`."""
    try:
        spec = convert(parse_yaml(text, error=SpecError), TrainingSpec)
    except InvalidNode as invalid:
        hint = hint_for(invalid.message, keys_in(__name__), "docs/training.md")
        raise SpecError(invalid.message, path=invalid.node or "(top level)", hint=hint) from None
    return check_training(spec)


def check_training(spec: TrainingSpec) -> CheckedTraining:
    """Check what types cannot express. Raises `SpecError`."""
    for name, count in Counter(member.name for member in spec.members).items():
        if count > 1:
            raise SpecError(f"two members are named {name!r}", path="members")
    for index, member in enumerate(spec.members):
        candidates = math.prod(len(values) for values in member.grid.values())
        if candidates > MAX_CANDIDATES:
            raise SpecError(
                f"the grid has {candidates} combinations, more than {MAX_CANDIDATES}", path=f"members[{index}].grid"
            )
        _check_numbers(member, f"members[{index}]")
        if member.class_weight is not None and member.class_weight == math.inf:
            raise SpecError("must be finite", path=f"members[{index}].class_weight")
    if spec.combination.method == "stacking" and spec.combination.link != "logit":
        raise SpecError("stacking needs the link logit", path="combination.link")
    if spec.refit == "window" and spec.folds.train is None:
        raise SpecError("`window` needs the length of the window", path="refit", hint="Set folds.train.")
    if spec.thresholds is not None and spec.thresholds.block_rate > spec.thresholds.review_rate:
        raise SpecError("block_rate is above review_rate, which includes it", path="thresholds")
    return CheckedTraining(spec, hashlib.sha256(msgspec.json.encode(spec, order="deterministic")).hexdigest())


def _check_numbers(member: MemberTraining, path: str) -> None:
    """Raise `SpecError` for a number that YAML reads as text, such as 1e-3, which some libraries refuse."""
    given = [(f"parameters.{name}", value) for name, value in member.parameters.items()]
    given += [(f"grid.{name}", value) for name, values in member.grid.items() for value in values]
    for place, value in given:
        if isinstance(value, str) and _is_number(value):
            raise SpecError(
                f"{value!r} is text, not a number",
                path=f"{path}.{place}",
                hint="Write it without quotes; in YAML, an exponent needs a dot and a sign, as in 1.0e-3.",
            )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def training_yaml(spec: TrainingSpec) -> str:
    """`spec` as YAML that `parse_training` reads; defaults are left out."""
    return str(yaml.safe_dump(msgspec.to_builtins(spec), sort_keys=False, allow_unicode=True, width=120))
