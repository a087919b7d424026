"""Planted topics come back from what a person likes, with their words; lists are kept until something changes."""

import subprocess
import sys

import numpy as np
import pytest
from papers_made import made
from sqlalchemy import delete, insert, select

from workingpapers.site import marks, recommend
from workingpapers.site.database import writing
from workingpapers.site.recommend import Recommender
from workingpapers.site.schema import embeddings, papers, users
from workingpapers.site.search.encoder import MODEL

NOW = 1_795_608_000.0
WORDS = {
    "probing": "linear probe frozen features classification head",
    "retrieval": "dense passage retrieval contrastive negatives ranking",
    "diffusion": "denoising diffusion sampler score image generation",
    "federated": "federated clients aggregation heterogeneous privacy rounds",
    "pruning": "sparsity pruning weights magnitude compression lottery",
}
EACH = 60


def planted(connection, each=EACH, dimensions=384):
    """Papers of five topics, whose embeddings scatter around one direction each; return ids by topic."""
    rng = np.random.default_rng(0)
    ids = {}
    for topic, words in WORDS.items():
        centre = rng.normal(size=dimensions)
        ids[topic] = []
        for _ in range(each):
            drawn = rng.permutation(words.split())[:4]
            (paper,) = made(connection, 1, title=f"On {' '.join(drawn)} {{}}", abstract="We study the method of paper.")
            vector = centre + 2.0 * rng.normal(size=dimensions)  # cosine within a topic about 0.2, as between abstracts
            row = {"paper_id": paper, "model": MODEL, "digest": "", "vector": unit(vector)}
            connection.execute(insert(embeddings).values(row))
            ids[topic].append(paper)
    for number in (1, 2):
        connection.execute(insert(users).values(id=number, email=f"u{number}@b.example", created=NOW))
    return ids


def unit(vector):
    return (vector / np.linalg.norm(vector)).astype(np.float16).tobytes()


@pytest.fixture
def planted_database(database):
    with writing(database) as connection:
        ids = planted(connection)
    return database, ids


def test_a_planted_topic_is_recovered_from_five_votes_and_explained_by_its_words(planted_database):
    engine, ids = planted_database
    for topic, papers_of_it in ids.items():
        with writing(engine) as connection:
            for paper in papers_of_it[:5]:
                marks.vote(connection, 1, paper, NOW)
        found = Recommender(engine).recommend(1, now=NOW)
        with writing(engine) as connection:
            for paper in papers_of_it[:5]:
                marks.withdraw_vote(connection, 1, paper)
        shown = [row.paper.id for row in found.rows]
        assert found.learnt_from == 5
        assert len(shown) == 30
        assert not set(shown) & set(papers_of_it[:5])
        # 55 of 295 are of the topic, 19 % by chance. Nearly all of the first ten must be, and most of the list.
        assert np.mean([paper in papers_of_it for paper in shown[:10]]) >= 0.9
        assert np.mean([paper in papers_of_it for paper in shown]) >= 0.75
        explained = {word for term in found.terms[:4] for word in term.split()}
        assert explained <= set(WORDS[topic].split())
        assert set(" ".join(found.rows[0].terms).split()) <= set(found.rows[0].paper.title.lower().split())


def test_each_tag_has_a_model_of_its_own(planted_database):
    engine, ids = planted_database
    with writing(engine) as connection:
        for topic in ("probing", "pruning"):
            for paper in ids[topic][:5]:
                marks.add_tag(connection, 1, paper, topic)
    recommender = Recommender(engine)
    for topic in ("probing", "pruning"):
        shown = [row.paper.id for row in recommender.recommend(1, topic, NOW).rows[:10]]
        assert np.mean([paper in ids[topic] for paper in shown]) >= 0.9
    both = [row.paper.id for row in recommender.recommend(1, now=NOW).rows]
    for topic in ("probing", "pruning"):
        assert set(both) & set(ids[topic])


