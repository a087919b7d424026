"""`papers report`: a static site of everything in a store, which works offline and holds no script.

An index, one page per leaderboard (with plots, and its numbers as JSON and CSV beside it) and one per paper that has a
method or findings. Pages stand alone: their style and their plots are inside them. Everything that comes from the store
or from cards is escaped, and a content policy forbids scripts and anything from elsewhere.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from workingpapers import __version__
from workingpapers.errors import UserError
from workingpapers.papers.card import Card
from workingpapers.papers.catalogue import load_catalogue
from workingpapers.papers.topics import topic
from workingpapers.runs import claims, plot
from workingpapers.runs.claims import Finding
from workingpapers.runs.leaderboard import Estimate, Leaderboard, leaderboards
from workingpapers.runs.store import Run, Store
from workingpapers.tasks.protocol import Conditions, Metric, load_task
from workingpapers.terminal import count, interval, number, reported, seconds

_GENERATOR = b'<meta name="generator" content="workingpapers'  # by which a page of an earlier report is known

_PLURALS = {"helps": "help", "hurts": "hurt", "needs more seeds": "need more seeds"}

# What verdicts and claims' standings look like: a character (the plots' shapes) and the class of its colour.
BADGES = {
    "helps": ("▲", "helps"),
    "hurts": ("▼", "hurts"),
    "no difference": ("●", "same"),
    "needs more seeds": ("○", "unsure"),
    "baseline": ("◆", "same"),
    "failed": ("✕", "hurts"),
    "reproduced": ("✓", "helps"),
    "not reproduced": ("✕", "hurts"),
    "not run": ("–", "soft"),
    "no entry yet": ("–", "soft"),
    "not testable": ("–", "soft"),
}


@dataclass(frozen=True)
class Paper:
    """A paper's page: its card, what became of its claims, how far it has come, and the leaderboards it is on."""

    card: Card
    found: Sequence[Finding]
    status: claims.Status
    boards: Sequence[Leaderboard]

    @property
    def standings(self) -> Counter[str]:
        """How many claims have which standing, in the order of `BADGES`."""
        return _ordered(finding.standing for finding in self.found)


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
        raise UserError("There are no runs in the store yet, so nothing to report. `papers try probe` makes some.")
    boards, left_out = _boards(runs)
    if not boards:
        raise UserError(f"No runs in the store can be shown. {' '.join(left_out)}")
    papers = _papers(runs, boards)
    files = _leaderboard_files(boards, papers) | _paper_files(papers)
    files["index.html"] = _render("index.html", root="", boards=boards, papers=papers, runs=runs, left_out=left_out)
    for name in files:
        _refuse_what_is_in_the_way(folder, folder / name)
    for name, text in files.items():
        _write(folder / name, text)
    return folder / "index.html"


def permalink(conditions: Conditions) -> str:
    """Return a leaderboard's file name without ending: readable, and the same for the same conditions for ever."""
    parts = (conditions.task, conditions.setting, conditions.data, conditions.model, conditions.budget)
    words = re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")[:80]
    return f"{words}-{_digest(conditions)}"


def command(board: Leaderboard) -> str:
    """Return the command that makes the runs of a leaderboard."""
    at, task = board.conditions, load_task(board.conditions.task)
    names = [row.entry for row in board.rows]
    everything = {entry.name for entry in task.select(at.setting)} <= set(names)
    threads = max(int(run.settings.get("threads", 1)) for run in board.runs)
    options = {
        "--setting": at.setting if at.setting != "standard" else "",
        "--data": at.data if at.data != board.setting.data else "",
        "--label": at.label if at.label != "label" else "",
        "--model": at.model if at.model != board.setting.model else "",
        "--entries": "" if everything else ",".join(name for name in names if name != board.setting.baseline),
        "--budget": at.budget if at.budget != "quick" else "",
        "--seeds": str(1 + max(run.seed for run in board.runs)),
        "--threads": str(threads) if threads != 1 else "",
    }
    given = [word for option, value in options.items() if value for word in (option, value)]
    return shlex.join(["papers", "try", at.task, *given])


def _digest(conditions: Conditions) -> str:
    return hashlib.sha256(json.dumps(dataclasses.astuple(conditions)).encode()).hexdigest()[:8]


