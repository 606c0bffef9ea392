"""Decoders generated from a pipeline spec: from JSON bytes to validated numpy columns.

`msgspec` decodes and validates at C speed. A refused record becomes a `RecordError` with a stable code and the path of
the invalid field. Messages never contain a value, so a sensitive field cannot leak through an error.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import xxhash
from msgspec import Meta
from numpy.typing import NDArray

from stream_scorer.errors import RecordError
from stream_scorer.records import EXACT_INTEGERS, NOT_A_RECORD
from stream_scorer.serde.currency import Currencies
from stream_scorer.spec.model import MAX_VALUE, CheckedSpec, Field, TransactionShape, duration_ms

_PATH = re.compile(r" - at `(.*)`$")
_FIELD = re.compile(r"field `(\w+)`")


@dataclass(slots=True)
class Transactions:
    """Decoded transactions as columns.

    Attributes:
        row: (n,) int64, index in the raw records.
        event_id: n strings. id_hash: (n,) int64, xxh3 of the event id.
        event_time: (n,) int64 epoch ms. value: (n,) int64 minor units of the reference currency.
        entity_ids: entity name -> n ids, None if the transaction has none; hashes if the entity is sensitive.
        columns: field name -> (n,) float64, NaN if absent; a category is its index in the spec.
    """

    row: NDArray[np.int64]
    event_id: list[str]
    id_hash: NDArray[np.int64]
    event_time: NDArray[np.int64]
    value: NDArray[np.int64]
    entity_ids: dict[str, list[str | None]]
    columns: dict[str, NDArray[np.float64]]

    def __len__(self) -> int:
        return len(self.event_id)


@dataclass(slots=True)
class Labels:
    """Decoded labels as columns.

    Attributes:
        row: (n,) int64, index in the raw records. id_hash: (n,) int64, xxh3 of the transaction's event id.
        event_time: (n,) int64, of the transaction. labelled_at: (n,) int64. fraud: (n,) bool.
        entity_ids: entity name -> n ids, None if absent; hashes if the entity is sensitive.
    """

    row: NDArray[np.int64]
    event_id: list[str]
    id_hash: NDArray[np.int64]
    event_time: NDArray[np.int64]
    labelled_at: NDArray[np.int64]
    fraud: NDArray[np.bool_]
    entity_ids: dict[str, list[str | None]]

    def __len__(self) -> int:
        return len(self.event_id)


Rejected = list[tuple[int, RecordError]]


def hash_ids(ids: Sequence[str]) -> NDArray[np.int64]:
    """(n,) int64: xxh3-64 of each id.

    The probability of a collision within the few hundred events of an entity is negligible.
    """
    return np.fromiter(map(xxhash.xxh3_64_intdigest, map(str.encode, ids)), np.uint64, len(ids)).view(np.int64)


class TransactionDecoder:
    """Decodes transactions as declared in the spec."""

    def __init__(self, checked: CheckedSpec) -> None:
        spec = checked.spec
        shape = spec.transaction
        self._max_bytes = spec.limits.max_value_bytes
        self._max_ahead = duration_ms(spec.time.max_ahead)
        self._max_age = duration_ms(spec.time.max_age)
        self._time_field = shape.time
        needed = [name for name, field in shape.fields.items() if not _is_free_text(field)]
        self._codes = {
            name: {value: float(code) for code, value in enumerate(shape.fields[name].values or [])}
            for name in needed
            if shape.fields[name].type == "category"
        }
        present = {d.of[0] for d in spec.derived if d.function == "present"}
        self._present = [name for name in shape.fields if name in present and name not in needed]
        self._names = list(dict.fromkeys([shape.id, shape.time, shape.value, *needed, *self._present]))
        self._entities = {name: entity.field for name, entity in spec.entities.items()}
        self._pseudonyms = checked.pseudonyms
        self._wanted = list(dict.fromkeys([*self._names, *self._entities.values()]))
        self._id, self._time, self._value = shape.id, shape.time, shape.value
        self._currencies = Currencies(shape)
        struct = msgspec.defstruct("Transaction", _struct_fields(shape), kw_only=True, gc=False)
        self._decode = msgspec.json.Decoder(struct).decode
        self._row_of = attrgetter(*self._wanted)

    def decode(self, values: Sequence[bytes | None], timestamps: NDArray[np.int64]) -> tuple[Transactions, Rejected]:
        """Decode `values`, and compare event times with the records' Kafka timestamps (`timestamps`, (n,) ms).

        Returns valid records as columns and invalid ones as ``(index, RecordError)``, both in order.
        """
        structs, rows, rejected = decode_each(self._decode, values, self._max_bytes)
        columns = self._columns(structs)
        times = np.array(columns[self._time], dtype=np.int64)
        row = np.array(rows, dtype=np.int64)
        age = timestamps[row] - times
        implausible = (age > self._max_age) | (age < -self._max_ahead)
        if implausible.any():
            path = f"$.{self._time_field}"
            for index in row[implausible].tolist():
                rejected.append((index, RecordError("time_out_of_range", "event time is implausible", path=path)))
            rejected.sort(key=lambda item: item[0])
            keep = np.flatnonzero(~implausible)
            structs = [structs[i] for i in keep.tolist()]
            row, times = row[keep], times[keep]
            columns = self._columns(structs)
        numeric = {
            name: _numeric(columns[name], self._codes.get(name))
            for name in self._names
            if name not in self._present and name not in (self._id, self._value)
        }
        for name in self._present:
            numeric[name] = np.array([np.nan if v is None else 1.0 for v in columns[name]])
        ids = {field: columns[field] for field in {self._id, *self._entities.values()}}
        value = np.array(columns[self._value], dtype=np.int64)
        return self.assemble(row, times, value, numeric, ids), rejected

    def assemble(
        self,
        row: NDArray[np.int64],
        event_time: NDArray[np.int64],
        value: NDArray[np.int64],
        numeric: dict[str, NDArray[np.float64]],
        ids: dict[str, list[Any]],
    ) -> Transactions:
        """Columns of n valid transactions as `Transactions`.

        Args:
            value: (n,) minor units in the currency of the transaction. ids: by field, the event id and all entity ids.
            numeric: by field, all others that features read, see `Transactions.columns`; gains the converted value.
        """
        converted = self._currencies.convert(value, numeric)
        numeric[self._value] = converted.astype(np.float64)
        return Transactions(
            row=row,
            event_id=ids[self._id],
            id_hash=hash_ids(ids[self._id]),
            event_time=event_time,
            value=converted,
            entity_ids={n: self._pseudonyms.column(n, ids[field]) for n, field in self._entities.items()},
            columns=numeric,
        )

    def _columns(self, structs: list[Any]) -> dict[str, list[Any]]:
        if not structs:
            return {name: [] for name in self._wanted}
        return dict(zip(self._wanted, map(list, zip(*map(self._row_of, structs), strict=True)), strict=True))


class LabelDecoder:
    """Decodes labels: ``event_id, event_time, label, labelled_at, source, review_probability?`` and entity fields."""

    def __init__(self, checked: CheckedSpec) -> None:
        spec = checked.spec
        self._max_bytes = spec.limits.max_value_bytes
        self._max_ahead = duration_ms(spec.time.max_ahead)
        self._max_age = duration_ms(spec.time.max_age)
        self._entities = {name: entity.field for name, entity in spec.entities.items()}
        self._pseudonyms = checked.pseudonyms
        fields = spec.transaction.fields
        time = Annotated[int, Meta(ge=0, le=EXACT_INTEGERS)]
        known: list[tuple[str, Any] | tuple[str, Any, Any]] = [
            ("event_id", Annotated[str, Meta(min_length=1, max_length=4096)]),
            ("event_time", time),
            ("label", Literal["fraud", "genuine"]),
            ("labelled_at", time),
            ("source", Annotated[str, Meta(max_length=128)]),
            ("review_probability", Annotated[float, Meta(gt=0, le=1)] | None, None),
        ]
        taken = {name for name, *_ in known}
        for field in dict.fromkeys(self._entities.values()):
            if field not in taken:
                known.append((field, _type_of(fields[field]) | None, None))
        struct = msgspec.defstruct("Label", known, kw_only=True, gc=False)
        self._decode = msgspec.json.Decoder(struct).decode

    def decode(self, values: Sequence[bytes | None], timestamps: NDArray[np.int64]) -> tuple[Labels, Rejected]:
        """Decode `values`, and compare their times with the records' Kafka timestamps (`timestamps`, (n,) ms).

        `labelled_at` must be within ``time.max_age`` and ``time.max_ahead`` of the record, and `event_time` of
        `labelled_at`: a time in another unit, or of a wrong clock, is outside. Returns valid labels as columns and
        invalid ones as ``(index, RecordError)``, both in order.
        """
        structs, rows, rejected = decode_each(self._decode, values, self._max_bytes)
        row = np.array(rows, dtype=np.int64)
        event_time = np.array([s.event_time for s in structs], dtype=np.int64)
        labelled_at = np.array([s.labelled_at for s in structs], dtype=np.int64)
        wrong_label = self._implausible(labelled_at, timestamps[row])
        wrong = wrong_label | self._implausible(event_time, labelled_at)
        if wrong.any():
            for i in np.flatnonzero(wrong).tolist():
                name = "labelled_at" if wrong_label[i] else "event_time"
                rejected.append((rows[i], RecordError("time_out_of_range", f"{name} is implausible", path=f"$.{name}")))
            rejected.sort(key=lambda item: item[0])
            keep = np.flatnonzero(~wrong)
            structs = [structs[i] for i in keep.tolist()]
            row, event_time, labelled_at = row[keep], event_time[keep], labelled_at[keep]
        ids = [s.event_id for s in structs]
        return (
            Labels(
                row=row,
                event_id=ids,
                id_hash=hash_ids(ids),
                event_time=event_time,
                labelled_at=labelled_at,
                fraud=np.array([s.label == "fraud" for s in structs], dtype=np.bool_),
                entity_ids={
                    name: self._pseudonyms.column(name, [getattr(s, field) for s in structs])
                    for name, field in self._entities.items()
                },
            ),
            rejected,
        )

    def _implausible(self, times: NDArray[np.int64], reference: NDArray[np.int64]) -> NDArray[np.bool_]:
        age = reference - times
        return (age > self._max_age) | (age < -self._max_ahead)


def decode_each(decode: Any, values: Sequence[bytes | None], max_bytes: int) -> tuple[list[Any], list[int], Rejected]:
    """Apply `decode` to every value. Returns the decoded objects, their indices, and the rejected records."""
    structs: list[Any] = []
    rows: list[int] = []
    rejected: Rejected = []
    for index, value in enumerate(values):
        try:
            if not value or len(value) > max_bytes:
                raise _unreadable(value, max_bytes)
            structs.append(decode(value))
            rows.append(index)
        except RecordError as error:
            rejected.append((index, error))
        except NOT_A_RECORD as error:
            rejected.append((index, record_error(error, value)))
    return structs, rows, rejected


def record_error(error: Exception, value: bytes | None) -> RecordError:
    """The error of a record that msgspec refused, without any part of its content."""
    text = str(error)
    if isinstance(error, msgspec.ValidationError):
        found = _PATH.search(text)
        path = found.group(1) if found else "$"
        message = text[: found.start()] if found else text
        if message.startswith("Object missing required field"):
            name = _FIELD.search(message)
            return RecordError("missing_field", message, path=f"{path}.{name.group(1)}" if name else path)
        if message.startswith(("Expected `int` ", "Expected `float` ", "Expected `str` of length", "Expected `int`, ")):
            code = "wrong_type" if ", got" in message else "out_of_range"
            return RecordError(code, message, path=path)
        if message.startswith("Invalid enum value"):
            return RecordError("out_of_range", "the value is not one of the declared values", path=path)
        return RecordError("wrong_type" if "got" in message else "out_of_range", message, path=path)
    try:
        (value or b"").decode("utf-8")
    except UnicodeDecodeError as broken:
        return RecordError("not_utf8", f"not UTF-8 at byte {broken.start}")
    return RecordError("not_json", "nested too deeply" if isinstance(error, RecursionError) else text)


def _unreadable(value: bytes | None, max_bytes: int) -> RecordError:
    if not value:
        return RecordError("empty_value", "the record has no value")
    return RecordError("value_too_large", f"{len(value)} bytes, the limit is {max_bytes}")


def _is_free_text(field: Field) -> bool:
    return field.type == "string"


def _numeric(values: list[Any], codes: dict[str, float] | None) -> NDArray[np.float64]:
    if codes is not None:
        return np.array([np.nan if v is None else codes[v] for v in values], dtype=np.float64)
    return np.array(values, dtype=np.float64)  # None becomes NaN


def _struct_fields(shape: TransactionShape) -> list[Any]:
    out: list[Any] = []
    # Of an amount in minor units of its own currency, so that the converted one is at most `MAX_VALUE`.
    most = int(MAX_VALUE / max(1.0, *shape.rates.values())) if shape.rates else MAX_VALUE
    for name, field in shape.fields.items():
        kind = _type_of(field, most if name == shape.value else EXACT_INTEGERS)
        out.append((name, kind | None, None) if field.optional else (name, kind))
    return out


def _type_of(field: Field, most: int = EXACT_INTEGERS) -> Any:
    if field.type == "string":
        return Annotated[str, Meta(min_length=1, max_length=field.max_length)]
    if field.type == "time":
        return Annotated[int, Meta(ge=0, le=EXACT_INTEGERS)]
    if field.type == "integer":
        low = -most if field.min is None else max(int(field.min), -most)
        high = most if field.max is None else min(int(field.max), most)
        return Annotated[int, Meta(ge=low, le=high)]
    if field.type == "number":
        limit = 1.7e308
        low_f = -limit if field.min is None else float(field.min)
        high_f = limit if field.max is None else float(field.max)
        return Annotated[float, Meta(ge=low_f, le=high_f)]
    if field.type == "boolean":
        return bool
    return Literal[tuple(field.values or ())]
