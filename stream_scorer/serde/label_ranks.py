"""Ranks of label sources: of several labels of one transaction, that of the source with the highest rank counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream_scorer.records import Record
from stream_scorer.serde.decoder import Labels
from stream_scorer.structs import prepare


class _SourceOnly(Record, frozen=True):
    source: str


def source_rank(ranks: Mapping[str, int], source: str) -> int:
    """Rank of `source` by ``labels.source_rank`` of the spec; one that is not listed ranks below all that are."""
    rank = ranks.get(source)
    return min([0, *ranks.values()]) - 1 if rank is None else rank


def label_ranks(ranks: Mapping[str, int], labels: Labels, values: Sequence[bytes | None]) -> NDArray[np.int64]:
    """``(n,) int64``: the rank of each of `labels`, which are decoded from `values`."""
    if not ranks:
        return np.full(len(labels), source_rank(ranks, ""), np.int64)
    decode = msgspec.json.Decoder(_SourceOnly).decode
    found = [source_rank(ranks, decode(values[row] or b"").source) for row in labels.row.tolist()]
    return np.array(found, np.int64)


prepare(globals())
