"""What the commands print: tables, cards, the live leaderboard."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Literal

import click
from rich.console import Console, Group, RenderableType
from rich.constrain import Constrain
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from workingpapers.data.types import Info
    from workingpapers.papers.card import Card, Claim
    from workingpapers.runs.claims import Finding
    from workingpapers.runs.execute import Progress
    from workingpapers.runs.leaderboard import Estimate, Leaderboard, Row
    from workingpapers.tasks.protocol import Metric

Cells = list[str | Text]  # of one row

READABLE = 100  # columns that prose fills at most
FEWEST = 24  # columns in which a title says something
_NOISE, _MOST_PLACES = 1e-9, 9  # the share of the mean below which a half width is none; decimals at most
_interactive = sys.stdout is not None and sys.stdout.isatty()
# What is piped keeps one line per row.
console = Console(highlight=False, markup=False, emoji=False, width=None if _interactive else 1000)
errors = Console(stderr=True, highlight=False, markup=False, emoji=False)

VERDICT_STYLE = {"helps": "green", "hurts": "red", "no difference": "", "needs more seeds": "yellow"}
STANDING_STYLE = {"reproduced": "green", "not reproduced": "red", "needs more seeds": "yellow"}


def show(what: RenderableType, style: str = "") -> None:
    """Print to standard output; lines that are piped end with their last word."""
    if console.is_terminal:
        console.print(what, style=style, crop=False)
        return
    click.echo(plain(what))


def hint(text: str) -> None:
    """Print a line on what to do next, on a terminal alone: what is piped or written to a file is the result."""
    if console.is_terminal:
        console.print(text, style="dim", soft_wrap=True)


def plain(*parts: RenderableType) -> str:
    """Return what would be printed, without colours; lines end with their last word."""
    written = Console(
        file=io.StringIO(), width=console.width, color_system=None, highlight=False, markup=False, emoji=False
    )
    with written.capture() as captured:
        for part in parts:
            written.print(part, crop=False)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def table(
    *columns: str, rows: Iterable[Sequence[str]] = (), right: Iterable[str] = (), names: Iterable[str] = ()
) -> Table:
    """Return a table in the common style.

    Args:
        columns: heads; an empty one for a column that needs none.
        rows: its first ones.
        right: columns of numbers.
        names: columns that must not be broken, because people copy from them; the first one always is one.
    """
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0), show_header=any(columns))
    whole = {columns[0], *right, *names} - {""}
    for column in columns:
        justify: Literal["left", "right"] = "right" if column in set(right) else "left"
        made.add_column(column, justify=justify, no_wrap=column in whole, overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def sheet(
    columns: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[str] = (), names: Iterable[str] = ()
) -> RenderableType:
    """Return a table, or a few lines for each row.

    Lines where the table is more than half again as wide as the terminal, or what must not be broken would be cut.
    """
    rows = list(rows)
    made = table(*columns, rows=rows, right=right, names=names)
    whole = [i for i, column in enumerate(columns) if not i or column in {*right, *names}]
    unbroken = table(*(columns[i] for i in whole), rows=[[row[i] for i in whole] for row in rows])
    if _width(made) <= 1.5 * console.width and _width(unbroken) <= console.width:
        return made
    parts: list[RenderableType] = []
    for first, *others in rows:
        lines = table("", "")
        for name, value in zip(columns[1:], others, strict=True):
            lines.add_row(Text(f"  {name}", style="dim"), value)
        parts += [Text(first, style="bold"), lines]
    return Constrain(Group(*parts), READABLE)


def titles(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> RenderableType:
    """Return a table with one line for each row, whose last column holds titles that the terminal's edge may cut.

    Where a title would have less than `FEWEST` columns, those before it are named, not shown, but for the first.
    """
    rows = list(rows)
    hidden: list[int] = []
    for less_important in range(len(columns) - 2, -1, -1):
        shown = [i for i in range(len(columns) - 1) if i not in hidden]
        made = table(*(columns[i] for i in (*shown, -1)), names=[columns[i] for i in shown])
        for row in rows:
            made.add_row(*(row[i] for i in shown), one_line(row[-1]))
        titled = _width(made) - max((len(row[-1]) for row in rows), default=0) + FEWEST
        if titled <= console.width or not less_important:
            break
        hidden.append(less_important)
    if not hidden:
        return made
    names = ", ".join(columns[i] for i in reversed(hidden))
    return Group(made, Text(f"not shown for lack of space: {names}", style="dim"))


def _width(made: Table) -> int:
    """Return how many columns a table needs to have every cell on one line."""
    return console.measure(made, options=console.options.update(width=10_000)).maximum


def one_line(text: str) -> Text:
    """Return a cell that is cut with an ellipsis where the terminal is too narrow."""
    return Text(text, no_wrap=True, overflow="ellipsis")


def number(value: float, unit: str = "") -> str:
    """Return a metric's value as people write it: one decimal for percentages, three digits otherwise."""
    return f"{value:z.1f}" if unit == "%" else _digits(value, 3)


