"""Ranked lexical search over the catalogue that forgives typos."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from workingpapers.papers.card import Card
from workingpapers.papers.topics import path, topic

_WEIGHTS = {"title": 4.0, "slug": 4.0, "method": 3.0, "topics": 2.0, "summary": 1.0}
_TYPO = 75.0  # how alike two words must be, of 100, for one to stand in for the other
_STOP = frozenset("a an and are as at be by for from how in is it of on or that the this to with what which".split())


@dataclass(frozen=True)
class Hit:
    """A card that a query found, with its score (BM25, higher is better)."""

    card: Card
    score: float


def search(query: str, cards: Iterable[Card]) -> list[Hit]:
    """Rank cards by a query, best first; cards that match no word are left out.

    Words are matched by their stems in title, slug, method, topics and summary, weighted in that order (BM25F with
    k1 = 1.2, b = 0.75). A word that no card has is replaced by the words most like it, with their likeness as weight;
    a word of at least three letters also matches the words that it begins.
    """
    documents = {card.slug: (card, _terms(card)) for card in cards}
    frequency = Counter(term for _, terms in documents.values() for term in terms)
    if not documents:
        return []
    average = sum(sum(terms.values()) for _, terms in documents.values()) / len(documents)
    wanted = [_alternatives(word, frequency) for word in _words(query)]
    hits = []
    for card, terms in documents.values():
        length = 0.25 + 0.75 * sum(terms.values()) / average
        scores = {t: _bm25(weight, frequency[t], len(documents), length) for t, weight in terms.items()}
        parts = [max((w * scores.get(term, 0.0) for term, w in words), default=0.0) for words in wanted]
        if any(parts):
            hits.append(Hit(card, sum(parts) * (sum(part > 0 for part in parts) / len(parts))))
    return sorted(hits, key=lambda hit: (-hit.score, hit.card.slug))


def _bm25(weight: float, frequency: int, documents: int, length: float) -> float:
    rarity = math.log(1 + (documents - frequency + 0.5) / (frequency + 0.5))
    return rarity * weight * 2.2 / (weight + 1.2 * length)


def _terms(card: Card) -> Counter[str]:
    """Return the weighted term counts of a card."""
    topics = " ".join(topic(name).title for leaf in card.topics for name in path(leaf)[1:])
    method = (card.method or "").rpartition(":")[2]
    texts = {"title": card.title, "slug": card.slug, "method": method, "topics": topics, "summary": card.summary}
    counts: Counter[str] = Counter()
    for name, text in texts.items():
        for word in _words(text):
            counts[word] += _WEIGHTS[name]  # type: ignore[assignment]  # a Counter holds any number
    return counts


def _words(text: str) -> list[str]:
    """Return the stems of a text's words; CamelCase counts as its parts and as a whole."""
    parts = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)
    words = re.findall(r"[^\W_]+", parts.lower())
    joined = [word for word in re.findall(r"[^\W_]+", text.lower()) if word not in words]
    return [_stem(word) for word in [*words, *joined] if word not in _STOP]


def _stem(word: str) -> str:
    """Return a word without its plural and -ing, enough to find "probes" by "probing"."""
    for ending in ("ing", "es", "s", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith("ss"):
            return word[: -len(ending)]
    return word


def _alternatives(word: str, known: Counter[str]) -> list[tuple[str, float]]:
    """Return the known terms that a word stands for, each with a weight of at most 1."""
    from rapidfuzz import fuzz, process

    exact = [(word, 1.0)] if word in known else []
    begun = [(term, 0.8) for term in known if len(word) >= 3 and term.startswith(word) and term != word]
    if exact or begun:
        return exact + begun
    alike = process.extract(word, list(known), scorer=fuzz.ratio, score_cutoff=_TYPO, limit=3)
    return [(term, 0.6 * likeness / 100) for term, likeness, _ in alike]
