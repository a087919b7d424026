"""The JSON API, version 1: everything that the page shows, and with a token one's own marks.

It lives under /api/v1 and describes itself: as OpenAPI in /api/v1/openapi.json, and for people at /api. Errors are
`{"error": "..."}` with a fitting status. Own marks are in `api_me`; the routes that answer in the shapes of Hugging
Face's API, so that its clients work here too, are in `api_hub`.
"""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field

from workingpapers.papers.topics import Topic, children, load_topics, path, topic
from workingpapers.runs.present import Assessed
from workingpapers.site import people, placed, trending
from workingpapers.site.catalogue import listed
from workingpapers.site.papers import Paper as StoredPaper
from workingpapers.site.papers import by_ids, by_slug
from workingpapers.site.search.engine import MOST_PAGE, MOST_SIZE
from workingpapers.site.search.filters import read_filters
from workingpapers.site.web import api_docs, api_hub, api_me
from workingpapers.site.web.api_boards import Leaderboard, LeaderboardDetail, Leaderboards
from workingpapers.site.web.api_examples import BOARD, HARDWARE, LIKE_PAPER, PAPER, TOPIC, answers
from workingpapers.site.web.api_models import (
    Claim,
    Claims,
    Found,
    Paper,
    PaperDetail,
    Papers,
    Period,
    Trending,
)
from workingpapers.site.web.api_shared import ERRORS, refuse_unknown, refuse_unreadable
from workingpapers.site.web.measured import find_board, fitting
from workingpapers.site.web.render import or_missing

router = APIRouter()
v1 = APIRouter(prefix="/api/v1", responses=ERRORS, dependencies=[Depends(refuse_unreadable), Depends(refuse_unknown)])

Task = Annotated[str, Query(max_length=100, description="a task that measures papers", examples=["probe"])]
Number = Annotated[int, Query(ge=1, le=MOST_PAGE, description="which page, from 1", examples=[1])]
Slug = Annotated[str, Path(max_length=300, description="a paper's slug", examples=[PAPER])]
Size = Annotated[int, Query(ge=1, le=MOST_SIZE, description="things on a page", examples=[20])]
PeriodName = Literal["day", "week", "month", "all"]
Date = Annotated[
    str,
    Query(
        max_length=20,
        description="a day, an ISO week (2026-W48) or a month (2026-11); or today",
        examples=["2026-11-25"],
    ),
]


@v1.get("/search", tags=["papers"])
def search(
    request: Request,
    q: Annotated[
        str,
        Query(
            max_length=1000,
            description='words, "phrases", -word, author:, venue:, year:',
            examples=["Grassmann class representation"],
        ),
    ] = "",
    topic: Annotated[
        str, Query(max_length=100, description="id of a topic; those below it count too", examples=[TOPIC])
    ] = "",
    task: Task = "",
    year: Annotated[
        str, Query(max_length=100, description="2020, 2020..2023, >=2021, ...", examples=["2020..2023"])
    ] = "",
    venue: Annotated[str, Query(max_length=100, description="words of the venue", examples=["ICCV"])] = "",
    has: Annotated[list[str], Query(max_length=4, description="method, code", examples=[["method", "code"]])] = [],  # noqa: B006
    standing: Annotated[
        str, Query(max_length=100, description="what became of its claims", examples=["reproduced"])
    ] = "",
    sort: Annotated[
        Literal["relevance", "date", "trending", "citations"],
        Query(description="what comes first", examples=["relevance"]),
    ] = "relevance",
    page: Number = 1,
    size: Size = 20,
) -> Found:
    """Find papers by words and by meaning; without words, all that pass the filters, the latest first."""
    filters = read_filters(has, topic=topic, task=task, year=year, venue=venue, standing=standing)
    state = request.app.state
    return Found.of(state.searcher.search(q, filters, sort, page, size), state.settings.address)


@v1.get("/papers/{slug}", tags=["papers"])
def paper(request: Request, slug: Slug) -> PaperDetail:
    """Return a paper; for one of the catalogue with its method and its places on leaderboards."""
    stored, assessed = _paper(request, slug)
    return PaperDetail.whole(stored, assessed, request.app.state.settings.address)


