"""How the words of a query are looked for: which of them are typos, and which bring papers in.

Papers with all the words come first, and are found fast. Ranking costs by the paper that matches and by the paper that
has any of the words, so of many words only the most telling ones, those in the fewest papers, bring in others.
"""

from __future__ import annotations

import bisect
import itertools
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import Lock

from sqlalchemy import ColumnElement, Connection

from workingpapers.site.search import fulltext
from workingpapers.site.search.query import STOP, Query, Term
from workingpapers.site.search.spelling import Speller
from workingpapers.site.search.titles import Titles

MOST_RANKED = 2000  # papers that one query may rank: some milliseconds
MOST_TERMS = 8  # telling ones, and as many others
ENOUGH = 50  # papers; where all the words bring fewer, the telling ones are looked for too
_HEAD = "title authors"
_RARE, _MUCH_RARER = 3, 50  # in so few papers, and so much rarer than its neighbour, a word may be a typo in them too
_KEPT = 50_000  # frequencies


@dataclass(frozen=True)
class Plan:
    """What is looked for in the end.

    Attributes:
        terms: the words, with what was meant as alternatives where one is a typo; words that say nothing are left out.
        frequencies: in how many papers each of them is.
        corrections: what was meant by word, for those that are in no paper.
        suggestions: the same for those that are in a few.
    """

    terms: tuple[Term, ...]
    frequencies: tuple[int, ...]
    corrections: dict[str, str]
    suggestions: dict[str, str]


class Frequencies:
    """In how many papers a term is, remembered until `forget`."""

    def __init__(self) -> None:
        self._known: OrderedDict[Term, int] = OrderedDict()
        self._lock = Lock()

    def forget(self) -> None:
        """Count anew from now on."""
        with self._lock:
            self._known.clear()

    def of(self, connection: Connection, term: Term) -> int:
        """Return in how many papers a term is."""
        key = Term(term.phrases, term.place)
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        number = fulltext.count(connection, [[key]])
        with self._lock:
            if number:  # a new paper may bring the word at any moment
                self._known[key] = number
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)
        return number


def planned(connection: Connection, query: Query, frequencies: Frequencies, speller: Speller) -> Plan:
    """Return what to look for."""
    said = [term for term in query.words if term.word not in STOP]
    corrections: dict[str, str] = {}
    suggestions: dict[str, str] = {}
    terms = []
    for term in _known_or_apart(connection, said or query.words, frequencies):
        number = frequencies.of(connection, term)
        near = speller.near(term.word) if term.word and number <= _RARE else []
        if number and near:
            near = near[:1] if speller.frequency(near[0]) >= _MUCH_RARER * number else []
        if near and term.word:
            (suggestions if number else corrections)[term.typed] = near[0]
            kept = ((term.word,),) if number else ()
            number += sum(frequencies.of(connection, Term(((word,),))) for word in near)  # at most
            term = Term((*kept, *((word,) for word in near)), None, term.typed)
        terms.append((term, number))
    return Plan(tuple(t for t, _ in terms), tuple(n for _, n in terms), corrections, suggestions)


def _known_or_apart(connection: Connection, terms: Sequence[Term], frequencies: Frequencies) -> Iterator[Term]:
    """Yield the terms; compounds that are in no paper as their parts, of which one may be a typo."""
    for term in terms:
        if term.word or len(term.phrases[0]) == 1 or frequencies.of(connection, term):
            yield term
        else:
            yield from (Term(((part,),), None, part) for part in term.phrases[0] if part not in STOP)


def by_words(
    connection: Connection,
    plan: Plan,
    needed: Sequence[Term],
    limits: Sequence[ColumnElement[bool]],
    count: int,
    titles: Titles,
    *,
    thorough: bool,
) -> dict[int, float]:
    """Return papers that words bring in, with how much of the query each holds, at most 1.

    Those with all the words hold it all. Where they are many, it is those with all of them in title and authors; where
    they are few, the best papers with any of the telling words follow: half of a paper's score over the best one's.

    Args:
        connection: that may read.
        plan: the words; needed: what must hold for every paper.
        limits: on columns of papers, which must hold too.
        count: of papers from each step, at most.
        titles: the words of papers' titles and authors.
        thorough: where nothing but words brings papers in: more of them are ranked, and by the other words too.
    """
    must = [[term] for term in needed]
    by_rarity = sorted((number, place) for place, number in enumerate(plan.frequencies) if number)
    words = [plan.terms[place] for _, place in by_rarity]
    if not words and not must:
        return {}
    most = MOST_RANKED * (2 if thorough else 1)
    heads: list[int] = []
    if connection.dialect.name == "postgresql" and not must and not limits and by_rarity[0][0] > most:
        # Its index does not say where words are: it would read each paper that has them anywhere.
        heads = _titled(connection, titles.holding(words), words, titles)[:count]
    whole = heads if len(heads) == count else _with_all(connection, words, needed, limits, count, most, titles, heads)
    found = dict.fromkeys(whole, 1.0)
    rarest = list(itertools.accumulate(number for number, _ in by_rarity))
    telling = words[: min(MOST_TERMS, bisect.bisect_right(rarest, most))]
    if len(found) < ENOUGH and telling and (len(words) > 1 or thorough):  # or those with any word have all of them
        others = words[len(telling) :][:MOST_TERMS] if thorough else []
        ranked = fulltext.ranked(connection, [*must, telling, *([others] if others else [])], limits, count)
        found = {number: score / ranked[0][1] / 2 for number, score in ranked} | found
    return found


def _with_all(
    connection: Connection,
    words: Sequence[Term],
    needed: Sequence[Term],
    limits: Sequence[ColumnElement[bool]],
    count: int,
    most: int,
    titles: Titles,
    heads: Sequence[int],
) -> list[int]:
    """Return papers with all the words; see `by_words`. `heads` have them in title and authors, where that is known."""
    must = [[term] for term in needed]
    every = [*must, *([term] for term in words)]
    whole = fulltext.matching(connection, every, limits, most + 1)
    if len(whole) > most:
        within = [*must, *([Term(term.phrases, _HEAD, term.typed)] for term in words)]
        heads = heads or [number for number, _ in fulltext.ranked(connection, within, limits, count)]
        return list(heads) or whole[:count]
    if len(whole) <= count:
        return whole
    titled = _titled(connection, whole, [*needed, *words], titles)[:count]
    ranked = fulltext.ranked(connection, every, limits, count) if len(titled) < ENOUGH else []
    return [*titled, *(number for number, _ in ranked)]


def _titled(connection: Connection, ids: Sequence[int], words: Sequence[Term], titles: Titles) -> list[int]:
    """Return the papers with all words in title and authors, titles with few other words first."""
    import numpy as np

    ids = titles.known(connection, ids)
    of = titles.of(ids)
    there = np.flatnonzero(np.logical_and.reduce([of.holding(term) for term in words]))
    order = there[np.argsort(-of.covered(words)[there], kind="stable")]
    return [ids[place] for place in order]
