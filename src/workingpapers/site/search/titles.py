"""The words of all titles and authors, in memory, so that hundreds of papers are compared with a query at once.

A word is a number: a hash of its stem in 31 bits and, in the lowest bit, whether it says nothing about what a text is
about. The words of a paper stand side by side in one array, those of the title before those of the authors.
"""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, bindparam, select, tuple_

from workingpapers.site.database import rows
from workingpapers.site.schema import papers
from workingpapers.site.search.query import STOP, Term, split, stem

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_AT_ONCE = 2000  # papers read at a time
_OVERLAP = 300.0  # seconds: a transaction that began earlier may end later
_UNREAD = -1.0
_TEXTS = select(papers.c.id, papers.c.title, papers.c.authors, papers.c.updated).where(
    papers.c.id.in_(bindparam("ids", expanding=True))
)
_CHANGED = (
    select(papers.c.updated, papers.c.id)
    .where(tuple_(papers.c.updated, papers.c.id) > tuple_(bindparam("updated"), bindparam("id")))
    .order_by(papers.c.updated, papers.c.id)
    .limit(_AT_ONCE)
)


@dataclass(frozen=True)
class Words:
    """The words of some papers, which are known by their places.

    Attributes:
        count: P, of the papers.
        stems: (W,) as of `code`; owners: (W,) places of their papers, in order.
        tells: (W,) whether it says what a text is about; in_title: (W,) or stands among the authors.
    """

    count: int
    stems: NDArray[np.uint32]
    owners: NDArray[np.intp]
    tells: NDArray[np.bool_]
    in_title: NDArray[np.bool_]

    def holding(self, term: Term) -> NDArray[np.bool_]:
        """Return (P,) which papers have a term, by its stems, in title or authors."""
        import numpy as np

        has = np.zeros(self.count, dtype=bool)
        for phrase in term.phrases:
            has |= np.logical_and.reduce([self._having(code(stem(word))) for word in phrase])
        return has

    def _having(self, stemmed: int) -> NDArray[np.bool_]:
        import numpy as np

        has = np.zeros(self.count, dtype=bool)
        has[self.owners[self.stems == stemmed]] = True
        return has

    def covered(self, terms: Iterable[Term]) -> NDArray[np.float64]:
        """Return (P,) the share of the title's telling words that are of the terms."""
        import numpy as np

        asked = [code(stem(word)) for term in terms for phrase in term.phrases for word in phrase]
        telling = self.tells & self.in_title
        had = np.bincount(self.owners[telling & np.isin(self.stems, asked)], minlength=self.count)
        return had / np.maximum(np.bincount(self.owners[telling], minlength=self.count), 1)

    def verbatim(self, words: Sequence[str]) -> NDArray[np.bool_]:
        """Return (P,) in which titles words stand beside each other in their order, by their stems."""
        import numpy as np

        places = np.arange(max(0, len(self.stems) - len(words) + 1) if words else 0)
        for offset, word in enumerate(words):
            places = places[self.stems[places + offset] == code(stem(word))]
        last = places + len(words) - 1
        there = np.zeros(self.count, dtype=bool)
        there[self.owners[places[self.in_title[last] & (self.owners[places] == self.owners[last])]]] = True
        return there

    def ordered(self, words: Sequence[str]) -> NDArray[np.bool_]:
        """Return (P,) in which titles the words stand in their order, others between them or not, by their stems."""
        import numpy as np

        never = len(self.stems)
        reached = np.full(self.count, -1)
        for word in words:
            places = np.flatnonzero((self.stems == code(stem(word))) & self.in_title)
            places = places[places > reached[self.owners[places]]]
            owners, first = np.unique(self.owners[places], return_index=True)
            reached = np.full(self.count, never)
            reached[owners] = places[first]
        return reached < never


def code(stemmed: str) -> int:
    """Return the number of a stem, below 2**31."""
    return zlib.crc32(stemmed.encode()) >> 1


