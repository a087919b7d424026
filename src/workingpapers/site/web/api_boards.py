"""Leaderboards as the JSON API and `papers mcp` answer with them."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, Field

from workingpapers.runs.leaderboard import Leaderboard as Board
from workingpapers.runs.leaderboard import Row as BoardRow
from workingpapers.runs.leaderboard import Verdict
from workingpapers.runs.present import command, permalink, provenance
from workingpapers.site.web.api_models import Estimate, Metric
from workingpapers.tasks.protocol import load_task


class Leaderboard(BaseModel):
    """A leaderboard: what all its runs share, and who comes first."""

    name: str = Field(description="its permalink")
    page: str = Field(description="address of its page; with .json (every run) or .csv after it, of its numbers")
    task: str
    task_title: str
    setting: str
    title: str = Field(description="what the setting measures")
    data: str
    model: str = Field(description="empty where none is used")
    budget: str
    label: str = Field(description="the label column of a table")
    baseline: str = Field(description="the entry that all others are compared with")
    ranked_by: Metric
    first: str | None = Field(description="the entry that comes first; null where no run finished")
    entries: int
    runs: int
    finished: str = Field(description="when the last run did")

    @classmethod
    def of(cls, board: Board, address: str) -> Self:
        """Return a leaderboard as the API lists it."""
        return cls(**_listed(board, address))


def _listed(board: Board, address: str) -> dict[str, Any]:
    at, name = board.conditions, permalink(board.conditions)
    shared = {key: getattr(at, key) for key in ("task", "setting", "data", "budget", "label")}
    return shared | {
        "name": name,
        "model": board.model,
        "page": f"{address}/leaderboards/{name}",
        "task_title": load_task(at.task).title,
        "title": board.setting.title,
        "baseline": board.setting.baseline,
        "ranked_by": Metric.of(board.metric),
        "first": next((row.entry for row in board.rows if row.best), None),
        "entries": len(board.rows),
        "runs": len(board.runs),
        "finished": max(run.finished for run in board.runs),
    }


class Row(BaseModel):
    """An entry's line."""

    rank: int | None = Field(description="null where no run finished")
    entry: str
    paper: str | None = Field(description="slug in the catalogue; null for a baseline")
    seeds: int
    values: dict[str, Estimate] = Field(description="by metric")
    difference: Estimate | None = Field(description="to the baseline, in what ranks")
    verdict: Verdict | None
    costs: dict[str, float] = Field(description="means over seeds: seconds, megabytes, parameters")
    failures: list[str]

    @classmethod
    def of(cls, row: BoardRow, rank: int, ranked_by: str) -> Self:
        """Return a line as the API shows it."""
        return cls(
            rank=rank if ranked_by in row.values else None,
            entry=row.entry,
            paper=row.paper,
            seeds=row.seeds,
            values={name: Estimate.of(value) for name, value in row.values.items()},
            difference=Estimate.of(row.difference) if row.difference else None,
            verdict=row.verdict,
            costs=row.costs,
            failures=list(row.failures),
        )


class LeaderboardDetail(Leaderboard):
    """A leaderboard with its entries, and what makes it again."""

    metrics: list[Metric]
    rows: list[Row]
    command: str = Field(description="what makes these runs")
    settings: dict[str, str]
    versions: dict[str, str]
    hardware: dict[str, str]
    fingerprints: dict[str, str] = Field(description="of data and model")

    @classmethod
    def of(cls, board: Board, address: str) -> Self:
        """Return a whole leaderboard as the API shows it."""
        ran = provenance(board)
        return cls(
            **_listed(board, address),
            metrics=[Metric.of(metric) for metric in board.setting.metrics],
            rows=[Row.of(row, rank, board.metric.name) for rank, row in enumerate(board.rows, 1)],
            command=command(board),
            **{name: ran[name] for name in ("settings", "versions", "hardware", "fingerprints")},
        )


class Leaderboards(BaseModel):
    """Some leaderboards."""

    items: list[Leaderboard]
    left_out: list[str] = Field(description="a line for each group of runs that cannot be shown")
