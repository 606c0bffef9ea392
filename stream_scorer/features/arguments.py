"""The arguments of the kernel, grouped. numba accepts named tuples of arrays and numbers."""

from __future__ import annotations

from typing import NamedTuple

from stream_scorer.arrays import Bools, Ints


class Rows(NamedTuple):
    """The rows of k entities, one after another: entries (total, 4), and where each row starts and ends (k,)."""

    entries: Ints
    start: Ints
    end: Ints


class Events(NamedTuple):
    """The n events of a batch, in batch order, as one entity sees them.

    key_of: (n,) the row of each event, -1 for none. time: (n,) ms. value: (n,). duplicate: (n,) events that count
    nowhere.
    """

    key_of: Ints
    time: Ints
    value: Ints
    duplicate: Bools


class LabelEvents(NamedTuple):
    """The n labels of a batch, in batch order.

    key_of: (n,) the row of each label, -1 for none. id_hash: (n,) of the labelled event. time: (n,) ms of that event.
    fraud: (n,). labelled_at: (n,) ms.
    """

    key_of: Ints
    id_hash: Ints
    time: Ints
    fraud: Bools
    labelled_at: Ints


class Windows(NamedTuple):
    """The m windows of an entity. An event at t counts the times in ``(t - delay - window, t - delay]``.

    window_ms, delay_ms: (m,). include_current: (m,) whether the event counts itself. horizon_ms: how far back an event
    counts for the time of the last one.
    """

    window_ms: Ints
    delay_ms: Ints
    include_current: Bools
    horizon_ms: int


class PaneLevels(NamedTuple):
    """The pane levels of an entity, see ADR 0011.

    level_of: (m,) the level of each window. width_ms: (l,) the width of the panes of each level. last_level: the level
    that covers the horizon.
    """

    level_of: Ints
    width_ms: Ints
    last_level: int
