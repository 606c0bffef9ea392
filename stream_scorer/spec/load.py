"""Reads a pipeline spec from YAML, and checks what types cannot express, such as references between names."""

from __future__ import annotations

import hashlib
import logging
import re
from pathlib import Path

import msgspec

from stream_scorer.documents import NO_MAPPING, InvalidNode, convert, hint_for, load_document, parse_yaml
from stream_scorer.errors import SpecError
from stream_scorer.spec.model import (
    LABEL_COLUMNS,
    LABELLED,
    MAX_VALUE,
    OPTIONAL_LABEL_COLUMNS,
    WINDOWED,
    CheckedSpec,
    Condition,
    EntityList,
    PipelineSpec,
    TransactionShape,
    View,
    duration_ms,
    keys_in,
)
from stream_scorer.spec.values import check_condition, check_durations, check_feature_names, check_field, check_rates

_log = logging.getLogger(__name__)
_NUMERIC = ("integer", "number", "time", "boolean")
# Number of arguments of derived functions, if it is not 1.
_ARITY = {"ratio": 2, "difference": 2}
_TIME_FUNCTIONS = ("hour", "weekday", "is_weekend", "is_night")


def load_spec(path: Path | str, id_key: str = "") -> CheckedSpec:
    """Read and check the spec at `path`. Raises `SpecError` with the file, the node and a hint.

    `id_key` is the secret of the hashes that replace ids of sensitive entities.
    """
    path = Path(path)
    return load_document(
        path,
        "pipeline spec",
        lambda text: parse_spec(text, path.parent, id_key),
        error=SpecError,
        hint="Set --spec to the path of a YAML file.",
    )


def parse_spec(text: str, folder: Path = Path(), id_key: str = "") -> CheckedSpec:
    """Check the spec in `text` (YAML). Paths in it are relative to `folder`. Raises `SpecError`."""
    try:
        spec = convert(parse_yaml(text, error=SpecError), PipelineSpec)
    except InvalidNode as invalid:
        hint = hint_for(invalid.message, keys_in(PipelineSpec.__module__), "docs/spec.md")
        if invalid.message.startswith(NO_MAPPING):
            hint = "`stream-scorer data draft` makes a first spec from a CSV file."
        raise SpecError(invalid.message, path=invalid.node or "(top level)", hint=hint) from None
    _check(spec)
    spec = _with_lists_read(spec, folder)
    canonical = msgspec.json.encode(spec, order="deterministic")
    return CheckedSpec(spec, hashlib.sha256(canonical).hexdigest(), id_key)


def _check(spec: PipelineSpec) -> None:
    fields = spec.transaction.fields
    check_durations(spec)
    _check_roles(spec)
    for name, field in fields.items():
        check_field(name, field, is_value=name == spec.transaction.value)
    for name, entity in spec.entities.items():
        owner = fields.get(entity.field)
        if owner is None or owner.type != "string":
            raise SpecError(f"there is no string field {entity.field!r}", path=f"entities.{name}.field")
        _check_free_name(entity.field, spec.transaction.id, f"entities.{name}.field")
    if spec.entities and spec.partition_entity not in spec.entities:
        raise SpecError(
            f"{spec.partition_entity!r} is not an entity",
            path="partition_entity",
            hint="Name the entity whose id is the Kafka key of transactions.",
        )
    _check_views(spec)
    _check_derived(spec)
    _check_policy(spec)
    if duration_ms(spec.monitor.pane) < 1_000:
        raise SpecError("a pane must be at least 1s", path="monitor.pane")


def _check_free_name(name: str, identity: str, path: str) -> None:
    """Labels contain the ids of entities: their field `name` must not be a column of labels with another content."""
    taken = *LABEL_COLUMNS, *OPTIONAL_LABEL_COLUMNS
    if name in taken and not name == identity == "event_id":
        raise SpecError(
            f"the entity field {name!r} has the name of a column of the labels ({', '.join(taken)})",
            path=path,
            hint="Rename the field in the spec and in the records, and the column in a CSV file.",
        )


def _check_roles(spec: PipelineSpec) -> None:
    fields = spec.transaction.fields
    roles = {
        "id": ("string", spec.transaction.id),
        "time": ("time", spec.transaction.time),
        "value": ("integer", spec.transaction.value),
    }
    for role, (kind, name) in roles.items():
        field = fields.get(name)
        if field is None:
            raise SpecError(f"there is no field {name!r}", path=f"transaction.{role}")
        if field.type != kind or field.optional:
            raise SpecError(f"{name!r} must be a required field of type {kind}", path=f"transaction.{role}")
        if field.sensitive:
            raise SpecError(f"the {role} must not be sensitive, as it is published", path=f"transaction.fields.{name}")
    _check_currency(spec.transaction)
    limit = fields[spec.transaction.value].max
    if limit is not None and limit > MAX_VALUE:
        raise SpecError(
            f"max is above {MAX_VALUE}: sums could overflow", path=f"transaction.fields.{spec.transaction.value}"
        )


