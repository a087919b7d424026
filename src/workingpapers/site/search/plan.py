"""How the words of a query are looked for: which of them are typos, and which bring papers in.

Ranking costs by the paper that matches, so of many words only the most telling ones, those in the fewest papers, bring
papers in; the others count towards the score of those that were brought.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import Lock

from sqlalchemy import Connection

from workingpapers.site.search import fulltext
from workingpapers.site.search.query import STOP, Query, Term
from workingpapers.site.search.spelling import Speller

MOST_RANKED = 4000  # papers that one query may rank, and papers times terms: about a millisecond for every 3,000
MOST_WORK = 20_000
MOST_TERMS = 8  # telling ones, and as many others
ENOUGH = 50  # papers; where the telling words bring fewer, others are looked for too
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


def steps(connection: Connection, plan: Plan, needed: Sequence[Term]) -> Iterator[list[list[Term]]]:
    """Yield what to rank papers by, until there are enough.

    First the telling words: any of them, and any of the others. Then papers with all of the others, or, where these
    are too many to rank, with all of them in the title.
    """
    must = [[term] for term in needed]
    by_rarity = sorted((number, place) for place, number in enumerate(plan.frequencies) if number)
    most = min(MOST_RANKED, MOST_WORK // max(1, min(len(by_rarity), 2 * MOST_TERMS)))
    telling: list[Term] = []
    others: list[Term] = []
    total = 0
    for number, place in by_rarity:
        total += number
        fits = total <= most and len(telling) < MOST_TERMS
        (telling if fits else others).append(plan.terms[place])
    others = others[:MOST_TERMS]
    if telling:
        yield [*must, telling, *([others] if others else [])]
    if others:
        groups = [*must, *([term] for term in others)]
        if fulltext.count(connection, groups) > MOST_RANKED:
            groups = [*must, *([Term(term.phrases, "title", term.typed)] for term in others)]
        yield groups
    if must and not by_rarity:
        yield must
