"""`papers report`: a static site of everything in a store, which works offline and holds no script.

An index, one page per leaderboard (with plots, and its numbers as JSON and CSV beside it) and one per paper that has a
method or findings. Pages stand alone: their style and their plots are inside them. Everything that comes from the store
or from cards is escaped, and a content policy forbids scripts and anything from elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from workingpapers import __version__
from workingpapers.errors import UserError
from workingpapers.papers.topics import topic
from workingpapers.runs import plot
from workingpapers.runs.leaderboard import Leaderboard
from workingpapers.runs.present import (
    FILTERS,
    GLOBALS,
    TEMPLATES,
    Assessed,
    Places,
    all_boards,
    all_papers,
    as_json,
    command,
    permalink,
    provenance,
)
from workingpapers.runs.store import Store

_GENERATOR = b'<meta name="generator" content="workingpapers'  # by which a page of an earlier report is known


def write_report(folder: Path, store: Store) -> Path:
    """Write the site and return the path of its index.html.

    Pages of an earlier report are replaced; nothing is deleted, and every file appears whole or not at all.

    Args:
        folder: where to write; made if it isn't there.
        store: whose runs are shown.

    Raises:
        UserError: no run to show, a folder that cannot be written, or a file in the way that no report wrote.
    """
    runs = store.runs()
    if not runs:
        raise UserError(f"No runs in the store {store.shown} yet, so nothing to report. `papers try probe` makes some.")
    boards, left_out = all_boards(runs)
    if not boards:
        raise UserError(f"No runs in the store can be shown. {' '.join(left_out)}")
    everything = all_papers(runs, boards)
    papers = {slug: paper for slug, paper in everything.items() if paper.status != "card" or paper.boards}
    files = _leaderboard_files(boards, papers) | _paper_files(papers)
    files["index.html"] = _render("index.html", root="", boards=boards, papers=papers, runs=runs, left_out=left_out)
    for name in files:
        _refuse_what_is_in_the_way(folder, folder / name)
    for name, text in files.items():
        _write(folder / name, text)
    return folder / "index.html"


def _leaderboard_files(boards: Iterable[Leaderboard], papers: Mapping[str, Assessed]) -> dict[str, str]:
    files = {}
    for board in boards:
        name = f"leaderboards/{permalink(board.conditions)}"
        page = {"board": board, "papers": papers, "plots": plot.plots(board), "command": command(board)}
        files[f"{name}.html"] = _render("leaderboard.html", root="../", **page, **provenance(board))
        files[f"{name}.json"] = as_json(board)
        files[f"{name}.csv"] = board.to_csv()
    return files


def _paper_files(papers: Mapping[str, Assessed]) -> dict[str, str]:
    return {
        f"papers/{slug}.html": _render(
            "paper.html", root="../", paper=paper, card=paper.card, topics=[topic(t).title for t in paper.card.topics]
        )
        for slug, paper in papers.items()
    }


def _render(template: str, root: str, **values: Any) -> str:
    """Return a page; `root` leads from it to the folder of the index."""
    templates = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= FILTERS
    templates.globals |= GLOBALS
    return templates.get_template(template).render(
        version=__version__, root=root, places=Places(root, ".html"), **values
    )


def _refuse_what_is_in_the_way(folder: Path, file: Path) -> None:
    """Refuse to write where something stands that no report wrote.

    Raises:
        UserError: names it.
    """
    for above in (folder, file.parent):
        if above.exists() and not above.is_dir():
            raise UserError(f"The report needs a folder at {above}, but that is a file. Name another folder with -o.")
    if file.is_dir():
        raise UserError(f"The report needs a file at {file}, but that is a folder. Name another folder with -o.")
    try:
        is_foreign = file.suffix == ".html" and file.exists() and _GENERATOR not in file.read_bytes()[:2000]
    except OSError as error:
        raise UserError(f"{file} is in the way and cannot be read: {error.strerror}.") from error
    if is_foreign:
        raise UserError(f"{file} is not from an earlier report, and was left as it is. Name another folder with -o.")


def _write(file: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        UserError: the folder cannot be written.
    """
    part = file.with_name(f".{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(text.encode("utf-8", "replace"))
        part.replace(file)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(f"The report cannot be written to {file}: {error.strerror}.") from error
