"""The types of a pipeline spec, and the feature names that result from it."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from stream_scorer.records import Decision
from stream_scorer.spec.pseudonyms import Pseudonyms
from stream_scorer.structs import prepare

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
# The fields of a label, apart from the ids of entities; files may lack the optional ones.
LABEL_COLUMNS = ("event_id", "event_time", "label", "labelled_at")
OPTIONAL_LABEL_COLUMNS = ("source", "review_probability")
Name = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,40}$")]
Duration = Annotated[str, Meta(pattern=r"^[0-9]+(ms|s|m|h|d)$")]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]

# The largest value of a transaction, in minor units: a sum of nine hundred thousand of them is an int64.
MAX_VALUE = 10**13
_UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def duration_ms(text: str) -> int:
    """Milliseconds of a duration such as ``7d``, ``90s`` or ``250ms``."""
    number, unit = re.fullmatch(r"([0-9]+)(ms|s|m|h|d)", text).groups()  # type: ignore[union-attr]
    return int(number) * _UNIT_MS[unit]


class Node(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every node: an unknown key is an error."""


def keys_in(module: str) -> set[str]:
    """The keys of all nodes that `module` defines."""
    return {key for node in Node.__subclasses__() if node.__module__ == module for key in node.__struct_encode_fields__}


class Field(Node, frozen=True):
    """One field of the transaction. The scorer reads `sensitive` fields but never publishes them.

    The ids of an entity whose field is sensitive are hashed, see `Pseudonyms`.
    """

    type: FieldType
    optional: bool = False
    sensitive: bool = False
    min: int | float | None = None
    max: int | float | None = None
    max_length: Annotated[int, Meta(ge=1, le=4096)] = 128
    values: list[str] | None = None


class Entity(Node, frozen=True):
    """Something that transactions share, such as a customer or a terminal. One string field contains its id."""

    field: str


class Condition(Node, frozen=True, rename={"values": "in"}):
    """The allowed values of one field: values of a category or boolean, or a number within inclusive bounds."""

    values: list[str | bool] | None = None
    min: int | float | None = None
    max: int | float | None = None


