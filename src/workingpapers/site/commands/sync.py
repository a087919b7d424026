"""`papers sync`: bring papers onto the page."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING

import click

from workingpapers.errors import UserError

if TYPE_CHECKING:
    from rich.progress import TaskID
    from sqlalchemy import Engine

    from workingpapers.site.sync import Outcome

_QUIET = 2.0  # seconds before progress is shown


@click.command(
    epilog="""\b
Examples:
  papers sync huggingface
  papers sync arxiv:cs.LG,cs.CL --since 2026-11-01
  papers sync ./papers.parquet --no-embeddings
  papers sync citations stars"""
)
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.option(
    "--database", metavar="URL", help="The page's database. [default: $WORKINGPAPERS_SITE or the user's data folder]"
)
@click.option("--since", metavar="DAY", help="First day of arxiv and huggingface. [default: where the last sync ended]")
@click.option("--no-embeddings", is_flag=True, help="Leave out the sentence embeddings that search by meaning needs.")
def sync(sources: tuple[str, ...], database: str | None, since: str | None, no_embeddings: bool) -> None:
    """Bring papers onto the page. The same command again goes on where it stopped, and changes nothing twice.

    A SOURCE is arxiv (also arxiv:CATEGORY,...), huggingface (its daily papers), citations (from Semantic Scholar),
    stars (of code on GitHub), submitted (by readers, waiting for arXiv), or a file of papers: .parquet, or .jsonl with
    one object a line.

    $WORKINGPAPERS_S2_KEY and $WORKINGPAPERS_GITHUB_TOKEN are keys of your own, which let you ask oftener.
    """
    from workingpapers import terminal
    from workingpapers.runs.store import Store
    from workingpapers.site.catalogue import add_catalogue
    from workingpapers.site.database import open_database, writing
    from workingpapers.site.settings import load_settings
    from workingpapers.site.sources.http import Client
    from workingpapers.site.sync import named
    from workingpapers.site.sync import sync as run
    from workingpapers.site.trending import day_of

    settings = load_settings(database=database)
    engine = open_database(settings.database)
    chosen = named(sources, engine, Client(tell=terminal.say), since, day_of(time.time()))
    with writing(engine) as connection:
        add_catalogue(connection, Store(settings.store), time.time())
    with _Shown() as shown:
        outcomes = run(engine, chosen, listen=lambda o: shown.update(o.source, f"{o.new:,} new", o.done, o.total))
    columns = ("source", "new", "updated", "unchanged", "malformed")
    rows = [(o.source, *(f"{n:,}" for n in (o.new, o.updated, o.unchanged, o.malformed))) for o in outcomes]
    terminal.show(terminal.sheet(columns, rows, right=columns[1:]))
    _complain(outcomes)
    if settings.embeddings and not no_embeddings:
        _embed(engine)
    sys.exit(1 if any(outcome.error for outcome in outcomes) else 0)


def _embed(engine: Engine) -> None:
    from workingpapers import terminal
    from workingpapers.site.search.embed import embed_missing

    try:
        with _Shown() as shown:
            number = embed_missing(engine, progress=lambda done, total: shown.update("embeddings", "", done, total))
    except UserError as error:
        terminal.say(f"Without embeddings, search goes by words alone. {error}")
    else:
        terminal.say(f"{number:,} papers embedded")


def _complain(outcomes: list[Outcome]) -> None:
    from workingpapers import terminal

    for outcome in outcomes:
        for problem in outcome.problems:
            terminal.say(f"Left out: {problem}")
        if outcome.malformed > len(outcome.problems):
            terminal.say(f"Left out: {outcome.malformed - len(outcome.problems):,} more of {outcome.source}")
        if outcome.error:
            terminal.say(f"{outcome.source}: {outcome.error}")


class _Shown:
    """Shows how far the sources are, once that takes longer than a moment."""

    def __enter__(self) -> _Shown:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        from workingpapers import terminal

        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        self._progress = Progress(*columns, console=terminal.errors, transient=True)
        self._tasks: dict[str, TaskID] = {}
        self._begin = threading.Timer(_QUIET, self._progress.start)  # also where nothing comes for a while
        self._begin.daemon = True
        if self._progress.console.is_terminal:
            self._begin.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._begin.cancel()
        if self._progress.live.is_started:  # else it would leave an empty line
            self._progress.stop()

    def update(self, name: str, words: str, done: int, total: int | None) -> None:
        """Take in how far something is."""
        task = self._tasks.get(name)
        if task is None:
            task = self._tasks[name] = self._progress.add_task(name, total=None)
        self._progress.update(task, description=f"{name}  {words}", completed=done, total=total)
