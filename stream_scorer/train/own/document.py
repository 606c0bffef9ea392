"""The file of `stream-scorer ensemble compose`: members that were trained elsewhere, and their combination.

`schemas/ensemble-compose.schema.json` is its JSON schema; docs/own-models.md describes it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from stream_scorer.clock import EARLIEST_MS
from stream_scorer.documents import read_document
from stream_scorer.ensemble.manifest import (
    Beta,
    Input,
    Isotonic,
    Link,
    Median,
    MemberName,
    Name,
    NoCalibrator,
    Platt,
    Sha256,
    Share,
    Stacking,
    TrimmedMean,
    WeightedMean,
)
from stream_scorer.errors import UsageError

# The formats of model files. `xgboost-json` and `linear-json` are converted to formats that a scorer loads.
FileFormat = Literal[
    "lightgbm-text", "xgboost-ubj", "xgboost-json", "onnx", "skops", "linear-json", "dense-json"
]  # fmt: skip
# In `preprocess`, the entry for all inputs without an entry.
OTHERS = "*"


class Node(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every node of the file. Rejects unknown keys, because a misspelled key would have no effect."""


class HistoryNode(Node, frozen=True):
    """Labelled history: two Parquet files as `train` reads them, or `topics: true`. Paths are relative to the file."""

    transactions: str | None = None
    labels: str | None = None
    topics: bool = False


class MemberNode(Node, frozen=True):
    """One member.

    Attributes:
        model: path of the model file, relative to this file; `sha256`, if given, must be its digest.
        format: by default, from the suffix and the content of the file.
        inputs: the features of the spec in the order of the model's columns, or a mapping from each feature to the name
            or the position (from 0) of its column. By default, the names of the model's columns are the features.
        preprocess: by feature; "*" is for all other inputs. Without an entry, the model gets the feature unchanged.
        calibrator: the method that fits it on history (or `none`), or its parameters.
        weight: `fit`, or a number of 0 or more.
        expected: a Parquet file with the columns `event_id` and `score`: the model's own predictions where it was
            trained. They are compared with the loaded member on the transactions of the history.
        tolerance: the largest absolute difference that this comparison accepts; the default depends on the format.
    """

    name: MemberName
    model: str
    format: FileFormat | None = None
    sha256: Sha256 | None = None
    inputs: list[str] | dict[str, str | int] | None = None
    preprocess: dict[str, Input] = {}
    calibrator: Literal["platt", "beta", "isotonic", "none"] | NoCalibrator | Platt | Isotonic | Beta = "platt"
    weight: Literal["fit"] | Annotated[float, Meta(ge=0.0)] = "fit"
    expected: str | None = None
    tolerance: Annotated[float, Meta(gt=0.0, le=0.01)] | None = None


class ThresholdsNode(Node, frozen=True):
    """Thresholds that are given; by default, those of the spec's policy apply."""

    review: Share
    block: Share
    policy_version: str | None = None


class AlertRatesNode(Node, frozen=True):
    """Shares of transactions for which thresholds are fitted: review or block, and block alone."""

    review: Share
    block: Share


class LimitsNode(Node, frozen=True):
    """Limits that every member must meet, measured here.

    `batch_ms` is the time for one micro-batch of `scorer.batch` transactions; by default, `scorer.member_timeout_ms`,
    after which a scorer goes on without the member. `model_mb` limits the size of a model file.
    """

    batch_ms: Annotated[float, Meta(gt=0.0)] | None = None
    model_mb: Annotated[float, Meta(gt=0.0)] | None = None


class ComposeDocument(Node, frozen=True, kw_only=True):
    """The whole file.

    Attributes:
        trained_until: no member was trained on a transaction at or after this time (ISO time, UTC if it has no zone, or
            epoch milliseconds). What is fitted is fitted on later transactions.
        combiner: the method, or its parameters.
    """

    name: Name
    history: HistoryNode | None = None
    trained_until: str | int | None = None
    members: Annotated[list[MemberNode], Meta(min_length=1, max_length=32)]
    combiner: (
        Literal["weighted-mean", "median", "trimmed-mean", "stacking"] | WeightedMean | Median | TrimmedMean | Stacking
    ) = "weighted-mean"
    link: Link = "logit"
    final_calibrator: Literal["platt", "none"] | NoCalibrator | Platt = "platt"
    thresholds: ThresholdsNode | None = None
    alert_rates: AlertRatesNode | None = None
    quorum: Share | None = None
    limits: LimitsNode = LimitsNode()


