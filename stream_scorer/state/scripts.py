"""Loads the Lua scripts in ``lua/``. Each becomes one atomic step in Redis.

A script uses the constants of `stream_scorer.state.row_format` by name and defines none of them: loading adds the
definitions. A comment at the top of each script lists its KEYS and ARGV.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

from stream_scorer.state import row_format

_NAME = re.compile(r"\b[A-Z][A-Z_]+\b")


@cache
def load(name: str) -> str:
    """The text of the script ``lua/<name>.lua``, with the constants that it uses."""
    return with_constants(files("stream_scorer.state").joinpath("lua", f"{name}.lua").read_text(encoding="utf-8"))


def with_constants(script: str) -> str:
    """`script`, with a definition of each constant that it uses at the beginning of its first line."""
    code = "\n".join(line.partition("--")[0] for line in script.splitlines())
    used = set(_NAME.findall(code))
    constants = row_format.lua_constants().items()
    # Line numbers in error messages of Redis stay those of the file.
    return " ".join([*(f"local {name} = {_lua(value)}" for name, value in constants if name in used), script])


def _lua(value: int | str) -> str:
    return f"'{value}'" if isinstance(value, str) else str(value)
