"""The route of the search."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response

from workingpapers.papers.catalogue import load_catalogue
from workingpapers.papers.topics import load_topics, path
from workingpapers.site.search.engine import MOST_PAGE
from workingpapers.site.search.filters import STANDINGS, read_filters
from workingpapers.site.web.pages import SIZE, voted_of
from workingpapers.site.web.render import page
from workingpapers.site.web.session import recognise

router = APIRouter(include_in_schema=False, dependencies=[Depends(recognise)])

_LONGEST = 1000  # characters of a query; pasted sentences fit
Word = Annotated[str, Query(max_length=100)]


@router.get("/search")
def search(
    request: Request,
    q: Annotated[str, Query(max_length=_LONGEST)] = "",
    topic: Word = "",
    task: Word = "",
    year: Word = "",
    venue: Word = "",
    has: Annotated[list[Annotated[str, Query(max_length=40)]], Query(max_length=4)] = [],  # noqa: B006
    standing: Word = "",
    sort: Word = "relevance",
    number: Annotated[int, Query(alias="page", ge=1, le=MOST_PAGE)] = 1,
) -> Response:
    """Answer with papers; with the form alone where nothing is looked for."""
    filters = read_filters(has, topic=topic, task=task, year=year, venue=venue, standing=standing)
    asked: dict[str, Any] = {"q": " ".join(q.split()), "topic": topic, "task": task, "year": year, "venue": venue}
    asked |= {"has": sorted(filters.has), "standing": standing, "sort": sort if sort != "relevance" else ""}
    state = request.app.state
    is_asked = bool(asked["q"] or filters or asked["sort"])
    found = state.searcher.search(asked["q"], filters, sort, number, SIZE) if is_asked else None
    with state.engine.connect() as connection:
        voted = voted_of(connection, request, [hit.paper.id for hit in found.hits] if found else [])
    return page(
        request,
        "search.html",
        asked=asked,
        found=found,
        filtered=bool(filters),
        voted=voted,
        first=(number - 1) * SIZE + 1,
        topics=[(name, "\u2003" * (len(path(name)) - 2) + it.title) for name, it in load_topics().items() if it.parent],
        tasks=[(name, name) for name in sorted({card.task for card in load_catalogue().values() if card.task})],
        standings=[(name, name) for name in STANDINGS],
    )
