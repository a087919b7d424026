"""The front door: `papers ...`. Every command imports what it needs when it runs."""

from __future__ import annotations

import io
import sys
from errno import EDQUOT, ENOSPC
from typing import Any

import click

from workingpapers import __version__
from workingpapers.cli import look, measure
from workingpapers.errors import UserError, first_line
from workingpapers.site.commands.digest import digest
from workingpapers.site.commands.mcp import mcp
from workingpapers.site.commands.serve import serve
from workingpapers.site.commands.sync import sync

_GO_ON = ("reproduce", "sync", "try")  # commands that save as they go
# What comes with the extra "site" alone.
_OF_THE_PAGE = ("fastapi", "itsdangerous", "math_core", "mcp", "onnxruntime", "starlette", "usearch", "uvicorn")


class _Papers(click.Group):
    """Turns what users can mend into one line and exit code 2, what fails on the machine (a full disk, a database) into
    1; `--debug` shows the traceback."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except OSError as error:  # `papers --help` is written before there is a command to invoke
            if not _no_room(error):
                raise
            click.echo(f"papers: {_mendable(error, None)}", err=True)
            ctx.exit(1)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            kept = " What finished is kept; the same command goes on from there."
            click.echo(f"\npapers: interrupted.{kept * (ctx.invoked_subcommand in _GO_ON)}", err=True)
            ctx.exit(130)
        except (click.exceptions.Exit, click.Abort, click.ClickException):
            raise
        except BrokenPipeError:
            sys.stderr.close()  # `papers list | head`: the reader has seen enough
            ctx.exit(0)
        except Exception as error:
            if ctx.params.get("debug"):
                raise
            mendable = _mendable(error, ctx.invoked_subcommand)
            click.echo(f"papers: {mendable or f'{type(error).__name__}: {first_line(error)}'}", err=True)
            if not mendable:
                click.echo("This looks like a bug; `papers --debug ...` shows where it happened.", err=True)
            ctx.exit(2 if mendable and not (_no_room(error) or _is_of_database(error)) else 1)


def _no_room(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT)


def _is_of_database(error: Exception) -> bool:
    """Tell whether the page's database was away, locked or had no room."""
    exceptions = sys.modules.get("sqlalchemy.exc")
    return exceptions is not None and isinstance(error, exceptions.OperationalError)


def _mendable(error: Exception, command: str | None) -> str:
    """Return what users can do about an error; "" if nothing."""
    if isinstance(error, UserError):
        return str(error)
    if _no_room(error):
        return f"what was to be written has no room: {error}"
    if _is_of_database(error):
        return f"the page's database cannot be used: {first_line(getattr(error, 'orig', error))}."
    if isinstance(error, FileNotFoundError) and error.filename is None:  # only `getcwd` names none
        return "the folder that you are in is gone. Change to another: cd"
    if isinstance(error, ModuleNotFoundError) and error.name in _OF_THE_PAGE:
        return f"`papers {command}` needs {error.name}, which is not installed: pip install 'workingpapers[site]'"
    return ""


@click.group(
    cls=_Papers,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Start here:
  papers search 'linear probe'
  papers show moment-probing
  papers try probe""",
)
@click.version_option(__version__, prog_name="papers")
@click.option("--debug", is_flag=True, help="Show the full traceback of an error.")
def main(debug: bool) -> None:
    """Papers on large pre-trained models, and whether they help on your model and data."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what it cannot write, as ± in ASCII, becomes a question mark
            stream.reconfigure(errors="replace")


for command in (*look.COMMANDS, *measure.COMMANDS, serve, sync, digest, mcp):
    main.add_command(command)
