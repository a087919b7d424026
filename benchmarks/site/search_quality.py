"""How often search finds the paper that a query was made from, and how high: words, meaning, and both.

    papers sync conference-papers.parquet
    python benchmarks/site/search_quality.py [DATABASE] [--queries 300] [--tuning]

Known-item search. Queries are made from papers drawn at random, by fixed rules: a few words of the title; the title
with a typo in half of its words; half of the title; the title in other words (synonyms, other forms, a third of the
words left out); a sentence of the abstract; the first author and two words. Each is asked three times: of full text
alone, of embeddings alone, and of the search as the page has it. recall@10 counts the queries whose paper is among
the first ten; MRR is the mean of one over its rank there, 0 where it is not. Weights were chosen on the queries of
`--tuning`; those printed by default are made from other papers.
"""

from __future__ import annotations

import argparse
import random
import re
import string
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from sqlalchemy import func, select

from workingpapers.site.database import open_database
from workingpapers.site.papers import Paper, by_ids
from workingpapers.site.schema import embeddings, papers
from workingpapers.site.search.encoder import make_encoder
from workingpapers.site.search.engine import Searcher
from workingpapers.site.search.query import STOP
from workingpapers.site.search.vectors import Vectors
from workingpapers.site.settings import load_settings

Ranker = Callable[[str], Sequence[int]]
SEED = 20261125

SYNONYMS = dict(
    pair.split("=")
    for pair in """
    image=picture images=pictures learning=training neural=deep network=model networks=models efficient=fast
    fast=efficient robust=resilient robustness=resilience improving=enhancing improved=better towards=toward
    adversarial=malicious attacks=attack detection=detecting recognition=recognising segmentation=segmenting
    generation=generating generative=generating classification=classifying estimation=estimating
    prediction=forecasting video=clips videos=clips text=language documents=texts document=text graph=network
    graphs=networks large=big small=tiny few=little method=approach methods=approaches approach=method
    framework=system model=network models=networks data=examples dataset=benchmark datasets=benchmarks
    optimization=optimisation optimal=best bounds=guarantees bound=guarantee provable=guaranteed
    unsupervised=unlabelled supervised=labelled multi=several scalable=large-scale novel=new question=query
    answering=answers translation=translating human=people humans=people reasoning=inference inference=reasoning
    sparse=few dynamic=changing adaptive=adapting adaptation=adapting transfer=transferring explanations=reasons
    interpretable=explainable explainable=interpretable explaining=interpreting privacy=confidentiality
    private=confidential fair=unbiased fairness=bias speech=voice speaker=voice object=thing objects=things
    scene=environment scenes=environments motion=movement pose=posture reconstruction=reconstructing
    retrieval=search search=retrieval ranking=ordering recommendation=recommender recommendations=recommender
    exploration=exploring policy=strategy policies=strategies agents=players agent=player games=game
    """.split()
)


def few_words(paper: Paper, draw: random.Random) -> str | None:
    """Three or four words of the title, in its order."""
    words = [word for word in re.findall(r"[^\W_]+", paper.title) if word.lower() not in STOP and len(word) > 1]
    count = draw.choice((3, 4))
    if len(words) < count:
        return None
    return " ".join(words[place] for place in sorted(draw.sample(range(len(words)), count)))


