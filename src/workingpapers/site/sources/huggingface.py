"""The daily papers of Hugging Face (huggingface.co/docs/hub/api): papers of arXiv that its readers picked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from typing import Any
from urllib.parse import urlencode

from workingpapers.site.records import Malformed, Record, checked
from workingpapers.site.sources.batch import Batch, Cursor, Walk
from workingpapers.site.sources.http import Client, SourceError, read_json

_BASE = "https://huggingface.co"
_PAGE = 100  # the most that it gives at once
_OVERLAP = 2  # days to which papers may still be added


@dataclass(frozen=True)
class HuggingFace:
    """Daily papers.

    Args:
        client: that asks.
        since, today: which days, as in `Walk`.
        base: where the API is.
        page: papers on a page.
    """

    client: Client
    since: str | None
    today: date
    base: str = _BASE
    page: int = _PAGE

    @property
    def name(self) -> str:
        """See `Source.name`."""
        return "huggingface"

    def batches(self, cursor: Cursor | None) -> Iterator[Batch]:
        """See `Source.batches`."""
        walk = Walk(self.since, self.today, _OVERLAP)
        first, page = walk.start(cursor)
        days = list(walk.days(first))
        for number, day in enumerate(days, 1):
            more = True
            while more:
                found = self._ask(day, page)
                records, problems = _records(found)
                page += 1
                more = len(found) == self.page
                after = walk.after(cursor, first, day, page if more else None)
                yield Batch(cursor=after, records=records, problems=problems, done=number, total=len(days))
            page = 0

    def _ask(self, day: date, page: int) -> list[Any]:
        query = urlencode({"date": day.isoformat(), "limit": self.page, "p": page})
        found = self.client.fetch(f"{self.base}/api/daily_papers?{query}", read_json)
        if not isinstance(found, list):
            raise SourceError(f"Hugging Face's daily papers of {day} are no list.")
        return found


def _records(found: list[Any]) -> tuple[list[Record], list[str]]:
    records, problems = [], []
    for number, entry in enumerate(found, 1):
        try:
            records.append(checked("huggingface", _fields(entry)))
        except Malformed as error:
            problems.append(f"Hugging Face, paper {number}: {error}")
    return records, problems


def _fields(entry: Any) -> dict[str, Any]:
    paper = entry.get("paper") if isinstance(entry, dict) else None
    if not isinstance(paper, dict):
        raise Malformed("paper: is no object")
    authors = paper.get("authors") or []
    if not isinstance(authors, list):
        raise Malformed("authors: are no list")
    identifier = paper.get("id")
    if not isinstance(identifier, str):
        raise Malformed("paper.id: is missing")
    return {
        "arxiv": identifier,
        "title": paper.get("title") or entry.get("title"),
        "abstract": paper.get("summary"),
        "authors": [author.get("name") for author in authors if isinstance(author, dict)],
        "published": paper.get("publishedAt"),
        "venue": "arXiv",
        "url": f"https://arxiv.org/abs/{identifier}",
        "pdf": f"https://arxiv.org/pdf/{identifier}",
        "code": paper.get("githubRepo"),
        "stars": paper.get("githubStars"),
    }
