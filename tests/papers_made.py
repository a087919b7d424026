"""Papers for tests, written straight into the table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, func, insert, select

from workingpapers.site.schema import paper_topics, papers

DAY = "2026-11-25"


def made(connection: Connection, n: int = 3, *, topics: Iterable[str] = (), **changes: Any) -> list[int]:
    """Insert `n` papers and return their ids in order; further calls go on counting.

    Args:
        connection: that may write.
        n: how many.
        topics: ids of topics that all of them get.
        **changes: columns that differ from the defaults below, the same for all papers. A text may hold "{}": the
            paper's number, so that "slug" and other unique columns differ.
    """
    first = (connection.execute(select(func.max(papers.c.id))).scalar() or 0) + 1
    return [_one(connection, number, topics, changes) for number in range(first, first + n)]


def _one(connection: Connection, number: int, topics: Iterable[str], changes: dict[str, Any]) -> int:
    row: dict[str, Any] = {
        "slug": "paper-{}",
        "title": "Paper {} on frozen features",
        "abstract": "Abstract of paper {}: a linear probe on frozen features.",
        "authors": ["Ada Lovelace", "Alan Turing"],
        "venue": "arXiv",
        "year": 2026,
        "published": DAY,
        "url": "https://example.org/{}",
        "source": "made",
        "added": 1_000_000.0 + number,
        "updated": 1_000_000.0 + number,
    } | changes
    row = {name: value.replace("{}", str(number)) if isinstance(value, str) else value for name, value in row.items()}
    row.setdefault("title_key", row["title"].lower())
    paper: int = connection.execute(insert(papers).values(row).returning(papers.c.id)).scalar_one()
    for topic in topics:
        connection.execute(insert(paper_topics).values(paper_id=paper, topic=topic))
    return paper
