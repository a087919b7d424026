"""Counting what is said elsewhere about the papers that are here: batch by batch, in the order of their ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sqlalchemy import ColumnElement, Engine, func, select

from workingpapers.site.schema import papers
from workingpapers.site.sources.batch import Batch, Cursor

Asked = tuple[Mapping[int, int], list[str]]  # counts by paper, and what was malformed


def batches(
    engine: Engine,
    kind: str,
    name: ColumnElement[Any],
    where: ColumnElement[bool],
    size: int,
    cursor: Cursor | None,
    ask: Callable[[dict[int, str]], Asked],
) -> Iterator[Batch]:
    """Yield counts from where the last sync stopped; after the last paper the next sync begins again.

    Args:
        engine: the page's database.
        kind: of the counts: "citations" or "stars".
        name: by what the service knows a paper.
        where: the papers that it may know.
        size: papers in a batch.
        cursor: as in `Source.batches`.
        ask: takes names by paper and returns the counts that the service has.
    """
    after = cursor["after"] if cursor else 0
    number = select(func.count()).select_from(papers).where(where)
    with engine.connect() as connection:
        total = connection.execute(number).scalar_one()
        done = connection.execute(number.where(papers.c.id <= after)).scalar_one()
    while True:
        next_ones = select(papers.c.id, name).where(where, papers.c.id > after).order_by(papers.c.id).limit(size + 1)
        with engine.connect() as connection:
            rows = [(paper, called) for paper, called in connection.execute(next_ones)]
        after = rows[size - 1][0] if len(rows) > size else 0
        counts, problems = ask(dict(rows[:size])) if rows else ({}, [])
        done += len(rows[:size])
        yield Batch(cursor={"after": after}, counts={kind: counts}, problems=problems, done=done, total=total)
        if not after:
            return


def usable(entry: Any, name: str) -> int | None:
    """Return the count that an object holds under a name; None where it holds none."""
    value = entry.get(name) if isinstance(entry, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31 else None
