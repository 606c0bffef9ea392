"""Encoding and decoding of a pane's kind for numba, by the functions of `stream_scorer.state.row_format`."""

from __future__ import annotations

from stream_scorer.compiled import njit
from stream_scorer.state import row_format

pane_kind = njit(inline="always")(row_format.pane_kind)
pane_level = njit(inline="always")(row_format.pane_level)
pane_is_of_labels = njit(inline="always")(row_format.pane_is_of_labels)
pane_delay = njit(inline="always")(row_format.pane_delay)
