"""The front door: `papers ...`. Every command imports what it needs when it runs."""

from __future__ import annotations

import sys
from errno import EDQUOT, ENOSPC
from typing import TYPE_CHECKING, Any

import click

from workingpapers import __version__
from workingpapers.errors import UserError, first_line, unknown_name
from workingpapers.site.commands.digest import digest
from workingpapers.site.commands.mcp import mcp
from workingpapers.site.commands.serve import serve
from workingpapers.site.commands.sync import sync

if TYPE_CHECKING:
    from collections.abc import Callable

    from workingpapers.runs.execute import Progress


# What comes with the extra "site" alone.
_OF_THE_PAGE = ("fastapi", "itsdangerous", "math_core", "mcp", "onnxruntime", "starlette", "usearch", "uvicorn")


class _Papers(click.Group):
    """Turns what users can mend into one line and exit code 2; `--debug` shows the traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            if ctx.params.get("debug"):
                raise
            click.echo(f"papers: {error}", err=True)
            ctx.exit(2)
        except KeyboardInterrupt:
            click.echo("\npapers: interrupted. What finished is kept; the same command goes on from there.", err=True)
            ctx.exit(130)
        except (click.exceptions.Exit, click.Abort, click.ClickException):
            raise
        except BrokenPipeError:
            sys.stderr.close()  # `papers list | head`: the reader has seen enough
            ctx.exit(0)
        except Exception as error:
            if ctx.params.get("debug"):
                raise
            if isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT):
                click.echo(f"papers: what was to be written has no room: {error}", err=True)
                ctx.exit(2)
            if isinstance(error, FileNotFoundError) and error.filename is None:  # only `getcwd` names none
                click.echo("papers: the folder that you are in is gone. Change to another: cd", err=True)
                ctx.exit(2)
            if isinstance(error, ModuleNotFoundError) and error.name in _OF_THE_PAGE:
                needed = f"needs {error.name}, which is not installed: pip install 'workingpapers[site]'"
                click.echo(f"papers: `papers {ctx.invoked_subcommand}` {needed}", err=True)
                ctx.exit(2)
            click.echo(f"papers: {type(error).__name__}: {first_line(error)}", err=True)
            click.echo("This looks like a bug; `papers --debug ...` shows where it happened.", err=True)
            ctx.exit(1)


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


def _store_option(command: Callable[..., Any]) -> Callable[..., Any]:
    text = "Where runs are kept: a file, or a SQLAlchemy URL. [default: $WORKINGPAPERS_STORE or the user's data folder]"
    return click.option("--store", metavar="URL", help=text)(command)


def _split(value: str | None) -> list[str] | None:
    return None if value is None else [name.strip() for name in value.split(",") if name.strip()]


@main.command("list", epilog="Example:  papers list --task probe --status measured")
@click.option("--task", help="Papers measured in this task.")
@click.option("--topic", help="Papers of this topic and all topics below it (`papers topics`).")
@click.option("--year", type=int, help="Papers first published in this year.")
@click.option(
    "--status",
    type=click.Choice(["card", "method", "entry", "measured"]),
    help="How far a paper has come: only described, has a method, takes part in a task, has a verdict.",
)
@_store_option
def list_(task: str | None, topic: str | None, year: int | None, status: str | None, store: str | None) -> None:
    """List the papers of the catalogue."""
    from workingpapers import terminal
    from workingpapers.papers.catalogue import select
    from workingpapers.runs import claims
    from workingpapers.runs.store import Store

    runs = Store(store).runs()
    rows = []
    for card in select(task=task, topic=topic, year=year):
        state = claims.status(card, claims.findings(card, runs))
        if status in (None, state):
            rows.append((card.slug, str(card.year), card.task or "", state, card.title))
    terminal.show(terminal.titles(("slug", "year", "task", "status", "title"), rows))
    terminal.say(f"{len(rows)} paper{'' if len(rows) == 1 else 's'}")


@main.command(epilog="Example:  papers search 'few labels frozen features'")
@click.argument("query", nargs=-1, required=True)
@click.option("--limit", default=10, show_default=True, type=click.IntRange(1), help="Most papers to show.")
def search(query: tuple[str, ...], limit: int) -> None:
    """Find papers by words; typos are forgiven."""
    from workingpapers import terminal
    from workingpapers.papers.catalogue import load_catalogue
    from workingpapers.papers.search import search as find

    hits = find(" ".join(query), load_catalogue().values())
    if not hits:
        terminal.say(f"No paper matches {' '.join(query)!r}.")
        return
    rows = [(hit.card.slug, str(hit.card.year), hit.card.task or "", hit.card.title) for hit in hits[:limit]]
    terminal.show(terminal.titles(("slug", "year", "task", "title"), rows))
    if len(hits) > limit:
        terminal.say(f"{limit} of {len(hits)} papers; --limit shows more")


@main.command(epilog="Example:  papers show moment-probing")
@click.argument("slug")
@_store_option
def show(slug: str, store: str | None) -> None:
    """Show a paper and how to use its method. Its claims stand reported beside measured."""
    from workingpapers import terminal
    from workingpapers.papers.catalogue import paper
    from workingpapers.runs import claims
    from workingpapers.runs.store import Store

    card = paper(slug)
    found = claims.findings(card, Store(store).runs())
    terminal.show(terminal.show_card(card, found, claims.status(card, found)))


@main.command(epilog="Example:  papers topics feature-transfer")
@click.argument("topic", default="pre-trained-models")
def topics(topic: str) -> None:
    """Show the topic tree with numbers of papers. With a TOPIC, only the part below it."""
    from workingpapers import terminal
    from workingpapers.papers.catalogue import select
    from workingpapers.papers.topics import load_topics, path, walk

    shown = terminal.table("topic", "papers", "gist", right=["papers"])
    above = len(path(topic))
    for name in walk(topic):
        indent = "  " * (len(path(name)) - above)
        shown.add_row(indent + name, str(len(select(topic=name))), load_topics()[name].gist)
    terminal.show(shown)


@main.command()
def tasks() -> None:
    """List the tasks and their settings."""
    from workingpapers import terminal
    from workingpapers.tasks.protocol import all_tasks

    rows = [
        (task.name, name, setting.title, setting.baseline, setting.data, str(len(task.select(name))))
        for task in all_tasks()
        for name, setting in task.settings.items()
    ]
    columns = ("task", "setting", "measures", "baseline", "data", "entries")
    terminal.show(terminal.sheet(columns, rows, right=["entries"], names=["setting", "baseline", "data"]))


@main.command(epilog="Example:  papers entries probe")
@click.argument("task")
def entries(task: str) -> None:
    """List the entries of a TASK. They are its baselines and its papers' methods."""
    from workingpapers import terminal
    from workingpapers.tasks.protocol import load_task

    rows = [(e.name, e.paper or "(baseline)", ", ".join(e.settings), e.about) for e in load_task(task).entries.values()]
    terminal.show(terminal.sheet(("entry", "paper", "settings", "what it does"), rows, names=["paper"]))


