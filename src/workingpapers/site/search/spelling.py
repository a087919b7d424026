"""Words that were meant where a word is known to nobody: those of the papers' titles that few edits make of it."""

from __future__ import annotations

import math
import threading
from collections import Counter, defaultdict

from sqlalchemy import Engine, select

from workingpapers.site.schema import papers
from workingpapers.site.search.query import split

SHORTEST = 4  # letters of a word that is corrected; shorter ones are near to too many
_TWO_EDITS = 8  # letters from which on two edits are forgiven
_PRICE = 7.0  # of an edit, in nats of a word's frequency: a word with one edit less wins unless it is 1,000 times rarer
_AT_ONCE = 5000


class Speller:
    """The words of all titles with how often they occur; knows new papers after `refresh`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._counts: Counter[str] = Counter()
        self._by_length: defaultdict[int, list[str]] = defaultdict(list)
        self._last = 0
        self._lock = threading.Lock()

    def refresh(self) -> bool:
        """Read the titles that came since the last time; return whether any did."""
        with self._lock:
            before = self._last
            while True:
                query = select(papers.c.id, papers.c.title).where(papers.c.id > self._last)
                with self._engine.connect() as connection:
                    rows = connection.execute(query.order_by(papers.c.id).limit(_AT_ONCE)).all()
                if not rows:
                    return self._last > before
                for number, title in rows:
                    self._learn(title)
                    self._last = number

    def _learn(self, title: str) -> None:
        for word in split(title):
            if len(word) >= SHORTEST - 1 and word.isalpha():
                self._counts[word] += 1  # first, for `near` in another thread takes its logarithm
                if self._counts[word] == 1:
                    self._by_length[len(word)].append(word)

    def frequency(self, word: str) -> int:
        """Return how often a word occurs in titles."""
        return self._counts[word]

    def near(self, word: str, count: int = 3) -> list[str]:
        """Return the words that were most probably meant, best first; none for a word of under four letters.

        Edits are a letter missing, too many, wrong, or two swapped; from eight letters on two are forgiven.
        """
        from rapidfuzz import process
        from rapidfuzz.distance import OSA

        if len(word) < SHORTEST:
            return []
        edits = 1 if len(word) < _TWO_EDITS else 2
        found = []
        for length in range(len(word) - edits, len(word) + edits + 1):
            known = self._by_length.get(length, [])
            found += process.extract(word, known, scorer=OSA.distance, score_cutoff=edits, limit=None)
        scored = [(math.log(self._counts[it]) - _PRICE * distance, it) for it, distance, _ in found if it != word]
        return [it for _, it in sorted(scored, key=lambda pair: (-pair[0], pair[1]))[:count]]
