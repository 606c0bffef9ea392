"""The declared shape of a pipeline spec, and the names that follow from it."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

FieldType = Literal["string", "time", "integer", "number", "category", "boolean"]
Aggregate = Literal[
    "count", "sum", "mean", "min", "max", "std", "distinct", "since_last", "is_new", "label_rate", "label_count"
]
WINDOWED: frozenset[str] = frozenset(
    {"count", "sum", "mean", "min", "max", "std", "distinct", "label_rate", "label_count"}
)
SPREAD: frozenset[str] = frozenset({"min", "max", "std"})
LABELLED: frozenset[str] = frozenset({"label_rate", "label_count"})
DerivedFunction = Literal[
    "value", "log1p", "ratio", "difference", "code", "hour", "weekday", "is_weekend", "is_night", "present"
]
Name = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,40}$")]
Duration = Annotated[str, Meta(pattern=r"^[0-9]+(ms|s|m|h|d)$")]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]

_UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def duration_ms(text: str) -> int:
    """Milliseconds of a duration such as ``7d``, ``90s`` or ``250ms``."""
    number, unit = re.fullmatch(r"([0-9]+)(ms|s|m|h|d)", text).groups()  # type: ignore[union-attr]
    return int(number) * _UNIT_MS[unit]


class Node(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every node: a misspelt key is an error, not a silent default."""


class Field(Node, frozen=True):
    """One field of the transaction. `sensitive` fields are read but never leave the process."""

    type: FieldType
    optional: bool = False
    sensitive: bool = False
    min: int | float | None = None
    max: int | float | None = None
    max_length: Annotated[int, Meta(ge=1, le=4096)] = 128
    values: list[str] | None = None


class Entity(Node, frozen=True):
    """Something transactions share (a customer, a terminal): its identity is the value of one string field."""

    field: str


class Condition(Node, frozen=True, rename={"values": "in"}):
    """What one field must hold: a value of a category or boolean, or a number within bounds, both included."""

    values: list[str | bool] | None = None
    min: int | float | None = None
    max: int | float | None = None


class View(Node, frozen=True):
    """Aggregates of one entity's past transactions in sliding event-time windows.

    A window of length W and delay D at time t covers event times in ``(t - D - W, t - D]``. With `where` only
    transactions that meet every condition count; every transaction sees them. `of` names the field whose distinct
    values a view of `distinct` counts.
    """

    name: Name
    entity: str
    aggregates: Annotated[list[Aggregate], Meta(min_length=1)]
    windows: list[Duration] = []
    delay: Duration = "0s"
    current: Literal["include", "exclude"] = "include"
    where: dict[Name, Condition] = {}
    of: Name | None = None


class Derived(Node, frozen=True):
    """One column computed from fields and view features by a named function."""

    name: Name
    function: DerivedFunction
    of: Annotated[list[str], Meta(min_length=1, max_length=2)]


Decision = Literal["approve", "review", "block"]
RuleName = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_-]{0,40}$")]


class Segment(Node, frozen=True):
    """Transactions with thresholds of their own: those that meet every condition of `where`."""

    name: RuleName
    where: Annotated[dict[Name, Condition], Meta(min_length=1)]
    review: Share
    block: Share


class EntityList(Node, frozen=True):
    """Entities whose transactions are decided without their score. `file` (a line an id) is read into `ids`."""

    name: RuleName
    entity: str
    decision: Decision
    ids: list[str] = []
    file: str | None = None


class Policy(Node, frozen=True):
    """From score to decision: block at or above `block`, else review at or above `review`, else approve.

    `lists` come first, then the thresholds of the first of the `segments` that fits, then `review` and `block`.
    """

    version: str
    review: Share
    block: Share
    fallback: Decision = "review"
    quorum: Share = 0.5
    segments: list[Segment] = []
    lists: list[EntityList] = []


class LabelRules(Node, frozen=True):
    """How labels become outcomes. `horizon` is the label age at which a silent transaction is judged."""

    horizon: Duration = "7d"
    source_rank: dict[str, int] = {}


