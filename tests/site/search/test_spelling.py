"""Typos find the words that were meant."""

from papers_made import made

from workingpapers.site.database import writing
from workingpapers.site.search.spelling import Speller


def speller(engine, *titles):
    with writing(engine) as connection:
        for title in titles:
            made(connection, 1, title=title)
    it = Speller(engine)
    it.refresh()
    return it


def test_one_edit_of_each_kind(sqlite_database):
    near = speller(sqlite_database, "Learning transformers").near
    for typo in ("lerning", "leearning", "lezrning", "laerning"):
        assert near(typo) == ["learning"]


def test_two_edits_only_in_long_words(sqlite_database):
    near = speller(sqlite_database, "Learning transformers graph").near
    assert near("tansfomers") == ["transformers"]
    assert near("grpahh") == []


def test_fewer_edits_come_first_then_frequency(sqlite_database):
    near = speller(sqlite_database, "planning", "training", "training", "draining", "straining").near
    assert near("traning") == ["training"]
    assert near("raining") == ["training", "draining"]


def test_short_words_are_left_alone(sqlite_database):
    assert speller(sqlite_database, "GAN").near("gam") == []


def test_whoever_asks_meanwhile_finds_no_word_without_its_frequency(sqlite_database):
    it = speller(sqlite_database, "graph")

    class Words(list):
        def append(self, word):
            super().append(word)
            assert it.near("diffusoin") == ["diffusion"]  # as another thread may at this moment

    it._by_length[len("diffusion")] = Words()
    with writing(sqlite_database) as connection:
        made(connection, 1, title="Diffusion")
    it.refresh()


def test_refresh_learns_what_came_since(sqlite_database):
    it = speller(sqlite_database, "graph")
    assert it.refresh() is False
    with writing(sqlite_database) as connection:
        made(connection, 1, title="Diffusion")
    assert it.near("diffusoin") == []
    assert it.refresh() is True
    assert it.near("diffusoin") == ["diffusion"]
    assert it.frequency("diffusion") == 1
