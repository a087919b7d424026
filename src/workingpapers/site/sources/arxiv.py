"""New papers of arXiv's categories, from its Atom API (info.arxiv.org/help/api/user-manual.html).

A sync asks day by day (of submission, UTC), in pages: the API gives at most 30,000 results to one query, and a day's
pages stay as they are. New papers appear up to some days after they were submitted, so the last week is asked again.

What the API does besides its manual's sunny side, and what happens then: an error comes as status 200 with one entry
whose id is under arxiv.org/api/errors (reported); throttling may come as a plain sentence with status 200, and a page
in the middle may come empty (both asked again).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from typing import Any
from urllib.parse import urlencode, urlsplit
from xml.etree import ElementTree

from workingpapers.errors import UserError
from workingpapers.site.records import Malformed, Record, checked
from workingpapers.site.sources.batch import Batch, Cursor, Walk
from workingpapers.site.sources.http import Client, SourceError, Unreadable

CATEGORIES = ("cs.LG", "cs.CV", "cs.CL", "stat.ML")  # what a sync of "arxiv" without categories brings

_BASE = "https://export.arxiv.org"
_PAGE = 500  # the manual allows 2000 and asks for less
_OVERLAP = 7  # days; over holidays, announcements come that late
_NAMES = {
    "atom": "http://www.w3.org/2005/Atom",
    "search": "http://a9.com/-/spec/opensearch/1.1/",
    "arxiv": "http://arxiv.org/schemas/atom",
}
_CATEGORY = re.compile(r"[a-z]+(-[a-z]+)*(\.[A-Za-z]{2}(-[a-z]+)?)?")
_CODE = re.compile(r"https?://github\.com/[\w.-]+/[\w-]+(?:\.[\w-]+)*")


@dataclass(frozen=True)
class Arxiv:
    """Papers of one category.

    Args:
        category: "cs.LG".
        client: that asks.
        since, today: which days, as in `Walk`.
        base: where the API is.
        page: results on a page.

    Raises:
        UserError: no category is written like that.
    """

    category: str
    client: Client
    since: str | None
    today: date
    base: str = _BASE
    page: int = _PAGE

    def __post_init__(self) -> None:
        if not _CATEGORY.fullmatch(self.category):
            raise UserError(f"Categories of arXiv are written like cs.LG or hep-th; got {self.category!r}.")

    @property
    def name(self) -> str:
        """See `Source.name`."""
        return f"arxiv:{self.category}"

    def batches(self, cursor: Cursor | None) -> Iterator[Batch]:
        """See `Source.batches`."""
        walk = Walk(self.since, self.today, _OVERLAP)
        first, start = walk.start(cursor)
        days = list(walk.days(first))
        for number, day in enumerate(days, 1):
            more = True
            while more:
                feed = self.client.fetch(self._address(day, start), functools.partial(_feed, start=start))
                records, problems = _records(feed.entries)
                start += len(feed.entries)
                more = bool(feed.entries) and start < feed.total
                after = walk.after(cursor, first, day, start if more else None)
                yield Batch(cursor=after, records=records, problems=problems, done=number, total=len(days))
            start = 0

    def _address(self, day: date, start: int) -> str:
        query = {
            "search_query": f"cat:{self.category} AND submittedDate:[{day:%Y%m%d}0000 TO {day:%Y%m%d}2359]",
            "sortBy": "submittedDate",
            "sortOrder": "ascending",
            "start": start,
            "max_results": self.page,
        }
        return f"{self.base}/api/query?{urlencode(query)}"


def by_identifier(client: Client, identifier: str, base: str = _BASE) -> Record:
    """Return one paper by its arXiv identifier.

    Raises:
        UserError: arXiv has no such paper, or does not answer.
    """
    query = urlencode({"id_list": identifier, "max_results": 1})
    feed = client.fetch(f"{base}/api/query?{query}", _feed)
    if not feed.entries or not _text(feed.entries[0], "atom:title"):
        raise UserError(f"arXiv has no paper {identifier!r}.")
    return checked("arxiv", _fields(feed.entries[0]))


@dataclass(frozen=True)
class _Feed:
    entries: list[Any]
    total: int


def _feed(body: bytes, start: int | None = None) -> _Feed:
    """Return the entries of a page, and how many the query has in all.

    Raises:
        Unreadable: it is no Atom feed, or empty where it must not be: at `start`, None for papers asked for by name.
        SourceError: it is the API's way to say that something is wrong with the query.
    """
    if b"<!DOCTYPE" in body or b"<!ENTITY" in body:
        raise Unreadable("a document with definitions of its own")
    try:
        root = ElementTree.fromstring(body)
        total = int(_text(root, "search:totalResults"))
    except (ElementTree.ParseError, ValueError) as error:
        raise Unreadable(f"an answer that is no Atom feed: {body[:80].decode(errors='replace')!r}") from error
    entries = root.findall("atom:entry", _NAMES)
    for entry in entries:
        if urlsplit(_text(entry, "atom:id")).path.startswith("/api/errors"):
            raise SourceError(f"arXiv refuses the query: {_text(entry, 'atom:summary')}.")
    if start is not None and not entries and start < total:
        raise Unreadable(f"an empty page at {start} of {total}")
    return _Feed(entries, total)


def _records(entries: list[Any]) -> tuple[list[Record], list[str]]:
    records, problems = [], []
    for entry in entries:
        try:
            records.append(checked("arxiv", _fields(entry)))
        except Malformed as error:
            problems.append(f"arXiv, {_text(entry, 'atom:id') or 'an entry without id'}: {error}")
    return records, problems


def _fields(entry: Any) -> dict[str, Any]:
    summary = _text(entry, "atom:summary")
    links = {link.get("title") or link.get("rel"): link.get("href") for link in entry.findall("atom:link", _NAMES)}
    code = {found.rstrip(".") for found in _CODE.findall(f"{summary} {_text(entry, 'arxiv:comment')}")}
    return {
        "arxiv": _text(entry, "atom:id"),
        "title": _text(entry, "atom:title"),
        "abstract": summary,
        "authors": [_text(author, "atom:name") for author in entry.findall("atom:author", _NAMES)],
        "published": _text(entry, "atom:published"),
        "venue": "arXiv",
        "doi": _text(entry, "arxiv:doi").split(" ")[0],  # some entries have several
        "url": _secure(links.get("alternate") or ""),
        "pdf": _secure(links.get("pdf") or ""),
        "code": code.pop() if len(code) == 1 else None,  # of several, who knows which is the paper's own
    }


def _text(element: Any, path: str) -> str:
    return (element.findtext(path, "", _NAMES) or "").strip()


def _secure(address: str) -> str:
    return address.replace("http://", "https://", 1)
