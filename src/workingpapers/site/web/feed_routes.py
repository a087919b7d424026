"""Routes of feeds: what trends, a topic, and any search, in each format."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from email.utils import formatdate
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from sqlalchemy import select

from workingpapers.papers import topics
from workingpapers.site import trending
from workingpapers.site.feeds import FORMATS, Feed
from workingpapers.site.papers import Paper, by_ids
from workingpapers.site.schema import paper_topics, papers
from workingpapers.site.search.filters import read_filters
from workingpapers.site.web.render import or_missing, query

router = APIRouter(include_in_schema=False)

SIZE = 40  # papers of a feed: a reader that asks once a day misses none of a usual day's
_MOST_REMEMBERED = 10_000  # feeds whose last change is known
_PERIODS = {"day": "today", "week": "this week", "month": "this month", "all": "of all time"}

Word = Annotated[str, Query(max_length=100)]
Format = Literal["atom", "rss", "json"]


class Changes:
    """When feeds last changed, as far as this process saw: a list can change without any paper of it doing so."""

    def __init__(self) -> None:
        self._seen: OrderedDict[bytes, tuple[bytes, int]] = OrderedDict()
        self._lock = threading.Lock()

    def at(self, path: str, body: bytes, now: float) -> int:
        """Return the second at which a feed became what it is; no two versions have the same."""
        name, digest = (hashlib.blake2b(part, digest_size=16).digest() for part in (path.encode(), body))
        with self._lock:
            before, second = self._seen.pop(name, (b"", 0))
            self._seen[name] = (digest, second if before == digest else max(int(now), second + 1))
            if len(self._seen) > _MOST_REMEMBERED:
                self._seen.popitem(last=False)
            return self._seen[name][1]


@router.get("/feeds/trending.{kind}")
def of_trending(
    request: Request, kind: Format, period: Annotated[Literal["day", "week", "month", "all"], Query()] = "week"
) -> Response:
    """Answer with what trends; each paper comes once, when it enters the list."""
    with request.app.state.engine.connect() as connection:
        found = trending.trending(connection, period, trending.day_of(time.time()), size=SIZE)
    title = f"Trending papers {_PERIODS[period]}"
    return _answer(request, kind, title, "/" + query({"period": period}), [row.paper for row in found.rows])


@router.get("/feeds/topics/{name}.{kind}")
def of_topic(request: Request, name: str, kind: Format) -> Response:
    """Answer with the papers that came last to a topic or one below it."""
    with or_missing():
        here = topics.topic(name)
    inside = select(paper_topics.c.paper_id).where(paper_topics.c.topic.in_(list(topics.walk(name))))
    latest = select(papers.c.id).where(papers.c.id.in_(inside)).order_by(papers.c.added.desc(), papers.c.id.desc())
    with request.app.state.engine.connect() as connection:
        found = by_ids(connection, list(connection.execute(latest.limit(SIZE)).scalars()))
    return _answer(request, kind, f"Papers on {here.title}", f"/topics/{name}", found)


@router.get("/feeds/search.{kind}")
def of_search(
    request: Request,
    kind: Format,
    has: Annotated[list[Annotated[str, Query(max_length=40)]], Query(default_factory=list, max_length=4)],
    q: Annotated[str, Query(max_length=1000)] = "",
    topic: Word = "",
    task: Word = "",
    year: Word = "",
    venue: Word = "",
    standing: Word = "",
) -> Response:
    """Answer with the latest papers that a search finds; it takes what the page of searches takes."""
    given = {"topic": topic, "task": task, "year": year, "venue": venue, "standing": standing}
    filters = read_filters(has, **given)
    found = request.app.state.searcher.search(q, filters, sort="date", size=SIZE)
    page = "/search" + query({"q": " ".join(q.split()), **given, "has": sorted(filters.has)})
    title = f"Papers on “{' '.join(q.split())}”" if q.strip() else "Latest papers"
    return _answer(request, kind, title, page, [hit.paper for hit in found.hits])


def _answer(request: Request, kind: Format, title: str, page: str, found: list[Paper]) -> Response:
    """Return a feed; for a reader that has it, the cache makes "not modified" of it."""
    state, url = request.app.state, request.url
    path = url.path + (f"?{url.query}" if url.query else "")
    write, media = FORMATS[kind]
    description = f"{title}: what they report, beside what was measured."
    body = write(Feed(title, description, state.settings.address, page, path, found))
    changed = state.feed_changes.at(path, body, time.time())
    headers = {"Last-Modified": formatdate(changed, usegmt=True), "Cache-Control": "public, max-age=300"}
    return Response(body, media_type=media, headers=headers)
