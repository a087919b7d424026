"""What the JSON API answers with: one model per kind of thing, made from what the page shows.

The same models are the typed results of `papers mcp`. Addresses from elsewhere that lead nowhere on the web are left
out, and numbers that JSON does not have (the interval of a single seed is infinite) are null.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Any, Self

from pydantic import BaseModel, Field

from workingpapers.papers.card import Card
from workingpapers.papers.card import Claim as CardClaim
from workingpapers.runs import leaderboard as runs
from workingpapers.runs.claims import Finding, Standing, Status
from workingpapers.runs.leaderboard import Verdict
from workingpapers.runs.present import Assessed, permalink
from workingpapers.site import trending
from workingpapers.site.citation import bibtex
from workingpapers.site.papers import Paper as StoredPaper
from workingpapers.site.search.engine import Results
from workingpapers.site.web.render import is_web
from workingpapers.tasks import protocol


class Problem(BaseModel):
    """Why there is no answer."""

    error: str


class Paper(BaseModel):
    """A paper."""

    slug: str = Field(description="its name in addresses, the same for ever")
    page: str = Field(description="address of its page")
    title: str = Field(description="as published; may hold LaTeX")
    authors: list[str]
    abstract: str = Field(description="of the authors; may be empty")
    summary: str = Field(description="of the catalogue; empty outside it")
    venue: str
    year: int | None
    published: str | None = Field(description="ISO day; null where only the year is known")
    arxiv: str | None = Field(description="identifier without version")
    doi: str | None
    url: str = Field(description="where it was found; may be empty, like the next two")
    pdf: str
    code: str = Field(description="repository of the authors")
    keywords: list[str]
    topics: list[str] = Field(description="ids of topics")
    citations: int
    stars: int
    votes: int
    task: str | None = Field(description="the task that measures it")
    has_method: bool = Field(description="whether its method can be used from here")
    standing: str | None = Field(description="the best that became of its claims; null outside the catalogue")
    source: str = Field(description="what brought it here first")
    added: datetime

    @classmethod
    def of(cls, paper: StoredPaper, address: str) -> Self:
        """Return a paper as the API shows it; `address` is the page's own."""
        return cls(**_paper(paper, address))


def _paper(paper: StoredPaper, address: str) -> dict[str, Any]:
    values: dict[str, Any] = {name: getattr(paper, name) for name in Paper.model_fields if hasattr(paper, name)}
    links = {name: str(values[name]) if is_web(str(values[name])) else "" for name in ("url", "pdf", "code")}
    return (
        values | links | {"page": f"{address}/papers/{paper.slug}", "added": datetime.fromtimestamp(paper.added, UTC)}
    )


class Estimate(BaseModel):
    """A mean over seeds with its 95 % interval, which a single seed doesn't have."""

    mean: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, value: runs.Estimate) -> Self:
        """Return an estimate as JSON can hold it."""
        return cls(mean=_finite(value.mean), low=_finite(value.low), high=_finite(value.high))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


class Metric(BaseModel):
    """A number that a setting reports."""

    name: str
    unit: str = Field(description="empty for plain numbers")
    higher_is_better: bool
    margin: float = Field(description="the smallest difference that matters")
    about: str

    @classmethod
    def of(cls, metric: protocol.Metric) -> Self:
        """Return a metric as the API shows it."""
        return cls(**{name: getattr(metric, name) for name in cls.model_fields})


class Reported(BaseModel):
    """A number of the paper beside that of what it compares with."""

    on: str = Field(description="data, model and setting")
    value: float
    baseline: float | None
    unit: str


class Claim(BaseModel):
    """A claim: reported, measured, and what became of it."""

    id: str
    text: str
    metric: str = Field(description="what the paper compares")
    baseline: str = Field(description="what the paper compares with")
    reported: list[Reported]
    source: str = Field(description="where in the paper the claim stands")
    verified: bool = Field(description="whether the numbers were read there")
    standing: Standing
    verdict: Verdict | None = Field(description="of the entry against what it is compared with; null without runs")
    measured: Estimate | None = Field(description="of the paper's method, here")
    versus: Estimate | None = Field(description="of what it is compared with, here")
    difference: Estimate | None = Field(description="the first minus the second, paired over seeds")
    measured_in: Metric | None
    leaderboard: str | None = Field(description="permalink of the leaderboard that it was read from")
    command: str = Field(description="what measures it; empty where nothing can yet")
    untestable: str | None = Field(description="what measuring it would take")

    @classmethod
    def of(cls, finding: Finding) -> Self:
        """Return a claim with what was found."""
        claim: CardClaim = finding.claim
        estimates = (finding.entry, finding.versus, finding.difference)
        measured, versus, difference = (Estimate.of(value) if value else None for value in estimates)
        names = ("id", "text", "metric", "baseline", "source", "verified", "untestable")
        return cls(
            **{name: getattr(claim, name) for name in names},
            reported=[Reported(on=it.on, value=it.value, baseline=it.baseline, unit=it.unit) for it in claim.reported],
            standing=finding.standing,
            verdict=finding.verdict,
            measured=measured,
            versus=versus,
            difference=difference,
            measured_in=Metric.of(finding.metric) if finding.metric else None,
            leaderboard=permalink(finding.board.conditions) if finding.board else None,
            command=finding.command,
        )


