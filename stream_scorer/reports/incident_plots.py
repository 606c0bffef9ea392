"""Curves over time for the page of an incident."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stream_scorer.reports.plots import PALETTE, RED, drawn, make_figure, moment, show_legend, show_times

# The year 9999.
_END_MS = 253_370_764_800_000
_MAX_VALUE = 1e30


@dataclass(frozen=True, slots=True)
class Line:
    """One curve: `points` are (time in ms, value)."""

    label: str
    points: Sequence[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Mark:
    """A time that is marked, ms."""

    at: int
    label: str


def lines(
    name: str,
    curves: Sequence[Line],
    axis: str,
    marks: Sequence[Mark] = (),
    *,
    limit: float | None = None,
    dots: bool = False,
) -> str:
    """The curves as SVG, with `marks` as vertical lines and `limit` dashed; empty without a point.

    Points and marks outside the calendar, and values that no axis can show, are left out: anyone who may write to a
    topic can give any.

    Args:
        name: prefix of the ids in the drawing, unique on the page. axis: label of the vertical axis.
    """
    curves = [Line(each.label, [point for point in each.points if _fits(point)]) for each in curves]
    curves = [curve for curve in curves if curve.points]
    if not curves:
        return ""
    marks = [mark for mark in marks if 0 <= mark.at < _END_MS]
    figure, (axes,) = make_figure(1, 1, height=2.6)
    for curve, colour in zip(curves, PALETTE, strict=False):
        times, values = zip(*curve.points, strict=True)
        axes.plot(
            [moment(at) for at in times], values, "o-" if dots else "-", color=colour, label=curve.label,
            linewidth=1.4, markersize=3.5,
        )  # fmt: skip
    if limit is not None:
        axes.axhline(limit, color=RED, linewidth=0.9, linestyle="--", label="limit")
    _mark(axes, marks)
    axes.set_ylabel(axis)
    axes.set_ylim(bottom=min(0.0, *(value for curve in curves for _, value in curve.points)))
    show_times(axes, "time (UTC)")
    if len(curves) > 1 or limit is not None:
        show_legend(axes)
    return drawn(figure, name)


def _fits(point: tuple[int, float]) -> bool:
    return 0 <= point[0] < _END_MS and abs(point[1]) < _MAX_VALUE


def _mark(axes: Any, marks: Sequence[Mark]) -> None:
    for mark in marks:
        axes.axvline(moment(mark.at), color=RED, linewidth=0.9)
        axes.annotate(
            mark.label, (moment(mark.at), 1.0), xycoords=("data", "axes fraction"), xytext=(3, -9),
            textcoords="offset points", fontsize=8,
        )  # fmt: skip
