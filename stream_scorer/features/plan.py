"""The plan of a spec for the kernel: the windows of each entity, and the window that each feature reads."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from stream_scorer.features.arguments import PaneLevels, Windows
from stream_scorer.spec.conditions import Conditions, compile_conditions
from stream_scorer.spec.model import (
    LABELLED,
    SPREAD,
    CheckedSpec,
    PipelineSpec,
    View,
    ViewFeature,
    duration_ms,
)

# An entity, the conditions under which its transactions count, and the field that replaces the amount.
_RowKind = tuple[str, Conditions, str | None]
# Panes per window. An old entry near an edge of the window can be missed by at most the contents of two panes.
PANES = 32


@dataclass(frozen=True, slots=True)
class EntityPlan:
    """The windows for which one entity's rows are scanned.

    Attributes:
        windows: the m windows, and how far back an event counts for `since_last` and `is_new`, or in any window.
        takes_labels: whether these rows hold labels.
        spread: whether a feature asks for the minimum, maximum or deviation of values.
        where: the conditions that transactions in these rows meet.
        of: the field whose values replace the amount in these rows, to count distinct values.
        pane_levels: the level of each window, and the width of the panes of each level.
        cover_ms: (l,) int64, how far back the panes of each level are looked at.
    """

    name: str
    windows: Windows
    takes_labels: bool
    spread: bool
    where: Conditions = ()
    of: str | None = None
    pane_levels: PaneLevels = field(init=False)
    cover_ms: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        """Assign the levels of panes: one per length of window, and one that covers the horizon."""
        window_ms, delay_ms, _, horizon_ms = self.windows
        reach = window_ms + delay_ms
        wide = np.append(window_ms, window_ms[reach.argmax()] if len(reach) else horizon_ms)
        width_ms, level_of = np.unique(-(-wide // PANES), return_inverse=True)
        cover_ms = np.zeros(len(width_ms), dtype=np.int64)
        np.maximum.at(cover_ms, level_of, np.append(reach, horizon_ms))
        levels = PaneLevels(level_of[:-1].astype(np.int64), width_ms.astype(np.int64), int(level_of[-1]))
        object.__setattr__(self, "pane_levels", levels)
        object.__setattr__(self, "cover_ms", cover_ms)

    @property
    def horizon_ms(self) -> int:
        """How far back an event counts."""
        return self.windows.horizon_ms


@dataclass(frozen=True, slots=True)
class FeaturePlan:
    """What the engine computes.

    Attributes:
        entities: in declared order, then one more for views that need rows of their own, because they count under
            conditions or have another field as value.
        view_columns: ``(feature, entity index, window index)`` of each view feature.
        partition_entity: index of the entity of the partition key, -1 for none.
        row_entries: how many transactions, and how many labels, of a row count exactly.
    """

    entities: list[EntityPlan]
    view_columns: list[tuple[ViewFeature, int, int]]
    partition_entity: int
    row_entries: int

    @property
    def horizon_ms(self) -> int:
        """The longest horizon of any entity."""
        return max((e.horizon_ms for e in self.entities), default=0)


def of_entity(plan: FeaturePlan, entity: str) -> FeaturePlan:
    """The part of `plan` that depends only on the rows of `entity`, with its view columns in the same order."""
    places = [index for index, each in enumerate(plan.entities) if each.name == entity]
    columns = [
        (feature, places.index(place), window) for feature, place, window in plan.view_columns if place in places
    ]
    own = places.index(plan.partition_entity) if plan.partition_entity in places else -1
    return FeaturePlan([plan.entities[place] for place in places], columns, own, plan.row_entries)


def reach_ms(checked: CheckedSpec) -> int:
    """How far back features look (ms), late events included: what the inputs must be kept for."""
    return make_plan(checked).horizon_ms + duration_ms(checked.spec.time.allowed_lateness)


def reaches_ms(plan: FeaturePlan) -> NDArray[np.int64]:
    """How far back each view feature looks (ms); one without a window looks back over the horizon of its rows."""
    reaches = [
        feature.window_ms + feature.delay_ms if feature.window_ms else plan.entities[entity].horizon_ms
        for feature, entity, _ in plan.view_columns
    ]
    return np.array(reaches, dtype=np.int64)


def make_plan(checked: CheckedSpec) -> FeaturePlan:
    """Compile `checked` into arrays for the kernel. Equal windows of an entity are scanned once."""
    spec = checked.spec
    # Rows hold no fields, so views with conditions or with other values have rows of their own.
    names: list[_RowKind] = [(name, (), None) for name in spec.entities]
    for view in spec.views:
        kind = _row_kind(spec, view)
        if kind not in names:
            names.append(kind)
    windows: list[dict[tuple[int, int, bool], int]] = [{} for _ in names]
    columns: list[tuple[ViewFeature, int, int]] = []
    labelled, spread = [False] * len(names), [False] * len(names)
    for feature in checked.view_features:
        entity = names.index(_row_kind(spec, feature.view))
        labelled[entity] |= feature.aggregate in LABELLED
        spread[entity] |= feature.aggregate in SPREAD
        slot = -1
        if feature.window_ms:
            window = (feature.window_ms, feature.delay_ms, feature.view.current == "include")
            slot = windows[entity].setdefault(window, len(windows[entity]))
        columns.append((feature, entity, slot))
    plans = []
    for entity, (name, where, of) in enumerate(names):
        keys = list(windows[entity])
        # Without a window, rows still reach back 30 days, because `is_new` needs a bound.
        horizon = max([w + d for w, d, _ in keys], default=duration_ms("30d"))
        plans.append(
            EntityPlan(
                name=name,
                windows=Windows(
                    window_ms=np.array([k[0] for k in keys], dtype=np.int64),
                    delay_ms=np.array([k[1] for k in keys], dtype=np.int64),
                    include_current=np.array([k[2] for k in keys], dtype=np.bool_),
                    horizon_ms=horizon,
                ),
                takes_labels=labelled[entity],
                spread=spread[entity],
                where=where,
                of=of,
            )
        )
    partition_entity = list(spec.entities).index(spec.partition_entity) if spec.partition_entity else -1
    return FeaturePlan(plans, columns, partition_entity, spec.limits.row_entries)


def _row_kind(spec: PipelineSpec, view: View) -> _RowKind:
    return view.entity, compile_conditions(spec.transaction.fields, view.where), view.of
