"""Routes of the papers: trending, a paper, topics, the catalogue, and how all this works. Search is in `find`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import date
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import PlainTextResponse, Response
from sqlalchemy import Connection, func, select

from workingpapers.papers.catalogue import load_catalogue
from workingpapers.papers.topics import children, load_topics, path, topic, walk
from workingpapers.runs.present import Assessed
from workingpapers.site import marks, people, placed, trending
from workingpapers.site.catalogue import listed
from workingpapers.site.citation import bibtex
from workingpapers.site.database import reading
from workingpapers.site.papers import Paper, by_ids, by_slug
from workingpapers.site.schema import papers
from workingpapers.site.search.vectors import index_file
from workingpapers.site.web.render import or_missing, page
from workingpapers.site.web.session import recognise

router = APIRouter(include_in_schema=False, dependencies=[Depends(recognise)])

SIZE = 20  # papers on a page
SIMILAR = 6
_ROOT = "pre-trained-models"
_WORDS = {
    "day": ("today", "that day"),
    "week": ("this week", "that week"),
    "month": ("this month", "that month"),
    "all": ("of all time",) * 2,
}
PageNumber = Annotated[int, Query(alias="page", ge=1, le=trending.LAST_PAGE)]


@router.get("/")
def home(
    request: Request,
    period: Annotated[str | None, Query(max_length=20)] = None,
    when: Annotated[str | None, Query(alias="date", max_length=20)] = None,
    number: PageNumber = 1,
) -> Response:
    """Answer with what trends; without a period, in the shortest of week, month and all time that has anything."""
    today = trending.day_of(time.time())
    with request.app.state.engine.connect() as connection:
        found = _trending(connection, period, when, today, number)
        is_plain = period is None and number == 1
        picked = by_ids(connection, people.picked_on(connection, today.isoformat())) if is_plain else []
        shown = [row.paper.id for row in found.rows] + [paper.id for paper in picked]
        voted = voted_of(connection, request, shown)
    is_present = found.period == trending.period_of(found.period.name, today)
    return page(
        request,
        "trending.html",
        found=found,
        picked=picked,
        voted=voted,
        first=(number - 1) * SIZE + 1,
        said=_WORDS[found.period.name][not is_present],
        values={"period": found.period.name, "date": when},
    )


def _trending(
    connection: Connection, period: str | None, when: str | None, today: date, number: int
) -> trending.Trending:
    for name in (period,) if period else ("week", "month", "all"):
        asked = trending.read_period(name, when, today)
        found = trending.trending(connection, name, asked.start if name != "all" else today, number, SIZE)
        if found.rows:
            break
    return found


def voted_of(connection: Connection, request: Request, ids: Sequence[int]) -> set[int]:
    """Return which of these papers the signed-in person has voted for; none if nobody is."""
    user = getattr(request.state, "user", None)
    found = marks.marks_on(connection, user.id, ids) if user else {}
    return {number for number, mark in found.items() if mark.voted}


@router.get("/papers")
def catalogue(request: Request) -> Response:
    """Answer with every paper of the catalogue under each of its topics."""
    with request.app.state.engine.connect() as connection:
        found = listed(connection)
    by_topic: dict[str, list[Paper]] = {}
    for paper in found:
        for name in paper.topics:
            by_topic.setdefault(name, []).append(paper)
    groups = [(topic(name), by_topic[name]) for name in walk(_ROOT) if name in by_topic]
    return page(request, "catalogue.html", groups=groups, total=len(found))


@router.get("/papers/{slug}.bib")
def citation(request: Request, slug: str) -> Response:
    """Answer with a paper's BibTeX."""
    with request.app.state.engine.connect() as connection, or_missing():
        paper = by_slug(connection, slug)
    return PlainTextResponse(bibtex(paper), media_type="application/x-bibtex; charset=utf-8")


@router.get("/papers/{slug}")
async def paper_page(request: Request, slug: str) -> Response:
    """Answer with a paper's page."""
    if _is_quick(request, slug):
        return _paper_page(request, slug)
    return await run_in_threadpool(_paper_page, request, slug)


def _is_quick(request: Request, slug: str) -> bool:
    """Return whether a paper's page takes less time than the interpreter loses when a thread makes it (a third).

    A local file answers at once; a server must be waited for. Without an index of embeddings, similar papers are
    searched for by words. Papers of the catalogue have much to show.
    """
    state = request.app.state
    is_local = state.engine.dialect.name == "sqlite" and state.settings.embeddings
    return is_local and slug not in load_catalogue() and index_file(state.engine).exists()


def _paper_page(request: Request, slug: str) -> Response:
    state = request.app.state
    user = getattr(request.state, "user", None)
    with reading(state.engine) as connection:
        with or_missing():
            paper = by_slug(connection, slug)
        own = marks.marks_on(connection, user.id, [paper.id])[paper.id] if user else None
    card = load_catalogue().get(paper.card or "")
    shown: Assessed | None = state.measured.now().papers.get(card.slug) if card else None
    return page(
        request,
        "paper.html",
        paper=paper,
        card=card if shown else None,
        shown=shown,
        marks=own,
        curates=user is not None and people.is_curator(state.settings, user),
        topics=[topic(name) for name in paper.topics if name in load_topics()],
        bibtex=bibtex(paper),
        similar=state.searcher.similar(paper.id, SIMILAR),
    )


@router.get("/topics")
def topic_tree(request: Request) -> Response:
    """Answer with the tree of topics and how many papers are at and below each."""
    with request.app.state.engine.connect() as connection:
        counts = placed.counts(connection)
    below = {name: children(name) for name in load_topics()}
    return page(request, "topics.html", topics=load_topics(), below=below, counts=counts, root=_ROOT)


@router.get("/topics/{name}")
def topic_page(request: Request, name: str, number: PageNumber = 1) -> Response:
    """Answer with a topic and the papers at and below it: those with a verdict or a method first, then the latest."""
    with or_missing():
        here = topic(name)
    with request.app.state.engine.connect() as connection:
        found, total = placed.papers_at(connection, name, number, SIZE)
        voted = voted_of(connection, request, [paper.id for paper in found])
    return page(
        request,
        "topic.html",
        topic=here,
        path=[topic(above) for above in path(name)[:-1]],
        children=[topic(below) for below in children(name)],
        papers=found,
        voted=voted,
        total=total,
        page=number,
        first=(number - 1) * SIZE + 1,
        more=number * SIZE < total,
    )


@router.get("/about")
def about(request: Request) -> Response:
    """Answer with how the score works, how to read verdicts, where papers come from, and what programs can ask."""
    with request.app.state.engine.connect() as connection:
        counted = select(papers.c.source, func.count()).group_by(papers.c.source).order_by(func.count().desc())
        sources = connection.execute(counted).all()
    return page(
        request,
        "about.html",
        weights=trending.WEIGHTS,
        half_lives=trending.HALF_LIVES,
        sources=sources,
        address=request.app.state.settings.address,
    )
