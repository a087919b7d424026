"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click


def store_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option that names the store."""
    text = "Where runs are kept: a file, or a SQLAlchemy URL. [default: $WORKINGPAPERS_STORE or the user's data folder]"
    return click.option("--store", metavar="URL", help=text)(command)


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that `try` and `reproduce` share."""
    options: list[Callable[..., Any]] = [
        click.option("--seeds", default=5, show_default=True, help="Seeds; three or more give a verdict."),
        click.option(
            "--budget",
            type=click.Choice(["quick", "full"]),
            default="quick",
            show_default=True,
            help="How much data, training and tuning each entry may use.",
        ),
        click.option("--workers", default=1, show_default=True, help="Runs at a time; more than 1 disturbs timings."),
        click.option("--ray", metavar="ADDRESS", help="Run on a Ray cluster: host:port, ray://host:port, local, auto."),
        click.option("--timeout", type=float, metavar="SECONDS", help="What one run may take at most."),
        click.option("--threads", default=1, show_default=True, help="Threads of the numerical libraries per run."),
        store_option,
        click.option("--force", is_flag=True, help="Repeat runs that the store has already."),
    ]
    for option in reversed(options):
        command = option(command)
    return command
