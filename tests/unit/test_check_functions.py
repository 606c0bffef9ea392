"""The check on the length of functions finds what it is for."""

from __future__ import annotations

from pathlib import Path

from tools.check_functions import MAX_LINES, measure, problems, tree


def source(lines: int, signature: str = "def f(self, a, *, b):") -> str:
    return "class C:\n    " + signature + "\n" + "        pass\n" * (lines - 1)


def test_a_function_is_measured_from_def_to_its_last_line_with_its_docstring() -> None:
    (found,) = measure("m.py", source(MAX_LINES))
    assert (found.name, found.lines, found.parameters) == ("m.py:C.f", MAX_LINES, 2)
    decorated = '@x\ndef f():\n    """One.\n\n    Two.\n    """\n    return 1\n'
    (found,) = measure("m.py", decorated)
    assert found.lines == 6
    outer, inner = measure("m.py", "def f():\n    def g(a):\n        pass\n    return g\n")
    assert (outer.name, outer.lines, inner.name, inner.lines) == ("m.py:f", 4, "m.py:f.g", 2)


def test_the_flags_of_a_command_are_no_parameters() -> None:
    (found,) = measure("m.py", "@click.command()\n@click.option('--a')\ndef f(a, b, c):\n    pass\n")
    assert found.parameters == 0


def test_a_long_function_needs_an_exception_and_an_exception_a_reason() -> None:
    long, short = list(measure("m.py", source(MAX_LINES + 1))), list(measure("m.py", source(MAX_LINES)))
    assert "71 lines" in problems(long, {})[0]
    assert problems(long, {"m.py:C.f": "why"}) == []
    assert "no reason" in problems(long, {"m.py:C.f": " "})[0]
    assert problems(short, {}) == []
    assert "Remove it" in problems(short, {"m.py:C.f": "why"})[0]
    assert problems(short, {"m.py:C.f": "why"}, allow_stale=True) == []


def test_the_tree_is_read(tmp_path: Path) -> None:
    for place in ("stream_scorer/a/b.py", "tests/c.py", "elsewhere/d.py"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(source(3))
    assert [function.name for function in tree(tmp_path)] == ["stream_scorer/a/b.py:C.f", "tests/c.py:C.f"]
