"""PostgreSQL's own index follows the table by itself; where it cannot be had, the file is used, and that is told."""

import threading

import numpy as np
import pytest
from sqlalchemy import delete, make_url, text, update
from vectors_made import embed, nearest, unit

from workingpapers.site.database import open_database, writing
from workingpapers.site.schema import embeddings, papers
from workingpapers.site.search import fulltext, pgvector
from workingpapers.site.search.pgvector import PgVectors
from workingpapers.site.search.vectors import Vectors, index_file, open_vectors, update_index


@pytest.fixture
def told(monkeypatch):
    """What the log is told, whatever other tests have done to logging."""
    lines = []
    monkeypatch.setattr(
        "workingpapers.site.search.vectors._log.warning", lambda text, *given: lines.append(text % given)
    )
    return lines


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("WORKINGPAPERS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def database(pgvector_database):
    """An empty database of the page on a server that has pgvector."""
    engine = open_database(pgvector_database())
    yield engine
    engine.dispose()


@pytest.fixture
def by_graph(database):
    """The same, where the graph is used however few vectors there are."""
    with writing(database) as connection:
        connection.execute(text(f"ALTER DATABASE {database.url.database} SET enable_seqscan = off"))
    database.dispose()
    return database


def read(engine):
    vectors = open_vectors(engine)
    vectors.refresh()
    assert isinstance(vectors, PgVectors)
    assert not index_file(engine).exists()
    return vectors


def test_every_half_is_read_as_numpy_reads_it(database):
    pgvector.missing(database)
    pgvector.install(database)
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)]
    with database.connect() as connection:
        asked = text("SELECT halfvec_of(:given)::real[]")
        for part in np.split(halves, 62):
            found = connection.execute(asked, {"given": part.tobytes()}).scalar_one()
            np.testing.assert_array_equal(np.asarray(found, dtype=np.float16), part)


def test_the_graph_finds_the_neighbours_of_all_pairs(by_graph):
    rows = unit(500)
    ids = embed(by_graph, rows)
    vectors = read(by_graph)
    with by_graph.connect() as connection:
        asked = {"asked": str(rows[0].tolist()), "most": 10, "expansion": "40"}
        plan = connection.execute(text(f"EXPLAIN {pgvector._NEAREST.text}"), asked).scalars().all()
    assert any("using embeddings_indexed" in line for line in plan)
    hits = 0
    for query in rows[:50].astype(np.float32):
        hits += len(set(nearest(ids, rows, query, 10)) & set(vectors.nearest(query, 10)))
    assert hits >= 490  # the graph is approximate; random vectors are its hardest case


def test_as_many_as_asked_are_found_among_the_deleted(by_graph):
    rows = unit(400)
    ids = embed(by_graph, rows)
    vectors = read(by_graph)
    query = rows[0].astype(np.float32)
    gone = nearest(ids, rows, query, 300)
    with writing(by_graph) as connection:
        connection.execute(delete(embeddings).where(embeddings.c.paper_id.in_(gone)))
    # The graph's nearest 100, which one search looks at, are all gone.
    assert set(vectors.nearest(query, 100)) == set(ids) - set(gone)


def test_what_is_committed_is_found_at_once(database):
    fulltext.ensure(database)
    rows = unit(10)
    first, changed, deleted = embed(database, rows[:3])
    vectors = read(database)
    added = embed(database, rows[3:4])
    with writing(database) as connection:
        other = embeddings.c.paper_id == first
        connection.execute(update(embeddings).where(other).values(vector=rows[9].tobytes()))
        connection.execute(update(papers).where(papers.c.id == changed).values(abstract="Quite another."))
        connection.execute(delete(papers).where(papers.c.id == deleted))
    assert vectors.nearest(rows[9].astype(np.float32), 10)[0] == first
    assert set(vectors.nearest(rows[3].astype(np.float32), 10)) == {first, *added}
    vectors.refresh()
    assert len(vectors) == 2


def test_two_that_come_at_once_make_one_index(database):
    embed(database, unit(50))
    engines = [open_database(database.url.render_as_string(hide_password=False)) for _ in range(4)]
    readers = []
    threads = [threading.Thread(target=lambda engine=engine: readers.append(read(engine))) for engine in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(vectors) for vectors in readers] == [50] * 4
    for engine in engines:
        engine.dispose()


def test_a_user_without_the_right_gets_the_file_until_somebody_else_makes_the_extension(database, told):
    with database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("CREATE ROLE modest LOGIN"))
        connection.execute(text("CREATE DATABASE modest OWNER modest"))
    url = make_url(database.url).set(username="modest", database="modest")
    modest, master = open_database(url.render_as_string()), open_database(str(url.set(username="tester")))
    rows = unit(5)
    ids = embed(modest, rows)
    update_index(modest)
    vectors = open_vectors(modest)
    vectors.refresh()
    assert isinstance(vectors, Vectors)
    assert len(vectors) == 5
    assert "CREATE EXTENSION vector" in told[-1]
    assert str(index_file(modest)) in told[-1]
    with writing(master) as connection:
        connection.execute(text("CREATE EXTENSION vector"))
    vectors = open_vectors(modest)
    vectors.refresh()
    assert isinstance(vectors, PgVectors)
    assert vectors.nearest(rows[2].astype(np.float32), 1) == [ids[2]]
    modest.dispose()
    master.dispose()


def test_an_old_one_is_not_used(database, monkeypatch, told):
    monkeypatch.setattr(pgvector, "_OLDEST", (99, 0))
    assert isinstance(open_vectors(database), Vectors)
    assert "too old (0.8 is needed)" in told[-1]


def test_a_server_without_it_is_told(postgres_database, told):
    engine = open_database(postgres_database())
    if not pgvector.missing(engine):
        pytest.skip("this server has pgvector")
    assert isinstance(open_vectors(engine), Vectors)
    assert "pgvector is not installed" in told[-1]
    engine.dispose()