@main.command()
def data() -> None:
    """List the data sets known by name. A path of your own works wherever a name does."""
    from workingpapers import terminal
    from workingpapers.data.datasets import DATASETS
    from workingpapers.data.impressions import IMPRESSIONS
    from workingpapers.data.texts import TEXTS

    terminal.show(terminal.show_infos([*DATASETS.values(), *IMPRESSIONS.values(), *TEXTS.values()]))


@main.command()
def models() -> None:
    """List the models known by name. The names of transformers and timm and paths work too."""
    from workingpapers import terminal
    from workingpapers.data.language_models import LANGUAGE_MODELS
    from workingpapers.data.models import MODELS

    terminal.show(terminal.show_infos([*MODELS.values(), *LANGUAGE_MODELS.values()]))


def _run_options(command: Callable[..., Any]) -> Callable[..., Any]:
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
        click.option("--ray", metavar="ADDRESS", help="Run on a Ray cluster: host:port, ray://host:port, local."),
        click.option("--timeout", type=float, metavar="SECONDS", help="What one run may take at most."),
        click.option("--threads", default=1, show_default=True, help="Threads of the numerical libraries per run."),
        _store_option,
        click.option("--force", is_flag=True, help="Repeat runs that the store has already."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@main.command(
    "try",
    epilog="""\b
Examples:
  papers try probe
  papers try probe --data ./photos --model google/vit-base-patch16-224 --entries moment-probing,knn
  papers try anomaly --data ./my-mvtec-folder --seeds 3
  papers try probe --setting label-efficiency --budget full""",
)
@click.argument("task")
@click.option("--data", help="A data set by name (`papers data`), a path, or package.module:function.")
@click.option("--label", default="label", show_default=True, help="The label column of a CSV or Parquet table.")
@click.option("--model", help="A model by name (`papers models`), a path, or package.module:function.")
@click.option("--setting", default="standard", show_default=True, help="A regime of the task (`papers tasks`).")
@click.option("--entries", metavar="A,B", help="Entries to run (`papers entries TASK`); the baseline always runs too.")
@_run_options
def try_(task: str, entries: str | None, **options: Any) -> None:
    """Measure which methods help on your data. Runs the entries of a TASK and prints the leaderboard.

    Finished runs are kept at once; the same command again runs only what is missing or has failed.
    """
    from workingpapers import terminal
    from workingpapers.runs.execute import try_ as run

    with _Live() as live:
        board = run(task, entries=_split(entries), listen=live.update, **options)
    terminal.show(terminal.describe(board), style="bold")
    terminal.show(terminal.show_leaderboard(board))
    _fail_if_nothing(board.rows)


def _fail_if_nothing(rows: Any) -> None:
    """Exit with code 1 if no run of a leaderboard finished."""
    if not any(row.values for row in rows):
        sys.exit(1)


class _Live:
    """Shows progress: a table that grows on a terminal, a line per run elsewhere."""

    def __enter__(self) -> _Live:
        from rich.live import Live

        from workingpapers import terminal

        self._terminal = terminal
        self._seen: set[str] | None = None
        self._remarks: set[str] = set()
        self._live = Live(console=terminal.errors, transient=True, refresh_per_second=4)
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def update(self, progress: Progress) -> None:
        """Take in a change."""
        if progress.total == 0:  # the process that prepares shows how far it is; this one keeps out of its way
            self._live.stop()
            self._seen = None
            model = f" and {progress.conditions.model}" if progress.conditions.model else ""
            self._terminal.say(f"Preparing {progress.conditions.data}{model} ...")
            return
        for remark in set(progress.remarks) - self._remarks:
            self._terminal.say(remark)
        self._remarks.update(progress.remarks)
        if self._terminal.errors.is_terminal:
            from workingpapers.runs.leaderboard import leaderboard as rank

            board = rank(progress.runs, progress.conditions) if progress.runs else None
            self._live.start()
            self._live.update(self._terminal.show_progress(progress, board))
            return
        if self._seen is None:  # runs of earlier commands are counted, not told again
            self._seen = {run.key for run in progress.runs}
            self._terminal.say(f"{len(self._seen)} of {progress.total} runs are in the store already")
        for run in progress.runs:
            if run.key not in self._seen:
                self._seen.add(run.key)
                took = run.measured.get("fit_seconds", 0.0) + run.measured.get("predict_seconds", 0.0)
                result = f"{took:.1f} s" if run.status == "ok" else f"{run.status}: {run.error}"
                said = "".join(f" ({remark})" for remark in run.settings.get("remarks", ()))
                self._terminal.say(f"{len(self._seen)}/{progress.total} {run.entry}, seed {run.seed}: {result}{said}")


@main.command(epilog="Example:  papers leaderboard probe --setting label-efficiency")
@click.argument("task")
@click.option("--setting", help="Only this setting.")
@click.option("--data", help="Only this data set.")
@click.option("--metric", help="Rank by this metric.")
@_store_option
def leaderboard(task: str, setting: str | None, data: str | None, metric: str | None, store: str | None) -> None:
    """Print the leaderboards of a TASK from saved runs."""
    from workingpapers import terminal
    from workingpapers.runs.leaderboard import leaderboard as rank
    from workingpapers.runs.present import all_boards
    from workingpapers.runs.store import Store
    from workingpapers.tasks.protocol import load_task

    if setting is not None:
        load_task(task).setting(setting)
    chosen = {"task": load_task(task).name if ":" not in task else task}
    chosen |= {name: value for name, value in (("setting", setting), ("data", data)) if value}
    runs = Store(store)
    boards, left_out = all_boards(runs.runs(**chosen))
    for remark in left_out:
        terminal.say(remark)
    if not boards:
        known = {run.data for run in runs.runs(task=chosen["task"])}
        if data and data not in known and known:
            raise unknown_name("data set", data, known, of=f"the runs of {task}")
        wanted = " ".join(chosen.values())
        raise UserError(f"No runs of {wanted} in the store {runs.shown} yet. `papers try {task}` makes them.")
    if metric:  # settings measure different things: those that measure this one; the first complains if none does
        having = [board for board in boards if any(metric == known.name for known in board.setting.metrics)]
        boards = [rank(board.runs, board.conditions, metric) for board in having or boards[:1]]
    for board in boards:
        terminal.show(terminal.describe(board), style="bold")
        terminal.show(terminal.show_leaderboard(board))
        terminal.show("")


@main.command(epilog="Example:  papers reproduce moment-probing gaussian-ad --seeds 3")
@click.argument("slugs", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every paper that takes part in a task.")
@click.option("--data", help="Measure on this data set instead of the ones that the cards name.")
@click.option("--markdown", is_flag=True, help="Print Markdown tables with date and hardware.")
@_run_options
def reproduce(slugs: tuple[str, ...], everything: bool, data: str | None, markdown: bool, **options: Any) -> None:
    """Measure the claims of papers. Runs what is missing, then prints reported beside measured."""
    from workingpapers import terminal
    from workingpapers.papers.catalogue import load_catalogue, paper
    from workingpapers.runs.reproduce import markdown as as_markdown
    from workingpapers.runs.reproduce import reproduce as run

    if everything == bool(slugs):
        raise UserError("Name one or more papers, or --all: `papers reproduce moment-probing`.")
    cards = list(load_catalogue().values()) if everything else [paper(slug) for slug in slugs]
    with _Live() as live:
        found = run(cards, data=data, only_entered=everything, listen=live.update, **options)
    if markdown:
        click.echo(as_markdown(found))
        return
    for card, findings in found:
        terminal.show(terminal.show_findings(findings, card.slug))


@main.command("rank-features", epilog="Example:  papers rank-features clicks.parquet --label clicked")
@click.argument("file")
@click.option("--label", default="label", show_default=True, help="The column to be told something about.")
@click.option("--limit", default=30, show_default=True, type=click.IntRange(1), help="Most columns to show.")
def rank_features(file: str, label: str, limit: int) -> None:
    """Rank the columns of a table. OutRank's scores don't favour columns of many values.

    FILE is a CSV or Parquet file; it is read in batches and may be larger than memory. The score is the mutual
    information with the label less what noise with the same value counts would have.
    """
    from workingpapers import terminal
    from workingpapers.methods.tables.outrank import rank_file

    ranked = rank_file(file, label)
    numbers = ["score nats", "information nats", "coverage %", "values"]
    shown = terminal.table("column", *numbers, right=numbers)
    for row in ranked.head(limit).to_dict("records"):
        score, plain = f"{row['score']:+.5f}", f"{row['mutual_information']:.5f}"
        shown.add_row(str(row["feature"]), score, plain, f"{100 * row['coverage']:.0f}", f"{row['values']:,.0f}")
    terminal.show(shown)
    if len(ranked) > limit:
        terminal.say(f"{limit} of {len(ranked)} columns; --limit shows more")


@main.command(epilog="Example:  papers report -o report && open report/index.html")
@click.option("-o", "--output", default="report", show_default=True, help="Folder to write; made if it isn't there.")
@_store_option
def report(output: str, store: str | None) -> None:
    """Write all runs as a static HTML site. It has leaderboards, plots and a page for each paper."""
    from pathlib import Path

    from workingpapers import terminal
    from workingpapers.runs.report import write_report
    from workingpapers.runs.store import Store

    index = write_report(Path(output), Store(store))
    terminal.say(f"Wrote {index}")


for command in (serve, sync, digest, mcp):
    main.add_command(command)
