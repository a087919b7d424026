"""Plots of a leaderboard as SVG that lies inside a page: metric with intervals, metric against cost, learning curves.

Matplotlib draws with placeholder colours, for which `svg.inline` puts the page's variables, so that plots follow light
and dark. A verdict has a shape of its own beside its colour, the same in plots and tables: see `MARKS`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from workingpapers.runs.leaderboard import Estimate, Leaderboard, Row, estimate, seed_values
from workingpapers.runs.present import spelled
from workingpapers.runs.svg import inline, printable
from workingpapers.tasks.protocol import Metric
from workingpapers.terminal import count, interval, seconds

# Placeholder colours that matplotlib draws with, and what the page paints in their place.
_INK, _SOFT, _RULE, _HELPS, _HURTS, _UNSURE = (f"#0000{i:02x}" for i in range(1, 7))
_SERIES = [f"#0000{i:02x}" for i in range(0x11, 0x19)]
_VARIABLES = {
    _INK: "var(--ink)",
    _SOFT: "var(--soft)",
    _RULE: "var(--rule)",
    _HELPS: "var(--helps)",
    _HURTS: "var(--hurts)",
    _UNSURE: "var(--unsure)",
} | {placeholder: f"var(--series-{i})" for i, placeholder in enumerate(_SERIES, 1)}

BASELINE = "baseline"
NOTHING = 0.1  # seconds that an entry takes which has nothing to fit, at most
# Verdict to matplotlib's marker, colour and whether it is filled; tables show the same shapes as characters.
MARKS: dict[str, tuple[str, str, bool]] = {
    "helps": ("^", _HELPS, True),
    "hurts": ("v", _HURTS, True),
    "no difference": ("o", _INK, True),
    "needs more seeds": ("o", _UNSURE, False),
    BASELINE: ("D", _INK, True),
}

_STYLE = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "svg.hashsalt": "workingpapers",  # the same plot is the same file
    "text.parse_math": False,  # a "$" in a name is a "$"
    "font.family": "DejaVu Sans",  # comes with matplotlib, and is wider than most: what fits here fits there
    "font.size": 9.5,
    "axes.edgecolor": _RULE,
    "axes.labelcolor": _SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "text.color": _INK,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "path.simplify": True,
}
_WIDTH = 4.9  # inches; at 72 units an inch this fills a phone at a legible size
_LONGEST_NAME = 26
_MOST_SERIES = len(_SERIES)
_MOST_POINTS = 60


@dataclass(frozen=True)
class Plot:
    """A figure for a page.

    Attributes:
        title: what it shows.
        caption: how to read it, and what it leaves out.
        svg: the figure, safe to put into HTML as it stands.
    """

    title: str
    caption: str
    svg: str


def plots(board: Leaderboard) -> list[Plot]:
    """Return every plot that a leaderboard has data for; none if no run finished."""
    if not _ranked(board):
        return []
    made = [
        interval_plot(board),
        *(cost_plot(board, name, title, lambda value: f"{seconds(value)} s") for name, title in _times(board)),
    ]
    if len({row.costs["parameters"] for row in _ranked(board)}) > 1:  # one number for all says nothing
        made.append(cost_plot(board, "parameters", "learned parameters", count))
    names = dict.fromkeys(name for run in board.runs if run.status == "ok" for name in run.curves)
    made += [curve_plot(board, name, index) for index, name in enumerate(names)]
    return [plot for plot in made if plot]


def interval_plot(board: Leaderboard) -> Plot:
    """Return the ranking metric of every entry with its 95 % interval, the best on top, and the baseline as a line."""
    metric = board.metric
    rows = _ranked(board)[::-1]
    low, high, cut = _limits([row.values[metric.name] for row in rows])
    with _figure(0.55 + 0.25 * len(rows)) as (figure, axes):
        for y, row in enumerate(rows):
            if row.entry == board.setting.baseline:
                axes.axvline(row.values[metric.name].mean, color=_SOFT, linewidth=0.9, dashes=(3, 3), zorder=0)
            found = seed_values((run for run in board.runs if run.entry == row.entry), metric.name)
            axes.plot(list(found.values()), [y] * len(found), "|", color=_SOFT, alpha=0.6, markersize=5, zorder=1)
            _mark(axes, row, board, y=y)
        axes.set_yticks(range(len(rows)), [_short(row.entry) for row in rows], color=_INK)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_xlim(low, high)
        axes.grid(axis="x", color=_RULE, linewidth=0.5)
        axes.set_axisbelow(True)
        axes.set_xlabel(_axis(metric))
        title = f"{spelled(metric.name)} with 95 % intervals"
        said = "; ".join(f"{row.entry} {interval(row.values[metric.name], metric)}" for row in reversed(rows))
        svg = inline(figure, _VARIABLES, "intervals", title, f"Best first: {said}.")
    caption = "Mean over seeds with its 95 % interval; small ticks are single seeds, the dashed line is the baseline."
    return Plot(_capital(title), caption + (" Intervals that leave the plot are cut off." if cut else ""), svg)


def cost_plot(board: Leaderboard, cost: str, title: str, write: Callable[[float], str]) -> Plot | None:
    """Return the ranking metric against a cost on a logarithmic axis, or None where the cost is 0 for every entry.

    Args:
        board: the leaderboard.
        cost: a metric or a key of `Row.costs`; entries whose cost is 0 stand in a column of their own, left of the
            axis's start.
        title: what the cost is.
        write: writes a value of the cost.
    """
    metric = board.metric
    costs = {row.entry: row.values[cost].mean if cost in row.values else row.costs.get(cost, 0) for row in board.rows}
    rows = _ranked(board)
    positive = [costs[row.entry] for row in rows if costs[row.entry] > 0]
    if not positive:
        return None
    low, high, cut = _limits([row.values[metric.name] for row in rows])
    smallest, largest = min(positive), max(positive)
    room = max(2.0, (largest / smallest) ** 0.12)
    zero = smallest / room**1.5
    with _figure(3.5) as (figure, axes):
        axes.set_xscale("log")
        axes.set_xlim(zero / room if len(positive) < len(rows) else smallest / room, largest * room)
        axes.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))
        for row in rows:
            tip = f"{row.entry}: {interval(row.values[metric.name], metric)}, {write(costs[row.entry])}"
            _mark(axes, row, board, x=costs[row.entry] or zero, tip=tip)
        _log_ticks(axes, write, zero if len(positive) < len(rows) else None)
        axes.grid(axis="y", color=_RULE, linewidth=0.5)
        axes.set_axisbelow(True)
        axes.set_xlabel(f"{title}, logarithmic")
        axes.set_ylabel(_axis(metric))
        missed = _label(figure, axes, [(costs[r.entry] or zero, r.values[metric.name], r.entry) for r in rows])
        heading = f"{spelled(metric.name)} against {title}"
        said = "; ".join(f"{r.entry} {interval(r.values[metric.name], metric)}, {write(costs[r.entry])}" for r in rows)
        svg = inline(figure, _VARIABLES, cost.replace("_", "-"), heading, f"{said}.")
    parts = ["Bars are 95 % intervals."]
    parts += ["Those that leave the plot are cut off."] if cut else []
    parts += [f"Without a label for want of room: {', '.join(missed)}."] if missed else []
    return Plot(_capital(heading), " ".join(parts), svg)


def curve_plot(board: Leaderboard, name: str, index: int = 0) -> Plot | None:
    """Return a learning curve of every entry that logged it, or None where no point is finite.

    Args:
        board: the leaderboard; of more than eight entries the eight best ranked are shown.
        name: of the curve, as in "loss by epoch": what stands after "by" is what x counts.
        index: makes the plot's ids its own on a page with several curves.
    """
    curves = {row.entry: _averaged(board, row.entry, name) for row in board.rows}
    logged = {entry: curve for entry, curve in curves.items() if curve}
    if not logged:
        return None
    shown = dict(list(logged.items())[:_MOST_SERIES])
    low, high, _ = _limits([point for curve in shown.values() for point in curve.values()])
    with _figure(3.2) as (figure, axes):
        ends = []
        for colour, (entry, curve) in zip(_SERIES, shown.items(), strict=False):
            xs, means = list(curve), [point.mean for point in curve.values()]
            axes.plot(xs, means, color=colour, linewidth=1.5, marker="o" if len(xs) == 1 else "", markersize=4)
            if all(math.isfinite(point.half) for point in curve.values()):
                band = [point.low for point in curve.values()], [point.high for point in curve.values()]
                axes.fill_between(xs, *band, color=colour, alpha=0.13, linewidth=0)
            ends.append((xs[-1], means[-1], entry, colour))
        axes.set_ylim(low, high)
        axes.margins(x=0.02)
        whole = all(x % 1 == 0 for curve in shown.values() for x in curve)
        axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=whole))
        axes.grid(axis="y", color=_RULE, linewidth=0.5)
        axes.set_axisbelow(True)
        heading = spelled(name)
        what, _, along = heading.partition(" by ")
        axes.set_xlabel(along or "step, as the entry counts it")
        axes.set_ylabel(_short(what))
        _label_ends(figure, axes, ends)
        said = "; ".join(f"{entry} ends at {y:.3g}" for _, y, entry, _ in ends)
        svg = inline(figure, _VARIABLES, f"curve-{index}", heading, f"{said}.")
    parts = ["Mean over seeds; the band is its 95 % interval."]
    parts += [f"The {len(shown)} best of {len(logged)} entries."] if len(logged) > len(shown) else []
    return Plot(_capital(heading), " ".join(parts), svg)


def _times(board: Leaderboard) -> Iterator[tuple[str, str]]:
    """Yield name and title of what took time: what the task measured first, and fitting where anything was fitted."""
    if "seconds" not in board.metric.name:  # one time against another says nothing
        yield from ((m.name, m.name.replace("-", " ")) for m in board.setting.metrics[1:] if m.unit == "s")
    if any(row.costs.get("fit_seconds", 0) > NOTHING for row in board.rows):
        yield "fit_seconds", "time to fit"


def _ranked(board: Leaderboard) -> list[Row]:
    """Return the rows that have the ranking metric, best first."""
    return [row for row in board.rows if board.metric.name in row.values]


def _averaged(board: Leaderboard, entry: str, name: str) -> dict[float, Estimate]:
    """Return x to the mean over seeds of an entry's curve, thinned out to what a small plot can show."""
    values: dict[float, list[float]] = {}
    for run in board.runs:
        if run.entry == entry and run.status == "ok":
            for x, y in run.curves.get(name, ()):
                if math.isfinite(x) and math.isfinite(y):
                    values.setdefault(x, []).append(y)
    xs = sorted(values)
    last = len(xs) - 1
    kept = xs if last < _MOST_POINTS else [xs[round(i * last / (_MOST_POINTS - 1))] for i in range(_MOST_POINTS)]
    return {x: estimate(values[x]) for x in kept}


