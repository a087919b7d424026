"""The commands that measure, and those that show what was measured."""

from __future__ import annotations

import sys
from typing import Any

import click

from workingpapers.cli.live import Live
from workingpapers.cli.options import run_options, store_option
from workingpapers.errors import UserError, existing_file, remarks, unknown_name


@click.command(
    "try",
    epilog="""\b
Examples:
  papers try probe
  papers try probe --data ./photos --model google/vit-base-patch16-224 --entries moment-probing,knn
  papers try anomaly --data ./my-mvtec-folder --seeds 3
  papers try probe --setting label-efficiency --budget full""",
)
@click.argument("task")
@click.option(
    "--data",
    help="A data set by name (`papers data`); the path of a folder of images, a .csv, .tsv or .parquet table, an .npz "
    "of arrays or a text, as the task needs; or package.module:function.",
)
@click.option("--label", default="label", show_default=True, help="The label column of a table.")
@click.option("--model", help="A model by name (`papers models`), a path, or package.module:function.")
@click.option("--setting", default="standard", show_default=True, help="A regime of the task (`papers tasks`).")
@click.option("--entries", metavar="A,B", help="Entries to run (`papers entries TASK`); the baseline always runs too.")
@run_options
def try_(task: str, entries: str | None, **options: Any) -> None:
    """Measure which methods help on your data. Runs the entries of a TASK and prints the leaderboard.

    TASK is a name (`papers tasks`), or package.module:task of your own.

    Finished runs are kept at once; the same command again runs only what is missing or has failed.
    """
    from workingpapers import terminal
    from workingpapers.runs.execute import try_ as run
    from workingpapers.runs.present import next_step

    chosen = None if entries is None else [name.strip() for name in entries.split(",") if name.strip()]
    with Live() as live:
        board = run(task, entries=chosen, listen=live.update, **options)
    terminal.show(terminal.describe(board), style="bold")
    terminal.show(terminal.show_leaderboard(board))
    if not any(row.values for row in board.rows):
        sys.exit(1)
    terminal.hint(next_step([board], options["store"]))


@click.command(epilog="Example:  papers leaderboard probe --setting label-efficiency")
@click.argument("task")
@click.option("--setting", help="Only this setting (`papers tasks`).")
@click.option("--data", help="Only this data set.")
@click.option("--metric", help="Rank by this metric, a column of the leaderboard.")
@store_option
def leaderboard(task: str, setting: str | None, data: str | None, metric: str | None, store: str | None) -> None:
    """Print the leaderboards of a TASK from saved runs."""
    from workingpapers import terminal
    from workingpapers.runs.leaderboard import leaderboard as rank
    from workingpapers.runs.present import all_boards, next_step
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
    terminal.hint(next_step(boards, store))


@click.command(epilog="Example:  papers reproduce moment-probing gaussian-ad --seeds 3")
@click.argument("slugs", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every paper that takes part in a task.")
@click.option("--data", help="Measure on this data set instead of the ones that the cards name.")
@click.option("--markdown", is_flag=True, help="Print Markdown tables with date and hardware.")
@run_options
def reproduce(slugs: tuple[str, ...], everything: bool, data: str | None, markdown: bool, **options: Any) -> None:
    """Measure the claims of papers. Runs what is missing, then prints reported beside measured."""
    from workingpapers import terminal
    from workingpapers.papers.catalogue import load_catalogue, paper
    from workingpapers.runs.reproduce import markdown as as_markdown
    from workingpapers.runs.reproduce import reproduce as run

    if everything == bool(slugs):
        both = "Name papers or --all, not both" if everything else "Name one or more papers, or --all"
        raise UserError(f"{both}: `papers reproduce moment-probing`.")
    cards = list(load_catalogue().values()) if everything else [paper(slug) for slug in slugs]
    with Live() as live, remarks() as said:
        found = run(cards, data=data, only_entered=everything, listen=live.update, **options)
    for remark in said:
        terminal.say(remark)
    if markdown:
        click.echo(as_markdown(found))
        return
    for card, findings in found:
        terminal.show(terminal.show_findings(findings, card.slug))


@click.command("rank-features", epilog="Example:  papers rank-features clicks.parquet --label clicked")
@click.argument("file")
@click.option("--label", default="label", show_default=True, help="The column to be told something about.")
@click.option("--limit", default=30, show_default=True, type=click.IntRange(1), help="Most columns to show.")
def rank_features(file: str, label: str, limit: int) -> None:
    """Rank the columns of a table. OutRank's scores don't favour columns of many values.

    FILE is CSV, TSV (either also .gz) or Parquet; it is read in batches and may be larger than memory. The score is
    the mutual information with the label less what noise with the same value counts would have.
    """
    from workingpapers import terminal

    existing_file(file)  # before what takes seconds to import
    from workingpapers.methods.tables.outrank import rank_file

    with remarks() as said:
        ranked = rank_file(file, label)
    numbers = ["score nats", "information nats", "coverage %", "values"]
    rows = []
    for row in ranked.head(limit).to_dict("records"):
        score, plain = f"{row['score']:+z.5f}", f"{row['mutual_information']:.5f}"
        rows.append((str(row["feature"]), score, plain, f"{100 * row['coverage']:.0f}", f"{row['values']:,.0f}"))
    terminal.show(terminal.sheet(["column", *numbers], rows, right=numbers))
    for remark in said:
        terminal.say(remark)
    if len(ranked) > limit:
        terminal.say(f"{limit} of {len(ranked)} columns; --limit shows more")


@click.command(epilog="Example:  papers report -o report")
@click.option("-o", "--output", default="report", show_default=True, help="Folder to write; made if it isn't there.")
@store_option
def report(output: str, store: str | None) -> None:
    """Write all runs as a static HTML site. It has leaderboards, plots and a page for each paper."""
    import logging
    from pathlib import Path

    from workingpapers import terminal

    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # that it keeps no cache in a read-only home is no news
    from workingpapers.runs.report import write_report
    from workingpapers.runs.store import Store

    if not output:  # as an unset variable of the shell's is
        raise UserError("output is empty. Name a folder, or leave it out for the default.")
    found = Store(store)
    terminal.hint(f"Writing {output} ...")
    index = write_report(Path(output), found)
    terminal.say(f"Wrote {index}")


COMMANDS = (try_, leaderboard, reproduce, rank_features, report)