class View(Node, frozen=True):
    """Aggregates of one entity's past transactions in sliding event-time windows.

    A window of length W and delay D at time t covers event times in ``(t - D - W, t - D]``. With `where`, only
    transactions that meet every condition count; the feature exists for every transaction. `of` names the field whose
    distinct values the aggregate `distinct` counts.
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


RuleName = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_-]{0,40}$")]


class Segment(Node, frozen=True):
    """Thresholds for the transactions that meet every condition of `where`."""

    name: RuleName
    where: Annotated[dict[Name, Condition], Meta(min_length=1)]
    review: Share
    block: Share


class EntityList(Node, frozen=True):
    """Entities whose transactions get a fixed decision. The loader reads `file` (one id per line) into `ids`."""

    name: RuleName
    entity: str
    decision: Decision
    ids: list[str] = []
    file: str | None = None


class Policy(Node, frozen=True):
    """The decision from the score: block at or above `block`, else review at or above `review`, else approve.

    `lists` take precedence; then the first matching segment of `segments`; then `review` and `block`.
    """

    version: str
    review: Share
    block: Share
    fallback: Decision = "review"
    quorum: Share = 0.5
    segments: list[Segment] = []
    lists: list[EntityList] = []


class LabelRules(Node, frozen=True):
    """How labels become outcomes. After the label age `horizon`, a transaction without a label is evaluated.

    `source_rank` lists the label sources that the monitor counts separately; a higher rank overrides a lower one.
    Other sources rank below all of them (`serde.label_ranks`).
    """

    horizon: Duration = "7d"
    source_rank: dict[str, int] = {}


class TimeRules(Node, frozen=True):
    """Which event times are plausible, compared with the record's Kafka timestamp, and when features are stale.

    Features of entities with records in several partitions are stale if another partition lags behind the transaction
    by more than `stale_after`. Features from labels are also stale if no label arrived for `labels_stale_after`.
    """

    max_ahead: Duration = "5m"
    max_age: Duration = "400d"
    allowed_lateness: Duration = "1h"
    stale_after: Duration = "1d"
    labels_stale_after: Duration = "7d"


class MonitorRules(Node, frozen=True):
    """`pane` is the length of an event-time pane: the finest window the monitor can report.

    `review_sample` is the share of approved transactions that are drawn at random for review; 0 draws none.
    """

    pane: Duration = "1h"
    review_sample: Share = 0.001


class Limits(Node, frozen=True):
    """Bounds on the cost of one record and of one entity."""

    max_value_bytes: Annotated[int, Meta(ge=256, le=8_000_000)] = 1_000_000
    row_entries: Annotated[int, Meta(ge=16, le=8192)] = 128


class TransactionShape(Node, frozen=True, kw_only=True):
    """The fields of a transaction and the roles of some of them.

    `rates` converts amounts: by currency, the minor units of the reference currency that one of its minor units is
    worth. Without `currency`, all amounts are of one currency.
    """

    id: str
    time: str
    value: str
    currency: str | None = None
    rates: dict[str, Annotated[float, Meta(gt=0)]] = {}
    fields: dict[Name, Field]


class PipelineSpec(Node, frozen=True, kw_only=True):
    """A complete pipeline spec; `stream_scorer.spec.load` checks it."""

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
    """One feature of a view; `window_ms` is 0 for aggregates without a window."""

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
    """A checked spec with the values derived from it. Built by `load_spec`; read-only.

    Attributes:
        spec: the declared document.
        sha256: hex digest of its canonical JSON; every change of the spec changes it.
        features: names of the feature vector, in order: the views' features, then the derived columns.
    """

    def __init__(self, spec: PipelineSpec, sha256: str, id_key: str = "") -> None:
        """`id_key` is the secret of the hashes that replace ids of sensitive entities."""
        self.spec = spec
        self.sha256 = sha256
        self._id_key = id_key

    def __reduce__(self) -> tuple[type[CheckedSpec], tuple[PipelineSpec, str, str]]:
        """What a copy in another process is built from, without the values that are derived when they are needed."""
        return CheckedSpec, (self.spec, self.sha256, self._id_key)

    @cached_property
    def view_features(self) -> list[ViewFeature]:
        """The features of all views, in declared order."""
        return [feature for view in self.spec.views for feature in view_features(view)]

    @cached_property
    def features(self) -> list[str]:
        """Names of the feature vector, in order."""
        return [f.name for f in self.view_features] + [d.name for d in self.spec.derived]

    @cached_property
    def feature_hash(self) -> str:
        """Hex digest of the feature definitions: fields, entities, views and derived columns, but not the policy."""
        import hashlib

        spec = self.spec
        meaning = (spec.transaction, spec.entities, spec.partition_entity, spec.views, spec.derived, spec.limits)
        return hashlib.sha256(msgspec.json.encode(meaning, order="deterministic")).hexdigest()

    @cached_property
    def rows_hash(self) -> str:
        """Hex digest of what decides the content of rows: the features, the order of the entities, which row keys
        contain, which event times are accepted, and how long rows keep what late transactions look at."""
        import hashlib

        time = self.spec.time
        times = [duration_ms(limit) for limit in (time.max_ahead, time.max_age, time.allowed_lateness)]
        return hashlib.sha256(msgspec.json.encode((self.feature_hash, list(self.spec.entities), times))).hexdigest()

    @cached_property
    def label_entities(self) -> list[str]:
        """Names of the entities with features of labels, in declared order."""
        labelled = {view.entity for view in self.spec.views if LABELLED & set(view.aggregates)}
        return [name for name in self.spec.entities if name in labelled]

    @property
    def instant_label_views(self) -> list[str]:
        """Names of the views that count a label from the time on at which it is given."""
        views = self.spec.views
        return [view.name for view in views if LABELLED & set(view.aggregates) and duration_ms(view.delay) == 0]

    @property
    def sensitive_fields(self) -> list[str]:
        """Names of the fields that must not be published."""
        return [name for name, field in self.spec.transaction.fields.items() if field.sensitive]

    @property
    def sensitive_entities(self) -> list[str]:
        """Names of the entities whose ids are hashed."""
        sensitive = self.sensitive_fields
        return [name for name, entity in self.spec.entities.items() if entity.field in sensitive]

    @cached_property
    def pseudonyms(self) -> Pseudonyms:
        """The hashes of ids. Raises `SettingsError` if there are sensitive entities and no usable key."""
        return Pseudonyms(self._id_key, frozenset(self.sensitive_entities), self.spec.partition_entity)


prepare(globals())
