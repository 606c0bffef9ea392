"""Model files that were trained elsewhere: their format, their columns, and their conversion for a scorer."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import msgspec

from stream_scorer.ensemble.manifest import MAX_MEMBER_BYTES, Input, MemberFormat, read_bounded, sha256_hex
from stream_scorer.ensemble.members import Member, load_member
from stream_scorer.ensemble.members.dense_json import Dense, Layer, encode_dense
from stream_scorer.ensemble.members.ubjson import MalformedUBJSON, read_ubjson
from stream_scorer.errors import ArtifactError, SettingsError, install_hint
from stream_scorer.train.own.document import OTHERS, ComposeFile, FileFormat, MemberNode
from stream_scorer.train.own.onnx_export import without_zipmap

_SUFFIXES: dict[str, FileFormat] = {
    ".txt": "lightgbm-text",
    ".lgb": "lightgbm-text",
    ".ubj": "xgboost-ubj",
    ".onnx": "onnx",
    ".skops": "skops",
}
# The key of the document that identifies the format of a JSON file.
_JSON_KEYS: dict[str, FileFormat] = {"learner": "xgboost-json", "coefficients": "linear-json", "layers": "dense-json"}
# The names that LightGBM and XGBoost give to columns without names.
_NUMBERED = re.compile(r"(Column_|f)[0-9]+\Z")
_MB = 1_000_000


class Linear(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A `linear-json` file: ``sigmoid(intercept + sum(coefficient * column))``, coefficients by name of the column."""

    intercept: float
    coefficients: dict[str, float]


@dataclass(frozen=True, slots=True)
class OwnModel:
    """A model that a scorer can load.

    Attributes:
        format, data: of the file that a scorer loads. file_format: of the file that was given.
        sha256, size: of the file that was given.
        columns: the names of its columns; None if it has none.
        inputs: the features, in the order of its columns; `preprocess` likewise.
        notes: conversions, as sentences.
    """

    node: MemberNode
    format: MemberFormat
    file_format: FileFormat
    data: bytes
    sha256: str
    size: int
    columns: list[str] | None
    inputs: list[str]
    preprocess: list[Input]
    member: Member
    notes: list[str]


# Genuine and fraud, in the order that scikit-learn sorts them.
_CLASSES = (["0", "1"], ["0.0", "1.0"], ["False", "True"])


def load_model(file: ComposeFile, index: int, features: list[str]) -> OwnModel:
    """Load the model of ``members[index]`` and match its columns with the spec's `features`.

    Raises:
        UsageError: a node of the file is wrong; the message names it.
        ArtifactError: the model file is missing, malformed or not allowed.
        SettingsError: a library that the format needs is not installed.
    """
    node, at = file.document.members[index], f"members[{index}]"
    path = file.find(node.model)
    limit = file.document.limits.model_mb
    try:
        data = read_bounded(path, MAX_MEMBER_BYTES)
    except ArtifactError as error:
        raise ArtifactError(f"{file.path}: {at}.model: {error.message}", code=error.code) from None
    if limit is not None and len(data) > limit * _MB:
        raise file.wrong(f"{at}.model", f"{len(data) / _MB:.1f} MB, above limits.model_mb of {limit:g}")
    digest = sha256_hex(data)
    if node.sha256 is not None and node.sha256 != digest:
        raise file.wrong(f"{at}.sha256", f"{path} has sha256 {digest}", "The file changed since this was written.")
    try:
        file_format = node.format or _format_of(path.suffix, data)
        member_format, converted, notes = _convert(file_format, data)
        columns = _columns(file_format, data)
        inputs = _match(file, at, node, columns, features)
        member = load_member(member_format, converted, len(inputs))
        if member_format == "xgboost-ubj" and node.expected is None:
            _refuse_unclear_rounds(converted)
    except ArtifactError as error:
        hint = error.hint or "Check `format`, `inputs` and the version of the library that wrote the file."
        raise ArtifactError(f"{file.path}: {at}.model: {path}: {error.message}", code=error.code, hint=hint) from None
    preprocess = _preprocess(file, at, node, inputs)
    return OwnModel(
        node, member_format, file_format, converted, digest, len(data), columns, inputs, preprocess, member, notes
    )