class Titles:
    """The words of papers' titles and authors; safe in threads."""

    def __init__(self, engine: Engine) -> None:
        import numpy as np

        self._engine = engine
        self._lock = threading.Lock()  # of those who write; readers take what there is
        self._words = np.zeros(1024, dtype=np.uint32)
        self._owners = np.zeros(1024, dtype=np.int32)  # papers of words
        self._used = 0
        self._places = np.zeros((1024, 3), dtype=np.int32)  # by paper: begin of title, of authors, and end
        self._updated = np.full(1024, _UNREAD)  # by paper, as in the table
        self._since = -1.0  # what was written before is known

    def refresh(self) -> None:
        """Read what came or changed since the last time."""
        known: dict[str, int] = {}
        begun, after = time.time(), (self._since, 0)
        with self._engine.connect() as connection:
            while changed := rows(connection, _CHANGED, {"updated": after[0], "id": after[1]}):
                read = [number for updated, number in changed if not self._knows(number, updated)]
                if read:
                    self._learn(rows(connection, _TEXTS, {"ids": read}), known)
                after = max((updated, number) for updated, number in changed)
        self._since = begun - _OVERLAP

    def known(self, connection: Connection, ids: Iterable[int]) -> list[int]:
        """Return the papers that there are, in order of their ids; those that came just now are read first."""
        wanted = sorted(ids)
        unknown = [number for number in wanted if not self._knows(number)]
        if unknown:
            self._learn(rows(connection, _TEXTS, {"ids": unknown}), {})
            wanted = [number for number in wanted if self._knows(number)]
        return wanted

    def of(self, ids: Sequence[int]) -> Words:
        """Return the words of known papers."""
        import numpy as np

        # Places before words: who writes puts the words first.
        begins, middles, ends = self._places[np.asarray(ids, dtype=np.intp)].T
        lengths = ends - begins
        owners = np.repeat(np.arange(len(ids)), lengths)
        where = np.arange(len(owners)) + np.repeat(begins - (np.cumsum(lengths) - lengths), lengths)
        found = self._words[where]
        return Words(len(ids), found >> 1, owners, (found & 1) == 0, where < middles[owners])

    def holding(self, terms: Iterable[Term]) -> list[int]:
        """Return the papers that have all terms, as `Words.holding` says; those that came just now may be missing."""
        import numpy as np

        has = np.ones(len(self._places), dtype=bool)
        for term in terms:
            ways = [np.logical_and.reduce([self._having(word, len(has)) for word in it]) for it in term.phrases]
            has &= np.logical_or.reduce(ways)
        return [int(number) for number in np.flatnonzero(has)]

    def _having(self, word: str, count: int) -> NDArray[np.bool_]:
        import numpy as np

        places = np.flatnonzero(self._words[: self._used] >> 1 == code(stem(word)))
        owners = self._owners[places]
        begins, _, ends = self._places[owners].T
        has = np.zeros(count, dtype=bool)
        has[owners[(begins <= places) & (places < ends) & (owners < count)]] = True  # a changed title's words remain
        return has

    def _knows(self, number: int, updated: float = 0.0) -> bool:
        return number < len(self._updated) and self._updated[number] >= updated

    def _learn(self, read: Sequence[Sequence[Any]], known: dict[str, int]) -> None:
        """Take in rows of _TEXTS; the numbers of words that are not known yet are added to those that are."""
        import numpy as np

        def words(text: str) -> list[int]:
            return [known.get(it) or known.setdefault(it, code(stem(it)) << 1 | (it in STOP)) for it in split(text)]

        found: list[int] = []
        places = []
        for _, title, authors, _ in read:
            begin = len(found)
            found += words(title)
            middle = len(found)
            found += words(" ".join(authors))
            places.append((begin, middle, len(found)))
        if not read:
            return
        numbers = [row[0] for row in read]
        with self._lock:
            begin, end = self._used, self._used + len(found)
            self._words = _with_room(self._words, end)
            self._words[begin:end] = found
            self._owners = _with_room(self._owners, end)
            self._owners[begin:end] = np.repeat(numbers, [last - first for first, _, last in places])
            self._places = _with_room(self._places, max(numbers) + 1)
            self._places[numbers] = np.asarray(places, dtype=np.int32) + begin
            self._updated = _with_room(self._updated, max(numbers) + 1, _UNREAD)
            self._updated[numbers] = [row[3] for row in read]
            self._used = end  # last, for whoever reads does not wait


def _with_room(array: NDArray[Any], length: int, filling: float = 0) -> NDArray[Any]:
    """Return an array of at least a length, the same one where it is long enough."""
    import numpy as np

    if len(array) >= length:
        return array
    longer = np.full((max(length, len(array) * 5 // 4), *array.shape[1:]), filling, dtype=array.dtype)
    longer[: len(array)] = array
    return longer
