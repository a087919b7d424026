"""Ranked lexical search over the catalogue that forgives typos."""

from __future__ import annotations

import functools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from workingpapers.papers.card import Card
from workingpapers.papers.topics import path, topic

_WEIGHTS = {"title": 4.0, "slug": 4.0, "method": 3.0, "topics": 2.0, "summary": 1.0}
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_STOP = frozenset("a an and are as at be by for from how in is it of on or that the this to with what which".split())


@dataclass(frozen=True)
class Hit:
    """A card that a query found, with its score (BM25, higher is better)."""

    card: Card
    score: float


def search(query: str, cards: Iterable[Card]) -> list[Hit]:
    """Rank cards by a query, best first; cards that match no word are left out.

    Words are matched by their stems in title, slug, method, topics and summary, weighted in that order (BM25F with
    k1 = 1.2, b = 0.75). A word of at least three letters also matches the words that it begins. A word that matches
    nothing is taken for a slip of the fingers: it stands for the words that one edit makes of it (a letter missing, too
    many, wrong, or two swapped), from eight letters on two edits, with the share of right letters as weight.
    """
    documents = [(card, _weighted_words(card)) for card in cards]
    stems = {word: _stem(word) for _, words in documents for word in words}
    terms = [_stemmed(words, stems) for _, words in documents]
    frequency = Counter(term for weights in terms for term in weights)
    lengths = [sum(weights.values()) for weights in terms]
    wanted = [_alternatives(word, stems).items() for word in _words(query)]
    hits = []
    for (card, _), weights, length in zip(documents, terms, lengths, strict=True):
        norm = 0.25 + 0.75 * length * len(lengths) / sum(lengths)
        parts = [
            max((w * _bm25(weights[t], frequency[t], len(terms), norm) for t, w in meant if t in weights), default=0.0)
            for meant in wanted
        ]
        if any(parts):
            hits.append(Hit(card, sum(parts) * (sum(part > 0 for part in parts) / len(parts))))
    return sorted(hits, key=lambda hit: (-hit.score, hit.card.slug))


def _stemmed(words: Mapping[str, float], stems: Mapping[str, str]) -> dict[str, float]:
    """Return the weights by stem instead of by word."""
    weights: defaultdict[str, float] = defaultdict(float)
    for word, weight in words.items():
        weights[stems[word]] += weight
    return weights


def _bm25(weight: float, frequency: int, documents: int, norm: float) -> float:
    rarity = math.log(1 + (documents - frequency + 0.5) / (frequency + 0.5))
    return rarity * weight * 2.2 / (weight + 1.2 * norm)


@functools.cache
def _weighted_words(card: Card) -> Mapping[str, float]:
    """Return the words of a card, each with the sum of the weights of the places where it stands."""
    topics = " ".join(topic(name).title for leaf in card.topics for name in path(leaf)[1:])
    method = (card.method or "").rpartition(":")[2]
    texts = {"title": card.title, "slug": card.slug, "method": method, "topics": topics, "summary": card.summary}
    weights: defaultdict[str, float] = defaultdict(float)
    for name, text in texts.items():
        for word in _words(text):
            weights[word] += _WEIGHTS[name]
    return weights


def _words(text: str) -> list[str]:
    """Return a text's words in lower case; CamelCase and hyphened words count as their parts and as a whole."""
    parts = re.findall(r"[^\W_]+", _CAMEL.sub(" ", text).lower())
    wholes = [whole.replace("-", "") for whole in re.findall(r"[^\W_]+(?:-[^\W_]+)*", text.lower())]
    known = set(parts)
    return [word for word in [*parts, *(whole for whole in wholes if whole not in known)] if word not in _STOP]


@functools.cache
def _stem(word: str) -> str:
    """Return a word without its plural and -ing: "embed" for "embeddings", "prob" for "probe" and "probing"."""
    for endings in (("es", "s", "e"), ("ing",)):
        stem = next((word.removesuffix(ending) for ending in endings if word.endswith(ending)), word)
        if stem != word and len(stem) >= 3 and not word.endswith("ss"):
            doubled = endings == ("ing",) and len(stem) > 3 and stem[-1] == stem[-2] and stem[-1] not in "sz"
            word = stem[:-1] if doubled else stem
    return word


def _alternatives(word: str, stems: Mapping[str, str]) -> dict[str, float]:
    """Return the stems that a word of the query stands for, each with a weight of at most 1.

    Args:
        word: of the query.
        stems: every word of the catalogue with its stem.
    """
    from rapidfuzz import process
    from rapidfuzz.distance import OSA

    found = {stem: 0.8 for known, stem in stems.items() if len(word) >= 3 and known.startswith(word)}
    if _stem(word) in stems.values():
        found[_stem(word)] = 1.0
    if found or len(word) < 4:
        return found
    edits = 1 if len(word) < 8 else 2
    for known, distance, _ in process.extract(word, list(stems), scorer=OSA.distance, score_cutoff=edits, limit=None):
        found[stems[known]] = max(1 - distance / len(word), found.get(stems[known], 0.0))
    return found