@dataclass(frozen=True, slots=True)
class ComposeFile:
    """A document and the path of its file."""

    path: Path
    document: ComposeDocument

    def wrong(self, node: str, message: str, hint: str = "") -> UsageError:
        """The error about a node of the file, such as ``members[0].inputs``."""
        return UsageError(f"{self.path}: {node}: {message}", hint=hint)

    def find(self, path: str) -> Path:
        """A path that the file names, relative to its folder."""
        return self.path.parent / path

    @property
    def trained_until_ms(self) -> int | None:
        """`trained_until` as epoch milliseconds. Raises `UsageError`."""
        value = self.document.trained_until
        if value is None:
            return None
        hint = "Write 2025-02-20, 2025-02-20T12:00, or epoch milliseconds."
        if isinstance(value, int):
            if value < EARLIEST_MS:
                raise self.wrong("trained_until", f"{value} epoch milliseconds are before 1973-03-04", hint)
            return value
        try:
            at = datetime.fromisoformat(value)
        except ValueError:
            raise self.wrong("trained_until", f"{value!r} is not a time", hint) from None
        return round((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1_000)

    @property
    def fitted(self) -> list[str]:
        """The nodes whose values are fitted on history."""
        document = self.document
        out = [f"members[{i}].calibrator" for i, m in enumerate(document.members) if _is_fitted(m.calibrator)]
        out += [f"members[{i}].weight" for i, m in enumerate(document.members) if m.weight == "fit"]
        out += ["combiner"] if document.combiner == "stacking" else []
        out += ["final_calibrator"] if _is_fitted(document.final_calibrator) else []
        return out + (["alert_rates"] if document.alert_rates else [])


def read_compose_file(path: Path) -> ComposeFile:
    """Read the file at `path` and check what concerns the file alone. Raises `UsageError`."""
    file = ComposeFile(path, read_document(path, ComposeDocument))
    document = file.document
    names = [member.name for member in document.members]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise file.wrong(f"members[{index}].name", f"{name!r} is used twice")
    given = [member.weight for member in document.members if not isinstance(member.weight, str)]
    if given and len(given) < len(names):
        raise file.wrong("members", "some weights are given and some are fitted", "Give all weights, or none.")
    if given and not 0.0 < sum(given) < math.inf:
        raise file.wrong("members", "the sum of the weights is not above 0 and finite")
    if document.thresholds and document.alert_rates:
        raise file.wrong("alert_rates", "thresholds are given too", "Give either `thresholds` or `alert_rates`.")
    if document.thresholds and document.thresholds.review > document.thresholds.block:
        raise file.wrong("thresholds", "review is above block")
    if document.alert_rates and not 0.0 < document.alert_rates.block <= document.alert_rates.review < 1.0:
        raise file.wrong("alert_rates", "not 0 < block <= review < 1")
    _check_combiner(file)
    until = file.trained_until_ms
    if until is None and (fitted := file.fitted):
        raise file.wrong(
            "trained_until",
            f"required, because {', '.join(fitted[:3])} {'is' if len(fitted) == 1 else 'are'} fitted",
            "Give a time after the last transaction that the members were trained on, or give the parameters.",
        )
    if (history := document.history) is not None and history.topics == (history.transactions is not None):
        raise file.wrong("history", "give either `transactions` and `labels`, or `topics: true`")
    return file


def _check_combiner(file: ComposeFile) -> None:
    document = file.document
    combiner = document.combiner
    if (combiner == "stacking" or isinstance(combiner, Stacking)) and document.link != "logit":
        raise file.wrong(
            "link", f"stacking of {document.link}s may leave [0, 1]", "Remove `link`: its default is logit."
        )
    if isinstance(combiner, Stacking) and len(combiner.coefficients) != len(document.members):
        raise file.wrong(
            "combiner.coefficients", f"{len(combiner.coefficients)} values for {len(document.members)} members"
        )


def _is_fitted(calibrator: object) -> bool:
    return isinstance(calibrator, str) and calibrator != "none"
