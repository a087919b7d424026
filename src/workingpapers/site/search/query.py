"""What people type into the search box, read into what is looked for. Nothing that is typed is an error.

    sparse attention "long context" -vision author:vaswani venue:icml year:2020..2023

Words are looked for by stem; words in quotes must stand beside each other; what follows a minus must not occur.
`author:` and `venue:` look there alone; `year:` takes 2020, 2020..2023, 2020.., ..2023, >=2021, >2020, <=2021 or <2022,
and 2023..2020 is 2020..2023. What cannot be understood (year:soon, a quote that is never closed) is taken for words.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from dataclasses import dataclass

from workingpapers.errors import UserError

LONGEST = 1000  # characters that are read of a query
_MOST = 64  # things to look for that are read of a query

Years = tuple[int | None, int | None]
_PLACES = {"author": "authors", "authors": "authors", "venue": "venue", "title": "title"}
_TOKEN = re.compile(r'(?P<minus>(?<!\S)-)?(?:(?P<name>[A-Za-z]+):)?(?:"(?P<quoted>[^"]*)"|(?P<bare>[^\s"]+))')
_YEARS = re.compile(r"(?P<least>\d{4})?(?P<dots>\.\.)?(?P<most>\d{4})?")
_BOUND = re.compile(r"(?P<sign>[<>])(?P<equal>=?)(?P<year>\d{4})")
_ACCENTS = re.compile("[\u0300-\u036f]")
WORD = re.compile(r"[^\W_]+")
_PIECE = re.compile(r"[^\W_]+(?:[-‐‑][^\W_]+)*")
# Roughly what the index' stemmer takes away, for comparing words outside of it.
_ENDING = re.compile(
    r"(?:(?:at|is|iz)?(?:ions?|ings?|ed|es?|ers?|ors?|ive|able)|ally|al|ly|ments?|ness|ies|y|s|ic|ical|ity|ence|ent)$"
)
# Words that say nothing about what a text is about.
STOP = frozenset(
    "a about across all also an and any are as at be been being between both but by can could do does e each for "
    "from g had has have having how however i if in into is it its may more most not of on onto or other our s "
    "should so some such t than that the their them then there these they this those through thus to under upon us "
    "using very via was we were what when where whether which while who whose why will with within without would "
    "you your".split()
)


@dataclass(frozen=True)
class Term:
    """One thing to look for.

    Attributes:
        phrases: alternatives; each is words that must stand beside each other, of letters and digits alone.
        place: where they must stand: "title", "authors" or "venue", or several, spaces between; None for anywhere.
        typed: the text that it comes from.
    """

    phrases: tuple[tuple[str, ...], ...]
    place: str | None = None
    typed: str = ""

    @property
    def word(self) -> str | None:
        """The word, where the term is one word that may stand anywhere."""
        return self.phrases[0][0] if self.place is None and len(self.phrases) == len(self.phrases[0]) == 1 else None


@dataclass(frozen=True)
class Query:
    """What is looked for.

    Attributes:
        words: that should occur, the more the better.
        needed: that must occur.
        excluded: that must not.
        years: first and last; None where open.
        text: the words and phrases as they were typed, without operators.
    """

    words: tuple[Term, ...] = ()
    needed: tuple[Term, ...] = ()
    excluded: tuple[Term, ...] = ()
    years: Years = (None, None)
    text: str = ""


def parse(text: str) -> Query:
    """Read a query; only the first 1,000 characters count."""
    words: list[Term] = []
    needed: list[Term] = []
    excluded: list[Term] = []
    years: Years = (None, None)
    said: list[str] = []
    for token in list(_TOKEN.finditer(text[:LONGEST].replace("\0", " ")))[:_MOST]:
        minus, name, quoted, bare = token.group("minus", "name", "quoted", "bare")
        content = bare if quoted is None else quoted
        place = _PLACES.get((name or "").lower())
        asked = _years(bare) if (name or "").lower() == "year" and bare and not minus else None
        if asked is not None:
            years = narrowed(years, asked)
            continue
        if name and place is None:
            content = f"{name} {content}"
        found = _phrase(content, place) if quoted is not None and place is None else _terms(content, place)
        if minus:
            excluded += found
        elif place or quoted is not None:
            needed += found
        else:
            words += found
        if not minus and place is None:
            said.append(content)
    words, needed, excluded = (list(dict.fromkeys(terms)) for terms in (words, needed, excluded))
    return Query(tuple(words), tuple(needed), tuple(excluded), years, " ".join(said).strip())


def plain(text: str) -> str:
    """Return a query to be kept: one line of characters that can be seen."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def read_years(text: str) -> Years:
    """Read years as after `year:`.

    Raises:
        UserError: it cannot be understood.
    """
    years = _years(text.strip())
    if years is None:
        raise UserError(f"Years are like 2020, 2020..2023, 2020.., ..2023, >=2021 or <2022; got {text!r}.")
    return years


def narrowed(first: Years, second: Years) -> Years:
    """Return the years that are within both."""
    least = [year for year in (first[0], second[0]) if year is not None]
    most = [year for year in (first[1], second[1]) if year is not None]
    return (max(least, default=None), min(most, default=None))


def folded(text: str) -> str:
    """Return a text in lower case and without accents."""
    return (text if text.isascii() else _ACCENTS.sub("", unicodedata.normalize("NFKD", text))).lower()


def split(text: str) -> list[str]:
    """Return the words of a text as the index has them: runs of letters and digits, folded."""
    return WORD.findall(folded(text))


@functools.lru_cache(maxsize=50_000)
def stem(word: str) -> str:
    """Return a folded word without its ending: "learn" for "learning"."""
    short = _ENDING.sub("", word)
    return short if len(short) >= 3 else word


def _terms(text: str, place: str | None) -> list[Term]:
    """Return a term for each word; "pre-training" is its parts side by side or written as one."""
    terms = []
    for piece in _PIECE.findall(folded(text)):
        parts = tuple(split(piece))
        if parts:
            phrases = (parts, ("".join(parts),)) if len(parts) > 1 else (parts,)
            terms.append(Term(phrases, place, piece))
    return terms


def _phrase(text: str, place: str | None) -> list[Term]:
    words = tuple(split(text))
    return [Term((words,), place, text)] if words else []


def _years(text: str) -> Years | None:
    if bound := _BOUND.fullmatch(text):
        year = int(bound["year"]) + (0 if bound["equal"] else 1 if bound["sign"] == ">" else -1)
        return (year, None) if bound["sign"] == ">" else (None, year)
    found = _YEARS.fullmatch(text)
    if not found or not (found["least"] or found["most"]):
        return None
    least, most = (int(found[name]) if found[name] else None for name in ("least", "most"))
    if not found["dots"]:
        return (least, least) if most is None else None
    return (min(least, most), max(least, most)) if least and most else (least, most)