def _check_currency(shape: TransactionShape) -> None:
    """Sums and means must not add up amounts of different currencies."""
    check_rates(shape.rates)
    if shape.currency is None:
        if shape.rates:
            raise SpecError("rates require `currency`, the field of the currency", path="transaction.rates")
        return
    field = shape.fields.get(shape.currency)
    if field is None:
        raise SpecError(f"there is no field {shape.currency!r}", path="transaction.currency")
    if field.type != "category" or field.optional:
        raise SpecError(
            f"{shape.currency!r} must be a required category",
            path="transaction.currency",
            hint="List the currencies in its `values`: a transaction in another one becomes a dead letter.",
        )
    currencies = field.values or []
    if not currencies or set(shape.rates) == set(currencies) or (len(currencies) == 1 and not shape.rates):
        return  # a category without values is refused in any case
    raise SpecError(
        f"rates are necessary for exactly the currencies {', '.join(currencies)}: sums would mix them",
        path="transaction.rates",
        hint="Give the minor units of one currency that a minor unit of each is worth, such as EUR: 1, USD: 0.92; "
        "or allow one currency only.",
    )


def _check_views(spec: PipelineSpec) -> None:
    seen: set[str] = set()
    for index, view in enumerate(spec.views):
        path = f"views[{index}]"
        if view.name in seen:
            raise SpecError(f"two views are named {view.name!r}", path=path)
        seen.add(view.name)
        if view.entity not in spec.entities:
            raise SpecError(f"{view.entity!r} is not an entity", path=f"{path}.entity")
        windowed = [a for a in view.aggregates if a in WINDOWED]
        if windowed and not view.windows:
            raise SpecError(f"the aggregate {windowed[0]} requires windows", path=f"{path}.windows")
        if view.windows and not windowed:
            raise SpecError("no aggregate of this view uses windows", path=f"{path}.windows")
        if any(duration_ms(window) == 0 for window in view.windows):
            raise SpecError("a window must be longer than 0", path=f"{path}.windows")
        if view.where and any(a in LABELLED for a in view.aggregates):
            raise SpecError(
                "a view of labels cannot have `where`, as labels do not contain the fields of the transaction",
                path=path,
            )
        check_feature_names(view, path)
        _check_where(spec, view.where, path)
        _check_of(spec, view, path)
        is_labelled = any(a in LABELLED for a in view.aggregates)
        if is_labelled and view.current == "include" and duration_ms(view.delay) == 0:
            raise SpecError(
                "a view of labels without a delay must exclude the current event",
                path=path,
                hint="Set current: exclude, and give labels the time at which they became known (docs/limits.md).",
            )


def _check_policy(spec: PipelineSpec) -> None:
    policy = spec.policy
    if policy.review > policy.block:
        raise SpecError("review is greater than block", path="policy")
    seen: set[str] = set()
    for index, segment in enumerate(policy.segments):
        path = f"policy.segments[{index}]"
        _check_where(spec, segment.where, path)
        if segment.review > segment.block:
            raise SpecError("review is greater than block", path=path)
    for index, entry in enumerate(policy.lists):
        path = f"policy.lists[{index}]"
        if entry.entity not in spec.entities:
            raise SpecError(f"{entry.entity!r} is not an entity", path=f"{path}.entity")
        if bool(entry.ids) == (entry.file is not None):
            raise SpecError("a list must have either `ids`, which are not empty, or `file`", path=path)
    for name in [segment.name for segment in policy.segments] + [entry.name for entry in policy.lists]:
        if name in seen:
            raise SpecError(f"two segments or lists are named {name!r}", path="policy")
        seen.add(name)


def _with_lists_read(spec: PipelineSpec, folder: Path) -> PipelineSpec:
    """The spec with list files read into `ids`, so that its hash covers their content."""
    replace = msgspec.structs.replace
    lists = []
    for index, entry in enumerate(spec.policy.lists):
        if entry.file is None:
            _check_lengths(spec, entry, f"policy.lists[{index}].ids")
            lists.append(entry)
            continue
        try:
            # Editors and spreadsheets on Windows put a byte order mark in front of the first id.
            lines = (folder / entry.file).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SpecError(f"cannot read the list: {error}", path=f"policy.lists[{index}].file") from None
        ids = [line.strip() for line in lines if line.strip()]
        if not ids:
            raise SpecError(
                f"the list {entry.file} has no ids",
                path=f"policy.lists[{index}].file",
                hint="An export that failed may have left it empty. Remove the list from the spec if it is not needed.",
            )
        _check_lines(ids, entry.file, f"policy.lists[{index}].file")
        lists.append(replace(entry, ids=ids))
        _check_lengths(spec, lists[-1], f"policy.lists[{index}].file")
    return replace(spec, policy=replace(spec.policy, lists=lists))


def _check_lengths(spec: PipelineSpec, entry: EntityList, path: str) -> None:
    """Raise `SpecError` if no transaction can have an id of the list. No message has an id, as it may be sensitive."""
    most = spec.transaction.fields[spec.entities[entry.entity].field].max_length
    long = [number for number, each in enumerate(entry.ids, 1) if len(each) > most]
    text = f"{len(long)} of {len(entry.ids)} ids are longer than the {most} characters that their field may have"
    if long and len(long) == len(entry.ids):
        raise SpecError(text, path=path)
    if long:
        _log.warning("%s: %s, so they match nothing; the first is number %d", path, text, long[0])


