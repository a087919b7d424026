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


@dataclass(frozen=True)
class Among:
    """The papers among which words are looked for.

    Attributes:
        connection: that may read.
        titles: the words of papers' titles and authors.
        limits: on columns of papers, which must hold.
        count: of papers that each step brings in, at most.
    """

    connection: Connection
    titles: Titles
    limits: Sequence[ColumnElement[bool]]
    count: int

    def best(self, groups: fulltext.Groups) -> dict[int, float]:
        """Return the best papers with their scores, best first; see `fulltext.ranked`."""
        return dict(fulltext.ranked(self.connection, groups, self.limits, self.count))

    def titled(self, ids: Sequence[int], words: Sequence[Term]) -> list[int]:
        """Return which of some papers have all words in title and authors, titles with few other words first."""
        import numpy as np

        ids = self.titles.known(self.connection, ids)
        of = self.titles.of(ids)
        there = np.flatnonzero(np.logical_and.reduce([of.holding(term) for term in words]))
        order = there[np.argsort(-of.covered(words)[there], kind="stable")]
        return [ids[place] for place in order[: self.count]]


def by_words(among: Among, plan: Plan, needed: Sequence[Term], *, thorough: bool) -> dict[int, float]:
    """Return papers that words bring in, with how much of the query each holds, at most 1.

    Those with all the words hold it all. Where they are many, it is those with all of them in title and authors; where
    they are few, the best papers with any of the telling words follow: half of a paper's score over the best one's.

    Args:
        among: which papers.
        plan: the words; needed: what must hold for every paper.
        thorough: where nothing but words brings papers in: more of them are ranked, and by the other words too.
    """
    by_rarity = sorted((number, place) for place, number in enumerate(plan.frequencies) if number)
    words = [plan.terms[place] for _, place in by_rarity]
    if not words and not needed:
        return {}
    most = MOST_RANKED * (2 if thorough else 1)
    found = dict.fromkeys(_with_all(among, words, needed, most, rarest=by_rarity[0][0] if words else 0), 1.0)
    together = list(itertools.accumulate(number for number, _ in by_rarity))
    telling = words[: min(MOST_TERMS, bisect.bisect_right(together, most))]
    if len(found) < ENOUGH and telling and (len(words) > 1 or thorough):  # or those with any word have all of them
        others = words[len(telling) :][:MOST_TERMS] if thorough else []
        any_of = among.best([*([term] for term in needed), telling, *([others] if others else [])])
        most_like = max(any_of.values(), default=1.0)
        found = {number: score / most_like / 2 for number, score in any_of.items()} | found
    return found


def _with_all(among: Among, words: Sequence[Term], needed: Sequence[Term], most: int, rarest: int) -> list[int]:
    """Return papers with all the words, those with them in title and authors first; of more than `most`, these alone.

    `rarest` says how many papers have the rarest word.
    """
    heads: list[int] = []
    if among.connection.dialect.name == "postgresql" and rarest > most and not needed and not among.limits:
        # Its index does not say where words are: it would read each paper that has them anywhere.
        heads = among.titled(among.titles.holding(words), words)
        if len(heads) == among.count:
            return heads
    must = [[term] for term in needed]
    every = [*must, *([term] for term in words)]
    whole = fulltext.matching(among.connection, every, among.limits, most + 1)
    if len(whole) > most:
        within = [*must, *([Term(term.phrases, _HEAD, term.typed)] for term in words)]
        return heads or list(among.best(within)) or whole[: among.count]
    if len(whole) <= among.count:
        return whole
    titled = among.titled(whole, [*needed, *words])
    return titled if len(titled) >= ENOUGH else [*titled, *among.best(every)]
