"""Test modules stand alone: what two of them need is in `tests.support`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]


# Parsing all files instead would take ten times as long.
_IMPORT = re.compile(r"^ *(?:from (tests[\w.]*) import (\w+)|import (tests[\w.]*))", re.MULTILINE)


def _imported(path: Path) -> Iterator[str]:
    """Full names of what a file imports from the tests: for ``from tests.b import c`` that is ``tests.b.c``."""
    for module, name, plain in _IMPORT.findall(path.read_text(encoding="utf-8")):
        yield plain or f"{module}.{name}"


def test_of_the_tests_only_support_is_imported() -> None:
    files = [path for folder in ("tests", "proofs", "tools") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 80
    imported = {(path, name) for path in files for name in _imported(path)}
    assert len(imported) > 50
    found = [
        f"{path.relative_to(ROOT)} imports {name}" for path, name in imported if not name.startswith("tests.support.")
    ]
    assert found == []
