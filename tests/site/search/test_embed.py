"""Every paper is embedded once, whatever interrupts the work."""

import numpy as np
import pytest
from papers_made import made
from sqlalchemy import select, update

from workingpapers.site.database import writing
from workingpapers.site.schema import embeddings, papers
from workingpapers.site.search import embed, fulltext
from workingpapers.site.search.embed import embed_missing
from workingpapers.site.search.encoder import DIMENSIONS, MODEL, digest, embedded_text
from workingpapers.site.search.vectors import open_vectors


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch, tmp_path):
    monkeypatch.setattr(embed, "AT_ONCE", 4)
    monkeypatch.setenv("WORKINGPAPERS_CACHE", str(tmp_path / "cache"))


def rows(engine):
    with engine.connect() as connection:
        found = select(embeddings.c.paper_id, embeddings.c.digest, embeddings.c.vector).order_by(embeddings.c.paper_id)
        return connection.execute(found).all()


class Counting:
    def __init__(self, encoder, stop_after=None):
        self.encoder, self.texts, self.stop_after = encoder, [], stop_after

    def encode(self, texts):
        if self.stop_after is not None and len(self.texts) >= self.stop_after:
            raise KeyboardInterrupt
        self.texts += texts
        return self.encoder.encode(texts)


def test_all_papers_are_embedded_and_indexed(database, word_encoder):
    with writing(database) as connection:
        ids = made(connection, 10)
    seen = []
    assert embed_missing(database, word_encoder, lambda done, all_: seen.append((done, all_))) == 10
    assert seen == [(4, 10), (8, 10), (10, 10)]
    kept = rows(database)
    assert [row.paper_id for row in kept] == ids
    text = embedded_text(
        f"Paper {ids[0]} on frozen features", f"Abstract of paper {ids[0]}: a linear probe on frozen features."
    )
    assert kept[0].digest == digest(text)
    vector = np.frombuffer(kept[0].vector, dtype=np.float16)
    assert vector.shape == (DIMENSIONS,)
    # Half precision keeps three digits of components that are at most 1.
    np.testing.assert_allclose(vector, word_encoder.encode([text])[0], atol=5e-4)
    vectors = open_vectors(database)
    vectors.refresh()
    assert len(vectors) == 10
    assert embed_missing(database, word_encoder) == 0


def test_an_interrupted_run_goes_on_where_it_stopped(database, word_encoder):
    with writing(database) as connection:
        made(connection, 10)
    first = Counting(word_encoder, stop_after=8)
    with pytest.raises(KeyboardInterrupt):
        embed_missing(database, first)
    assert len(rows(database)) == 8
    second = Counting(word_encoder)
    assert embed_missing(database, second) == 2
    assert len({*first.texts, *second.texts}) == len(first.texts) + len(second.texts) == 10


def test_what_changed_or_is_of_another_model_is_embedded_again(database, word_encoder):
    fulltext.ensure(database)
    with writing(database) as connection:
        one, two, _ = made(connection, 3)
    embed_missing(database, word_encoder)
    with writing(database) as connection:
        connection.execute(update(papers).where(papers.c.id == one).values(abstract="Quite another."))
        connection.execute(update(embeddings).where(embeddings.c.paper_id == two).values(model="older"))
    again = Counting(word_encoder)
    assert embed_missing(database, again) == 2
    assert "Quite another." in again.texts[0]
    with database.connect() as connection:
        assert set(connection.execute(select(embeddings.c.model)).scalars()) == {MODEL}


def test_a_paper_that_goes_while_it_is_embedded_is_passed_over(database, word_encoder):
    with writing(database) as connection:
        ids = made(connection, 3)

    class Deleting:
        def encode(self, texts):
            with writing(database) as connection:
                connection.execute(papers.delete().where(papers.c.id == ids[1]))
            return word_encoder.encode(texts)

    embed_missing(database, Deleting())
    assert [row.paper_id for row in rows(database)] == [ids[0], ids[2]]


def test_nothing_to_do_needs_no_encoder(sqlite_database):
    assert embed_missing(sqlite_database) == 0
