"""One score from words and meaning.

    s = c + W w + T t + V v + O o + P p

c: cosine of query and paper, 0 where unknown or without embeddings; w: how much of the query the full text found in the
paper, 1 for all of its words (see `by_words`); t: share of the query's words that are in the title or among the
authors, each weighed by its rarity log(1 + N / (1 + n)), n of N papers having it; v: share of the title's words that
the query has; o: 1 where the title has the query's words, two or more, in their order; p: min(1, (m - 1) / 4) where the
query's m words stand in the title, or from three words on in the abstract, as they were typed: the more there are, the
less it is chance.

So a query of words from a title, a pasted sentence and a description in other words are told apart by what the papers
hold, not by guessing at the query. A linear combination does as well as any (Bruch, Gai and Ingber, "An analysis of
fusion functions for hybrid retrieval", TOIS 2023); its weights are those of a softmax regression.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sqlalchemy import Connection, bindparam, select, text

from workingpapers.site.database import rows
from workingpapers.site.schema import papers
from workingpapers.site.search.plan import Plan
from workingpapers.site.search.query import STOP, Query, split
from workingpapers.site.search.titles import Titles, Words

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Fitted to the tuning queries of benchmarks/site/search_quality.py; values near them do as well within the noise.
WORDS, TITLE, COVERED, ORDERED, VERBATIM = 0.4, 1.9, 0.75, 0.3, 1.6  # W, T, V, O, P
_FEWEST = 3  # words that are looked for in abstracts as they were typed
_MANY = 1e5  # N: only ratios of weights count, and these hardly depend on it

_IN_TEXT = select(papers.c.id).where(
    papers.c.id.in_(bindparam("ids", expanding=True)), papers.c.abstract.ilike(bindparam("pattern"), escape="/")
)

# The words beside each other are looked for first, in an index's rows that have just been read: abstracts take up more.
_IN_TEXT_POSTGRESQL = text(
    """SELECT id FROM search_text JOIN papers ON id = paper_id WHERE paper_id = ANY(:ids)
    AND document @@ phraseto_tsquery('english', search_words(:text)) AND abstract ILIKE :pattern ESCAPE '/'"""
)


def fused(
    connection: Connection,
    query: Query,
    plan: Plan,
    words: Mapping[int, float],
    cosines: Mapping[int, float] | None,
    titles: Titles,
) -> dict[int, float]:
    """Return scores of papers, the best first.

    Args:
        connection: that may read.
        query: as typed; plan: as searched.
        words: w by paper.
        cosines: c by paper, of those that words or meaning brought; None without embeddings.
        titles: the words of papers' titles and authors.
    """
    import numpy as np

    meaning = cosines or {}
    ids = titles.known(connection, words.keys() | meaning.keys())
    of = titles.of(ids)
    held = np.array([words.get(number, 0.0) for number in ids])
    scores = np.maximum([meaning.get(number, 0.0) for number in ids], 0.0) + WORDS * held
    scores += TITLE * _share(of, plan) + COVERED * of.covered(plan.terms)
    typed = split(query.text)
    verbatim = of.verbatim(typed)
    telling = [word for word in typed if word not in STOP]
    if len(telling) > 1:
        scores += ORDERED * of.ordered(telling)
    if len(typed) >= _FEWEST:
        read = [ids[place] for place in np.flatnonzero((held == 1.0) & ~verbatim)]  # those with all of the words
        verbatim |= np.isin(ids, list(_in_text(connection, read, query.text)))
    scores += VERBATIM * min(1.0, (len(typed) - 1) / 4) * verbatim
    return {ids[place]: float(scores[place]) for place in np.argsort(-scores, kind="stable")}


def _share(of: Words, plan: Plan) -> NDArray[np.float64]:
    """Return t of each paper."""
    import numpy as np

    total, share = 0.0, np.zeros(of.count)
    for term, number in zip(plan.terms, plan.frequencies, strict=True):
        rarity = math.log(1 + _MANY / (1 + number))
        total, share = total + rarity, share + rarity * of.holding(term)
    return share / total if total else share


def _in_text(connection: Connection, ids: Sequence[int], typed: str) -> set[int]:
    """Return the papers in whose abstract a text stands as it was typed."""
    if not ids:
        return set()
    pattern = "%" + re.sub("[/%_]", r"/\g<0>", typed.strip(" .")) + "%"
    if connection.dialect.name == "postgresql":
        asked = {"ids": ids, "text": typed, "pattern": pattern}
        return set(connection.execute(_IN_TEXT_POSTGRESQL, asked).scalars())
    return {number for (number,) in rows(connection, _IN_TEXT, {"ids": ids, "pattern": pattern})}
