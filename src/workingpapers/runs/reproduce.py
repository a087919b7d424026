"""`papers reproduce`: make the runs that claims need, then set reported beside measured."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from workingpapers.errors import UserError, UserRemark
from workingpapers.papers.card import Card
from workingpapers.runs.claims import Finding, findings
from workingpapers.runs.execute import try_
from workingpapers.runs.store import Store
from workingpapers.tasks.protocol import load_task, task_names


def reproduce(
    cards: Iterable[Card],
    *,
    data: str | None = None,
    only_entered: bool = False,
    store: Store | str | None = None,
    **options: Any,
) -> list[tuple[Card, list[Finding]]]:
    """Run what the checks of some papers need and return the findings per paper.

    Args:
        cards: the papers.
        data: measure on this data set instead of the ones that the checks name; settings that cannot use it are left
            out, which a `UserRemark` says.
        only_entered: leave out papers none of whose checks has an entry yet.
        store: where runs are kept.
        options: as `try_` takes them.

    Raises:
        UserError: as `try_` does; of `data`, if no setting can use it.
    """
    kept = store if isinstance(store, Store) else Store(store)
    before = kept.runs()
    chosen = [(card, findings(card, before, data=data)) for card in cards]
    if only_entered:
        chosen = [(card, found) for card, found in chosen if any(finding.command for finding in found)]
    wanted: dict[tuple[str, str, str], dict[str, None]] = {}
    for card, _ in chosen:
        for task, setting, name, compared in _needs(card, data):
            wanted.setdefault((task, setting, name), {}).update(dict.fromkeys(compared))
    refused: list[UserError] = []
    for (task, setting, name), entries in wanted.items():
        try:
            try_(task, setting=setting, data=name, entries=list(entries), store=kept, **options)
        except UserError as error:
            refused.append(error)
            if data is None or len(refused) == len(wanted):
                raise
    for reason in refused:
        warnings.warn(f"Left out: {reason}", UserRemark, stacklevel=2)
    runs = kept.runs()
    return [(card, findings(card, runs, data=data)) for card, _ in chosen]


def _needs(card: Card, data: str | None) -> Iterable[tuple[str, str, str, list[str]]]:
    """Yield task, setting, data set and entries of every check that can run."""
    for claim in card.claims:
        check = claim.check
        if check is None or check.task not in task_names() or check.entry not in load_task(check.task).entries:
            continue
        setting = load_task(check.task).setting(check.setting)
        others = [check.versus] if check.versus else []
        yield check.task, check.setting, data or check.data or setting.data, [check.entry, *others]


def markdown(found: Sequence[tuple[Card, list[Finding]]]) -> str:
    """Return the findings in Markdown: a table for each paper, then date, machines and versions of what finished."""
    from workingpapers.terminal import evidence, reported

    lines = []
    for card, items in found:
        lines += [f"### {card.title} (`{card.slug}`)\n", "| claim | reported | measured here | |", "|---|---|---|---|"]
        for finding in items:
            cells = [finding.claim.text, reported(finding.claim), evidence(finding), f"**{finding.standing}**"]
            lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
        lines.append("")
    boards = [finding.board for _, items in found for finding in items if finding.board]
    runs = [run for board in boards for run in board.runs if run.status == "ok"]
    if runs:
        last = max(run.finished for run in runs)
        seeds = len({run.seed for run in runs})
        machines = dict.fromkeys(_machine(run.hardware) for run in runs)
        versions: dict[str, dict[str, None]] = {}
        for name, version in (pair for run in runs for pair in run.versions.items()):
            versions.setdefault(name, {})[version] = None
        libraries = ", ".join(f"{name} {' and '.join(had)}" for name, had in versions.items())
        lines.append(f"{last:.10}, up to {seeds} seeds, {' and '.join(machines)}; {libraries}.")
    return "\n".join(lines)


def _machine(hardware: Mapping[str, Any]) -> str:
    gpu = f", {hardware['gpu']}" if hardware.get("gpu") else ""
    return f"{hardware.get('processor')}, {hardware.get('cores')} cores, {hardware.get('memory_gb')} GiB{gpu}"
