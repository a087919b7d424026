"""How often search finds the paper that a query was made from, and how high: words, meaning, and both.

    papers sync conference-papers.parquet
    python benchmarks/site/search_quality.py [DATABASE] [--queries 400] [--tuning]

Known-item search. Queries are made from papers drawn at random, by fixed rules: a few words of the title; the title
with a typo in half of its words; half of the title; the title in other words (synonyms, other forms, a third of the
words left out); a sentence of the abstract; the first author and two words. Each is asked three times: of full text
alone, of embeddings alone, and of the search as the page has it. recall@10 counts the queries whose paper is among
the first ten; MRR is the mean of one over its rank there, 0 where it is not. A paper of the same title, as when a
preprint and an article were never merged, is as good. Below the table stand the gains of the last column over the
others with 95 % intervals: bootstrap over queries, the same ones for both.

Weights were chosen on the queries of `--tuning`. Those asked by default are made from other papers and drawn by a seed
of their own, `REPORTED`, which is to be changed whenever what it brought led to a change of the search.
"""

from __future__ import annotations

import argparse
import random
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import func, select

from workingpapers.site.database import open_database
from workingpapers.site.papers import Paper, by_ids
from workingpapers.site.schema import embeddings, papers
from workingpapers.site.search.encoder import make_encoder
from workingpapers.site.search.engine import Searcher
from workingpapers.site.search.query import STOP
from workingpapers.site.search.vectors import open_vectors
from workingpapers.site.settings import load_settings

Ranker = Callable[[str], Sequence[int]]
SEED, REPORTED = 20261125, 137438691328

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


def queries(found: Iterable[Paper], kind: str, count: int, seed: int = SEED) -> list[tuple[int, str]]:
    """Return queries of a kind with the paper that each was made from."""
    made: list[tuple[int, str]] = []
    for paper in found:
        text = KINDS[kind](paper, random.Random(f"{seed} {kind} {paper.title}"))
        if text and len(made) < count:
            made.append((paper.id, text))
    return made


def reciprocal_ranks(ranker: Ranker, asked: Iterable[tuple[int, str]], keys: Mapping[int, str]) -> NDArray[np.float64]:
    """Return one over the rank of each query's paper among the first ten, 0 where it is not there."""
    ranks = []
    for number, text in asked:
        found = [keys.get(it) for it in list(ranker(text))[:10]]
        ranks.append(1 / (1 + found.index(keys[number])) if keys[number] in found else 0.0)
    return np.array(ranks)


def gain(pairs: Iterable[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> str:
    """Return the mean gain in recall@10 and MRR over kinds, given old and new reciprocal ranks of each."""
    draw = np.random.default_rng(0)
    drawn = []  # (kind, resample, measure), the first resample being the queries themselves
    for old, new in pairs:
        gained = np.stack([100 * ((new > 0) * 1.0 - (old > 0)), new - old], axis=1)
        places = draw.integers(len(gained), size=(4000, len(gained)))
        places[0] = np.arange(len(gained))
        drawn.append(gained[places].mean(axis=1))
    means = np.mean(drawn, axis=0)
    (low, least), (high, most) = np.quantile(means, (0.025, 0.975), axis=0)
    recall, mrr = means[0]
    return f"recall@10 {recall:+5.2f} points [{low:+.2f}, {high:+.2f}], MRR {mrr:+.3f} [{least:+.3f}, {most:+.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description="Quality of search on known items.")
    parser.add_argument("database", nargs="?", help="path or URL; the page's own where left out")
    parser.add_argument("--queries", type=int, default=400, help="of each kind")
    parser.add_argument("--tuning", action="store_true", help="ask the queries on which weights were chosen")
    given = parser.parse_args()
    settings = load_settings(database=given.database)
    engine = open_database(settings.database)
    both = Searcher(engine, settings)
    words = Searcher(engine, load_settings(database=given.database, embeddings=False))
    encoder, vectors = make_encoder(), open_vectors(engine)
    for it in (both, words, vectors):
        it.refresh()
    rankers: dict[str, Ranker] = {
        "full text": lambda text: [hit.paper.id for hit in words.search(text, size=10).hits],
        "embeddings": lambda text: vectors.nearest(encoder.encode([text])[0], 10),
        "both": lambda text: [hit.paper.id for hit in both.search(text, size=10).hits],
    }
    with engine.connect() as connection:
        total = connection.execute(select(func.count()).select_from(embeddings)).scalar_one()
        keys: dict[int, str] = dict(connection.execute(select(papers.c.id, papers.c.title_key)).all())
        chosen = by_ids(connection, drawn(keys, tuning=given.tuning)[: 8 * given.queries])
    seed = SEED if given.tuning else REPORTED
    purpose = "tuning" if given.tuning else "reporting"
    print(f"{len(keys):,} papers, {total:,} embedded; {given.queries} {purpose} queries of a kind, seed {seed}")
    print(f"{'recall@10 / MRR':26}" + "".join(f"{name:>18}" for name in rankers))
    ranks: dict[str, list[NDArray[np.float64]]] = {name: [] for name in rankers}
    for kind in KINDS:
        asked = queries(chosen, kind, given.queries, seed)
        for name, ranker in rankers.items():
            ranks[name].append(reciprocal_ranks(ranker, asked, keys))
        _tell(kind, [(float((of[-1] > 0).mean()), float(of[-1].mean())) for of in ranks.values()])
    means = {name: [((it > 0).mean(), it.mean()) for it in of] for name, of in ranks.items()}
    _tell("all", [(float(recall), float(mrr)) for recall, mrr in (np.mean(of, axis=0) for of in means.values())])
    for name in ("full text", "embeddings"):
        pairs = list(zip(ranks[name], ranks["both"], strict=True))
        print(f"\nboth over {name}")
        for kind, pair in zip(KINDS, pairs, strict=True):
            print(f"{kind:26}{gain([pair])}")
        print(f"{'all':26}{gain(pairs)}")


def drawn(ids: Iterable[int], *, tuning: bool) -> list[int]:
    """Return the papers that queries are made from, half of all for tuning and the others for the report."""
    mixed = sorted(ids)
    random.Random(SEED).shuffle(mixed)
    if tuning:
        return mixed[::2]
    others = mixed[1::2]
    random.Random(REPORTED).shuffle(others)
    return others


def _tell(kind: str, measured: Iterable[tuple[float, float]]) -> None:
    print(f"{kind:26}" + "".join(f"{recall:10.1%} {mrr:7.3f}" for recall, mrr in measured), flush=True)


if __name__ == "__main__":
    main()
