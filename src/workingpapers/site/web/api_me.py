"""Own marks over the API: votes, library, tags, saved searches, and what they recommend. All of it needs a token.

Every change is idempotent and answers with what is there afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection

from workingpapers.site import marks, people
from workingpapers.site.database import writing
from workingpapers.site.papers import by_ids, by_slug
from workingpapers.site.web.api_examples import PAPER
from workingpapers.site.web.api_models import Paper
from workingpapers.site.web.api_shared import REFUSED, Owner
from workingpapers.site.web.render import or_missing

router = APIRouter(prefix="/me", tags=["own marks"], responses=REFUSED)

Slug = Annotated[str, Path(max_length=300, description="a paper's slug", examples=[PAPER])]
Tag = Annotated[str, Path(max_length=200, description="a tag of one's own", examples=["probes"])]
PageNumber = Annotated[int, Query(ge=1, le=1000, description="which page, from 1", examples=[1])]
Size = Annotated[int, Query(ge=1, le=100, description="papers on a page", examples=[20])]


class Me(BaseModel):
    """Whose token it is."""

    email: str
    curator: bool = Field(description="whether they pick the day's papers")


class Marks(BaseModel):
    """What one has on a paper."""

    voted: bool
    tags: list[str]
    in_library: bool
    read: bool

    @classmethod
    def of(cls, stored: marks.Marks) -> Marks:
        """Return marks as the API shows them."""
        in_library = stored.read is not None
        return cls(voted=stored.voted, tags=list(stored.tags), in_library=in_library, read=bool(stored.read))


class MarkedPaper(BaseModel):
    """A paper with what one has on it."""

    paper: Paper
    marks: Marks


class MarkedPapers(BaseModel):
    """A page of papers with what one has on them."""

    items: list[MarkedPaper]
    page: int
    total: int
    more: bool = Field(description="whether there is a next page")


class Reading(BaseModel):
    """How a paper is kept in the library."""

    model_config = ConfigDict(extra="forbid", strict=True)

    read: bool = Field(default=False, examples=[True])


class TagCount(BaseModel):
    """A tag, and how many papers have it."""

    tag: str
    papers: int


class Tags(BaseModel):
    """All own tags."""

    items: list[TagCount]


class SearchToSave(BaseModel):
    """A search to keep."""

    model_config = ConfigDict(extra="forbid", strict=True)

    query: str = Field(min_length=1, max_length=marks.LONGEST_QUERY, examples=["linear probe year:2023.."])
    alert: bool = Field(
        default=False, description="whether new papers that it finds come with the digest", examples=[True]
    )


class SavedSearch(BaseModel):
    """A search that is kept."""

    id: int
    query: str
    alert: bool


class SavedSearches(BaseModel):
    """All own searches, the latest first."""

    items: list[SavedSearch]

    @classmethod
    def of(cls, stored: Sequence[marks.SavedSearch]) -> SavedSearches:
        """Return searches as the API shows them."""
        return cls(items=[SavedSearch(id=it.id, query=it.query, alert=it.alert) for it in stored])


class RecommendedPaper(BaseModel):
    """A paper with the terms that speak for it, the strongest first."""

    paper: Paper
    terms: list[str]


class Recommendations(BaseModel):
    """What is recommended, the best first."""

    items: list[RecommendedPaper]
    terms: list[str] = Field(description="what the papers that it was learnt from have in common")
    learnt_from: int
    note: str = Field(description="why there is nothing, or empty")


@router.get("")
def me(request: Request, user: Owner) -> Me:
    """Return whose token it is."""
    return Me(email=user.email, curator=people.is_curator(request.app.state.settings, user))


@router.get("/marks/{slug}")
def marks_on_paper(request: Request, user: Owner, slug: Slug) -> Marks:
    """Return what one has on a paper."""
    with request.app.state.engine.connect() as connection:
        return _marks(connection, user.id, _find(connection, slug))


@router.get("/votes")
def voted(request: Request, user: Owner, page: PageNumber = 1, size: Size = 20) -> MarkedPapers:
    """Return the papers one voted for, the last first."""
    with request.app.state.engine.connect() as connection:
        ids, total = marks.voted(connection, user.id, page, size)
        return _marked(connection, request, user.id, ids, total, page, size)


@router.put("/votes/{slug}")
def vote(request: Request, user: Owner, slug: Slug) -> Marks:
    """Vote for a paper."""
    return _changed(request, user.id, slug, lambda at, paper: marks.vote(at, user.id, paper, time.time()))


@router.delete("/votes/{slug}")
def withdraw_vote(request: Request, user: Owner, slug: Slug) -> Marks:
    """Take a vote back."""
    return _changed(request, user.id, slug, lambda at, paper: marks.withdraw_vote(at, user.id, paper))


@router.get("/library")
def library(
    request: Request,
    user: Owner,
    read: Annotated[bool | None, Query(description="only what is read, or is not", examples=[True])] = None,
    page: PageNumber = 1,
    size: Size = 20,
) -> MarkedPapers:
    """Return one's library, the last added first."""
    with request.app.state.engine.connect() as connection:
        ids, total = marks.kept(connection, user.id, read, page, size)
        return _marked(connection, request, user.id, ids, total, page, size)


