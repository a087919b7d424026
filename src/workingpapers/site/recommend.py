"""Papers for one person: a linear model over sentence embeddings, learnt from what they voted for or tagged.

    w, b = logistic regression of "liked" (their papers) against "any" (a fixed random sample) on embeddings (n, 384)
    score(paper) = w . embedding + b

Liked are all papers that they voted for or tagged, or those with one tag. What is ranked are recent papers that they
have not voted for, tagged or put into their library. A fit takes a moment, so it is made when its page is asked for and
kept until a vote, a tag or the library changes.

Coordinates of embeddings mean nothing to a reader. So the terms that explain a recommendation come from a second linear
model of the same liked and random papers, on TF-IDF weights of the words in titles and abstracts: a list is explained
by its heaviest terms, a paper by those of its own terms that contribute most. They say what the person's papers have in
common; the ranking is the embeddings' alone.

scikit-learn is imported at the first call, in the thread that asks.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import re
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, exists, func, select

from workingpapers.site.papers import Paper, by_ids
from workingpapers.site.schema import embeddings, library, papers, tags, votes
from workingpapers.site.search.encoder import MODEL
from workingpapers.site.search.filters import LATEST

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MOST_LIKED, MOST_RECENT, SAMPLE = 500, 20_000, 1000  # papers: learnt from, ranked, and learnt against
SIZE = 30  # papers in the list
LIST_TERMS, PAPER_TERMS = 12, 4
_AT_ONCE = 500  # ids in a statement
_KEPT = 256  # lists that are kept
_LIFETIME = 3600.0  # seconds, so that new papers come in
_BREAK = re.compile(r"https?://\S+|[^\w\s-]+|\n")
_WORD = re.compile(r"[^\W\d_][\w-]*\w")


@dataclass(frozen=True)
class Recommended:
    """A paper with the terms that speak for it, the strongest first."""

    paper: Paper
    terms: tuple[str, ...]


@dataclass(frozen=True)
class Recommendations:
    """What is recommended.

    Attributes:
        rows: the best first.
        terms: what the person's papers have in common.
        learnt_from: how many papers that is.
        note: why there is nothing, or "".
    """

    rows: Sequence[Recommended] = ()
    terms: tuple[str, ...] = ()
    learnt_from: int = 0
    note: str = ""


class Recommender:
    """Fits, ranks and keeps lists. A fit computes for a second or more: whoever serves many asks for one at a time.

    Args:
        engine: of the page's database.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._kept: OrderedDict[tuple[int, str | None], tuple[str, float, Recommendations]] = OrderedDict()

    def recommend(self, user: int, tag: str | None = None, now: float | None = None) -> Recommendations:
        """Return what is recommended to a person.

        Args:
            user: their id.
            tag: learn from the papers with this tag alone; None learns from all that they voted for or tagged.
            now: seconds since 1970; None for the clock's.
        """
        at = time.time() if now is None else now
        with self._engine.connect() as connection:
            liked, seen = _liked(connection, user, tag), _seen(connection, user)
        if not liked:
            return Recommendations(note="Vote for some papers or tag them, and the page learns what to recommend.")
        state = hashlib.sha256(repr((sorted(liked), sorted(seen))).encode()).hexdigest()
        if found := self._found(user, tag, state, at):
            return found
        with self._engine.connect() as connection:
            made = _recommend(connection, liked, seen)
        self._kept[user, tag] = (state, at, made)
        self._kept.move_to_end((user, tag))
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return made

    def _found(self, user: int, tag: str | None, state: str, at: float) -> Recommendations | None:
        was, since, made = self._kept.get((user, tag), ("", 0.0, None))
        return made if was == state and at < since + _LIFETIME else None


def _liked(connection: Connection, user: int, tag: str | None) -> list[int]:
    """Return the papers to learn from, at most `MOST_LIKED`, those that came in last."""
    tagged = select(tags.c.paper_id).where(tags.c.user_id == user)
    voted = select(votes.c.paper_id).where(votes.c.user_id == user)
    ids = (tagged.union(voted) if tag is None else tagged.where(tags.c.tag == tag)).subquery()
    return list(connection.execute(select(ids.c.paper_id).order_by(ids.c.paper_id.desc()).limit(MOST_LIKED)).scalars())


def _seen(connection: Connection, user: int) -> set[int]:
    theirs = (select(table.c.paper_id).where(table.c.user_id == user) for table in (votes, tags, library))
    return {number for found in theirs for number in connection.execute(found).scalars()}


def _recommend(connection: Connection, liked: list[int], seen: set[int]) -> Recommendations:
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    positive, vectors = _vectors(connection, liked)
    if not positive:
        note = "The papers that you voted for or tagged are too new: their embeddings have not been made yet."
        return Recommendations(note=note)
    negative, others = _vectors(connection, _sample(connection, set(liked)))
    recent, candidates = _recent(connection, seen | set(liked))
    if not negative or not recent:
        return Recommendations(note="There are no other papers to recommend yet.", learnt_from=len(positive))
    labels = np.repeat((1, 0), (len(positive), len(negative)))
    # Balanced, because the sample's size says nothing of how rare liked papers are.
    model = LogisticRegression(class_weight="balanced", max_iter=200).fit(np.concatenate((vectors, others)), labels)
    scores = model.decision_function(candidates)
    best = [recent[place] for place in np.argsort(-scores, kind="stable")[:SIZE]]
    terms, own = _explain(connection, positive, negative, best)
    rows = [Recommended(paper, own[paper.id]) for paper in by_ids(connection, best)]
    return Recommendations(rows, terms, len(positive))


