"""The index of embeddings equals the table, whatever happened to either."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import delete, update
from vectors_made import embed, nearest, unit

from workingpapers.errors import UserError
from workingpapers.site.database import writing
from workingpapers.site.schema import embeddings
from workingpapers.site.search.vectors import index_file, open_vectors, update_index


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("WORKINGPAPERS_CACHE", str(tmp_path / "cache"))


def read(engine):
    vectors = open_vectors(engine)
    vectors.refresh()
    return vectors


def test_neighbours_are_those_of_all_pairs(database):
    rows = unit(500)
    ids = embed(database, rows)
    update_index(database)
    vectors = read(database)
    assert len(vectors) == 500
    hits = 0
    for query in rows[:50].astype(np.float32):
        hits += len(set(nearest(ids, rows, query, 10)) & set(vectors.nearest(query, 10)))
    assert hits >= 490  # the graph is approximate; random vectors are its hardest case


def test_similarities_are_cosines(database):
    rows = unit(20)
    ids = embed(database, rows)
    update_index(database)
    vectors = read(database)
    query = rows[3].astype(np.float32)
    found = vectors.similarities(query, [*ids, 999])
    assert list(found) == ids
    np.testing.assert_allclose(list(found.values()), rows.astype(np.float32) @ query, atol=1e-6)
    np.testing.assert_array_equal(vectors.vector(ids[3]), query)
    assert vectors.vector(999) is None
    assert vectors.similarities(query, []) == vectors.similarities(query, [999]) == {}


def test_an_index_that_is_replaced_meanwhile_costs_no_answer(sqlite_database):
    rows = unit(3)
    ids = embed(sqlite_database, rows)
    update_index(sqlite_database)
    vectors = read(sqlite_database)

    class Old:
        """The index at hand, which another thread replaces as soon as it was asked for anything."""

        def __init__(self, index):
            self._index = index

        def __getattr__(self, name):
            vectors._index = None
            return getattr(self._index, name)

        def __contains__(self, number):
            return self.contains(number)

    old = Old(vectors._index)
    for ask in (lambda: vectors.similarities(unit(1)[0].astype(np.float32), ids), lambda: vectors.vector(ids[0])):
        vectors._index = old
        assert len(ask()) in (3, 384)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full is Linux's")
def test_an_index_that_cannot_be_written_is_told_and_leaves_nothing(sqlite_database):
    embed(sqlite_database, unit(3))
    file = index_file(sqlite_database)
    made = file.with_name(f"{file.name}.{os.getpid()}")
    made.symlink_to("/dev/full")
    with pytest.raises(UserError, match="cannot be written to"):
        update_index(sqlite_database)
    assert not file.exists()
    assert not made.is_symlink()


def test_new_changed_and_deleted_vectors(database):
    rows = unit(30)
    ids = embed(database, rows[:20])
    update_index(database)
    ids += embed(database, rows[20:])
    update_index(database)
    assert len(read(database)) == 30
    with writing(database) as connection:
        changed = embeddings.c.paper_id == ids[0]
        connection.execute(update(embeddings).where(changed).values(vector=rows[29].tobytes()))
        connection.execute(delete(embeddings).where(embeddings.c.paper_id == ids[1]))
    update_index(database)
    vectors = read(database)
    assert len(vectors) == 29
    np.testing.assert_array_equal(vectors.vector(ids[0]), rows[29].astype(np.float32))
    assert vectors.vector(ids[1]) is None


def test_other_sizes_and_models_are_left_out(database):
    rows = unit(6)
    ids = embed(database, rows[:4])
    others = embed(database, rows[4:, :10]) + embed(database, rows[4:], model="older")
    update_index(database)
    vectors = read(database)
    query = rows[0].astype(np.float32)
    assert len(vectors) == 4
    assert set(vectors.nearest(query, 10)) == set(ids)
    assert list(vectors.similarities(query, [*others, ids[0]])) == [ids[0]]
    assert [vectors.vector(number) for number in others] == [None] * 4


def test_nothing_is_embedded(database):
    update_index(database)
    vectors = read(database)
    query = unit(1)[0].astype(np.float32)
    assert len(vectors) == 0
    assert vectors.nearest(query, 10) == []
    assert vectors.similarities(query, [1, 2]) == {}
    assert vectors.vector(1) is None


def test_an_index_that_is_up_to_date_is_left_as_it_is(sqlite_database):
    embed(sqlite_database, unit(3))
    update_index(sqlite_database)
    before = index_file(sqlite_database).stat()
    update_index(sqlite_database)
    after = index_file(sqlite_database).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_a_reader_takes_up_the_new_file(sqlite_database):
    rows = unit(4)
    embed(sqlite_database, rows[:2])
    vectors = read(sqlite_database)
    assert len(vectors) == 0
    assert vectors.nearest(rows[0].astype(np.float32), 3) == []
    update_index(sqlite_database)
    vectors.refresh()
    assert len(vectors) == 2
    embed(sqlite_database, rows[2:])
    update_index(sqlite_database)
    vectors.refresh()
    assert len(vectors) == 4


def test_a_damaged_file_is_built_anew(sqlite_database):
    rows = unit(5)
    embed(sqlite_database, rows)
    update_index(sqlite_database)
    file = index_file(sqlite_database)
    whole = file.read_bytes()
    for damage in (b"", b"no index", whole[: len(whole) // 2]):
        file.write_bytes(damage)
        assert len(read(sqlite_database)) == 0
        update_index(sqlite_database)
        assert len(read(sqlite_database)) == 5


def test_passwords_are_in_no_file_name(database):
    assert "secret" not in str(index_file(database))


def test_both_libraries_load_in_one_process_whichever_comes_first(tmp_path):
    """Loaded in the other order than `vectors` sees to, they crash the process."""
    code = "from workingpapers.site.search import vectors; vectors._empty(); import onnxruntime, usearch.index"
    subprocess.run([sys.executable, "-c", code], check=True)