def _format_of(suffix: str, data: bytes) -> FileFormat:
    if suffix.lower() in _SUFFIXES:
        return _SUFFIXES[suffix.lower()]
    if suffix.lower() == ".json":
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):
            document = None
        for key, file_format in _JSON_KEYS.items():
            if isinstance(document, dict) and key in document:
                return file_format
    raise ArtifactError("the format cannot be recognised from the name of the file", hint="Set `format`.")


def _convert(file_format: FileFormat, data: bytes) -> tuple[MemberFormat, bytes, list[str]]:
    """The format and content of the file that a scorer loads, and what was converted."""
    if file_format == "xgboost-json":
        return "xgboost-ubj", _xgboost_ubj(data), ["converted from XGBoost's JSON to UBJSON by XGBoost"]
    if file_format == "linear-json":
        linear = _linear(data)
        layer = Layer([[weight] for weight in linear.coefficients.values()], [linear.intercept], "logistic")
        return "dense-json", encode_dense(Dense([layer])), ["converted from linear-json to dense-json"]
    if file_format == "onnx":
        stripped = without_zipmap(data)
        return "onnx", stripped, [] if stripped == data else ["removed the operator ZipMap from the ONNX graph"]
    return file_format, data, []


def _xgboost_ubj(data: bytes) -> bytes:
    try:
        import xgboost
    except ImportError:
        raise SettingsError(
            "xgboost-json needs xgboost", hint=f"Save as .ubj, or install it. {install_hint('train')}"
        ) from None
    try:
        return bytes(xgboost.Booster(model_file=bytearray(data)).save_raw("ubj"))
    except xgboost.core.XGBoostError as error:
        raise ArtifactError(f"xgboost-json: not a model: {str(error).splitlines()[0]}") from None


def _linear(data: bytes) -> Linear:
    try:
        return msgspec.json.decode(data, type=Linear)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ArtifactError(f"linear-json: {error}") from None


def _columns(file_format: FileFormat, data: bytes) -> list[str] | None:
    """The names of the columns in a model file, if it has any."""
    names: list[str] = []
    if file_format == "linear-json":
        return list(_linear(data).coefficients)
    if file_format == "skops":
        from stream_scorer.ensemble.members.skops_zip import SkopsMember

        member = SkopsMember(data, None)
        if member.classes not in _CLASSES:
            raise ArtifactError(
                f"skops: the classes of the model are {' and '.join(map(repr, member.classes))}, not 0 and 1",
                hint="scikit-learn sorts classes, and the second one counts as fraud: train on labels 0 and 1.",
            )
        return member.columns
    if file_format == "lightgbm-text":
        found = re.search(rb"^feature_names=(.*)$", data, re.MULTILINE)
        names = found[1].decode("ascii", "replace").split() if found else []
    elif file_format == "xgboost-json":
        names = _xgboost_names(json.loads(data))
    elif file_format == "xgboost-ubj":
        try:
            names = _xgboost_names(read_ubjson(data))
        except MalformedUBJSON as error:
            raise ArtifactError(f"xgboost-ubj: not a model: {error}") from None
    return names if names and not all(map(_NUMBERED.match, names)) else None


def _xgboost_names(document: Any) -> list[str]:
    try:
        return [str(name) for name in document["learner"]["feature_names"]]
    except (LookupError, TypeError):
        return []


def _refuse_unclear_rounds(data: bytes) -> None:
    """Raise `ArtifactError` if early stopping found an earlier round to be the best one.

    A scorer uses all trees, as `Booster.predict`; `XGBClassifier.predict_proba` stops after the best round.
    """
    learner = read_ubjson(data)["learner"]
    best = str(learner.get("attributes", {}).get("best_iteration", ""))
    rounds = len(learner["gradient_booster"]["model"]["iteration_indptr"]) - 1
    if best.isdigit() and int(best) + 1 < rounds:
        raise ArtifactError(
            f"it has {rounds} rounds, and early stopping found {int(best) + 1} of them best: "
            f"XGBClassifier.predict_proba uses {int(best) + 1}, Booster.predict and a scorer {rounds}",
            hint="Save what you evaluated, such as booster[: booster.best_iteration + 1].save_model(…), or give "
            "`expected`: your own predictions decide.",
        )


