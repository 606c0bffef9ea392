"""Fail on functions of more than 70 lines, counted from `def` to the last line.

Signature, docstring and comments count; decorators do not. Exceptions are listed in
pyproject.toml with a reason, as ``"path:qualified.name" = "reason"`` in the table
``[tool.stream_scorer.long_functions]``. An exception that is no longer needed fails the check as well, unless
``--allow-stale`` is given. With ``--table`` the tool prints figures of the product instead.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("stream_scorer", "proofs", "tools", "tests")
MAX_LINES = 70

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Measured:
    """One function with its length in lines and its number of parameters (without `self` and `cls`).

    The parameters of a command line command count as 0: each flag is one, by the way click works.
    """

    name: str
    lines: int
    parameters: int


def measure(path: str, source: str) -> Iterator[Measured]:
    """Every function and method of a module. A nested function counts on its own and as a part of the outer one."""

    def visit(node: ast.AST, prefix: str) -> Iterator[Measured]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, Function):
                name = f"{prefix}{child.name}"
                assert child.end_lineno is not None
                yield Measured(f"{path}:{name}", child.end_lineno - child.lineno + 1, _parameters(child))
                yield from visit(child, f"{name}.")
            elif isinstance(child, ast.ClassDef):
                yield from visit(child, f"{prefix}{child.name}.")
            else:
                yield from visit(child, prefix)

    yield from visit(ast.parse(source), "")


def _parameters(function: Function) -> int:
    if any("command" in ast.unparse(decorator) for decorator in function.decorator_list):
        return 0
    arguments = function.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def problems(measured: list[Measured], exceptions: dict[str, str], *, allow_stale: bool = False) -> list[str]:
    """Functions that are too long without an exception, and exceptions without a reason or a long function."""
    found = []
    too_long = {function.name: function.lines for function in measured if function.lines > MAX_LINES}
    for name, lines in sorted(too_long.items()):
        if name not in exceptions:
            found.append(f"{name}: {lines} lines, {MAX_LINES} are allowed. Split it.")
    for name, reason in sorted(exceptions.items()):
        if name not in too_long:
            if allow_stale:
                continue
            found.append(f"{name}: listed as an exception, but it is not too long. Remove it from pyproject.toml.")
        elif not reason.strip():
            found.append(f"{name}: the exception has no reason")
    return found


def tree(root: Path) -> list[Measured]:
    """Every function below `FOLDERS` of `root`."""
    return [
        function
        for folder in FOLDERS
        for path in sorted((root / folder).rglob("*.py"))
        for function in measure(str(path.relative_to(root)), path.read_text(encoding="utf-8"))
    ]


def main(arguments: list[str]) -> int:
    """Print the problems; return 1 if there are any."""
    measured = tree(ROOT)
    if "--table" in arguments:
        product = [function for function in measured if function.name.startswith("stream_scorer/")]
        longest, widest = max(product, key=lambda f: f.lines), max(product, key=lambda f: f.parameters)
        print(f"functions of more than {MAX_LINES} lines: {sum(f.lines > MAX_LINES for f in product)}")
        print(f"longest function: {longest.lines} lines ({longest.name})")
        print(f"maximum number of parameters: {widest.parameters} ({widest.name})")
        return 0
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    exceptions = config["tool"].get("stream_scorer", {}).get("long_functions", {})
    found = problems(measured, exceptions, allow_stale="--allow-stale" in arguments)
    for problem in found:
        sys.stderr.write(f"{problem}\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
