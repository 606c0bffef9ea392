"""Test modules stand alone: what two of them need is in `tests.support`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]


def _imported(path: Path) -> Iterator[str]:
    """Full names of what a file imports: for ``from a.b import c`` that is ``a.b.c``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_of_the_tests_only_support_is_imported() -> None:
    files = [path for folder in ("tests", "proofs", "tools") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 80
    found = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in _imported(path)
        if name.split(".")[0] == "tests" and name.split(".")[:2] != ["tests", "support"]
    }
    assert found == set()
