"""Reads YAML documents of users into structs. Errors name the file, and the line or the node.

A key that occurs twice in a mapping is an error: YAML libraries keep the last one, so that a section would vanish.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Hashable, Iterable
from datetime import date
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from stream_scorer.errors import UsageError

T = TypeVar("T")
NO_MAPPING = "expected keys with values (a YAML mapping)"
_PLACE = re.compile(r" - at `(key` in `)?\$(.*)`$")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`")
# Patterns of texts in the documents of users, and what they mean.
_PATTERNS = {
    r"^[0-9]+(ms|s|m|h|d)$": "Write a duration, such as 90s, 12h or 30d.",
    r"^[a-z][a-z0-9_]{0,40}$": "Write lower-case letters, digits and _, at most 41, with a letter first.",
    r"^[a-z][a-z0-9_-]{0,40}$": "Write lower-case letters, digits, _ and -, at most 41, with a letter first.",
}
_STEP = re.compile(r"\[\.\.\.\]|[^.\[\]]+")


class InvalidNode(Exception):
    """A node of a document is not what its type declares.

    Attributes:
        node: its path, as in ``views[2].name``; empty at the top.
    """

    def __init__(self, message: str, node: str) -> None:
        super().__init__(message)
        self.message, self.node = message, node


class _UniqueKeysLoader(yaml.SafeLoader):
    """A safe loader that refuses a mapping with the same key twice. A key of a merge (`<<`) may be replaced."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """See `yaml.composer.Composer`. Checked here, because merges later add keys to the nodes."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[Any] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            value = self.construct_object(key)
            if not isinstance(value, Hashable):
                continue  # refused where the mapping is made
            if value in seen:
                problem = f"the key {key.value!r} is repeated"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(value)
        return node


def load_document(
    path: Path, what: str, parse: Callable[[str], T], *, error: type[UsageError] = UsageError, hint: str = ""
) -> T:
    """What `parse` makes of the text of the file at `path`. Errors call the file `what`; `hint` is for a missing file.

    Raises:
        UsageError: as the type `error`. The file cannot be read, or `parse` raised a `UsageError`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise error(f"no {what} at {path}", hint=hint) from None
    except OSError as failure:
        raise error(f"cannot read the {what} {path}: {failure.strerror or failure}") from None
    except UnicodeDecodeError as failure:
        raise error(f"cannot read the {what} {path}: it is not UTF-8 text ({failure.reason})") from None
    try:
        return parse(text)
    except UsageError as failure:
        raise error(f"{path}: {failure.message}", hint=failure.hint) from None


def parse_yaml(text: str, *, error: type[UsageError] = UsageError) -> Any:
    """The document in `text`. Raises `UsageError`, as the type `error`, with the line."""
    try:
        loader = _UniqueKeysLoader(text)
        node = loader.get_single_node()
        # Deep, so that an alias of a node that contains it is an error; a shallow load returns a cycle.
        return None if node is None else loader.construct_object(node, deep=True)
    except yaml.YAMLError as failure:
        mark = getattr(failure, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        problem = str(getattr(failure, "problem", failure)).partition("\n")[0]
        raise error(f"not valid YAML{where}: {problem}") from None
    except (ValueError, AttributeError, RecursionError) as failure:  # such as 2026-02-30, or !!timestamp of no time
        raise error(f"not valid YAML: {failure}") from None


def convert(document: Any, kind: type[T]) -> T:
    """`document` as a `kind`. Raises `InvalidNode`."""
    if not isinstance(document, dict):
        what = "a list" if isinstance(document, list) else "one value"
        problem = "the document is empty" if document is None else f"found {what}"
        raise InvalidNode(f"{NO_MAPPING}, but {problem}", "")
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as failure:
        found = _PLACE.search(str(failure))
        if found is None:
            raise InvalidNode(str(failure), "") from None
        message = "a key: " if found[1] else ""
        node = _with_keys(document, kind, found[2].lstrip("."))
        raise InvalidNode(message + str(failure)[: found.start()], node) from None


def hint_for(message: str, keys: Iterable[str], page: str) -> str:
    """What to do about the `message` of an `InvalidNode`: the similar one of all `keys`, or what the text must be."""
    if unknown := _UNKNOWN.match(message):
        similar = get_close_matches(unknown[1], sorted(keys), n=1)
        return f"Did you mean {similar[0]}? {page} lists all keys." if similar else f"{page} lists all keys."
    return next((hint for pattern, hint in _PATTERNS.items() if f"'{pattern}'" in message), "")


def _with_keys(document: Any, kind: type[T], node: str) -> str:
    """The path `node` of what is wrong in `document`, with the keys of mappings, for which msgspec writes ``[...]``."""
    document = at = copy.deepcopy(document)
    for step in _STEP.findall(node):
        if step != "[...]":
            at = at[int(step)] if isinstance(at, list) else at[step]
            continue
        entries = dict(at)
        for key in entries:
            at.clear()
            at[key] = entries[key]
            try:
                msgspec.convert(document, kind)
            except msgspec.ValidationError:
                break
        node, at = node.replace("[...]", f".{key}", 1), at[key]
    return node


def read_document(path: Path, kind: type[T]) -> T:
    """Read the YAML file at `path` as a `kind`. A YAML date or time becomes text in ISO format.

    Raises:
        UsageError: there is no such file, it is not YAML, or a node is not what `kind` declares.
    """

    def parse(text: str) -> T:
        try:
            return convert(_without_dates(parse_yaml(text)), kind)
        except InvalidNode as invalid:
            raise UsageError(f"{invalid.node or '(top level)'}: {invalid.message}") from None

    return load_document(path, "file", parse)


def _without_dates(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _without_dates(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_without_dates(value) for value in node]
    return node.isoformat() if isinstance(node, date) else node
