"""The search: words find papers through the full-text index, meaning through embeddings, and both are fused."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup
from sqlalchemy import ColumnElement, Connection, Engine, func, select
from sqlalchemy.exc import SQLAlchemyError

from workingpapers.errors import UserError, unknown_name
from workingpapers.site.database import reading
from workingpapers.site.normal import arxiv_id, doi
from workingpapers.site.papers import Paper, by_ids
from workingpapers.site.schema import papers
from workingpapers.site.search import fulltext
from workingpapers.site.search.encoder import Encoder, load_encoder
from workingpapers.site.search.filters import SORTS, Filters, conditions, ordered
from workingpapers.site.search.fuse import fused
from workingpapers.site.search.highlight import Marker
from workingpapers.site.search.plan import Among, Frequencies, Plan, by_words, planned
from workingpapers.site.search.query import Query, parse, split
from workingpapers.site.search.spelling import Speller
from workingpapers.site.search.titles import Titles
from workingpapers.site.search.vectors import Vectors, open_vectors
from workingpapers.site.settings import Settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BY_WORDS, BY_MEANING = 200, 100  # papers that each brings in
MOST_SIZE, MOST_PAGE = 100, 1000
_EXACT = 5000  # papers that pass the filters, up to which each of them is compared by meaning
_FRESH = 10.0  # seconds after which new papers are looked for


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A paper that was found.

    Attributes:
        paper: the paper.
        title, snippet: with what was looked for marked, as safe HTML; the snippet is of the abstract or summary.
        score: by relevance, see `fuse`: higher for better, to compare within a search; 0 in other orders.
    """

    paper: Paper
    title: Markup
    snippet: Markup
    score: float


@dataclass(frozen=True, kw_only=True)
class Results:
    """A page of what was found.

    Attributes:
        hits: the page's, in order.
        total: papers in the list; by relevance it is cut, see exact.
        exact: whether total counts all papers that match.
        page, pages: this one, and how many there are, from 1 to `MOST_PAGE`.
        notes: what readers should know, in sentences: what was searched how, and what was understood differently.
        did_you_mean: the query that may have been meant, where a word is in a few papers only.
        seconds: that it took.
    """

    hits: tuple[Hit, ...]
    total: int
    exact: bool
    page: int
    pages: int
    notes: tuple[str, ...]
    did_you_mean: str | None
    seconds: float


