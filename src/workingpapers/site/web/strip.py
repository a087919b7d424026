"""A claim's small plot: the measured difference with its interval, against zero and the margin that matters.

Drawn here as a handful of SVG elements without style attributes, so that a page with ten claims costs no more than one.
"""

from __future__ import annotations

import math

from markupsafe import Markup

from workingpapers.runs.claims import Finding
from workingpapers.runs.leaderboard import seed_values
from workingpapers.tasks.protocol import Metric
from workingpapers.terminal import interval

_WIDTH, _HEIGHT, _MIDDLE = 340, 74, 34
_MARKS = {
    "helps": "M{x},{t} l6,11 h-12 z",
    "hurts": "M{x},{b} l6,-11 h-12 z",
    "no difference": "M{x},{y} m-5.5,0 a5.5,5.5 0 1,0 11,0 a5.5,5.5 0 1,0 -11,0",
}


def difference_strip(finding: Finding) -> Markup:
    """Return the plot of a finding; nothing where there is no difference to show.

    The axis points to the better side, whichever direction the metric has; ticks are the differences of single seeds.
    """
    metric, difference = finding.metric, finding.difference
    if metric is None or difference is None:
        return Markup()
    sign = 1.0 if metric.higher_is_better else -1.0
    seeds = [sign * value for value in _of_seeds(finding, metric)]
    half = difference.half if math.isfinite(difference.half) else 0.0
    mean = sign * difference.mean
    reach = 1.15 * max(
        abs(mean) + min(half, 4 * abs(mean) + 4 * metric.margin or half), metric.margin, *map(abs, seeds)
    )
    scale = (_WIDTH / 2 - 12) / (reach or 1.0)

    def x(value: float) -> str:
        return f"{_WIDTH / 2 + scale * min(max(value, -reach), reach):.1f}"

    unit = {"": "", "%": " points"}.get(metric.unit, f" {metric.unit}")
    written = interval(difference, metric, signed=True).replace("-", "−")
    said = f"{metric.name}: difference {written}{unit}, {finding.verdict}."
    kind = {"helps": "helps", "hurts": "hurts", "needs more seeds": "unsure"}.get(finding.verdict or "", "same")
    mark = _MARKS.get(finding.verdict or "", _MARKS["no difference"])
    at = {"x": x(mean), "y": _MIDDLE, "t": _MIDDLE - 6, "b": _MIDDLE + 6}
    parts = [
        Markup('<svg class="strip" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(_WIDTH, _HEIGHT, said),
        Markup("<title>{}</title>").format(said),
    ]
    if metric.margin:
        left, right = x(-metric.margin), x(metric.margin)
        width = f"{float(right) - float(left):.1f}"
        parts.append(Markup('<rect class="band" x="{}" y="12" width="{}" height="44"/>').format(left, width))
    parts.append(Markup('<path class="zero" d="M{x},8 V58"/>').format(x=x(0)))
    parts += [Markup('<path class="seed" d="M{},{} v9"/>').format(x(seed), _MIDDLE + 9) for seed in seeds]
    if half:
        ends = x(mean - half), x(mean + half)
        parts.append(Markup('<path class="bar {}" d="M{},{} H{}"/>').format(kind, ends[0], _MIDDLE, ends[1]))
    shape = "mark hollow" if kind == "unsure" else "mark"
    parts.append(Markup('<path class="{} {}" d="{}"/>').format(shape, kind, mark.format(**at)))
    parts.append(
        Markup('<text x="0" y="71">← worse</text><text x="{}" y="71" class="end">better →</text>').format(_WIDTH)
    )
    parts.append(Markup('<text x="{}" y="71" class="middle">0</text></svg>').format(x(0)))
    return Markup("").join(parts)


def _of_seeds(finding: Finding, metric: Metric) -> list[float]:
    """Return the difference of each seed that both entries have."""
    board, check = finding.board, finding.claim.check
    if board is None or check is None:
        return []
    ours, theirs = (
        seed_values((run for run in board.runs if run.entry == name), metric.name)
        for name in (check.entry, check.versus or board.setting.baseline)
    )
    return [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
