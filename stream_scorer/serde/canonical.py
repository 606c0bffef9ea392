"""Canonical bytes of a published record: what the same input, spec and ensemble must give again, byte for byte."""

from __future__ import annotations

from typing import Any

import msgspec

from stream_scorer.records import Record

# When it was scored, how far partitions were apart, which arm of an experiment it fell into and what else was in play
# are facts of the run, not of the transaction.
LEFT_OUT: dict[str, Any] = {
    "scored_at": 0,
    "arm": "",
    "partitions_age": None,
    "labels_age": None,
    "alternatives": [],
    "control_offset": None,
}

_encode = msgspec.json.Encoder(order="deterministic").encode


def canonical(record: Record) -> bytes:
    """JSON of `record` with sorted keys and the fields of `LEFT_OUT` blanked."""
    blank = {name: value for name, value in LEFT_OUT.items() if name in record.__struct_fields__}
    return _encode(msgspec.structs.replace(record, **blank) if blank else record)


def first_difference(one: Record, other: Record) -> tuple[str, Any, Any] | None:
    """Path and both values of the first field in which two records differ canonically, None if they do not.

    A path is written as in ``members[2].score`` or ``features[7]``.
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