def test_a_list_is_kept_until_something_changes(planted_database, monkeypatch):
    engine, ids = planted_database
    fits = []
    fitted = recommend._recommend
    monkeypatch.setattr(recommend, "_recommend", lambda *given: fits.append(1) or fitted(*given))
    recommender = Recommender(engine)
    one, two, three, *_ = ids["probing"]

    def change(do, *given):
        with writing(engine) as connection:
            do(connection, *given)

    change(marks.vote, 1, one, NOW)
    change(marks.vote, 2, one, NOW)
    first = recommender.recommend(1, now=NOW)
    assert recommender.recommend(1, now=NOW + 60) is first
    recommender.recommend(2, now=NOW)
    assert len(fits) == 2
    change(marks.vote, 1, two, NOW)
    assert recommender.recommend(1, now=NOW) is not first
    change(marks.add_tag, 1, three, "x")
    recommender.recommend(1, now=NOW)
    shown = recommender.recommend(1, now=NOW).rows[0].paper.id
    change(marks.keep, 1, shown, NOW)
    assert shown not in [row.paper.id for row in recommender.recommend(1, now=NOW).rows]
    assert len(fits) == 5
    recommender.recommend(2, now=NOW + 3599)
    assert len(fits) == 5
    recommender.recommend(2, now=NOW + 3600)
    assert len(fits) == 6


def test_the_sample_is_the_same_every_time(planted_database):
    engine, ids = planted_database
    with writing(engine) as connection:
        marks.vote(connection, 1, ids["probing"][0], NOW)
    one, two = (Recommender(engine).recommend(1, now=NOW) for _ in range(2))
    assert one == two


def test_who_likes_nothing_or_only_new_papers_is_told_so(planted_database):
    engine, ids = planted_database
    assert "Vote for some" in Recommender(engine).recommend(1, now=NOW).note
    assert "Vote for some" in Recommender(engine).recommend(1, "no such tag", NOW).note
    with writing(engine) as connection:
        (new,) = made(connection, 1)
        marks.vote(connection, 1, new, NOW)
    assert "too new" in Recommender(engine).recommend(1, now=NOW).note
    with writing(engine) as connection:
        marks.vote(connection, 1, ids["probing"][0], NOW)
        connection.execute(delete(embeddings).where(embeddings.c.paper_id != ids["probing"][0]))
    found = Recommender(engine).recommend(1, now=NOW)
    assert found.rows == ()
    assert "no other papers" in found.note


def test_papers_without_words_are_ranked_all_the_same(sqlite_database):
    with writing(sqlite_database) as connection:
        ids = planted(connection, each=4)
        connection.execute(papers.update().values(title="Of the", abstract=""))
        marks.vote(connection, 1, ids["probing"][0], NOW)
    found = Recommender(sqlite_database).recommend(1, now=NOW)
    assert len(found.rows) == 19
    assert found.terms == ()


def test_only_the_latest_papers_are_ranked(sqlite_database, monkeypatch):
    with writing(sqlite_database) as connection:
        ids = planted(connection, each=8)
        marks.vote(connection, 1, ids["probing"][0], NOW)
        connection.execute(papers.update().values(year=2020))
        latest = [*ids["federated"], *ids["probing"][1:4]]
        connection.execute(papers.update().where(papers.c.id.in_(latest)).values(year=2026))
    monkeypatch.setattr(recommend, "MOST_RECENT", len(latest))
    shown = [row.paper.id for row in Recommender(sqlite_database).recommend(1, now=NOW).rows]
    assert sorted(shown) == sorted(latest)


def test_a_vector_of_another_model_is_never_mixed_in(sqlite_database):
    with writing(sqlite_database) as connection:
        ids = planted(connection, each=5)
        marks.vote(connection, 1, ids["probing"][0], NOW)
        other = {"model": "other", "vector": unit(np.ones(7))}
        connection.execute(embeddings.update().where(embeddings.c.paper_id == ids["pruning"][0]).values(other))
        assert connection.execute(select(embeddings.c.paper_id).where(embeddings.c.model == "other")).all()
    shown = [row.paper.id for row in Recommender(sqlite_database).recommend(1, now=NOW).rows]
    assert len(shown) == 23
    assert ids["pruning"][0] not in shown


def test_nothing_heavy_is_imported_before_the_first_call():
    code = "import sys, workingpapers.site.recommend; print({'sklearn', 'numpy', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