@router.put("/library/{slug}")
def keep(request: Request, user: Owner, slug: Slug, reading: Reading) -> Marks:
    """Put a paper into the library, or mark one that is there as read or unread."""
    now = time.time()
    return _changed(request, user.id, slug, lambda at, paper: marks.keep(at, user.id, paper, now, read=reading.read))


@router.delete("/library/{slug}")
def drop(request: Request, user: Owner, slug: Slug) -> Marks:
    """Take a paper out of the library."""
    return _changed(request, user.id, slug, lambda at, paper: marks.drop(at, user.id, paper))


@router.get("/tags")
def tags(request: Request, user: Owner) -> Tags:
    """Return one's tags, in alphabetical order."""
    with request.app.state.engine.connect() as connection:
        found = marks.tags_of(connection, user.id)
    return Tags(items=[TagCount(tag=tag, papers=number) for tag, number in found.items()])


@router.get("/tags/{tag}")
def tagged(request: Request, user: Owner, tag: Tag, page: PageNumber = 1, size: Size = 20) -> MarkedPapers:
    """Return the papers with a tag, the latest first."""
    with request.app.state.engine.connect() as connection:
        ids, total = marks.tagged(connection, user.id, marks.clean_tag(tag), page, size)
        return _marked(connection, request, user.id, ids, total, page, size)


@router.put("/tags/{tag}/{slug}")
def add_tag(request: Request, user: Owner, tag: Tag, slug: Slug) -> Marks:
    """Put a tag on a paper; nobody else sees it."""
    return _changed(request, user.id, slug, lambda at, paper: marks.add_tag(at, user.id, paper, tag))


@router.delete("/tags/{tag}/{slug}")
def remove_tag(request: Request, user: Owner, tag: Tag, slug: Slug) -> Marks:
    """Take a tag off a paper."""
    return _changed(request, user.id, slug, lambda at, paper: marks.remove_tag(at, user.id, paper, tag))


@router.get("/searches")
def searches(request: Request, user: Owner) -> SavedSearches:
    """Return one's saved searches."""
    with request.app.state.engine.connect() as connection:
        return SavedSearches.of(marks.searches_of(connection, user.id))


@router.put("/searches")
def save_search(request: Request, user: Owner, search: SearchToSave) -> SavedSearches:
    """Keep a search, or turn the alert of one that is kept on or off."""
    with writing(request.app.state.engine) as connection:
        marks.save_search(connection, user.id, search.query, time.time(), alert=search.alert)
        return SavedSearches.of(marks.searches_of(connection, user.id))


@router.delete("/searches/{number}")
def forget_search(
    request: Request, user: Owner, number: Annotated[int, Path(ge=1, lt=2**31, description="its id", examples=[1])]
) -> SavedSearches:
    """Delete a saved search by its id."""
    with writing(request.app.state.engine) as connection:
        marks.forget_search(connection, user.id, number)
        return SavedSearches.of(marks.searches_of(connection, user.id))


@router.get("/recommended")
async def recommended(
    request: Request,
    user: Owner,
    tag: Annotated[
        str, Query(max_length=80, description="learn from the papers with this tag alone", examples=["probes"])
    ] = "",
) -> Recommendations:
    """Return what one's votes and tags recommend, and why."""
    state, name = request.app.state, marks.clean_tag(tag) if tag else None
    found = await to_thread.run_sync(state.recommender.recommend, user.id, name, limiter=state.recommending)
    address = state.settings.address
    items = [RecommendedPaper(paper=Paper.of(row.paper, address), terms=list(row.terms)) for row in found.rows]
    return Recommendations(items=items, terms=list(found.terms), learnt_from=found.learnt_from, note=found.note)


def _find(connection: Connection, slug: str) -> int:
    with or_missing():
        return by_slug(connection, slug).id


def _marks(connection: Connection, user: int, paper: int) -> Marks:
    return Marks.of(marks.marks_on(connection, user, [paper])[paper])


def _changed(request: Request, user: int, slug: str, change: Callable[[Connection, int], object]) -> Marks:
    """Change something about a paper, and return what the person then has on it."""
    with writing(request.app.state.engine) as connection:
        paper = _find(connection, slug)
        change(connection, paper)
        return _marks(connection, user, paper)


def _marked(
    connection: Connection, request: Request, user: int, ids: Sequence[int], total: int, page: int, size: int
) -> MarkedPapers:
    own, address = marks.marks_on(connection, user, ids), request.app.state.settings.address
    items = [
        MarkedPaper(paper=Paper.of(paper, address), marks=Marks.of(own[paper.id])) for paper in by_ids(connection, ids)
    ]
    return MarkedPapers(items=items, page=page, total=total, more=page * size < total)