class Claims(BaseModel):
    """The claims of a paper; none for a paper outside the catalogue."""

    paper: str
    items: list[Claim]


class Method(BaseModel):
    """How a paper's method is used."""

    path: str = Field(description="package.module:Name")
    door: str = Field(description="where it plugs in")
    usage: str = Field(description="code to copy; it runs as it stands")


class Place(BaseModel):
    """Where a paper stands on a leaderboard."""

    leaderboard: str = Field(description="its permalink")
    entry: str
    rank: int | None = Field(description="null where no run finished")
    entries: int
    metric: str
    value: Estimate | None
    verdict: Verdict | None


class PaperDetail(Paper):
    """A paper with all that its page shows, but for claims and similar papers."""

    bibtex: str
    status: Status | None = Field(description="how far it came here; null outside the catalogue")
    method: Method | None
    notes: list[str]
    leaderboards: list[Place]

    @classmethod
    def whole(cls, paper: StoredPaper, assessed: Assessed | None, address: str) -> Self:
        """Return a paper, with what the catalogue and the store know about it where they do."""
        return cls(
            **_paper(paper, address),
            bibtex=bibtex(paper),
            status=assessed.status if assessed else None,
            method=method_of(assessed.card) if assessed else None,
            notes=list(assessed.card.notes) if assessed else [],
            leaderboards=_places(assessed) if assessed else [],
        )


def method_of(card: Card) -> Method | None:
    """Return how a paper's method is used; None while it is not here."""
    if card.method is None or card.usage is None:
        return None
    return Method(path=card.method, door=card.door, usage=card.usage.strip("\n"))


def _places(assessed: Assessed) -> list[Place]:
    return [
        Place(
            leaderboard=permalink(board.conditions),
            entry=row.entry,
            rank=rank if board.metric.name in row.values else None,
            entries=len(board.rows),
            metric=board.metric.name,
            value=Estimate.of(row.values[board.metric.name]) if board.metric.name in row.values else None,
            verdict=row.verdict,
        )
        for board in assessed.boards
        for rank, row in enumerate(board.rows, 1)
        if row.paper == assessed.card.slug
    ]


class Papers(BaseModel):
    """Some papers, all of them."""

    items: list[Paper]

    @classmethod
    def of(cls, papers: Sequence[StoredPaper], address: str) -> Self:
        """Return papers as the API shows them."""
        return cls(items=[Paper.of(paper, address) for paper in papers])


class Hit(BaseModel):
    """A paper that was found."""

    paper: Paper
    title: str = Field(description="as safe HTML, with what was looked for in <mark>")
    snippet: str = Field(description="of the abstract or summary, in the same way")
    score: float = Field(description="by relevance, higher for better, to compare within a search; 0 in other orders")


class Found(BaseModel):
    """A page of what a search found."""

    items: list[Hit]
    page: int
    pages: int
    total: int
    exact: bool = Field(description="whether total counts all papers that match; by relevance the list is cut")
    notes: list[str] = Field(description="how it was searched, where that is not as asked")
    did_you_mean: str | None
    seconds: float

    @classmethod
    def of(cls, found: Results, address: str) -> Self:
        """Return a page of a search as the API shows it."""
        names = ("page", "pages", "total", "exact", "notes", "did_you_mean", "seconds")
        hits = [
            Hit(paper=Paper.of(hit.paper, address), title=hit.title, snippet=hit.snippet, score=hit.score)
            for hit in found.hits
        ]
        return cls(items=hits, **{name: getattr(found, name) for name in names})


class Period(BaseModel):
    """A day, an ISO week, a month, or all time."""

    name: str
    key: str = Field(description="as in the parameter `date`; empty for all time")
    label: str
    start: date
    end: date

    @classmethod
    def of(cls, period: trending.Period) -> Self:
        """Return a period as the API shows it."""
        return cls(**{name: getattr(period, name) for name in cls.model_fields})


class Trend(BaseModel):
    """A paper that trends, and why."""

    paper: Paper
    score: float
    why: str
    counts: dict[str, int] = Field(description="votes, stars, citations and runs within the period, by kind")
    is_new: bool


class Trending(BaseModel):
    """A page of what trends."""

    period: Period
    items: list[Trend]
    page: int
    more: bool = Field(description="whether there is a next page")
    previous: Period | None = Field(description="the nearest earlier period in which anything trended")
    next: Period | None

    @classmethod
    def of(cls, found: trending.Trending, address: str) -> Self:
        """Return what trends as the API shows it."""
        rows = [
            Trend(
                paper=Paper.of(row.paper, address),
                score=row.score,
                why=row.why,
                counts=dict(row.counts),
                is_new=row.is_new,
            )
            for row in found.rows
        ]
        around = {"previous": found.previous, "next": found.next}
        return cls(
            period=Period.of(found.period),
            items=rows,
            page=found.page,
            more=found.more,
            **{name: Period.of(it) if it else None for name, it in around.items()},
        )
