"""A group of commands whose help text is complete, and which suggests the command that a typo may mean."""

from __future__ import annotations

from difflib import get_close_matches

import click


class CommandGroup(click.Group):
    """`click.Group` cuts the descriptions of commands at the width of the terminal, and suggests nothing."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands, each with its whole first sentence."""
        found = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
        rows = [(name, command.get_short_help_str(limit=1_000)) for name, command in found if command is not None]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """See `click.Group`. The error for an unknown command names the most similar one."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            similar = get_close_matches(args[0], self.list_commands(ctx), n=1)
            if similar and error.message.startswith("No such command"):
                error.message = f"{error.message.rstrip('.')}. Did you mean {similar[0]!r}?"
            raise
