"""What a spec asks of the kernel: per entity, which windows; per feature, which accumulator it reads."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

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

# An entity, the conditions under which its transactions count, and the field that stands in place of the amount.
_RowKind = tuple[str, Conditions, str | None]
# Panes in a window: what two of them hold is the most that an old entry near the window's edges can be miscounted by.
PANES = 32


@dataclass(frozen=True, slots=True)
class EntityPlan:
    """The windows one entity's rows are scanned for.

    Attributes:
        window_ms, delay_ms: (m,) int64. include_current: (m,) bool.
        horizon_ms: how far back an event still counts for `since_last` and `is_new`, and in any window.
        takes_labels: whether labels are kept in this entity's rows.
        spread: whether a feature asks for the least, the greatest or the deviation of values.
        where: what counts in these rows.
        of: the field whose values stand in the rows in place of the amount, to count the distinct ones.
        level_of: (m,) int64, each window's level of panes. pane_ms, cover_ms: (l,) int64, the width of a level's panes
            and how far back they are looked at. last_level: the level that reaches back to the horizon.
    """

    name: str
    window_ms: NDArray[np.int64]
    delay_ms: NDArray[np.int64]
    include_current: NDArray[np.bool_]
    horizon_ms: int
    takes_labels: bool
    spread: bool
    where: Conditions = ()
    of: str | None = None
    level_of: NDArray[np.int64] = field(init=False)
    pane_ms: NDArray[np.int64] = field(init=False)
    cover_ms: NDArray[np.int64] = field(init=False)
    last_level: int = field(init=False)

    def __post_init__(self) -> None:
        """Levels of panes: one for each length of window, and one that reaches back to the horizon."""
        reach = self.window_ms + self.delay_ms
        wide = np.append(self.window_ms, self.window_ms[reach.argmax()] if len(reach) else self.horizon_ms)
        pane_ms, level_of = np.unique(-(-wide // PANES), return_inverse=True)
        cover_ms = np.zeros(len(pane_ms), dtype=np.int64)
        np.maximum.at(cover_ms, level_of, np.append(reach, self.horizon_ms))
        for name, made in (("level_of", level_of[:-1]), ("pane_ms", pane_ms), ("cover_ms", cover_ms)):
            object.__setattr__(self, name, made.astype(np.int64))
        object.__setattr__(self, "last_level", int(level_of[-1]))


@dataclass(frozen=True, slots=True)
class FeaturePlan:
    """Entities in declared order, then one more for whatever of an entity is kept apart: counted under conditions, or
    with another field as value.

    `view_columns` has ``(feature, entity index, window index)`` of each view feature.
    """

    entities: list[EntityPlan]
    view_columns: list[tuple[ViewFeature, int, int]]
    partition_entity: int
    row_entries: int

    @property
    def horizon_ms(self) -> int:
        """The longest horizon of any entity."""
        return max((e.horizon_ms for e in self.entities), default=0)


def make_plan(checked: CheckedSpec) -> FeaturePlan:
    """Compile `checked` into arrays the kernel can loop over; equal windows of an entity are scanned once."""
    spec = checked.spec
    # Rows hold no fields: what is counted under conditions, or of other values, has rows of its own.
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
        # Without any window an entity still remembers for 30 days who was seen: `is_new` needs a bound.
        horizon = max([w + d for w, d, _ in keys], default=duration_ms("30d"))
        plans.append(
            EntityPlan(
                name=name,
                window_ms=np.array([k[0] for k in keys], dtype=np.int64),
                delay_ms=np.array([k[1] for k in keys], dtype=np.int64),
                include_current=np.array([k[2] for k in keys], dtype=np.bool_),
                horizon_ms=horizon,
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