class TimeRules(Node, frozen=True):
    """Which event times are plausible, judged against the record's Kafka timestamp, and when features are stale.

    Features of entities seen from several partitions are stale when another partition lags behind the transaction by
    more than `stale_after`; features made of labels also when no label was given for `labels_stale_after`.
    """

    max_ahead: Duration = "5m"
    max_age: Duration = "400d"
    allowed_lateness: Duration = "1h"
    stale_after: Duration = "1d"
    labels_stale_after: Duration = "7d"


class MonitorRules(Node, frozen=True):
    """`pane` is the length of an event-time pane: the finest window the monitor can report."""

    pane: Duration = "1h"


class Limits(Node, frozen=True):
    """Bounds that keep one record or one entity from costing everybody."""

    max_value_bytes: Annotated[int, Meta(ge=256, le=8_000_000)] = 1_000_000
    row_entries: Annotated[int, Meta(ge=16, le=8192)] = 128


class TransactionShape(Node, frozen=True, kw_only=True):
    """The fields of a transaction and the roles some of them play."""

    id: str
    time: str
    value: str
    currency: str | None = None
    fields: dict[Name, Field]


class PipelineSpec(Node, frozen=True, kw_only=True):
    """A whole pipeline spec, checked by `stream_scorer.spec.load`."""

    name: Name
    version: Annotated[int, Meta(ge=1)]
    transaction: TransactionShape
    entities: dict[Name, Entity] = {}
    partition_entity: str | None = None
    views: list[View] = []
    derived: list[Derived] = []
    feature_sets: dict[Name, list[str]] = {}
    policy: Policy
    labels: LabelRules = LabelRules()
    time: TimeRules = TimeRules()
    monitor: MonitorRules = MonitorRules()
    limits: Limits = Limits()


class ViewFeature(msgspec.Struct, frozen=True):
    """One feature that a view yields; `window_ms` is 0 for aggregates without a window."""

    name: str
    view: View
    aggregate: Aggregate
    window_ms: int
    delay_ms: int


def view_features(view: View) -> list[ViewFeature]:
    """The features of one view, in order: aggregate by aggregate, window by window (``customer.count_1d``)."""
    delay = duration_ms(view.delay)
    out = []
    for aggregate in view.aggregates:
        if aggregate in WINDOWED:
            for window in view.windows:
                out.append(
                    ViewFeature(f"{view.name}.{aggregate}_{window}", view, aggregate, duration_ms(window), delay)
                )
        else:
            out.append(ViewFeature(f"{view.name}.{aggregate}", view, aggregate, 0, delay))
    return out


class CheckedSpec:
    """A spec whose references hold, with what follows from it. Built by `load_spec`; read-only.

    Attributes:
        spec: the declared document.
        sha256: hex digest of its canonical JSON; changes with any change of meaning or wording.
        features: names of the feature vector, in order: the views' features, then the derived columns.
    """

    def __init__(self, spec: PipelineSpec, sha256: str) -> None:
        self.spec = spec
        self.sha256 = sha256

    @cached_property
    def view_features(self) -> list[ViewFeature]:
        """Every view's features in declared order."""
        return [feature for view in self.spec.views for feature in view_features(view)]

    @cached_property
    def features(self) -> list[str]:
        """Names of the feature vector, in order."""
        return [f.name for f in self.view_features] + [d.name for d in self.spec.derived]

    @cached_property
    def feature_hash(self) -> str:
        """Hex digest of what the feature vector means: fields, entities, views and derived columns, not the policy."""
        import hashlib

        spec = self.spec
        meaning = (spec.transaction, spec.entities, spec.partition_entity, spec.views, spec.derived, spec.limits)
        return hashlib.sha256(msgspec.json.encode(meaning, order="deterministic")).hexdigest()

    @property
    def sensitive_fields(self) -> list[str]:
        """Names of the fields that must not leave the process."""
        return [name for name, field in self.spec.transaction.fields.items() if field.sensitive]
