"""What is shown of runs and papers, wherever it is shown: the static report and the page share all of this.

Which leaderboards and findings there are, their addresses and commands, and the marks, words and filters that the
templates write them with.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from workingpapers.errors import UserError
from workingpapers.papers.card import Card
from workingpapers.papers.catalogue import load_catalogue
from workingpapers.runs import claims
from workingpapers.runs.claims import Finding
from workingpapers.runs.leaderboard import Estimate, Leaderboard, leaderboards
from workingpapers.runs.store import Run
from workingpapers.tasks.protocol import Conditions, Metric, load_task
from workingpapers.terminal import count, interval, number, reported, seconds

TEMPLATES = Path(__file__).parent / "templates"

PLURALS = {"helps": "help", "hurts": "hurt", "needs more seeds": "need more seeds"}

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

# Words in the names of metrics and curves that are written in capitals where the name is part of a title.
ACRONYMS = {"auc", "auprc", "auroc", "cpu", "ece", "f1", "gauc", "gpu", "mae", "mrr", "mse", "ndcg", "nll", "rmse"}


@dataclass(frozen=True)
class Assessed:
    """A paper of the catalogue: its card, what became of its claims, how far it came, its leaderboards."""

    card: Card
    found: Sequence[Finding]
    status: claims.Status
    boards: Sequence[Leaderboard]

    @property
    def standings(self) -> Counter[str]:
        """How many claims have which standing, in the order of `BADGES`."""
        return _ordered(finding.standing for finding in self.found)


@dataclass(frozen=True)
class Places:
    """Where the links of a page lead: `root` before and `ending` after what every address has in common."""

    root: str
    ending: str

    def paper(self, slug: str) -> str:
        """Return the address of a paper."""
        return f"{self.root}papers/{slug}{self.ending}"

    def board(self, conditions: Conditions) -> str:
        """Return the address of a leaderboard."""
        return f"{self.root}leaderboards/{permalink(conditions)}{self.ending}"


def permalink(conditions: Conditions) -> str:
    """Return a leaderboard's file name without ending: readable, and the same for the same conditions for ever."""
    parts = (conditions.task, conditions.setting, conditions.data, conditions.model, conditions.budget)
    words = re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")[:80]
    return f"{words}-{digest(conditions)}"


def command(board: Leaderboard, seeds: int | None = None) -> str:
    """Return the command that makes the runs of a leaderboard, or those of more seeds."""
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
        "--seeds": str(seeds or seeds_of(board)),
        "--threads": str(threads) if threads != 1 else "",
    }
    given = [word for option, value in options.items() if value for word in (option, value)]
    return shlex.join(["papers", "try", at.task, *given])


def seeds_of(board: Leaderboard) -> int:
    """Return how many seeds the command had that made a leaderboard."""
    return 1 + max(run.seed for run in board.runs)


def next_step(boards: Sequence[Leaderboard], store: str | None = None) -> str:
    """Return a line on what to do after leaderboards: use what helps, or decide what is open, and look closer.

    Args:
        boards: at least one; of several nothing but the report is recommended.
        store: as it was named for the command; None if it was not.
    """
    there = ["--store", store] if store else []
    report = f"`{shlex.join(['papers', 'report', *there])}` for plots"
    if len(boards) > 1:
        return f"Next: {report}"
    first = boards[0].rows[0]
    if first.best and first.verdict == "helps" and first.paper in load_catalogue():
        return f"Next: `papers show {first.paper}` for its code; {report}"
    if verdicts(boards[0])["needs more seeds"]:
        more = " ".join([command(boards[0], max(5, 2 * seeds_of(boards[0]))), *map(shlex.quote, there)])
        return f"Next: `{more}` to decide what is open; {report}"
    return f"Next: {report}"


def digest(conditions: Conditions) -> str:
    """Return what tells conditions apart, in eight hex digits."""
    return hashlib.sha256(json.dumps(dataclasses.astuple(conditions)).encode()).hexdigest()[:8]


def all_boards(runs: Iterable[Run]) -> tuple[list[Leaderboard], list[str]]:
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


def all_papers(runs: Sequence[Run], boards: Sequence[Leaderboard]) -> dict[str, Assessed]:
    """Return every paper of the catalogue by slug, with what the runs say about it."""
    papers = {}
    for slug, card in load_catalogue().items():
        found = claims.findings(card, runs)
        status = claims.status(card, found)
        on = [board for board in boards if any(row.paper == slug for row in board.rows)]
        papers[slug] = Assessed(card, found, status, on)
    return papers


def provenance(board: Leaderboard) -> dict[str, Any]:
    """Return what the runs of a leaderboard ran with: each fact once, or every value that it had."""
    settings, versions, hardware = (
        _distinct(getattr(run, name) for run in board.runs) for name in ("settings", "versions", "hardware")
    )
    budgets = [run.settings["budget"] for run in board.runs if isinstance(run.settings.get("budget"), dict)]
    settings["seeds"] = ", ".join(str(seed) for seed in sorted({run.seed for run in board.runs}))
    settings |= _distinct(budgets[-1:])
    for shown_elsewhere in ("name", "remarks"):
        settings.pop(shown_elsewhere, None)
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


def as_json(board: Leaderboard) -> str:
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


def verdicts(board: Leaderboard) -> Counter[str]:
    """Return how many entries of a leaderboard have which verdict; "failed" are those of which no run finished."""
    return _ordered(row.verdict or "failed" for row in board.rows if row.verdict or not row.values)


def _ordered(names: Iterable[str]) -> Counter[str]:
    """Count names, in the order of `BADGES`."""
    found = Counter(names)
    return Counter({name: found[name] for name in BADGES if found[name]})


def _interval(value: Estimate, metric: Metric, *, signed: bool = False) -> str:
    """Return a value as `interval` writes it, with a minus instead of a hyphen."""
    return interval(value, metric, signed=signed).replace("-", "−")


def spread(value: Estimate, metric: Metric, *, signed: bool = False) -> Markup:
    """Return a value as `interval` writes it, the half width marked up to step back behind the mean."""
    mean, sign, half = _interval(value, metric, signed=signed).partition(" ± ")
    return Markup("{}<span class=half>{}{}</span>").format(mean, sign, half) if sign else escape(mean)


def spelled(name: str) -> str:
    """Return a metric's or a curve's name with its acronyms in capitals: "image-AUROC", "NDCG-10"."""
    return re.sub(r"\b[a-z0-9]+\b", lambda word: word[0].upper() if word[0] in ACRONYMS else word[0], name)


def prose(text: str) -> Markup:
    """Return a card's text with `code` marked up as such."""
    parts = " ".join(text.split()).split("`")
    return Markup("").join(Markup("<code>{}</code>").format(p) if i % 2 else escape(p) for i, p in enumerate(parts))


FILTERS: dict[str, Callable[..., Any]] = {
    "count": count,
    "interval": _interval,
    "number": number,
    "reported": reported,
    "seconds": seconds,
    "digest": digest,
    "permalink": permalink,
    "prose": prose,
    "svg": Markup,  # plots come escaped
    "spread": spread,
    "verdicts": verdicts,
}
GLOBALS: dict[str, Any] = {"badges": BADGES, "plurals": PLURALS}