def _match(file: ComposeFile, at: str, node: MemberNode, columns: list[str] | None, features: list[str]) -> list[str]:
    """The features in the order of the model's columns. Raises `UsageError`."""
    inputs, where = node.inputs, f"{at}.inputs"
    if inputs is None:
        if columns is None:
            raise file.wrong(where, "required, because the columns of the model have no names")
        inputs = {name: name for name in columns}
    if not inputs:
        raise file.wrong(where, "the model has no columns, or no features are given for them")
    for name in inputs:
        if name not in features:
            raise file.wrong(where, f"{name!r} is not a feature of the spec", _closest(name, features))
    if isinstance(inputs, dict):
        return _by_column(file, where, inputs, columns)
    if len(set(inputs)) < len(inputs):
        raise file.wrong(where, "a feature is listed twice")
    if columns is not None and columns != inputs:
        _refuse_order(file, where, inputs, columns, features)
    return list(inputs)


def _refuse_order(file: ComposeFile, where: str, inputs: list[str], columns: list[str], features: list[str]) -> None:
    if len(columns) != len(inputs):
        raise file.wrong(where, f"{len(inputs)} features for {len(columns)} columns: {', '.join(columns[:8])}")
    place = next(i for i, (name, column) in enumerate(zip(inputs, columns, strict=True)) if name != column)
    hint = "Write `inputs` as a mapping from each feature to its column."
    if set(columns) <= set(features):
        hint = "List the features in the order of the model's columns, or remove `inputs`."
    raise file.wrong(
        f"{where}[{place}]", f"{inputs[place]!r}, but that column of the model is {columns[place]!r}", hint
    )


def _by_column(file: ComposeFile, where: str, inputs: dict[str, str | int], columns: list[str] | None) -> list[str]:
    ordered: dict[int, str] = {}
    for feature, column in inputs.items():
        if isinstance(column, str):
            if columns is None:
                raise file.wrong(
                    f"{where}.{feature}", "the columns of the model have no names", "Give positions from 0."
                )
            if column not in columns:
                raise file.wrong(f"{where}.{feature}", f"the model has no column {column!r}", _closest(column, columns))
            column = columns.index(column)
        if column in ordered:
            raise file.wrong(f"{where}.{feature}", f"{ordered[column]!r} is the same column of the model")
        ordered[column] = feature
    width = len(columns) if columns is not None else len(inputs)
    if missing := sorted(set(range(width)) - set(ordered)):
        lost = repr(columns[missing[0]]) if columns is not None else str(missing[0])
        raise file.wrong(where, f"no feature for the model's column {lost}")
    if len(ordered) > width or max(ordered) >= width:
        raise file.wrong(where, f"{len(ordered)} features for {width} columns")
    return [ordered[place] for place in range(width)]


def _closest(name: str, known: list[str]) -> str:
    import difflib

    found = difflib.get_close_matches(name, known, 1, 0.5)
    if found:
        return f"Did you mean {found[0]!r}?"
    return "Known: " + ", ".join(known[:8]) + ("…" if len(known) > 8 else "")


def _preprocess(file: ComposeFile, at: str, node: MemberNode, inputs: list[str]) -> list[Input]:
    for name, entry in node.preprocess.items():
        where = f"{at}.preprocess.{name}"
        if name not in inputs and name != OTHERS:
            raise file.wrong(where, "not an input of this member", _closest(name, inputs))
        if entry.scale == 0.0:
            raise file.wrong(f"{where}.scale", "must not be 0")
        if entry.low is not None and entry.high is not None and entry.low > entry.high:
            raise file.wrong(f"{where}.low", "above high")
    others = node.preprocess.get(OTHERS, Input())
    return [node.preprocess.get(name, others) for name in inputs]
