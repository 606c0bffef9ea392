"""Files of an archive: their digests, and the error of those that cannot be written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stream_scorer.errors import UsageError
from stream_scorer.parquet import readable


@contextmanager
def writable(path: Path) -> Iterator[None]:
    """Turn a file system that refuses `path` into one `UsageError`."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from None


def file_digest(path: Path) -> tuple[int, str]:
    """Size and SHA-256 of a file. Raises `UsageError` if it cannot be read."""
    with readable(path), path.open("rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
