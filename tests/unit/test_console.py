"""Terminal output: progress on a terminal and elsewhere, tables."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from stream_scorer.console import LINE_EVERY_S, Progress, make_table, print_table


class SteppedClock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def now_ms(self) -> int:
        return int(self.seconds * 1_000)

    def monotonic(self) -> float:
        return self.seconds


def pipe() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=80)


def written(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_without_a_terminal_there_is_a_line_now_and_then() -> None:
    clock, console = SteppedClock(), pipe()
    with Progress("replaying", 10_000, clock, console=console) as progress:
        for _ in range(10):
            clock.seconds += LINE_EVERY_S / 2
            progress.advance(1_000)
    assert len(written(console)) == 5
    assert written(console)[0] == "   5.0 s  replaying: 2,000 of 10,000, 400/s, 20 s left"


def test_a_stage_begins_with_a_line_and_has_a_rate_of_its_own() -> None:
    clock, console = SteppedClock(), pipe()
    with Progress("training", None, clock, console=console) as progress:
        progress.stage("features", 0, 100)
        clock.seconds += LINE_EVERY_S
        progress.stage("features", 50, 100)
        progress.say("[bold] stays as it is")
        progress.stage("fitting", 1, 7)
    assert written(console) == [
        "   0.0 s  features: 0 of 100",
        "   5.0 s  features: 50 of 100, 10/s, 5 s left",
        "[bold] stays as it is",
        "   5.0 s  fitting: 1 of 7",
    ]


def test_a_total_that_grows_does_not_begin_a_stage() -> None:
    clock, console = SteppedClock(), pipe()
    with Progress("rebuilding", None, clock, console=console) as progress:
        for done in range(1, 100):
            progress.stage("rebuilding", done, done + 50)
    assert written(console) == []


def test_a_terminal_shows_a_bar_and_keeps_what_is_said() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with Progress("sending", None, SteppedClock(), console=console) as progress:
        progress(1_500, "event time 2025-01-01")
        progress.stage("checking", 5, 10)
        progress.say("kept")
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "kept" in shown
    assert "5 of 10" in shown


@pytest.mark.parametrize("title", ["", "figures"])
def test_numbers_stand_right_aligned(title: str) -> None:
    console = pipe()
    console.print(make_table(("name", "!rows"), [("a", "1"), ("b", "1,000")], title=title))
    assert " a          1" in console.file.getvalue()  # type: ignore[attr-defined]


def test_cells_are_text_and_not_markup() -> None:
    console = pipe()
    console.print(make_table(("name",), [("[red]hostile[/nothing]",)]))
    assert "[red]hostile[/nothing]" in console.file.getvalue()  # type: ignore[attr-defined]


def test_the_text_of_a_table_is_neither_markup_nor_a_command_to_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_table(make_table(("reason",), [("[/red] [link=x]",), ("\x1b[31mred\nnext",)], title="[/bold]"))
    shown = capsys.readouterr().out
    assert "[/bold]" in shown
    assert "[/red] [link=x]" in shown
    assert "\\u001b[31mred\\nnext" in shown
    assert "\x1b" not in shown


def test_a_table_in_a_pipe_is_as_wide_as_its_content(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(make_table(("name", "!value"), [("n" * 100, "7" * 100)]))
    assert f"{'n' * 100}   {'7' * 100}" in capsys.readouterr().out
