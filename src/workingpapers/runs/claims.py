"""Reported beside measured: what became of each claim, and what a paper's status follows from."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from workingpapers.errors import UserError
from workingpapers.papers.card import Card, Check, Claim, Expectation
from workingpapers.runs.leaderboard import (
    FEWEST_SEEDS,
    Estimate,
    Leaderboard,
    Verdict,
    compare,
    estimate,
    leaderboards,
    seed_values,
)
from workingpapers.runs.store import Run
from workingpapers.tasks.protocol import Metric, Setting, load_task, task_names

Standing = Literal["reproduced", "not reproduced", "needs more seeds", "not run", "no entry yet", "not testable"]
Status = Literal["card", "method", "entry", "measured"]

_MEETS: dict[Expectation, tuple[Verdict, ...]] = {
    "helps": ("helps",),
    "hurts": ("hurts",),
    "no difference": ("no difference",),
    "not worse": ("helps", "no difference"),
}


@dataclass(frozen=True)
class Finding:
    """A claim beside what was measured.

    Attributes:
        claim: as the card states it.
        standing: what became of it.
        verdict: of the entry against what it is compared with; None without runs.
        difference: entry minus the other, with its interval; None without runs.
        entry, versus: the two values over the seeds that both have, or each one's own without such; None without runs.
        metric: what was compared; None where there is no entry yet.
        board: the leaderboard it was read from; None without runs.
        command: what measures it.
        failure: "entry failed: reason" where it was not measured because every run of an entry failed.
    """

    claim: Claim
    standing: Standing
    verdict: Verdict | None = None
    difference: Estimate | None = None
    entry: Estimate | None = None
    versus: Estimate | None = None
    metric: Metric | None = None
    board: Leaderboard | None = None
    command: str = ""
    failure: str = ""


def findings(card: Card, runs: Sequence[Run], *, data: str | None = None) -> list[Finding]:
    """Return what runs say about each claim of a card.

    Args:
        card: the paper.
        runs: of any tasks and conditions.
        data: look at this data set instead of the ones that the checks name.

    Raises:
        UserError: a check names a setting, metric or entry that its task does not have.
    """
    return [_finding(card, claim, runs, data) for claim in card.claims]


def _finding(card: Card, claim: Claim, runs: Sequence[Run], data: str | None) -> Finding:
    check = claim.check
    if check is None:
        return Finding(claim, "not testable")
    setting = _setting(card, check)
    if setting is None:
        return Finding(claim, "no entry yet")
    metric = setting.metric(check.metric)
    command = command_for(check, setting, data)
    wanted = check.task, check.setting, data or check.data or setting.data
    versus = check.versus or setting.baseline
    boards = leaderboards(run for run in runs if (run.task, run.setting, run.data) == wanted)
    boards = [board for board in boards if board.conditions.model == setting.model]
    compared = {check.entry, versus}
    usable = [b for b in boards if compared <= {r.entry for r in b.rows if metric.name in r.values}]
    if not usable:
        lost = [r for board in boards for r in board.rows if r.entry in compared and r.failures and not r.values]
        failure = f"{lost[0].entry} {lost[0].failures[-1]}" if lost else ""
        return Finding(claim, "not run", metric=metric, command=command, failure=failure)
    board = max(usable, key=lambda board: (board.conditions.budget == "full", len(board.runs)))
    ours, theirs = (
        seed_values((run for run in board.runs if run.entry == name), metric.name) for name in (check.entry, versus)
    )
    difference, verdict = compare(ours, theirs, metric)
    common = sorted(ours.keys() & theirs.keys())
    standing: Standing = "needs more seeds"
    if len(common) >= FEWEST_SEEDS and difference is not None:
        standing = _standing(check, verdict, difference, metric)
    entry, other = (estimate([x[seed] for seed in common or x]) for x in (ours, theirs))
    return Finding(claim, standing, verdict, difference, entry, other, metric, board=board, command=command)


def _standing(check: Check, verdict: Verdict, difference: Estimate, metric: Metric) -> Standing:
    """Return what became of a claim: whether the verdict is the expected one.

    "not worse" asks for less than a verdict: that the interval leaves out every loss larger than the tolerance, which
    is the metric's margin unless the check names one; then a claim fails only if all of the interval is beyond it.
    """
    tolerance = metric.margin if check.tolerance is None else check.tolerance
    worst, best = (difference.low, difference.high) if metric.higher_is_better else (-difference.high, -difference.low)
    if check.expect == "not worse" and worst >= -tolerance:
        return "reproduced"
    if check.tolerance is not None:
        return "not reproduced" if best < -tolerance else "needs more seeds"
    if verdict == "needs more seeds":
        return "needs more seeds"
    return "reproduced" if verdict in _MEETS[check.expect] else "not reproduced"


def _setting(card: Card, check: Check) -> Setting | None:
    """Return the setting of a check, or None while its task or its entry does not exist.

    Raises:
        UserError: the task exists, and lacks the setting, the metric or what the entry is compared with; or that is the
            entry itself.
    """
    if check.task not in task_names():
        return None
    task = load_task(check.task)
    if check.entry not in task.entries:
        return None
    try:
        setting = task.setting(check.setting)
        setting.metric(check.metric)
        task.select(check.setting, [check.entry, *([check.versus] if check.versus else [])])
        if check.entry == (check.versus or setting.baseline):
            raise UserError(f"The entry {check.entry!r} is compared with itself; `versus` names another.")
    except UserError as error:
        raise UserError(f"Card {card.slug}: {error}") from error
    return setting


def command_for(check: Check, setting: Setting, data: str | None = None) -> str:
    """Return the command that makes the runs of a check."""
    words = ["papers try", check.task]
    if check.setting != "standard":
        words += ["--setting", check.setting]
    if (data or check.data or setting.data) != setting.data:
        words += ["--data", shlex.quote(data or check.data or setting.data)]
    others = [check.versus] if check.versus and check.versus != setting.baseline else []
    return " ".join([*words, "--entries", ",".join([check.entry, *others])])


def status(card: Card, found: Iterable[Finding]) -> Status:
    """Return how far a paper has come; it follows from what exists and is never written down.

    "card": only described. "method": its method is here. "entry": it takes part in a task. "measured": at least one
    claim has a verdict.
    """
    standings = {finding.standing for finding in found}
    if standings & {"reproduced", "not reproduced"}:
        return "measured"
    if standings & {"not run", "needs more seeds"}:
        return "entry"
    return "method" if card.method else "card"
