"""Canonical bytes of a published record: the same input, spec and ensemble must give the same bytes again."""

from __future__ import annotations

from typing import Any

import msgspec

from stream_scorer.records import Record

# Properties of the run and not of the transaction: time of scoring, lag of other partitions and labels, arm of an
# experiment, and other versions in play.
EXCLUDED: dict[str, Any] = {
    "scored_at": 0,
    "arm": "",
    "partitions_age": None,
    "labels_age": None,
    "alternatives": [],
    "control_offset": None,
}

_encode = msgspec.json.Encoder(order="deterministic").encode


def canonical(record: Record) -> bytes:
    """JSON of `record` with sorted keys and the fields of `EXCLUDED` blanked."""
    blank = {name: value for name, value in EXCLUDED.items() if name in record.__struct_fields__}
    return _encode(msgspec.structs.replace(record, **blank) if blank else record)


def first_difference(one: Record, other: Record) -> tuple[str, Any, Any] | None:
    """Path and both values of the first field in which the canonical forms differ; None if they are equal.

    A path looks like ``members[2].score`` or ``features[7]``.
    """
    left, right = msgspec.json.decode(canonical(one)), msgspec.json.decode(canonical(other))
    return _differ(left, right, "")


def _differ(left: Any, right: Any, path: str) -> tuple[str, Any, Any] | None:
    if isinstance(left, dict) and isinstance(right, dict):
        for name in left.keys() | right.keys():
            if name not in left or name not in right:
                return _join(path, name), left.get(name), right.get(name)
        pairs = [(_join(path, name), left[name], right[name]) for name in left]
    elif isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        pairs = [(f"{path}[{i}]", a, b) for i, (a, b) in enumerate(zip(left, right, strict=True))]
    else:
        return None if left == right else (path, left, right)
    for where, a, b in pairs:
        found = _differ(a, b, where)
        if found is not None:
            return found
    return None


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
