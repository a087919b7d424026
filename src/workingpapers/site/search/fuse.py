"""One score from words and meaning.

    s = c + W w + T t + V v + P p

c: cosine of query and paper, 0 where unknown or without embeddings; w: how much of the query the full text found in the
paper, 1 for all of its words (see `by_words`); t: share of the query's words that are in the title or among the
authors, each weighed by its rarity log(1 + N / (1 + n)), n of N papers having it; v: share of the title's words that
the query has; p: min(1, (m - 1) / 4) where the query's m words stand in the title, or from three words on in the
abstract, as they were typed: the more there are, the less it is chance.

So a query of words from a title, a pasted sentence and a description in other words are told apart by what the papers
hold, not by guessing at the query. A linear combination does as well as any (Bruch, Gai and Ingber, "An analysis of
fusion functions for hybrid retrieval", TOIS 2023); its weights are those of a softmax regression.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import or_

from sqlalchemy import Connection, bindparam, select

from workingpapers.site.database import rows
from workingpapers.site.schema import papers
from workingpapers.site.search.plan import Plan
from workingpapers.site.search.query import STOP, Query, folded, split, stem

# Fitted to the tuning queries of benchmarks/site/search_quality.py; values near them do as well within the noise.
WORDS, TITLE, COVERED, VERBATIM = 0.4, 1.9, 0.75, 1.6  # W, T, V, P
_LOOKED_AT = 250  # papers whose titles and abstracts are compared; those after them stay in the order of c + W w
_FEWEST = 3  # words that are looked for in abstracts as they were typed
_MANY = 1e5  # N: only ratios of weights count, and these hardly depend on it

_IDS = papers.c.id.in_(bindparam("ids", expanding=True))
_TITLES = select(papers.c.id, papers.c.title, papers.c.authors).where(_IDS)
_IN_TEXT = select(papers.c.id).where(_IDS, papers.c.abstract.ilike(bindparam("pattern"), escape="/"))


def fused(
    connection: Connection,
    query: Query,
    plan: Plan,
    words: Mapping[int, float],
    cosines: Mapping[int, float] | None,
) -> dict[int, float]:
    """Return scores of papers, the best first.

    Args:
        connection: that may read.
        query: as typed; plan: as searched.
        words: w by paper.
        cosines: c by paper, of those that words or meaning brought; None without embeddings.
    """
    asked, meaning = _Asked(query, plan), cosines or {}
    before = {it: max(0.0, meaning.get(it, 0.0)) + WORDS * words.get(it, 0.0) for it in words.keys() | meaning.keys()}
    looked_at = dict.fromkeys(_first(before)[:_LOOKED_AT])
    in_text = asked.in_text(connection, [it for it in looked_at if words.get(it) == 1.0])  # it has all words then
    scores = {
        number: before[number] + asked.worth(title, authors, number in in_text)
        for number, title, authors in rows(connection, _TITLES, {"ids": list(looked_at)})
    }
    rest = {number: score for number, score in before.items() if number not in looked_at}
    return {it: scores[it] for it in _first(scores)} | {it: rest[it] for it in _first(rest)}


def _first(scores: Mapping[int, float]) -> list[int]:
    return sorted(scores, key=lambda number: (-scores[number], number))


class _Words(dict[str, tuple[int, bool]]):
    """By word its bits, and whether it says what a text is about."""

    def __init__(self) -> None:
        super().__init__()
        self.bits: dict[str, int] = {}  # by stem

    def bit(self, word: str) -> int:
        """Return the bit of a stem, a new one where it has none."""
        return self.bits.setdefault(word, 1 << len(self.bits))

    def __missing__(self, word: str) -> tuple[int, bool]:
        self[word] = self.bits.get(stem(word), 0), word not in STOP
        return self[word]


class _Asked:
    """The words of a query, compared with titles and authors by their stems.

    Hundreds of papers are compared, so each stem of the query is a bit, a text is the bits that it has, and what is
    known of a word or of bits is remembered.
    """

    def __init__(self, query: Query, plan: Plan) -> None:
        self._known = _Words()
        self._terms: list[tuple[list[int], float]] = []  # alternatives, and the rarity
        for term, number in zip(plan.terms, plan.frequencies, strict=True):
            alternatives = [reduce(or_, map(self._known.bit, map(stem, phrase))) for phrase in term.phrases]
            self._terms.append((alternatives, math.log(1 + _MANY / (1 + number))))
        self._total = sum(rarity for _, rarity in self._terms) or 1.0
        self._shares: dict[int, float] = {}
        whole = list(map(stem, split(query.text)))
        self._typed = query.text.strip(" .") if len(whole) >= _FEWEST else ""
        self._whole = f" {' '.join(whole)} "
        self._verbatim = VERBATIM * min(1.0, (len(whole) - 1) / 4)

    def in_text(self, connection: Connection, ids: Sequence[int]) -> set[int]:
        """Return the papers in whose abstract the query stands as it was typed."""
        if not ids or not self._typed:
            return set()
        pattern = "%" + re.sub("[/%_]", r"/\g<0>", self._typed) + "%"
        return {number for (number,) in rows(connection, _IN_TEXT, {"ids": ids, "pattern": pattern})}

    def worth(self, title: str, authors: Sequence[str], in_text: bool) -> float:
        """Return T t + V v + P p."""
        had = covered = telling = 0
        for word in split(title):
            bits, tells = self._known[word]
            had |= bits
            telling += tells
            covered += bits > 0 and tells
        share = self._share(had)
        if share == 1:
            in_text = in_text or self._whole in f" {' '.join(map(stem, split(title)))} "
        else:
            names = folded(" ".join(authors))
            if any(word in names for word, bit in self._known.bits.items() if not had & bit):  # a stem begins its words
                share = self._share(reduce(or_, (self._known[word][0] for word in split(names)), had))
        return TITLE * share + COVERED * (covered / telling if telling else 0.0) + self._verbatim * in_text

    def _share(self, had: int) -> float:
        """Return t of a text with these bits."""
        if had not in self._shares:
            missing = sum(rarity for masks, rarity in self._terms if all(mask & ~had for mask in masks))
            self._shares[had] = 1 - missing / self._total
        return self._shares[had]
