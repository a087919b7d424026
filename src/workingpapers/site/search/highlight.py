"""Texts with what was looked for marked, as safe HTML."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from html import escape

from markupsafe import Markup

from workingpapers.site.search.query import STOP, WORD, Term, folded, stem

SNIPPET = 260  # characters
_SENTENCE, _SPACE = re.compile(r"[.!?]\s+(?=\S)"), re.compile(r"\s|$")
_FORMULA = re.compile(r"\$[^$]{1,300}\$")


class Marker:
    """Marks the words of terms.

    Args:
        terms: what was looked for; words that say nothing are passed over.
    """

    def __init__(self, terms: Iterable[Term]) -> None:
        self._phrases: defaultdict[str, set[tuple[str, ...]]] = defaultdict(set)  # by their first word, all as stems
        for term in terms:
            for phrase in term.phrases:
                if len(phrase) > 1 or phrase[0] not in STOP:
                    stems = tuple(map(stem, phrase))
                    self._phrases[stems[0]].add(stems)
        # A stem is the beginning of its words, so only words that begin like one need a look.
        begins = sorted({re.escape(first[:3]) for first in self._phrases})
        self._candidate = re.compile(rf"(?<![^\W_])(?:{'|'.join(begins)})[^\W_]*") if begins else None

    def marked(self, text: str) -> Markup:
        """Return the whole text with its marks, escaped."""
        return _with_marks(text, self._spans(text), 0, len(text))

    def snippet(self, text: str) -> Markup:
        """Return the part of a text in which the most different marks are, marked and escaped."""
        spans = self._spans(text)
        start, stop = 0, len(text)
        if stop > SNIPPET:
            start = _best_start(text, spans)
            stop = stop if start + SNIPPET >= stop else _end_of_word(text, start + SNIPPET)
            start, stop = _around_formulas(text, start, stop)
        shown = _with_marks(text, spans, start, stop)
        return Markup("").join(("… " if start else "", shown, " …" if stop < len(text) else ""))

    def _spans(self, text: str) -> list[tuple[int, int]]:
        """Return where the marks are, in order and apart."""
        if self._candidate is None:
            return []
        plain = folded(text)
        if len(plain) != len(text):  # a letter became several: places would be off
            plain = text.lower() if len(text.lower()) == len(text) else text
        spans: list[tuple[int, int]] = []
        for match in self._candidate.finditer(plain):
            phrases = self._phrases.get(stem(match[0]), ())
            stop = max((_end_of(plain, match, phrase) for phrase in phrases), default=0)
            if stop and (not spans or match.start() >= spans[-1][1]):
                spans.append((match.start(), stop))
        return spans


def _end_of(text: str, match: re.Match[str], phrase: tuple[str, ...]) -> int:
    """Return where a phrase ends whose first word is matched, 0 where other words follow."""
    stop = match.end()
    for wanted in phrase[1:]:
        following = WORD.search(text, stop)
        if following is None or stem(following[0]) != wanted:
            return 0
        stop = following.end()
    return stop


def _with_marks(text: str, spans: list[tuple[int, int]], start: int, stop: int) -> Markup:
    """Return a part of a text with its marks, escaped."""
    parts, end = [], start
    for first, last in spans:
        if start <= first and last <= stop:
            parts += [escape(text[end:first]), "<mark>", escape(text[first:last]), "</mark>"]
            end = last
    return Markup("".join([*parts, escape(text[end:stop])]))


def _best_start(text: str, spans: list[tuple[int, int]]) -> int:
    """Return the start of the sentence after which the most different marks are."""
    marks = [(start, stem(text[start:stop].lower())) for start, stop in spans]

    def worth(start: int) -> int:
        return len({word for place, word in marks if start <= place < start + SNIPPET})

    starts = [0, *(match.end() for match in _SENTENCE.finditer(text))]
    best = max(starts, key=lambda start: (worth(start), -start))
    if marks and not worth(best):  # they are deep within a long sentence
        best = _end_of_word(text, max(0, marks[0][0] - SNIPPET // 3))
    return best


def _around_formulas(text: str, start: int, stop: int) -> tuple[int, int]:
    """Return a part's ends, moved outwards where they are within a formula between dollars."""
    for match in _FORMULA.finditer(text):
        first, last = match.span()
        start = first if first < start < last else start
        stop = last if first < stop < last else stop
    return start, stop


def _end_of_word(text: str, place: int) -> int:
    """Return the first place from `place` on where a word ends."""
    found = _SPACE.search(text, place)
    return found.start() if found else place
