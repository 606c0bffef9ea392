"""Checks of what a command will write, before the work whose result would be lost."""

from __future__ import annotations

import os
from pathlib import Path

import click
import msgspec

from stream_scorer.ensemble.manifest import Name
from stream_scorer.errors import UsageError


def require_writable(*paths: Path | None) -> None:
    """Raise `UsageError` for a file or folder that cannot be written; folders on the way may be missing."""
    for path in paths:
        if path is None:
            continue
        nearest = next(each for each in (path, *path.absolute().parents) if each.exists())
        if nearest != path and not nearest.is_dir():
            raise UsageError(f"cannot write {path}: {nearest} is not a folder", hint="Give another path.")
        if not os.access(nearest, os.W_OK | os.X_OK if nearest.is_dir() else os.W_OK):
            raise UsageError(f"cannot write {path}: no permission to write to {nearest}", hint="Give another path.")


def require_ensemble_name(name: str | None, option: str = "--name") -> None:
    """Raise `click.UsageError` for what cannot be the name of an ensemble in its manifest."""
    try:
        msgspec.convert(name, Name | None)
    except msgspec.ValidationError:
        raise click.UsageError(
            f"{option} {name!r}: a name has letters, digits, '.', '_' and '-', begins with a letter or digit, and has "
            "at most 100 characters."
        ) from None