def interval(value: Estimate, metric: Metric, *, signed: bool = False) -> str:
    """Return "91.4 ± 0.3", the mean with the digits that its interval leaves it; a single seed has no interval.

    Percentages have one decimal, and more where the half width would read 0.0; of anything else the half width has two
    digits. Zero has no sign.
    """
    places = _places(value, metric.unit)
    shown = _rounded(value.mean, places)
    shown = f"+{shown}" if signed and float(shown) > 0 else shown
    return shown if math.isinf(value.half) else f"{shown} ± {_rounded(value.half, places)}"


def _places(value: Estimate, unit: str) -> int:
    """Return the decimals of a mean and its half width; below zero, tens or hundreds are what is known."""
    if math.isinf(value.half) or value.half <= _NOISE * abs(value.mean):  # seeds that agree but for the last bits
        return -int(Decimal(number(value.mean, unit)).as_tuple().exponent)
    if unit == "%" and value.half >= 0.05:
        return 1
    digits = 1 if unit == "%" else 2
    return min(digits - 1 - int(f"{value.half:.{digits - 1}e}".partition("e")[2]), _MOST_PLACES)


def _rounded(value: float, places: int) -> str:
    return f"{round(value, places):z.{max(places, 0)}f}"


def count(value: float) -> str:
    """Return a count in thousands (k) and millions (M)."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.0f}"


def seconds(value: float) -> str:
    """Return a duration with two digits below ten seconds."""
    return _digits(value, 2) if value < 10 else f"{value:.0f}"


def _digits(value: float, most: int) -> str:
    """Return a value with so many digits that say something, written out unless that takes more than nine places."""
    short = f"{value:z.{most}g}"
    return f"{Decimal(short):f}" if math.isfinite(value) and 1e-6 < abs(value) < 1e6 else short


def show_leaderboard(board: Leaderboard, width: int | None = None) -> RenderableType:
    """Return a leaderboard: best first and bold, failures last with their reasons.

    Args:
        board: the leaderboard.
        width: columns of the terminal; where they are too few, the least important numbers are named, not shown. None
            takes the width of standard output.
    """
    metric = board.metric
    measured = {name for row in board.rows for name in row.values}
    others = [m for m in board.setting.metrics if m.name != metric.name and m.name in measured]
    names = [_head(m) for m in others]
    heads = ["entry", _head(metric), "vs baseline", "verdict", *names, "fit s", "memory MB", "parameters"]
    ranked = [row for row in board.rows if metric.name in row.values]
    cells = [_cells(row, board, metric, others) for row in ranked]
    if len({row.seeds for row in ranked}) > 1:  # rows whose means are of other seeds
        heads.insert(4, "seeds")
        for row, line in zip(ranked, cells, strict=True):
            line.insert(4, str(row.seeds))
    hidden: list[str] = []
    for less_important in (*reversed(names), "memory MB", "parameters", "fit s", "seeds"):
        made = _ranking(heads, ranked, cells, hidden)
        if _width(made) <= (width or console.width):
            break
        hidden += [less_important] if less_important in heads else []
    made = _ranking(heads, ranked, cells, hidden)
    parts: list[RenderableType] = [made] if ranked else []
    if _width(made) > (width or console.width):  # a number that is cut is another number
        parts = [line for row in cells for line in _lines(heads, row)]
    elif hidden and ranked:
        parts.append(Text(f"not shown for lack of space: {', '.join(hidden)}", style="dim"))
    for row in board.rows:
        parts += [Text(f"{row.entry}: {reason}", style="red", overflow="fold") for reason in row.failures]
        parts += [Text(f"{row.entry}: {remark}", style="dim", overflow="fold") for remark in row.remarks]
    return Group(*parts)


def _head(metric: Metric) -> str:
    """Return the head of a metric's column, with its unit."""
    return f"{metric.name} {metric.unit}".strip()


def _ranking(heads: Sequence[str], ranked: Sequence[Row], cells: Sequence[Cells], hidden: Sequence[str]) -> Table:
    """Return the rows of a leaderboard that finished, but for the hidden columns."""
    shown = [i for i, head in enumerate(heads) if head not in hidden]
    made = table(*(heads[i] for i in shown), right=set(heads) - {"entry", "verdict"}, names=["verdict"])
    for row, line in zip(ranked, cells, strict=True):
        made.add_row(*(line[i] for i in shown), style="bold" if row.best else "")
    return made


