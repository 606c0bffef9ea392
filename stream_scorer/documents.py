"""Reads YAML documents of users into structs. Errors name the file, and the line or the node."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from stream_scorer.errors import UsageError

T = TypeVar("T")


def read_document(path: Path, kind: type[T]) -> T:
    """Read the YAML file at `path` as a `kind`. A YAML date or time becomes text in ISO format.

    Raises:
        UsageError: there is no such file, it is not YAML, or a node is not what `kind` declares.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"no file at {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}") from None
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise UsageError(f"{path}: not valid YAML{where}: {getattr(error, 'problem', error)}") from None
    except (ValueError, RecursionError) as error:  # such as 2026-02-30, which YAML takes for a date
        raise UsageError(f"{path}: not valid YAML: {error}") from None
    try:
        return msgspec.convert(_without_dates(document), kind)
    except msgspec.ValidationError as error:
        message, _, node = str(error).partition(" - at `$")
        raise UsageError(f"{path}: {node.rstrip('`').lstrip('.') or '(top level)'}: {message}") from None


def _without_dates(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _without_dates(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_without_dates(value) for value in node]
    return node.isoformat() if isinstance(node, date) else node