def _explain(
    connection: Connection, positive: list[int], negative: list[int], shown: list[int]
) -> tuple[tuple[str, ...], dict[int, tuple[str, ...]]]:
    """Return the heaviest terms of a linear TF-IDF model, and of each paper shown the terms that contribute most."""
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    texts = _texts(connection, [*positive, *negative, *shown])
    ids, others = ([number for number in group if number in texts] for group in (positive, negative))
    words = TfidfVectorizer(analyzer=_terms_of, max_features=20_000, sublinear_tf=True)
    try:
        weighed = words.fit_transform([texts[number] for number in (*ids, *others)])
    except ValueError:  # no text has any word but stop words
        return (), dict.fromkeys(shown, ())
    labels = np.repeat((1, 0), (len(ids), len(others)))
    model = LogisticRegression(class_weight="balanced", max_iter=200).fit(weighed, labels)
    names, weights = words.get_feature_names_out(), model.coef_[0]
    common = _top(names, weights, LIST_TERMS)
    own = {
        number: _top(names, words.transform([texts.get(number, "")]).multiply(weights).toarray()[0], PAPER_TERMS)
        for number in shown
    }
    return common, own


def _terms_of(text: str) -> list[str]:
    """Return the words of a text that say something, and each two that stand side by side within a phrase."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    terms = []
    for phrase in _BREAK.split(text.lower()):
        words = [word if word not in ENGLISH_STOP_WORDS else "" for word in _WORD.findall(phrase)]
        terms += [word for word in words if word]
        terms += [f"{one} {two}" for one, two in itertools.pairwise(words) if one and two]
    return terms


def _top(names: NDArray[Any], weights: NDArray[np.float64], most: int) -> tuple[str, ...]:
    """Return the names with the largest positive weights; a term that is part of one before it says nothing new."""
    chosen: list[str] = []
    for place in (-weights).argsort(kind="stable")[: 3 * most]:
        name = str(names[place])
        told = {word for term in chosen for word in term.split()}
        if weights[place] > 0 and not set(name.split()) <= told:
            chosen.append(name)
    return tuple(chosen[:most])


def _sample(connection: Connection, without: set[int]) -> list[int]:
    """Return random papers, the same for everybody and every time, without looking at all of them."""
    last = connection.execute(select(func.max(papers.c.id))).scalar() or 0
    chosen = random.Random(0).sample(range(1, last + 1), min(last, 2 * SAMPLE))  # numbers have gaps
    return [number for number in chosen if number not in without]


def _vectors(connection: Connection, ids: Sequence[int]) -> tuple[list[int], NDArray[np.float32]]:
    """Return the ids that have embeddings, in order, at most `SAMPLE` of them, and these as (n, d)."""
    found: list[tuple[int, bytes]] = []
    for first in range(0, len(ids), _AT_ONCE):
        theirs = embeddings.c.paper_id.in_(ids[first : first + _AT_ONCE])
        chosen = select(embeddings.c.paper_id, embeddings.c.vector).where(theirs, embeddings.c.model == MODEL)
        rows = {row.paper_id: row.vector for row in connection.execute(chosen)}
        found += [(number, rows[number]) for number in ids[first : first + _AT_ONCE] if number in rows]
    return _stacked(found[:SAMPLE])


def _recent(connection: Connection, without: set[int]) -> tuple[list[int], NDArray[np.float32]]:
    """Return the latest papers that have embeddings and are not left out, and these as (n, d)."""
    usable = (embeddings.c.paper_id == papers.c.id) & (embeddings.c.model == MODEL)
    latest = (
        select(papers.c.id)
        .where(papers.c.year.is_not(None), exists().where(usable))
        .order_by(*LATEST)  # which an index has
        .limit(MOST_RECENT)
    )
    chosen = select(embeddings.c.paper_id, embeddings.c.vector).where(embeddings.c.paper_id.in_(latest))
    return _stacked([(number, vector) for number, vector in connection.execute(chosen) if number not in without])


def _stacked(rows: list[tuple[int, bytes]]) -> tuple[list[int], NDArray[np.float32]]:
    import numpy as np

    vectors = np.frombuffer(b"".join(vector for _, vector in rows), np.float16).astype(np.float32)
    return [number for number, _ in rows], vectors.reshape(len(rows), -1) if rows else vectors.reshape(0, 0)


def _texts(connection: Connection, ids: Sequence[int]) -> dict[int, str]:
    found: dict[int, str] = {}
    for first in range(0, len(ids), _AT_ONCE):
        chosen = select(papers.c.id, papers.c.title, papers.c.abstract).where(
            papers.c.id.in_(ids[first : first + _AT_ONCE])
        )
        found |= {number: f"{title}\n{abstract}" for number, title, abstract in connection.execute(chosen)}
    return found
