"""From runs to a leaderboard: means, intervals, paired differences, the verdict. Plain Python, so it loads at once."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from workingpapers.runs.store import Run
from workingpapers.tasks.protocol import Conditions, Metric, Setting, load_task

if TYPE_CHECKING:
    from pandas import DataFrame

Verdict = Literal["helps", "hurts", "no difference", "needs more seeds"]
FEWEST_SEEDS = 3


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with half the width of its 95 % interval (Student's t); infinite for a single seed."""

    mean: float
    half: float

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.mean + self.half


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of at least one value with its 95 % interval."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Estimate(mean, math.inf)
    freedom = len(values) - 1
    # Not by `statistics.stdev`, whose exact fractions would take a third of the time of `papers list`.
    deviation = math.dist(values, [mean] * len(values)) / math.sqrt(freedom)
    return Estimate(mean, t_quantile(freedom) * deviation / math.sqrt(len(values)))


@functools.cache
def t_quantile(freedom: int, level: float = 0.95) -> float:
    """Return the t for which a Student variable lies within ±t with probability `level`.

    Bisection on the closed form for whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4): scipy.stats
    has the same number, but takes longer to import than a command may take to answer.
    """
    low, high = 0.0, 1.0
    while _inside(high, freedom) < level:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _inside(middle, freedom) < level else (low, middle)
    return high


def _inside(t: float, freedom: int) -> float:
    """Return the probability that a Student variable with whole degrees of freedom lies within ±t."""
    angle = math.atan(t / math.sqrt(freedom))
    cos, sin = math.cos(angle), math.sin(angle)
    odd = freedom % 2
    term = cos if odd else 1.0
    total = term if freedom > 1 or not odd else 0.0
    for k in range(3 if odd else 2, freedom - 1, 2):
        term *= (k - 1) / k * cos**2
        total += term
    return 2 / math.pi * (angle + sin * total) if odd else sin * total


def compare(values: dict[int, float], baseline: dict[int, float], metric: Metric) -> tuple[Estimate | None, Verdict]:
    """Compare an entry with the baseline over the seeds that both have.

    Args:
        values: seed to value of the entry.
        baseline: seed to value of the baseline.
        metric: its direction and the smallest difference that matters.

    Returns:
        The mean difference, entry minus baseline, with its interval (None without a common seed), and the verdict:
        "no difference" when the whole interval lies within ± the metric's margin, "helps" or "hurts" when it leaves out
        zero otherwise, and "needs more seeds" when it is too wide to tell or fewer than three seeds are there.
    """
    common = sorted(values.keys() & baseline.keys())
    if not common:
        return None, "needs more seeds"
    difference = estimate([values[seed] - baseline[seed] for seed in common])
    if len(common) < FEWEST_SEEDS:
        return difference, "needs more seeds"
    if max(-difference.low, difference.high) <= metric.margin:
        return difference, "no difference"
    if difference.low > 0 or difference.high < 0:
        return difference, "helps" if (difference.mean > 0) == metric.higher_is_better else "hurts"
    return difference, "needs more seeds"


@dataclass(frozen=True)
class Row:
    """An entry's line on a leaderboard.

    Attributes:
        entry: its name; paper: its slug or None.
        seeds: how many runs are finished.
        values: metric name to mean and interval; without the optional metrics it lacks, empty if no run finished.
        difference: to the baseline, in the ranking metric; None for the baseline itself and for failures.
        verdict: None for the baseline and for failures.
        best: whether its mean is the best of the board.
        costs: fit_seconds, predict_seconds, cpu_seconds, peak_memory_mb, peak_gpu_mb, parameters: means over seeds.
        failures: "status: reason" of each run that failed, without repeats.
        remarks: what finished runs said of themselves, without repeats.
    """

    entry: str
    paper: str | None
    seeds: int
    values: dict[str, Estimate]
    difference: Estimate | None
    verdict: Verdict | None
    best: bool
    costs: dict[str, float]
    failures: tuple[str, ...]
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Leaderboard:
    """The runs of one setting under equal conditions, best first.

    Attributes:
        conditions: what all runs share.
        setting: whose metrics and baseline are used.
        metric: the one that ranks.
        runs: everything that went in: the latest run of each entry and seed.
        rows: one per entry.
    """

    conditions: Conditions
    setting: Setting
    metric: Metric
    runs: tuple[Run, ...]
    rows: tuple[Row, ...]

    @property
    def model(self) -> str:
        """The pre-trained model; "" where none was used: the data may be features that somebody computed already."""
        return self.conditions.model if any(run.model_fingerprint for run in self.runs) else ""

    @property
    def machines(self) -> set[str]:
        """What the finished runs ran on; times on one do not compare with times on another."""
        return {machine(run) for run in self.runs if run.status == "ok"}  # those that failed brought no word back

    def to_frame(self) -> DataFrame:
        """Return one row per entry: means, half widths of the 95 % intervals, difference, verdict and costs."""
        import pandas as pd

        records = []
        for row in self.rows:
            record: dict[str, object] = {"entry": row.entry, "paper": row.paper, "seeds": row.seeds}
            for name, value in row.values.items():
                record |= {name: value.mean, f"{name} ±": value.half}
            if row.difference:
                record |= {"difference": row.difference.mean, "difference ±": row.difference.half}
            records.append(record | {"verdict": row.verdict} | row.costs | {"failures": "; ".join(row.failures)})
        return pd.DataFrame(records).set_index("entry")

    def to_csv(self) -> str:
        """Return `to_frame` as CSV in which no text is a formula for a spreadsheet.

        The half widths of single seeds, which are infinite, are empty.
        """
        frame = self.to_frame().reset_index().replace(math.inf, math.nan)
        return str(frame.map(_no_formula).rename(columns=_no_formula).to_csv(index=False))

    def __repr__(self) -> str:
        from workingpapers.terminal import describe, plain, show_leaderboard

        return plain(describe(self), show_leaderboard(self))

    def _repr_html_(self) -> str:
        return str(self.to_frame().to_html(float_format="{:.3g}".format))