def with_typos(paper: Paper, draw: random.Random) -> str:
    """The title with one typo in half of its words of four letters or more."""
    words = paper.title.split()
    long = [place for place, word in enumerate(words) if len(word) >= 4]
    for place in draw.sample(long, (len(long) + 1) // 2):
        words[place] = _typo(words[place], draw)
    return " ".join(words)


def _typo(word: str, draw: random.Random) -> str:
    """Leave a letter out, double one, put a wrong one, or swap two."""
    place = draw.randrange(len(word) - 1)
    before, letter, after = word[:place], word[place], word[place + 1 :]
    other = draw.choice(string.ascii_lowercase)
    return draw.choice(
        (before + after, before + letter * 2 + after, before + other + after, before + after[0] + letter + after[1:])
    )


def half(paper: Paper, draw: random.Random) -> str | None:
    """One half of a title of six words or more."""
    words = paper.title.split()
    cut = len(words) // 2
    return " ".join(words[:cut] if draw.random() < 0.5 else words[cut:]) if len(words) >= 6 else None


def other_words(paper: Paper, draw: random.Random) -> str | None:
    """The title in other words; None where fewer than two have a synonym."""
    words = [word for word in re.findall(r"[^\W_]+", paper.title.lower()) if word not in STOP]
    if sum(word in SYNONYMS for word in words) < 2 or len(words) < 5:
        return None
    kept = [SYNONYMS.get(word) or word for word in words if word in SYNONYMS or draw.random() < 2 / 3]
    return " ".join(kept) if len(kept) >= 3 else None


def sentence(paper: Paper, draw: random.Random) -> str | None:
    """A sentence of the abstract, of 6 to 40 words."""
    sentences = re.split(r"(?<=[.!?])\s+(?=[A-Z])", paper.abstract)
    fitting = [it for it in sentences if 6 <= len(it.split()) <= 40]
    return draw.choice(fitting) if fitting else None


def with_author(paper: Paper, draw: random.Random) -> str | None:
    """The last name of the first author and two words of the title."""
    words = [word for word in re.findall(r"[^\W_]+", paper.title) if word.lower() not in STOP and len(word) > 3]
    if len(words) < 2 or not paper.authors or len(paper.authors[0].split()[-1]) < 3:
        return None
    return " ".join([paper.authors[0].split()[-1], *draw.sample(words, 2)])


KINDS: dict[str, Callable[[Paper, random.Random], str | None]] = {
    "3-4 title words": few_words,
    "title with typos": with_typos,
    "half of the title": half,
    "title in other words": other_words,
    "sentence of the abstract": sentence,
    "author and 2 words": with_author,
}


def queries(found: Iterable[Paper], kind: str, count: int) -> list[tuple[int, str]]:
    """Return queries of a kind with the paper that each was made from."""
    made: list[tuple[int, str]] = []
    for paper in found:
        text = KINDS[kind](paper, random.Random(f"{SEED} {kind} {paper.title}"))
        if text and len(made) < count:
            made.append((paper.id, text))
    return made


def scored(ranker: Ranker, asked: Sequence[tuple[int, str]]) -> tuple[float, float]:
    """Return recall@10 and MRR@10."""
    ranks = []
    for number, text in asked:
        found = list(ranker(text))[:10]
        ranks.append(1 / (1 + found.index(number)) if number in found else 0.0)
    return float(np.mean([rank > 0 for rank in ranks])), float(np.mean(ranks))


def main() -> None:
    parser = argparse.ArgumentParser(description="Quality of search on known items.")
    parser.add_argument("database", nargs="?", help="path or URL; the page's own where left out")
    parser.add_argument("--queries", type=int, default=300, help="of each kind")
    parser.add_argument("--tuning", action="store_true", help="ask the queries on which weights were chosen")
    given = parser.parse_args()
    settings = load_settings(database=given.database)
    engine = open_database(settings.database)
    both = Searcher(engine, settings)
    words = Searcher(engine, load_settings(database=given.database, embeddings=False))
    encoder, vectors = make_encoder(), Vectors(engine)
    for it in (both, words, vectors):
        it.refresh()
    rankers: dict[str, Ranker] = {
        "full text": lambda text: [hit.paper.id for hit in words.search(text, size=10).hits],
        "embeddings": lambda text: vectors.nearest(encoder.encode([text])[0], 10),
        "both": lambda text: [hit.paper.id for hit in both.search(text, size=10).hits],
    }
    with engine.connect() as connection:
        total = connection.execute(select(func.count()).select_from(embeddings)).scalar_one()
        ids = sorted(connection.execute(select(papers.c.id)).scalars())
        random.Random(SEED).shuffle(ids)
        # Even places of the shuffled papers are for tuning, odd ones for the report.
        chosen = by_ids(connection, ids[0 if given.tuning else 1 :: 2][: 8 * given.queries])
    tuning = ", tuning" if given.tuning else ""
    print(f"{len(ids):,} papers, {total:,} embedded; {given.queries} queries of a kind{tuning}")
    print(f"{'recall@10 / MRR':26}" + "".join(f"{name:>18}" for name in rankers))
    rows = []
    for kind in KINDS:
        asked = queries(chosen, kind, given.queries)
        rows.append([scored(ranker, asked) for ranker in rankers.values()])
        print(f"{kind:26}" + "".join(f"{recall:10.1%} {mrr:7.3f}" for recall, mrr in rows[-1]), flush=True)
    mixed = np.mean(rows, axis=0)
    print(f"{'all':26}" + "".join(f"{recall:10.1%} {mrr:7.3f}" for recall, mrr in mixed))


if __name__ == "__main__":
    main()