def _limits(estimates: Sequence[Estimate]) -> tuple[float, float, bool]:
    """Return an axis's ends and whether they cut off an interval.

    Two seeds can have an interval that dwarfs every difference; it must not flatten the plot, so an axis ends at twice
    the spread of the means beyond them.
    """
    means = [value.mean for value in estimates]
    halves = [value.half for value in estimates if math.isfinite(value.half)]
    largest = max(abs(mean) for mean in means)
    spread = max(means) - min(means) or max(halves, default=0.0) or 0.05 * largest or 1.0
    spread = max(spread, 1e-3 * largest, 1e-9)  # differences below are rounding errors
    floor, ceiling = min(means) - 2 * spread, max(means) + 2 * spread
    lows = [value.low if math.isfinite(value.half) else value.mean for value in estimates]
    highs = [value.high if math.isfinite(value.half) else value.mean for value in estimates]
    low, high = max(min(lows), floor), min(max(highs), ceiling)
    pad = 0.06 * max(high - low, spread)
    return low - pad, high + pad, min(lows) < floor or max(highs) > ceiling


def _mark(axes: Any, row: Row, board: Leaderboard, *, x: float | None = None, y: float = 0.0, tip: str = "") -> None:
    """Draw an entry's mean and interval: along the x axis at y, or along the y axis where x is given."""
    value = row.values[board.metric.name]
    is_baseline = row.entry == board.setting.baseline
    shape, colour, filled = MARKS[BASELINE if is_baseline else row.verdict or "needs more seeds"]
    if math.isfinite(value.half):
        ends = [value.low, value.high]
        at = (ends, [y, y]) if x is None else ([x, x], ends)
        axes.plot(*at, color=colour, linewidth=1.4, solid_capstyle="butt", zorder=2, alpha=1.0 if x is None else 0.55)
    place = ([value.mean], [y]) if x is None else ([x], [value.mean])
    size = 5.0 if shape == "D" else 6.0
    (mark,) = axes.plot(*place, shape, color=colour, markersize=size, markerfacecolor=colour if filled else "none")
    mark.set(zorder=3, clip_on=False, gid=f"tip:{printable(tip or row.entry)}")


