"""Positions in the input log: partitions and the offset ranges that a batch covers. Imports nothing of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias


class SourcePartition(NamedTuple):
    """An input partition."""

    topic: str
    partition: int


Offsets: TypeAlias = Mapping[SourcePartition, int]


class Span(NamedTuple):
    """The input offsets ``[start, stop)`` of one partition that an update covers, and its newest event time (ms)."""

    source: SourcePartition
    start: int
    stop: int
    watermark: int
