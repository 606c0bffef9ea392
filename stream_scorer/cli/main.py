"""`stream-scorer`: the list of commands, and the conversion of errors to one message and an exit code."""

from __future__ import annotations

import gc
import importlib
import sys

import click

from stream_scorer import __version__
from stream_scorer.cli.groups import CommandGroup
from stream_scorer.errors import StreamScorerError
from stream_scorer.observability.scrub import scrub

EXIT_INTERRUPTED = 130
# New objects between two garbage collections. Importing a command's modules creates hundreds of thousands of objects
# that stay. With Python's default of 700, collections that find nothing take up to a fifth of the imports' CPU time.
GC_THRESHOLD = 50_000

# Command and module. A module is imported when its command runs, so `--help` needs no Kafka library and no compiler.
_COMMANDS = {
    "demo": "demo",
    "run": "run",
    "monitor": "monitor",
    "tail": "tail",
    "replay": "replay",
    "evaluate": "evaluate",
    "verify": "verify",
    "explain": "explain",
    "audit": "audit",
    "simulate": "simulate",
    "data": "data",
    "features": "features",
    "train": "train",
    "cv": "cv",
    "ensemble": "ensemble",
    "gate": "gate",
    "incident": "incident",
    "dlq": "dlq",
    "stack": "stack",
    "topics": "topics",
    "spec": "spec",
    "doctor": "doctor",
    "bench": "bench",
}


class _Commands(CommandGroup):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        module = importlib.import_module(f"stream_scorer.cli.{_COMMANDS[name]}")
        command = getattr(module, name)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="stream-scorer")
def cli() -> None:
    """Streaming fraud scoring: Kafka in, an explained ensemble score out, exactly once."""


def main() -> None:
    """Run a command.

    Exit code 0: done, 1: failed, 2: wrong usage or settings, 3: difference found, 4: a service denies access, 130:
    interrupted.
    """
    gc.set_threshold(GC_THRESHOLD, *gc.get_threshold()[1:])
    try:
        code = cli.main(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except StreamScorerError as error:
        click.echo(f"error: {scrub(str(error))}", err=True)
        sys.exit(error.exit_code)
    except click.exceptions.Abort:
        sys.exit(EXIT_INTERRUPTED)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:  # each role has the packages that it needs, see requirements/
        if not error.name or error.name.startswith("stream_scorer"):
            raise
        click.echo(f"error: this command needs the package {error.name!r}, which is not installed", err=True)
        click.echo(
            "  Install the file of requirements/: scorer.txt for `run`, monitor.txt for `monitor`, else train.txt.",
            err=True,
        )
        sys.exit(2)
    except RuntimeError as error:
        # The only mark of what `Path.expanduser` raises for a user without a home folder, as in some containers.
        if str(error) != "Could not determine home directory.":
            raise
        click.echo("error: a path begins with ~, but this user has no home folder", err=True)
        click.echo("  Set HOME, or a path such as cache.dir to a folder without ~.", err=True)
        sys.exit(2)
    except BrokenPipeError:  # `stream-scorer tail | head`
        sys.stderr.close()
        sys.exit(0)


if __name__ == "__main__":
    main()