def _log_ticks(axes: Any, write: Callable[[float], str], zero: float | None) -> None:
    """Label decades, and 2 and 5 between them where there are few; `zero` gets the label 0 and a line after it."""
    low, high = axes.get_xlim()
    few = math.log10(high / low) < 2.5
    ticks = [float(t) for t in LogLocator(subs=(1, 2, 5) if few else (1,)).tick_values(low, high) if low <= t <= high]
    if zero is not None:
        ticks = [zero, *(tick for tick in ticks if tick > zero * 1.6)]
        axes.axvline(zero * 1.5, color=_RULE, linewidth=0.8, dashes=(1, 2))
    axes.set_xticks(ticks)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: "0" if value == zero else write(value)))


def _label(figure: Figure, axes: Any, points: Sequence[tuple[float, Estimate, str]]) -> list[str]:
    """Write the name of each point (x, y with its interval) where it covers nothing; return those that found no room.

    A name that is not right beside its point gets a line to it.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    renderer = FigureCanvasAgg(figure).get_renderer()
    frame = axes.get_window_extent(renderer)
    places = [tuple(axes.transData.transform((x, y.mean))) for x, y, _ in points]
    taken = [(px - 5, py - 5, px + 5, py + 5) for px, py in places]
    for x, y, _ in points:
        if math.isfinite(y.half):
            (px, bottom), (_, top) = axes.transData.transform([(x, y.low), (x, y.high)])
            taken.append((px - 2, bottom, px + 2, top))
    missed = []
    for (px, py), (x, y, name) in zip(places, points, strict=True):
        offset = {"xy": (x, y.mean), "textcoords": "offset points", "va": "bottom"}
        text = axes.annotate(_short(name), xytext=(0, 0), color=_INK, size=8.5, **offset)
        size = text.get_window_extent(renderer)
        free = [spot for spot in _spots(px, py, size.width, size.height) if _is_free(spot, frame.extents, taken)]
        if not free:
            text.remove()
            missed.append(name)
            continue
        # Nearer to its own point than to any other, if there is such a spot.
        clear = [spot for spot in free if min(places, key=lambda place: _gap(spot, place)) == (px, py)]
        spot = (clear or free)[0]
        taken.append(spot)
        text.set_position((spot[0] - px, spot[1] - py))
        if _gap(spot, (px, py)) > 12 or not clear:
            near = min(max(px, spot[0]), spot[2]), min(max(py, spot[1]), spot[3])
            line = {"arrowstyle": "-", "color": _SOFT, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4}
            axes.annotate("", xytext=(near[0] - px, near[1] - py), arrowprops=line, **offset)
    return missed


def _spots(x: float, y: float, width: float, height: float) -> Iterator[tuple[float, float, float, float]]:
    """Yield boxes (left, bottom, right, top) around a point: eight directions at growing distance, sides first."""
    for radius in (7, 12, 18, 26, 36):
        for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)):
            left, bottom = x + dx * radius - (1 - dx) / 2 * width, y + dy * radius - (1 - dy) / 2 * height
            yield left, bottom, left + width, bottom + height


def _gap(box: Sequence[float], point: Sequence[float]) -> float:
    """Return the distance from a point to a box."""
    return math.hypot(
        max(box[0] - point[0], 0, point[0] - box[2]),
        max(box[1] - point[1], 0, point[1] - box[3]),
    )


def _is_free(box: Sequence[float], frame: Sequence[float], taken: Iterable[Sequence[float]]) -> bool:
    """Return whether a box lies in the frame (a little beyond its right end at most) and touches nothing."""
    inside = frame[0] + 3 <= box[0] and frame[1] <= box[1] and box[2] <= frame[2] + 8 and box[3] <= frame[3]
    return inside and not any(
        box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3] for other in taken
    )


def _label_ends(figure: Figure, axes: Any, ends: Iterable[tuple[float, float, str, str]]) -> None:
    """Write each curve's name at the right of its end, moved up or down until no two touch."""
    right = axes.get_xlim()[1]
    texts = [
        axes.annotate(_short(name), (right, y), (4, 0), textcoords="offset points", color=colour, va="center", size=8.5)
        for _, y, name, colour in ends
    ]
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    heights = [axes.transData.transform(text.xy)[1] for text in texts]
    order = sorted(range(len(texts)), key=lambda i: heights[i])
    spread = _apart([heights[i] for i in order], 11.0, axes.bbox.y0, axes.bbox.y1)
    for i, height in zip(order, spread, strict=True):
        texts[i].set_position((4, height - heights[i]))


def _apart(sorted_values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return ascending values at least `gap` apart, near the given ones and, if they fit, between low and high."""
    placed: list[float] = []
    for value in sorted_values:
        placed.append(max(value, placed[-1] + gap if placed else low))
    ceiling = high
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    return placed


@contextmanager
def _figure(height: float) -> Iterator[tuple[Figure, Any]]:
    """Give a figure with one pair of axes, in the house's style until the block ends."""
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")  # the browser has the characters that DejaVu lacks
        figure = Figure(figsize=(_WIDTH, height), dpi=72, layout="constrained", facecolor="none")
        yield figure, figure.add_subplot(facecolor="none")


def _axis(metric: Metric) -> str:
    unit = f", {metric.unit}" if metric.unit else ""
    return f"{spelled(metric.name)}{unit} ({'higher' if metric.higher_is_better else 'lower'} is better)"


def _short(name: str) -> str:
    shown = printable(name)
    return shown if len(shown) <= _LONGEST_NAME else f"{shown[: _LONGEST_NAME - 1]}…"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