def machine(run: Run) -> str:
    """Return what a run ran on, in a few words: the accelerator if it had one, the processor otherwise."""
    return str(run.hardware.get("gpu") or run.hardware.get("processor") or "unknown")


def _no_formula(cell: object) -> object:
    """Return a cell with an apostrophe before text that a spreadsheet would compute."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def leaderboard(runs: Iterable[Run], conditions: Conditions, metric: str | None = None) -> Leaderboard:
    """Return the leaderboard of runs under given conditions.

    Args:
        runs: of those conditions; of several runs of one entry and seed the latest counts.
        conditions: what they share.
        metric: what ranks; the setting's first metric if not named.

    Raises:
        UserError: the setting has no such metric.
    """
    setting = load_task(conditions.task).setting(conditions.setting)
    ranking = setting.metric(metric)
    latest = {(run.entry, run.seed): run for run in sorted(runs, key=lambda run: run.finished)}
    by_entry: dict[str, list[Run]] = {}
    for run in latest.values():
        by_entry.setdefault(run.entry, []).append(run)
    base = seed_values(by_entry.get(setting.baseline, []), ranking.name)
    rows = [_row(name, group, base, setting, ranking) for name, group in by_entry.items()]
    sign = -1 if ranking.higher_is_better else 1
    means = {row.entry: sign * row.values[ranking.name].mean for row in rows if ranking.name in row.values}
    rows.sort(key=lambda row: (means.get(row.entry, math.inf), not row.values, row.entry))
    best = min(means.values(), default=None)
    ranked = tuple(replace(row, best=row.entry in means and means[row.entry] == best) for row in rows)
    return Leaderboard(conditions, setting, ranking, tuple(latest.values()), ranked)


def leaderboards(runs: Iterable[Run]) -> list[Leaderboard]:
    """Group any runs by their conditions and return a leaderboard of each, the most recent first.

    Where a name stood for different data or another model at different times, only the latest meaning is shown. Runs in
    which the model played no part are of the setting's own, whichever was named.
    """
    groups: dict[Conditions, dict[tuple[str, str], list[Run]]] = {}
    for run in runs:
        model = run.model if run.model_fingerprint else load_task(run.task).setting(run.setting).model
        label = str(run.settings["label"])  # older versions took, and kept, a number too
        conditions = Conditions(run.task, run.setting, run.data, model, run.budget, label)
        meaning = run.data_fingerprint, run.model_fingerprint
        groups.setdefault(conditions, {}).setdefault(meaning, []).append(run)
    newest = {conditions: max(meanings.values(), key=_last) for conditions, meanings in groups.items()}
    boards = [leaderboard(group, conditions) for conditions, group in newest.items()]
    return sorted(boards, key=lambda board: _last(board.runs), reverse=True)


def _last(runs: Sequence[Run]) -> str:
    return max(run.finished for run in runs)


def seed_values(runs: Iterable[Run], metric: str) -> dict[int, float]:
    """Return seed to value of the runs that finished and have the metric."""
    return {run.seed: run.metrics[metric] for run in runs if run.status == "ok" and metric in run.metrics}


def _row(name: str, runs: list[Run], base: dict[int, float], setting: Setting, ranking: Metric) -> Row:
    done = [run for run in runs if run.status == "ok"]
    values = {m.name: list(seed_values(done, m.name).values()) for m in setting.metrics}
    difference, verdict = None, None
    if values[ranking.name] and name != setting.baseline:
        difference, verdict = compare(seed_values(done, ranking.name), base, ranking)
    return Row(
        entry=name,
        paper=runs[0].paper,
        seeds=len(done),
        values={metric: estimate(numbers) for metric, numbers in values.items() if numbers},
        difference=difference,
        verdict=verdict,
        best=False,
        costs={cost: statistics.fmean(run.measured[cost] for run in done) for cost in done[0].measured} if done else {},
        failures=tuple(dict.fromkeys(f"{run.status}: {run.error}" for run in runs if run.status != "ok")),
        remarks=tuple(dict.fromkeys(remark for run in done for remark in run.settings.get("remarks", ()))),
    )