def _lines(heads: Sequence[str], row: Cells) -> list[RenderableType]:
    """Return a row of a leaderboard with one line for each number, for terminals on which no table has room."""
    named = table("", "")
    for head, cell in list(zip(heads, row, strict=True))[1:]:
        if str(cell):
            named.add_row(Text(f"  {head}", style="dim"), cell)
    return [Text(str(row[0]), style="bold"), named]


def _cells(row: Row, board: Leaderboard, metric: Metric, others: Sequence[Metric]) -> Cells:
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
    model = f" · model {board.model}" if board.model else ""
    seeds = sorted({row.seeds for row in board.rows if row.seeds}) or [0]
    counts = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else str(seeds[0])
    shared = f"data {at.data}{model} · {at.budget} budget · {counts} seed{'' if seeds[-1] == 1 else 's'}"
    if len(board.machines) > 1:
        shared += f" · {len(board.machines)} machines, whose times do not compare"
    return f"{at.task}, {at.setting}: {board.setting.title} · {shared}"


def show_progress(progress: Progress, board: Leaderboard | None) -> RenderableType:
    """Return the live view of `papers try`: the leaderboard so far and one line on what runs."""
    line = Text(str(progress), style="dim")
    return Group(show_leaderboard(board, errors.width), line) if board else line


def show_card(card: Card, found: Sequence[Finding], state: str) -> RenderableType:
    """Return a paper's page for the terminal."""
    facts = table("", "")
    rows = [
        ("arXiv", f"https://arxiv.org/abs/{card.arxiv}"),
        ("code", card.code or "no official code"),
        ("topics", ", ".join(card.topics)),
        ("task", card.task or "none"),
        ("door", card.door),
        ("status", state),
    ]
    for name, value in rows:
        facts.add_row(Text(name, style="dim"), value)
    parts: list[RenderableType] = [
        Text(card.title, style="bold"),
        Text(f"{card.appeared} · {card.slug}", style="dim"),
        Text(""),
        Text(" ".join(card.summary.split())),
        Text(""),
        facts,
    ]
    if card.usage:  # never broken, so that it can be copied
        usage = Text(card.usage.strip("\n"), style="cyan", no_wrap=True, overflow="ignore")
        parts += [Text("\nUse it", style="bold"), usage]
    if found:
        parts += [Text("\nReported beside measured", style="bold"), show_findings(found)]
    if card.notes:
        notes = table("", "")
        for note in card.notes:
            notes.add_row("-", note)
        parts += [Text("\nNotes", style="bold"), notes]
    return Constrain(Group(*parts), READABLE)


def show_findings(found: Sequence[Finding], slug: str | None = None) -> RenderableType:
    """Return one block per claim: what the paper reports, what was measured, and what became of it."""
    parts: list[RenderableType] = []
    for finding in found:
        claim = finding.claim
        head = Text(f"{slug} · {claim.id}: " if slug else f"{claim.id}: ", style="bold").append(
            claim.text, style="not bold"
        )
        lines = table("", "")
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
    """Return what became of a claim and what was measured for it, or why nothing was."""
    text = Text(finding.standing, style=STANDING_STYLE.get(finding.standing, "dim"))
    reason = evidence(finding)
    return text.append(f": {reason}", style="none") if reason else text


def evidence(finding: Finding) -> str:
    """Return what was measured for a claim, or why nothing was, what is missing, or the command that measures it."""
    metric, check = finding.metric, finding.claim.check
    if metric and finding.difference and finding.entry and finding.versus and finding.board:
        values = f"{metric.name} {interval(finding.entry, metric)} against {interval(finding.versus, metric)}"
        difference = interval(finding.difference, metric, signed=True)
        where = f"{finding.board.conditions.data}, {finding.board.conditions.budget} budget"
        allowed = f"the claim allows {check.tolerance:g}; " if check and check.tolerance else ""
        return f"{values}, difference {difference} ({finding.verdict}; {allowed}{where})"
    if check and finding.standing == "no entry yet":
        return f"{check.entry} of task {check.task}"
    return finding.claim.untestable or "; again: ".join(filter(None, (finding.failure, finding.command)))


def show_infos(infos: Iterable[Info]) -> RenderableType:
    """Return what is known of data sets or models."""
    columns = ("name", "here", "what it is", "size", "licence", "source")
    return sheet(columns, [(i.name, "yes" if i.here() else "no", i.title, i.size, i.licence, i.source) for i in infos])


def say(message: str) -> None:
    """Print a remark to standard error, so that tables can be piped."""
    errors.print(message, style="dim", soft_wrap=True)
