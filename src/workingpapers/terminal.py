"""What the commands print: tables, cards, the live leaderboard."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from workingpapers.papers.card import Card, Claim
    from workingpapers.runs.claims import Finding, Standing
    from workingpapers.runs.execute import Progress
    from workingpapers.runs.leaderboard import Estimate, Leaderboard, Row
    from workingpapers.tasks.protocol import Metric

# What is piped keeps one line per row.
console = Console(highlight=False, width=None if sys.stdout.isatty() else 240)
errors = Console(stderr=True, highlight=False)

VERDICT_STYLE = {"helps": "green", "hurts": "red", "no difference": "", "needs more seeds": "yellow"}
STANDING_STYLE = {"reproduced": "green", "not reproduced": "red", "needs more seeds": "yellow"}


def table(*columns: str, right: Iterable[str] = ()) -> Table:
    """Return an empty table in the house's style; the columns named in `right` are numbers."""
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    numeric = set(right)
    for index, column in enumerate(columns):
        justify: Literal["left", "right"] = "right" if column in numeric else "left"
        made.add_column(column, justify=justify, no_wrap=index == 0 or column in numeric)
    return made


def number(value: float, unit: str = "") -> str:
    """Return a metric's value as people write it: one decimal for percentages, three digits otherwise."""
    return f"{value:.1f}" if unit == "%" else f"{value:.3g}"


def interval(value: Estimate, metric: Metric, *, signed: bool = False) -> str:
    """Return "91.4 ± 0.3"; a single seed has no interval."""
    shown = number(value.mean, metric.unit)
    if signed and value.mean >= 0:
        shown = f"+{shown}"
    return shown if math.isinf(value.half) else f"{shown} ± {number(value.half, metric.unit)}"


def count(value: float) -> str:
    """Return a count in thousands (k) and millions (M)."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.0f}"


def seconds(value: float) -> str:
    """Return a duration with two digits below ten seconds."""
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


def show_leaderboard(board: Leaderboard) -> RenderableType:
    """Return a leaderboard: best first and bold, failures last with their reasons."""
    metric = board.metric
    others = [m for m in board.setting.metrics if m.name != metric.name]
    heads = [metric.name, "vs baseline", *(m.name for m in others), "fit s", "memory MB", "parameters"]
    made = table("entry", heads[0], heads[1], "verdict", *heads[2:], right=heads)
    for row in board.rows:
        if metric.name in row.values:
            made.add_row(*_cells(row, board, metric, others), style="bold" if row.best else "")
    failed = [
        Text(f"{row.entry}: {reason}", style="red", overflow="fold") for row in board.rows for reason in row.failures
    ]
    return Group(made, *failed)


def _cells(row: Row, board: Leaderboard, metric: Metric, others: Sequence[Metric]) -> list[str | Text]:
    difference = interval(row.difference, metric, signed=True) if row.difference else ""
    verdict = Text(row.verdict or "", style=VERDICT_STYLE.get(row.verdict or "", ""))
    if row.entry == board.setting.baseline:
        difference = "(baseline)"
    return [
        row.entry,
        interval(row.values[metric.name], metric),
        difference,
        verdict,
        *(number(row.values[m.name].mean, m.unit) if m.name in row.values else "–" for m in others),
        seconds(row.costs["fit_seconds"]),
        f"{row.costs['peak_memory_mb']:.0f}",
        count(row.costs["parameters"]),
    ]


def describe(board: Leaderboard) -> str:
    """Return one line on what a leaderboard compares."""
    at = board.conditions
    model = f" · model {at.model}" if at.model else ""
    seeds = max((row.seeds for row in board.rows), default=0)
    return (
        f"{at.task}, {at.setting}: {board.setting.title} · data {at.data}{model} · {at.budget} budget · {seeds} seeds"
    )


def show_progress(progress: Progress) -> RenderableType:
    """Return the live view of `papers try`: the leaderboard so far and one line on what runs."""
    from workingpapers.runs.leaderboard import leaderboard

    line = Text(f"{len(progress.runs)} of {progress.total} runs done", style="dim")
    if progress.running:
        line.append(f" · now: {'; '.join(progress.running)}")
    if not progress.runs:
        return line
    return Group(show_leaderboard(leaderboard(progress.runs, progress.conditions)), line)


def show_card(card: Card, found: Sequence[Finding], state: str) -> RenderableType:
    """Return a paper's page for the terminal."""
    facts = table("", "")
    facts.show_header = False
    rows = [
        ("arXiv", f"https://arxiv.org/abs/{card.arxiv}"),
        ("code", card.code or "no official code"),
        ("topics", ", ".join(card.topics)),
        ("task", card.task or "none"),
        ("door", card.door),
        ("status", state),
    ]
    for name, value in rows:
        facts.add_row(Text(name, style="dim"), Text(value))
    parts: list[RenderableType] = [
        Text(card.title, style="bold"),
        Text(f"{card.venue}, {card.year} · {card.slug}", style="dim"),
        Text(""),
        Text(" ".join(card.summary.split())),
        Text(""),
        facts,
    ]
    if card.usage:
        parts += [Text("\nUse it", style="bold"), Text(card.usage.rstrip("\n"), style="cyan")]
    if found:
        parts += [Text("\nReported beside measured", style="bold"), show_findings(found)]
    if card.notes:
        parts += [Text("\nNotes", style="bold"), *(Text(f"- {note}") for note in card.notes)]
    return Group(*parts)


def show_findings(found: Sequence[Finding], slug: str | None = None) -> RenderableType:
    """Return one block per claim: what the paper reports, what was measured, and what became of it."""
    parts: list[RenderableType] = []
    for finding in found:
        claim = finding.claim
        head = Text(f"{slug} · {claim.id}: " if slug else f"{claim.id}: ", style="bold").append(
            claim.text, style="not bold"
        )
        lines = table("", "")
        lines.show_header = False
        lines.add_row(Text("  reported", style="dim"), Text(reported(claim)))
        lines.add_row(Text("  measured", style="dim"), measured(finding))
        parts += [head, lines]
    return Group(*parts)


def reported(claim: Claim) -> str:
    """Return a claim's numbers with their source: "83.15 % against 82.04 % (ImageNet-1K; readme)"."""
    numbers = []
    for item in claim.reported:
        unit = f" {item.unit}" if item.unit else ""
        against = "" if item.baseline is None else f" against {item.baseline:g}{unit}"
        numbers.append(f"{item.value:g}{unit}{against} ({item.on})")
    trust = "" if claim.verified else ", not verified"
    return f"{'; '.join(numbers) or 'no number'} [{claim.source}{trust}]"


def measured(finding: Finding) -> Text:
    """Return what was measured for a claim, or why nothing was."""
    standing: Standing = finding.standing
    text = Text(standing, style=STANDING_STYLE.get(standing, "dim"))
    metric = finding.metric
    if metric and finding.difference and finding.entry and finding.versus and finding.board:
        values = f"{metric.name} {interval(finding.entry, metric)} against {interval(finding.versus, metric)}"
        difference = interval(finding.difference, metric, signed=True)
        where = f"{finding.board.conditions.data}, {finding.board.conditions.budget} budget"
        return text.append(f": {values}, difference {difference} ({finding.verdict}; {where})", style="none")
    if finding.claim.untestable:
        return text.append(f": {finding.claim.untestable}", style="none")
    if finding.command:
        return text.append(f": {finding.command}", style="none")
    return text


def say(message: str) -> None:
    """Print a remark to standard error, so that tables can be piped."""
    errors.print(escape(message), style="dim")
