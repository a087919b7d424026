"""One score from words and meaning.

    s = w b / max b + (1 - w) c + T t + P p

b: score of the full text, 0 where it did not bring the paper; c: cosine of query and paper, 0 where unknown; t: share
of the query's words that are in the title or among the authors, each weighed by its rarity log(1 + N / (1 + n)), n of N
papers having it; p: whether the query stands in the title as it is, word by word. The first two are a convex
combination (Bruch, Gai and Ingber, "An analysis of fusion functions for hybrid retrieval", TOIS 2023).

How far words are to be trusted shows when they have been looked for: w is larger where some paper has all of them in
title and authors, and where they are many, as in a sentence, which is seldom a title: then T is smaller too. Without
embeddings w = 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, select

from workingpapers.site.schema import papers
from workingpapers.site.search.plan import Plan
from workingpapers.site.search.query import Query, split, stem

# Chosen on the tuning queries of benchmarks/site/search_quality.py; values near them do as well within the noise.
LONG = 7  # words of a query of many words
WORDS_ALL_THERE, WORDS_PARTLY, WORDS_LONG = 0.7, 0.35, 0.9  # w
TITLE_SHORT, TITLE_LONG = 0.5, 0.2  # T
PHRASE = 0.2  # P
_LOOKED_AT = 60  # papers whose titles are compared; those after them stay in the order of b and c
_MANY = 1e5  # N: only ratios of weights count, and these hardly depend on it


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
        words: b by paper.
        cosines: c by paper, of those that words or meaning brought; None without embeddings.
    """
    most = max(words.values(), default=0.0) or 1.0
    by_words = {number: score / most for number, score in words.items()}
    best = _first(_combined(by_words, cosines, 0.5), _LOOKED_AT)
    found = select(papers.c.id, papers.c.title, papers.c.authors).where(papers.c.id.in_(best))
    asked = _Asked(query, plan)
    shares = {number: asked.share(title, authors) for number, title, authors in connection.execute(found)}
    is_long = len(plan.terms) >= LONG
    all_there = any(share >= 1 for share, _ in shares.values())
    weight = WORDS_LONG if is_long else WORDS_ALL_THERE if all_there else WORDS_PARTLY
    scores = _combined(by_words, cosines, weight)
    title = TITLE_LONG if is_long else TITLE_SHORT
    lifted = {number: scores[number] + title * share + PHRASE * whole for number, (share, whole) in shares.items()}
    rest = {number: score for number, score in scores.items() if number not in lifted}
    head, tail = _first(lifted, len(lifted)), _first(rest, len(rest))
    return {number: lifted[number] for number in head} | {number: rest[number] for number in tail}


def _combined(by_words: Mapping[int, float], cosines: Mapping[int, float] | None, weight: float) -> dict[int, float]:
    """Return w b / max b + (1 - w) c."""
    if cosines is None:
        return dict(by_words)
    scores = {number: weight * score for number, score in by_words.items()}
    for number, cosine in cosines.items():
        scores[number] = scores.get(number, 0.0) + (1 - weight) * max(0.0, cosine)
    return scores


def _first(scores: Mapping[int, float], count: int) -> list[int]:
    return sorted(scores, key=lambda number: (-scores[number], number))[:count]


class _Asked:
    """The words of a query, compared with titles and authors by their stems."""

    def __init__(self, query: Query, plan: Plan) -> None:
        self._terms = [
            ([tuple(map(stem, phrase)) for phrase in term.phrases], math.log(1 + _MANY / (1 + number)))
            for term, number in zip(plan.terms, plan.frequencies, strict=True)
        ]
        self._total = sum(rarity for _, rarity in self._terms)
        whole = list(map(stem, split(query.text)))
        self._whole = f" {' '.join(whole)} " if len(whole) > 1 else None

    def share(self, title: str, authors: Sequence[str]) -> tuple[float, bool]:
        """Return t and p."""
        stems = list(map(stem, split(title)))
        known = {*stems, *map(stem, split(" ".join(authors)))}
        missing = sum(rarity for phrases, rarity in self._terms if not any(known.issuperset(it) for it in phrases))
        whole = self._whole is not None and self._whole in f" {' '.join(stems)} "
        return (1 - missing / self._total if self._total else 0.0), whole