def _boards(runs: Iterable[Run]) -> tuple[list[Leaderboard], list[str]]:
    """Return every leaderboard, and one line for each setting that cannot be shown because its task is gone."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.task, run.setting), []).append(run)
    boards, left_out = [], []
    for (task, setting), group in sorted(groups.items(), key=lambda item: (item[0][0], item[0][1] != "standard", item)):
        try:
            boards += leaderboards(group)
        except UserError as error:
            left_out.append(f"Left out: what was run of {task}, {setting} ({len(group)} in all). {error}")
    return boards, left_out


def _papers(runs: Sequence[Run], boards: Sequence[Leaderboard]) -> dict[str, Paper]:
    """Return the papers that get a page, by slug."""
    papers = {}
    for slug, card in load_catalogue().items():
        found = claims.findings(card, runs)
        status = claims.status(card, found)
        on = [board for board in boards if any(row.paper == slug for row in board.rows)]
        if status != "card" or on:
            papers[slug] = Paper(card, found, status, on)
    return papers


def _leaderboard_files(boards: Iterable[Leaderboard], papers: Mapping[str, Paper]) -> dict[str, str]:
    files = {}
    for board in boards:
        name = f"leaderboards/{permalink(board.conditions)}"
        page = {"board": board, "papers": papers, "plots": plot.plots(board), "command": command(board)}
        files[f"{name}.html"] = _render("leaderboard.html", root="../", **page, **_provenance(board))
        files[f"{name}.json"] = _as_json(board)
        files[f"{name}.csv"] = board.to_frame().to_csv()
    return files


def _paper_files(papers: Mapping[str, Paper]) -> dict[str, str]:
    return {
        f"papers/{slug}.html": _render(
            "paper.html", root="../", paper=paper, card=paper.card, topics=[topic(t).title for t in paper.card.topics]
        )
        for slug, paper in papers.items()
    }


def _provenance(board: Leaderboard) -> dict[str, Any]:
    """Return what the runs of a leaderboard ran with: each fact once, or every value that it had."""
    settings, versions, hardware = (
        _distinct(getattr(run, name) for run in board.runs) for name in ("settings", "versions", "hardware")
    )
    budgets = [run.settings["budget"] for run in board.runs if isinstance(run.settings.get("budget"), dict)]
    settings["seeds"] = ", ".join(str(seed) for seed in sorted({run.seed for run in board.runs}))
    settings |= _distinct(budgets[-1:])
    settings.pop("name", None)
    settings["label column"] = settings.pop("label", "")
    hardware["memory, GiB"] = hardware.pop("memory_gb", "")
    prints = {run.data_fingerprint[:16] for run in board.runs}, {run.model_fingerprint[:16] for run in board.runs}
    return {
        "settings": settings,
        "versions": versions,
        "hardware": hardware,
        "fingerprints": {"data": ", ".join(prints[0]), "model": ", ".join(prints[1])},
        "finished": max(run.finished for run in board.runs),
    }


def _distinct(tables: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return name to the distinct values over some tables; values that are tables themselves are left out."""
    found: dict[str, dict[str, None]] = {}
    for table in tables:
        for name, value in table.items():
            if not isinstance(value, dict) and value not in ("", None):
                found.setdefault(name, {})[str(value)] = None
    return {name: ", ".join(values) for name, values in found.items()}


def _as_json(board: Leaderboard) -> str:
    """Return a leaderboard with all its runs as JSON; what is not finite becomes null."""
    return json.dumps(
        _finite(
            {
                "conditions": dataclasses.asdict(board.conditions),
                "baseline": board.setting.baseline,
                "ranked_by": board.metric.name,
                "metrics": [dataclasses.asdict(metric) for metric in board.setting.metrics],
                "rows": [dataclasses.asdict(row) for row in board.rows],
                "runs": [dataclasses.asdict(run) for run in board.runs],
            }
        ),
        indent=1,
        allow_nan=False,
    )


def _finite(value: Any) -> Any:
    """Return nested data with null in place of numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _render(template: str, **values: Any) -> str:
    """Return a page."""
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {
        "count": count,
        "interval": interval,
        "number": number,
        "reported": reported,
        "seconds": seconds,
        "digest": _digest,
        "permalink": permalink,
        "prose": _prose,
        "svg": Markup,  # plots come escaped
        "spread": _spread,
        "verdicts": _verdicts,
    }
    return templates.get_template(template).render(version=__version__, badges=BADGES, plurals=_PLURALS, **values)


def _verdicts(board: Leaderboard) -> Counter[str]:
    """Return how many entries of a leaderboard have which verdict; "failed" are those of which no run finished."""
    return _ordered(row.verdict or "failed" for row in board.rows if row.verdict or not row.values)


def _ordered(names: Iterable[str]) -> Counter[str]:
    """Count names, in the order of `BADGES`."""
    found = Counter(names)
    return Counter({name: found[name] for name in BADGES if found[name]})


def _spread(value: Estimate, metric: Metric, *, signed: bool = False) -> Markup:
    """Return a value as `interval` writes it, the half width marked up to step back behind the mean."""
    mean, sign, half = interval(value, metric, signed=signed).replace("-", "−").partition(" ± ")
    return Markup("{}<span class=half>{}{}</span>").format(mean, sign, half) if sign else escape(mean)


def _prose(text: str) -> Markup:
    """Return a card's text with `code` marked up as such."""
    parts = " ".join(text.split()).split("`")
    return Markup("").join(Markup("<code>{}</code>").format(p) if i % 2 else escape(p) for i, p in enumerate(parts))


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
