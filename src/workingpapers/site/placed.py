"""Papers in their places on the map of topics."""

from __future__ import annotations

from sqlalchemy import Connection, func, select

from workingpapers.papers.topics import load_topics, path, walk
from workingpapers.site.papers import Paper, by_ids
from workingpapers.site.schema import paper_topics, papers


def counts(connection: Connection) -> dict[str, int]:
    """Return how many papers are at and below each topic that has any."""
    at: dict[str, set[int]] = {}
    for name, number in connection.execute(select(paper_topics.c.topic, paper_topics.c.paper_id)):
        for above in path(name) if name in load_topics() else ():
            at.setdefault(above, set()).add(number)
    return {name: len(numbers) for name, numbers in at.items()}


def papers_at(connection: Connection, name: str, page: int, size: int) -> tuple[list[Paper], int]:
    """Return a page of the papers at and below a topic, those with a method first, and how many there are.

    Args:
        connection: to the page's database.
        name: id of the topic.
        page: from 1.
        size: papers on a page.

    Raises:
        UserError: no such topic.
    """
    within = paper_topics.c.topic.in_(list(walk(name)))
    inside = papers.c.id.in_(select(paper_topics.c.paper_id).where(within))
    order = (papers.c.has_method.desc(), papers.c.votes.desc(), papers.c.year.desc().nulls_last(), papers.c.id.desc())
    ids = connection.execute(
        select(papers.c.id).where(inside).order_by(*order).limit(size).offset((page - 1) * size)
    ).scalars()
    total = connection.execute(select(func.count(paper_topics.c.paper_id.distinct())).where(within)).scalar_one()
    return by_ids(connection, list(ids)), total