def _check_lines(lines: list[str], file: str, path: str) -> None:
    """Raise `SpecError` for what looks like a table or like quoted texts: no transaction would match such ids."""
    hint = "The file has one id per line and nothing else. If these are the ids, write them under `ids`."
    for separator, name in ((";", "semicolons"), (",", "commas"), ("\t", "tabs")):
        if all(separator in line for line in lines):
            raise SpecError(f"all lines of {file} have {name}", path=path, hint=hint)
    quoted = [len(line) > 1 and line[0] == line[-1] == '"' for line in lines]
    if sum(quoted) * 2 > len(lines):
        raise SpecError(f"{sum(quoted)} of {len(lines)} lines of {file} are in quotes", path=path, hint=hint)
    if any(quoted):
        _log.warning("%s: line %d of %s is in quotes, so it matches nothing", path, quoted.index(True) + 1, file)


def _check_where(spec: PipelineSpec, where: dict[str, Condition], path: str) -> None:
    for name, condition in where.items():
        at = f"{path}.where.{name}"
        field = spec.transaction.fields.get(name)
        if field is None:
            raise SpecError(f"there is no field {name!r}", path=at)
        check_condition(condition, at)
        bounds = condition.min is not None or condition.max is not None
        if bounds == (condition.values is not None):
            raise SpecError("a condition must have either `in`, or `min` and `max`", path=at)
        if bounds and field.type not in _NUMERIC:
            raise SpecError(f"{name!r} of type {field.type} does not allow bounds", path=at)
        if condition.values is not None:
            known: set[str | bool] = {True, False} if field.type == "boolean" else set(field.values or [])
            unknown = [value for value in condition.values if value not in known]
            if field.type not in ("category", "boolean") or unknown or not condition.values:
                raise SpecError(f"{name!r} does not have the values {unknown or '(none given)'}", path=at)


def _check_of(spec: PipelineSpec, view: View, path: str) -> None:
    if (view.of is not None) != (view.aggregates == ["distinct"]):
        raise SpecError(
            "the aggregate `distinct` requires `of`, and must be the only aggregate of its view",
            path=path,
            hint="Write `aggregates: [distinct], of: <field>`.",
        )
    if view.of is None:
        return
    field = spec.transaction.fields.get(view.of)
    if field is None:
        raise SpecError(f"there is no field {view.of!r}", path=f"{path}.of")
    identities = {entity.field for entity in spec.entities.values()}
    if field.type not in ("integer", "category", "boolean") and view.of not in identities:
        raise SpecError(
            f"distinct values of {view.of!r} cannot be counted",
            path=f"{path}.of",
            hint="Use an integer, a category, a boolean, or the field of an entity.",
        )
    if field.sensitive and field.type == "integer":
        raise SpecError(
            f"distinct values of {view.of!r} would be stored as they are, and it is sensitive",
            path=f"{path}.of",
            hint="Declare it as a string and as the field of an entity: the ids of entities are hashed.",
        )


def _check_derived(spec: PipelineSpec) -> None:
    from stream_scorer.spec.model import view_features

    fields = spec.transaction.fields
    columns = {f.name for view in spec.views for f in view_features(view)}
    for index, derived in enumerate(spec.derived):
        path = f"derived[{index}]"
        if len(derived.of) != _ARITY.get(derived.function, 1):
            raise SpecError(f"{derived.function} takes {_ARITY.get(derived.function, 1)} column(s)", path=f"{path}.of")
        for name in derived.of:
            field = fields.get(name)
            if field is None and name not in columns:
                raise SpecError(f"there is no field or earlier feature {name!r}", path=f"{path}.of")
            wanted = _wanted_types(derived.function)
            if field is not None and field.type not in wanted:
                raise SpecError(f"{derived.function} cannot take {name!r} of type {field.type}", path=f"{path}.of")
            if field is None and derived.function in ("code", "present", *_TIME_FUNCTIONS):
                raise SpecError(f"{derived.function} requires a field of the transaction", path=f"{path}.of")
        if derived.name in columns or derived.name in {d.name for d in spec.derived[:index]}:
            raise SpecError(f"two columns are named {derived.name!r}", path=path)
        columns.add(derived.name)
    for name, members in spec.feature_sets.items():
        for member in members:
            pattern = re.compile(re.escape(member).replace(r"\*", ".*") + "$")
            if not any(pattern.match(column) for column in columns):
                raise SpecError(f"{member!r} matches no feature", path=f"feature_sets.{name}")


def _wanted_types(function: str) -> tuple[str, ...]:
    if function == "code":
        return ("category", "boolean")
    if function == "present":
        return ("string", "time", "integer", "number", "category", "boolean")
    if function in _TIME_FUNCTIONS:
        return ("time",)
    return _NUMERIC