@v1.get("/papers/{slug}/claims", tags=["papers"])
def claims(request: Request, slug: Slug) -> Claims:
    """Return what a paper claims: reported, measured here, the verdict, and the command that measures it."""
    _, assessed = _paper(request, slug)
    return Claims(paper=slug, items=[Claim.of(finding) for finding in (assessed.found if assessed else ())])


@v1.get("/papers/{slug}/similar", tags=["papers"])
def similar(
    request: Request,
    slug: Annotated[str, Path(max_length=300, description="a paper's slug", examples=[LIKE_PAPER])],
    size: Annotated[int, Query(ge=1, le=50, description="how many", examples=[6])] = 6,
) -> Papers:
    """Return the papers most like one."""
    stored, _ = _paper(request, slug)
    state = request.app.state
    return Papers.of(state.searcher.similar(stored.id, size), state.settings.address)


def _paper(request: Request, slug: str) -> tuple[StoredPaper, Assessed | None]:
    state = request.app.state
    with state.engine.connect() as connection, or_missing():
        stored = by_slug(connection, slug)
    return stored, state.measured.now().papers.get(stored.card or "")


@v1.get("/catalogue", tags=["papers"])
def catalogue(request: Request) -> Papers:
    """Return every paper of the catalogue: those whose claims are written down to be measured."""
    with request.app.state.engine.connect() as connection:
        found = listed(connection)
    return Papers.of(found, request.app.state.settings.address)


@v1.get("/trending", tags=["papers"], name="trending")
def what_trends(
    request: Request,
    period: Annotated[
        PeriodName, Query(description="how long: what happened within it counts", examples=["week"])
    ] = "week",
    date: Date = "",
    page: Annotated[int, Query(ge=1, le=trending.LAST_PAGE, description="which page, from 1", examples=[1])] = 1,
    size: Size = 20,
) -> Trending:
    """Return what trends in a period, and why."""
    asked = trending.read_period(period, date, trending.day_of(time.time()))
    with request.app.state.engine.connect() as connection:
        found = trending.trending(connection, period, asked.end, page, size)
    return Trending.of(found, request.app.state.settings.address)


class Picks(BaseModel):
    """The papers that curators picked on a day."""

    period: Period
    items: list[Paper]


@v1.get("/picks", tags=["papers"])
def picks(request: Request, date: Date = "") -> Picks:
    """Return what curators picked on a day."""
    day = trending.read_period("day", date, trending.day_of(time.time()))
    with request.app.state.engine.connect() as connection:
        found = by_ids(connection, people.picked_on(connection, day.key))
    address = request.app.state.settings.address
    return Picks(period=Period.of(day), items=[Paper.of(paper, address) for paper in found])


class TopicPlace(BaseModel):
    """A place on the map of topics."""

    id: str
    title: str
    parent: str | None = Field(description="null for the root alone")
    kind: str
    gist: str

    @classmethod
    def of(cls, it: Topic) -> TopicPlace:
        """Return a topic as the API shows it."""
        return cls(id=it.id, title=it.title, parent=it.parent, kind=it.kind, gist=it.gist)


class Topics(BaseModel):
    """The map, parents before children, with the number of papers at and below each topic."""

    items: list[TopicPlace]
    papers: dict[str, int]


class TopicPage(BaseModel):
    """A topic with a page of its papers."""

    topic: TopicPlace
    above: list[TopicPlace] = Field(description="from the root down")
    below: list[TopicPlace]
    items: list[Paper]
    page: int
    total: int
    more: bool = Field(description="whether there is a next page")


@v1.get("/topics", tags=["topics"])
def topics(request: Request) -> Topics:
    """Return the map of topics."""
    with request.app.state.engine.connect() as connection:
        counts = placed.counts(connection)
    return Topics(items=[TopicPlace.of(it) for it in load_topics().values()], papers=counts)


