"""Daily papers, search and single papers in the shapes of Hugging Face's API, so that its clients work here.

The shapes are those of huggingface.co/docs/hub/api and of `HfApi.list_daily_papers`, `list_papers` and `paper_info` of
huggingface_hub. Where they differ in meaning: "daily papers" of a day, week or month are those to which something
happened in it here, and a paper without arXiv identifier goes by its slug. Discussions, thumbnails and who submitted a
paper are not kept here: the first two are empty, and the third is this page.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, HTTPException, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from sqlalchemy import Connection, select

from workingpapers.errors import UserError
from workingpapers.site import trending
from workingpapers.site.papers import Paper, by_ids, by_name
from workingpapers.site.schema import papers, trends
from workingpapers.site.web.api_examples import ARXIV
from workingpapers.site.web.api_shared import ERRORS, refuse_unreadable
from workingpapers.site.web.render import is_web

router = APIRouter(
    prefix="/api",
    tags=["in the shapes of Hugging Face"],
    responses=ERRORS,
    dependencies=[Depends(refuse_unreadable)],
)

Limit = Annotated[int, Query(ge=1, le=100, description="most papers to return", examples=[20])]


class _Camel(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class HubAuthor(_Camel):
    """An author."""

    name: str
    hidden: bool = False


class HubPaper(_Camel):
    """A paper in the shape of the Hub."""

    id: str = Field(description="arXiv identifier, or slug where there is none")
    authors: list[HubAuthor]
    published_at: str | None = Field(description="null where only the year is known")
    submitted_on_daily_at: str = Field(description="when it came here")
    title: str
    summary: str = Field(description="the abstract; the catalogue's summary where there is none")
    upvotes: int
    discussion_id: str = ""
    github_repo: str | None
    github_stars: int | None


class HubUser(_Camel):
    """Who submitted a paper: always this page."""

    id: str = Field(default="workingpapers", alias="_id")
    user: str = "workingpapers"
    name: str = "workingpapers"
    fullname: str = "Working Papers"
    avatar_url: str = ""
    type: Literal["user"] = "user"
    is_pro: bool = False


class HubEntry(_Camel):
    """A paper as the Hub lists it."""

    paper: HubPaper
    published_at: str | None = Field(description="when it came here; null where the paper's day is not known")
    submitted_on_daily_at: str
    title: str
    summary: str
    thumbnail: str = ""
    num_comments: int = 0
    submitted_by: HubUser = HubUser()
    is_author_participating: bool = False


@router.get("/daily_papers")
def daily_papers(
    request: Request,
    date: Annotated[str, Query(max_length=10, description="a day", examples=["2026-11-25"])] = "",
    week: Annotated[str, Query(max_length=10, description="an ISO week", examples=["2026-W48"])] = "",
    month: Annotated[str, Query(max_length=10, description="a month", examples=["2026-11"])] = "",
    sort: Annotated[
        Literal["publishedAt", "trending"], Query(description="what comes first", examples=["trending"])
    ] = "publishedAt",
    limit: Limit = 50,
    p: Annotated[int, Query(ge=0, lt=trending.LAST_PAGE, description="page, from 0", examples=[0])] = 0,
    page: Annotated[int, Query(ge=0, lt=trending.LAST_PAGE, description="the same as p", examples=[0])] = 0,
) -> list[HubEntry]:
    """List the papers of a day, week or month, or else the latest. `submitter` is ignored."""
    given = {name: value for name, value in (("day", date), ("week", week), ("month", month)) if value}
    if len(given) > 1:
        raise UserError("Give one of date, week and month.")
    today = trending.day_of(time.time())
    with request.app.state.engine.connect() as connection:
        period = next((trending.read_period(name, when, today) for name, when in given.items()), None)
        if sort == "publishedAt":
            return _entries(_latest(connection, period, p or page, limit))
        period = period or _lively(connection, today)
        found = trending.trending(connection, period.name, period.end, (p or page) + 1, limit)
        return _entries([row.paper for row in found.rows])


@router.get("/papers/search", name="search_daily_papers")
def search(
    request: Request,
    q: Annotated[str, Query(max_length=1000, description="as in the search box", examples=["grassmann class"])] = "",
    limit: Limit = 20,
) -> list[HubEntry]:
    """Find papers; without words, the latest."""
    found = request.app.state.searcher.search(q, size=limit)
    return _entries([hit.paper for hit in found.hits])


@router.get("/papers/{identifier:path}", name="daily_paper")
def paper(
    request: Request,
    identifier: Annotated[str, Path(max_length=300, description="arXiv identifier or slug", examples=[ARXIV])],
) -> HubPaper:
    """Return a paper."""
    with request.app.state.engine.connect() as connection:
        found = by_name(connection, identifier)
    if found is None:
        raise HTTPException(404, f"No paper {identifier!r} here. Write an arXiv identifier like 1706.03762.")
    return _paper(found)


def _latest(connection: Connection, period: trending.Period | None, page: int, limit: int) -> list[Paper]:
    """Return the latest of all papers, or of those to which something happened in a period."""
    chosen = select(papers.c.id).order_by(papers.c.published.desc().nulls_last(), papers.c.id.desc())
    if period is not None:
        here = (trends.c.period == period.name) & (trends.c.start == period.start.isoformat()) & (trends.c.score > 0)
        chosen = chosen.join(trends).where(here)
    return by_ids(connection, list(connection.execute(chosen.limit(limit).offset(page * limit)).scalars()))


def _lively(connection: Connection, today: date) -> trending.Period:
    """Return the shortest of this week, this month and all time in which anything trends."""
    for name in ("week", "month"):
        if trending.trending(connection, name, today, size=1).rows:
            return trending.period_of(name, today)
    return trending.period_of("all", today)


def _entries(found: Sequence[Paper]) -> list[HubEntry]:
    """Return papers as the Hub lists them.

    Its clients take the outer `publishedAt` for the time of submission where the paper has its own, and for the time of
    publication where it has not: there it must be null too.
    """
    made = [_paper(paper) for paper in found]
    return [
        HubEntry(
            paper=paper,
            published_at=paper.submitted_on_daily_at if paper.published_at else None,
            submitted_on_daily_at=paper.submitted_on_daily_at,
            title=paper.title,
            summary=paper.summary,
        )
        for paper in made
    ]


def _paper(paper: Paper) -> HubPaper:
    return HubPaper(
        id=paper.arxiv or paper.slug,
        authors=[HubAuthor(name=name) for name in paper.authors],
        published_at=f"{paper.published}T00:00:00.000Z" if paper.published else None,
        submitted_on_daily_at=f"{datetime.fromtimestamp(paper.added, UTC):%Y-%m-%dT%H:%M:%S}.000Z",
        title=paper.title,
        summary=paper.abstract or paper.summary,
        upvotes=paper.votes,
        github_repo=paper.code if is_web(paper.code) else None,
        github_stars=paper.stars if is_web(paper.code) else None,
    )
