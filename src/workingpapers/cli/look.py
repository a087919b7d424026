"""The commands that look: at papers, topics, tasks, entries, data and models."""

from __future__ import annotations

import click

from workingpapers.cli.options import store_option


@click.command("list", epilog="Example:  papers list --task probe --status measured")
@click.option("--task", help="Papers measured in this task.")
@click.option("--topic", help="Papers of this topic and all topics below it (`papers topics`).")
@click.option("--year", type=int, help="Papers first published in this year.")
@click.option(
    "--status",
    type=click.Choice(["card", "method", "entry", "measured"]),
    help="How far a paper has come: only described, has a method, takes part in a task, has a verdict.",
)
@store_option
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


@click.command(epilog="Example:  papers search 'few labels frozen features'")
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


@click.command(epilog="Example:  papers show moment-probing")
@click.argument("slug")
@store_option
def show(slug: str, store: str | None) -> None:
    """Show a paper and how to use its method. Its claims stand reported beside measured."""
    from workingpapers import terminal
    from workingpapers.papers.catalogue import paper
    from workingpapers.runs import claims
    from workingpapers.runs.store import Store

    card = paper(slug)
    found = claims.findings(card, Store(store).runs())
    terminal.show(terminal.show_card(card, found, claims.status(card, found)))


@click.command(epilog="Example:  papers topics feature-transfer")
@click.argument("topic", default="pre-trained-models")
def topics(topic: str) -> None:
    """Show the topic tree with numbers of papers. With a TOPIC, only the part below it."""
    from workingpapers import terminal
    from workingpapers.papers.catalogue import select
    from workingpapers.papers.topics import load_topics, path, walk

    above, rows = len(path(topic)), []
    for name in walk(topic):
        indent = "  " * (len(path(name)) - above)
        rows.append((indent + name, str(len(select(topic=name))), load_topics()[name].gist))
    columns = ("topic", "papers", "gist")
    narrow = terminal.console.width < 80  # then the gists would stand in a column of a word or a letter
    terminal.show(terminal.titles(columns, rows) if narrow else terminal.table(*columns, right=["papers"], rows=rows))


@click.command()
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


@click.command(epilog="Example:  papers entries probe")
@click.argument("task")
def entries(task: str) -> None:
    """List the entries of a TASK. They are its baselines and its papers' methods."""
    from workingpapers import terminal
    from workingpapers.tasks.protocol import load_task

    rows = [(e.name, e.paper or "(baseline)", ", ".join(e.settings), e.about) for e in load_task(task).entries.values()]
    terminal.show(terminal.sheet(("entry", "paper", "settings", "what it does"), rows, names=["paper"]))


@click.command()
def data() -> None:
    """List the data sets known by name. A path of your own works wherever a name does."""
    from workingpapers import terminal
    from workingpapers.data.datasets import DATASETS
    from workingpapers.data.impressions import IMPRESSIONS
    from workingpapers.data.texts import TEXTS

    terminal.show(terminal.show_infos([*DATASETS.values(), *IMPRESSIONS.values(), *TEXTS.values()]))


@click.command()
def models() -> None:
    """List the models known by name. The names of transformers and timm and paths work too."""
    from workingpapers import terminal
    from workingpapers.data.language_models import LANGUAGE_MODELS
    from workingpapers.data.models import MODELS

    terminal.show(terminal.show_infos([*MODELS.values(), *LANGUAGE_MODELS.values()]))


COMMANDS = (list_, search, show, topics, tasks, entries, data, models)