@v1.get("/topics/{name}", tags=["topics"], name="topic")
def one_topic(
    request: Request,
    name: Annotated[str, Path(max_length=100, description="a topic's id", examples=[TOPIC])],
    page: Number = 1,
    size: Size = 20,
) -> TopicPage:
    """Return a topic and the papers at and below it, those with a method first."""
    with or_missing():
        here = topic(name)
    with request.app.state.engine.connect() as connection:
        found, total = placed.papers_at(connection, name, page, size)
    address = request.app.state.settings.address
    return TopicPage(
        topic=TopicPlace.of(here),
        above=[TopicPlace.of(topic(above)) for above in path(name)[:-1]],
        below=[TopicPlace.of(topic(below)) for below in children(name)],
        items=[Paper.of(paper, address) for paper in found],
        page=page,
        total=total,
        more=page * size < total,
    )


@v1.get("/leaderboards", tags=["leaderboards"])
def leaderboards(
    request: Request,
    task: Task = "",
    data: Annotated[str, Query(max_length=200, description="a data set", examples=["mnist-5k"])] = "",
    hardware: Annotated[
        str,
        Query(max_length=200, description="what runs ran on, as the leaderboards name it", examples=[HARDWARE]),
    ] = "",
) -> Leaderboards:
    """Return every leaderboard, or those of a task, on a data set, or with runs on some hardware."""
    snapshot = request.app.state.measured.now()
    found = fitting(snapshot, task=task, data=data, hardware=hardware)
    address = request.app.state.settings.address
    return Leaderboards(items=[Leaderboard.of(it, address) for it in found], left_out=list(snapshot.left_out))


@v1.get("/leaderboards/{name}", tags=["leaderboards"], name="leaderboard")
def one_leaderboard(
    request: Request,
    name: Annotated[str, Path(max_length=200, description="a permalink", examples=[BOARD])],
    hardware: Annotated[str, Query(max_length=200, description="only what ran on it", examples=[HARDWARE])] = "",
) -> LeaderboardDetail:
    """Return a leaderboard: entries with intervals, verdicts and costs, and the command that makes it."""
    with or_missing():
        board = find_board(request.app.state.measured.now(), name, hardware)
    return LeaderboardDetail.of(board, request.app.state.settings.address)


class Feed(BaseModel):
    """A feed's addresses, by format."""

    title: str
    atom: str
    rss: str
    json_: str = Field(alias="json")
    template: bool = Field(description="whether the addresses are URI templates (RFC 6570)")


class Feeds(BaseModel):
    """All feeds; those of searches as one template."""

    items: list[Feed]


@v1.get("/feeds", tags=["feeds"])
def feeds(request: Request) -> Feeds:
    """Return the addresses of all feeds."""
    address = request.app.state.settings.address
    found = [_feed(address, f"Trending: {name}", "trending", f"?period={name}") for name in trending.PERIODS]
    found += [_feed(address, it.title, f"topics/{it.id}") for it in load_topics().values()]
    found.append(_feed(address, "Any search", "search", "{?q,topic,task,year,venue,has*,standing}"))
    return Feeds(items=found)


def _feed(address: str, title: str, name: str, query: str = "") -> Feed:
    kinds: dict[str, Any] = {kind: f"{address}/feeds/{name}.{kind}{query}" for kind in ("atom", "rss", "json")}
    return Feed(title=title, template="{" in query, **kinds)


def exemplify(schema: dict[str, Any]) -> dict[str, Any]:
    """Return an OpenAPI description with examples of answers, which FastAPI would take the nulls out of."""
    for operations in schema["paths"].values():
        for operation in operations.values():
            content = operation["responses"]["200"]["content"]["application/json"]
            content["example"] = _ANSWERS[operation["operationId"]]
    return schema


def _operation_name(route: APIRoute) -> str:
    return route.name


_ANSWERS = answers([*v1.routes, *api_me.router.routes, *api_hub.router.routes])
v1.include_router(api_me.router)
router.include_router(api_docs.router)
router.include_router(v1, generate_unique_id_function=_operation_name)
router.include_router(api_hub.router, generate_unique_id_function=_operation_name)
