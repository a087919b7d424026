"""What narrows a search beside its words, as conditions on the table of papers."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, func, literal_column, select

from workingpapers.errors import unknown_name
from workingpapers.papers.catalogue import load_catalogue
from workingpapers.papers.topics import topic, walk
from workingpapers.runs.claims import Standing
from workingpapers.site.schema import paper_topics, papers, trends
from workingpapers.site.search import fulltext
from workingpapers.site.search.query import Query, Term, Years, narrowed, read_years, split
from workingpapers.site.trending import day_of, period_of

SORTS = ("relevance", "date", "trending", "citations")
HAS = ("method", "code")
STANDINGS: tuple[str, ...] = typing.get_args(Standing)
LATEST = (papers.c.year.desc().nulls_last(), papers.c.published.desc().nulls_last(), papers.c.id.desc())


@dataclass(frozen=True, kw_only=True)
class Filters:
    """What papers must be.

    Attributes:
        topic: id of a topic; papers of topics below it pass too.
        task: name of a task.
        year: "2020", "2020..2023", ">=2021" and so on, as after `year:`.
        venue: words of the venue.
        has: any of "method" (it can be used from here) and "code".
        standing: what became of its claims: "reproduced" and so on.

    Raises:
        UserError: a value that no paper can have; the message names what is allowed.
    """

    topic: str | None = None
    task: str | None = None
    year: str | None = None
    venue: str | None = None
    has: frozenset[str] = frozenset()
    standing: str | None = None

    def __post_init__(self) -> None:
        if self.topic:
            topic(self.topic)
        tasks = {card.task for card in load_catalogue().values() if card.task}
        if self.task and self.task not in tasks:
            raise unknown_name("task", self.task, tasks)
        if self.standing and self.standing not in STANDINGS:
            raise unknown_name("standing", self.standing, STANDINGS)
        for name in self.has:
            if name not in HAS:
                raise unknown_name("thing to have", name, HAS)
        self.years()

    def years(self) -> Years:
        """Return the first and the last year."""
        return read_years(self.year) if self.year and self.year.strip() else (None, None)

    def __bool__(self) -> bool:
        return self != Filters()


def read_filters(has: Iterable[str], **given: str) -> Filters:
    """Return filters as addresses give them: "" does not filter, and a value of `has` may name several with commas.

    Raises:
        UserError: as `Filters`.
    """
    wanted = frozenset(name for part in has for name in part.split(",") if name)
    return Filters(**{name: value or None for name, value in given.items()}, has=wanted)


def conditions(dialect: str, filters: Filters, query: Query) -> list[ColumnElement[bool]]:
    """Return what papers must be, but for the words and phrases that they should hold."""
    excluded = [~fulltext.holding(dialect, [query.excluded])] if query.excluded else []
    return [*_of_filters(dialect, filters), *_of_years(*narrowed(filters.years(), query.years)), *excluded]


def _of_filters(dialect: str, filters: Filters) -> Iterator[ColumnElement[bool]]:
    if filters.topic:
        below = paper_topics.c.topic.in_(list(walk(filters.topic)))
        yield papers.c.id.in_(select(paper_topics.c.paper_id).where(below))
    if filters.task or filters.standing or "method" in filters.has:  # which the catalogue alone says of papers
        yield papers.c.card.in_(load_catalogue())
    if filters.task:
        yield papers.c.task == filters.task
    if filters.standing:
        yield papers.c.standing == filters.standing
    if "method" in filters.has:
        yield papers.c.has_method
    if "code" in filters.has:
        yield papers.c.code != literal_column("''")  # a parameter might be anything, to which an index is no answer
    if words := split(filters.venue or ""):
        yield fulltext.holding(dialect, [[Term((tuple(words),), "venue")]])


def _of_years(least: int | None, most: int | None) -> Iterator[ColumnElement[bool]]:
    if least is not None:
        yield papers.c.year >= least
    if most is not None:
        yield papers.c.year <= most


def ordered(sort: str, now: float) -> tuple[typing.Any, list[typing.Any]]:
    """Return the table to select papers from and the order, for any sort but by relevance.

    Trending is the order of this month's scores, then of all time's; papers without one come last.
    """
    if sort == "citations":
        return papers, [papers.c.citations.desc(), papers.c.id.desc()]
    if sort != "trending":
        return papers, list(LATEST)
    source: typing.Any = papers
    order = []
    for name in ("month", "all"):
        period = period_of(name, day_of(now))
        scores = trends.alias(name)
        same = (scores.c.period == name, scores.c.start == period.start.isoformat(), scores.c.paper_id == papers.c.id)
        source = source.outerjoin(scores, and_(*same))
        order.append(func.coalesce(scores.c.score, 0).desc())
    return source, [*order, papers.c.id.desc()]