class Searcher:
    """Searches a database; one for a process, safe in threads.

    The full-text index is made where it is missing. Without the exported encoder (see `embed`) or without any embedded
    paper it searches by words alone, and its results say so. Both are looked for again every few seconds.
    """

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine = engine
        self._wanted = settings.embeddings
        self._encoder: Encoder | None = None
        self._vectors = open_vectors(engine) if settings.embeddings else Vectors(engine)
        self._speller = Speller(engine)
        self._titles = Titles(engine)
        self._frequencies = Frequencies()
        self._refreshing = threading.Lock()
        self._due = 0.0
        fulltext.ensure(engine)
        self._refresh_if_due()

    def refresh(self) -> None:
        """Take in new titles, vectors and the encoder now; a search has it done in the background every ten seconds."""
        with self._refreshing:
            self._due = time.monotonic() + _FRESH
            if self._wanted:
                self._vectors.refresh()
                self._encoder = self._encoder or load_encoder()
            self._titles.refresh()
            if self._speller.refresh():
                self._frequencies.forget()

    def _refresh_if_due(self) -> None:
        if time.monotonic() >= self._due and not self._refreshing.locked():
            # Not a daemon: a process that ends while a thread is within native code is aborted.
            threading.Thread(target=self._refresh_quietly, name="search-refresh").start()

    def _refresh_quietly(self) -> None:
        try:
            self.refresh()
        except (SQLAlchemyError, UserError) as error:  # the search goes on with what it has
            logging.getLogger(__name__).warning("The search could not be brought up to date: %s", error)

    def search(
        self, text: str, filters: Filters | None = None, sort: str = "relevance", page: int = 1, size: int = 20
    ) -> Results:
        """Find papers.

        Words need not all occur, the more the better, unless papers are sorted in another way than by relevance: then
        they must. A text without words gives all papers that pass the filters, the latest first; one that is an arXiv
        identifier or a DOI of a paper, that paper alone.

        Args:
            text: see `query`.
            filters: what the papers must be; None does not filter.
            sort: "relevance", "date", "trending" or "citations".
            page: from 1 on; at most 1,000.
            size: papers on a page, at most 100.

        Raises:
            UserError: an unknown sort, or a page or size out of range.
        """
        begin = time.perf_counter()
        _check(sort, page, size)
        self._refresh_if_due()
        query, filters = parse(text), filters or Filters()
        first = (page - 1) * size
        with reading(self._engine) as connection:
            plan = planned(connection, query, self._frequencies, self._speller)
            limits = conditions(self._engine.dialect.name, filters, query)
            named = _named(connection, text, limits)
            if named:
                scores, ids, total, exact = dict.fromkeys(named, 1.0), named[first : first + size], len(named), True
            elif sort == "relevance" and (plan.terms or query.needed):
                scores = self._by_relevance(connection, query, plan, limits)
                ids = list(scores)[first : first + size]
                total, exact = len(scores), len(scores) < BY_WORDS
            else:
                scores = {}
                ids, total = self._in_order(connection, query, plan, limits, sort, first, size)
                exact = True
            found = by_ids(connection, ids)
        marker = Marker([*plan.terms, *query.needed])
        return Results(
            hits=tuple(_hit(paper, marker, scores.get(paper.id, 0.0)) for paper in found),
            total=total,
            exact=exact,
            page=page,
            pages=min(max(1, -(-total // size)), MOST_PAGE),
            notes=() if named else (*_unsaid(text, query, named), *self._notes(plan)),
            did_you_mean=None if named else _rewritten(text, plan.suggestions),
            seconds=time.perf_counter() - begin,
        )

    def similar(self, paper_id: int, k: int = 6) -> list[Paper]:
        """Return the papers most like one: by meaning, or, where it has no embedding, by the words of its title."""
        with reading(self._engine) as connection:
            vector = self._vectors.vector(paper_id)
            if vector is not None:
                ids = self._vectors.nearest(vector, k + 1)
            else:
                title = connection.execute(select(papers.c.title).where(papers.c.id == paper_id)).scalar() or ""
                words = parse(" ".join(split(title)))
                plan = planned(connection, words, self._frequencies, self._speller)
                found = by_words(Among(connection, self._titles, [], k + 1), plan, (), thorough=True)
                ids = sorted(found, key=lambda number: -found[number])
            return by_ids(connection, [number for number in ids if number != paper_id][:k])

    def _by_relevance(
        self, connection: Connection, query: Query, plan: Plan, limits: list[ColumnElement[bool]]
    ) -> dict[int, float]:
        """Return the scores of the papers found by words and by meaning, the best first."""
        vector = self._vector(query, plan)
        among = Among(connection, self._titles, limits, BY_WORDS)
        words = by_words(among, plan, query.needed, thorough=vector is None)
        if vector is None:
            return fused(connection, query, plan, words, None, self._titles)
        if query.needed:
            limits = [*limits, fulltext.holding(connection.dialect.name, [[term] for term in query.needed])]
        near = self._near(connection, vector, limits)
        cosines = self._vectors.similarities(vector, list(words.keys() | near))
        return fused(connection, query, plan, words, cosines, self._titles)

    def _vector(self, query: Query, plan: Plan) -> NDArray[np.float32] | None:
        """Return the embedding of a query's words, typos corrected; None where there is no encoder or no vector."""
        if self._encoder is None or not len(self._vectors) or not query.text:
            return None
        return self._encoder.encode([_rewritten(query.text, plan.corrections) or query.text])[0]

    def _near(self, connection: Connection, vector: NDArray[np.float32], limits: list[ColumnElement[bool]]) -> set[int]:
        """Return the papers nearest by meaning among those that are within the limits."""
        if not limits:
            return set(self._vectors.nearest(vector, BY_MEANING))
        within = select(papers.c.id).where(*limits).limit(_EXACT + 1)
        ids = list(connection.execute(within).scalars())
        if len(ids) > _EXACT:
            near = self._vectors.nearest(vector, 10 * BY_MEANING)
            passing = set(connection.execute(select(papers.c.id).where(papers.c.id.in_(near), *limits)).scalars())
            return set([number for number in near if number in passing][:BY_MEANING])
        cosines = self._vectors.similarities(vector, ids)
        return set(sorted(cosines, key=lambda number: -cosines[number])[:BY_MEANING])

    def _in_order(
        self,
        connection: Connection,
        query: Query,
        plan: Plan,
        limits: list[ColumnElement[bool]],
        sort: str,
        first: int,
        size: int,
    ) -> tuple[list[int], int]:
        """Return a page of the papers with all words in another order than by relevance, and how many there are."""
        groups = [[term] for term in [*plan.terms, *query.needed]]
        within = [*limits, fulltext.holding(connection.dialect.name, groups)] if groups else limits
        source, order = ordered(sort, time.time())
        page = select(papers.c.id).select_from(source).where(*within).order_by(*order).limit(size).offset(first)
        if groups and not limits:
            total = fulltext.count(connection, groups, exact=True)
        else:
            total = connection.execute(select(func.count()).select_from(papers).where(*within)).scalar_one()
        return list(connection.execute(page).scalars()), total

    def _notes(self, plan: Plan) -> list[str]:
        notes = [f"No paper has “{typed}”; searched for “{meant}”." for typed, meant in plan.corrections.items()]
        unknown = [term.typed for term, number in zip(plan.terms, plan.frequencies, strict=True) if not number]
        if unknown:
            notes.append(f"No paper has {' or '.join(f'“{typed}”' for typed in unknown)}.")
        if self._wanted and (self._encoder is None or not len(self._vectors)):
            notes.append("Searched by words alone: no paper has been embedded yet (any `papers sync SOURCE` does it).")
        elif not self._wanted:
            notes.append("Searched by words alone: embeddings are switched off here.")
        return notes


def _named(connection: Connection, text: str, limits: list[ColumnElement[bool]]) -> list[int] | None:
    """Return the paper whose arXiv identifier or DOI a text is, in a list; None where it is neither."""
    for read, column in ((arxiv_id, papers.c.arxiv), (doi, papers.c.doi)):
        with contextlib.suppress(ValueError):
            same = select(papers.c.id).where(column == read(text), *limits)
            return list(connection.execute(same).scalars())
    return None


def _unsaid(text: str, query: Query, named: list[int] | None) -> list[str]:
    """Return what a text does not say: an identifier of a paper here, or anything to look for."""
    if named is not None:
        return ["No paper here has this identifier, so it was taken for words."]
    is_empty = query.years == (None, None) and not (query.words or query.needed or query.excluded)
    return ["There is no word to look for in this, so it narrows nothing."] if is_empty and text.strip() else []


def _check(sort: str, page: int, size: int) -> None:
    if sort not in SORTS:
        raise unknown_name("order", sort, SORTS)
    if not 1 <= page <= MOST_PAGE:
        raise UserError(f"Pages are from 1 to {MOST_PAGE:,}; got {page}.")
    if not 1 <= size <= MOST_SIZE:
        raise UserError(f"A page has 1 to {MOST_SIZE} papers; got {size}.")


def _hit(paper: Paper, marker: Marker, score: float) -> Hit:
    text = paper.abstract or paper.summary
    return Hit(paper=paper, title=marker.marked(paper.title), snippet=marker.snippet(text), score=score)


def _rewritten(text: str, words: dict[str, str]) -> str | None:
    """Return a text with words replaced, letters of any case; None where there is nothing to replace."""
    if not words:
        return None
    pattern = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    return re.sub(rf"(?<![^\W_])(?:{pattern})(?![^\W_])", lambda it: words[it[0].lower()], text, flags=re.IGNORECASE)
