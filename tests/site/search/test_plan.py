"""Of many words the telling ones bring papers in."""

from papers_made import made

from workingpapers.site.database import writing
from workingpapers.site.schema import papers
from workingpapers.site.search import fulltext, plan
from workingpapers.site.search.plan import Among, Frequencies, by_words, planned
from workingpapers.site.search.query import Term, parse
from workingpapers.site.search.spelling import Speller
from workingpapers.site.search.titles import Titles


def terms(*words):
    return tuple(Term(((word,),)) for word in words)


def brought(engine, text, *, thorough=False, limits=(), count=50, known=False):
    query, titles = parse(text), Titles(engine)
    if known:
        titles.refresh()
    with engine.connect() as connection:
        plan_ = planned(connection, query, Frequencies(), Speller(engine))
        return by_words(Among(connection, titles, limits, count), plan_, query.needed, thorough=thorough)


def test_papers_with_all_the_words_hold_all_and_others_less(database):
    fulltext.ensure(database)
    with writing(database) as connection:
        (both,) = made(connection, 1, title="Rare words", abstract="")
        (rare,) = made(connection, 1, title="Rare", abstract="")
        made(connection, 5, title="Common words", abstract="")
    found = brought(database, "rare words")
    assert found.pop(both) == 1.0
    assert 0 < found.pop(rare) <= 0.5
    assert all(0 < score <= 0.5 for score in found.values())


def test_words_in_too_many_papers_bring_none_in_by_themselves(database, monkeypatch):
    monkeypatch.setattr(plan, "MOST_RANKED", 4)
    fulltext.ensure(database)
    with writing(database) as connection:
        (both,) = made(connection, 1, title="Rare words", abstract="")
        (rare,) = made(connection, 1, title="Rare", abstract="")
        made(connection, 5, title="Common words", abstract="")
    assert set(brought(database, "rare words")) == {both, rare}
    # Where words alone bring papers in, twice as many are ranked, and those must have any of the others.
    monkeypatch.setattr(plan, "MOST_RANKED", 2)
    assert set(brought(database, "rare words", thorough=True)) == {both}


def test_of_too_many_papers_with_all_the_words_those_with_them_in_title_and_authors_count(database, monkeypatch):
    fulltext.ensure(database)
    with writing(database) as connection:
        made(connection, 6, title="Other", abstract="common words", authors=[])
        (titled,) = made(connection, 1, title="Common", abstract="words", authors=["Ada Words"])
    monkeypatch.setattr(plan, "MOST_RANKED", 4)
    assert brought(database, "common words", count=3) == {titled: 1.0}
    monkeypatch.setattr(plan, "MOST_RANKED", 10)  # few enough to rank: the best of the others follow
    found = brought(database, "common words", count=3)
    assert titled in found
    assert set(found.values()) == {1.0}
    assert len(found) == 3


def test_of_too_many_papers_the_heads_are_the_same_from_the_index_and_from_memory(database, monkeypatch):
    fulltext.ensure(database)
    with writing(database) as connection:
        made(connection, 6, title="Other", abstract="common words", authors=[])
        titled = made(connection, 3, title="Common words", authors=[])
    monkeypatch.setattr(plan, "MOST_RANKED", 4)
    for count in (2, 3, 5):
        from_index, from_memory = (
            brought(database, "common words", count=count, known=known) for known in (False, True)
        )
        assert len(from_memory) == len(from_index) == min(count, 3)
        assert set(from_memory) | set(from_index) <= set(titled)


def test_a_phrase_alone_in_many_papers_brings_those_with_it_in_the_title_first(database):
    fulltext.ensure(database)
    with writing(database) as connection:
        made(connection, 6, title="Other", abstract="common words", authors=[])
        titled = made(connection, plan.ENOUGH, title="Common words", authors=[])
    assert set(brought(database, '"common words"', count=plan.ENOUGH)) == set(titled)


def test_words_that_are_in_no_title_still_find(database, monkeypatch):
    fulltext.ensure(database)
    with writing(database) as connection:
        made(connection, 6, title="Other", abstract="common words", authors=[])
    monkeypatch.setattr(plan, "MOST_RANKED", 4)
    assert len(brought(database, "common words", count=3)) == 3


def test_phrases_and_limits_must_hold_in_every_step(database):
    fulltext.ensure(database)
    with writing(database) as connection:
        (one,) = made(connection, 1, title="Deep phrase with rare words", year=2020)
        made(connection, 1, title="Deep phrase with rare words", year=2021)
        made(connection, 1, title="Deep other phrase with rare words", year=2020)
        (two,) = made(connection, 1, title="Good phrase and rare people", year=2020)
    limits = [papers.c.year == 2020]
    assert set(brought(database, '"good phrase" rare words', limits=limits)) == {two}
    assert set(brought(database, '"deep phrase" rare nothing', limits=limits)) == {one}
    assert set(brought(database, '"deep phrase"', limits=limits)) == {one}
    assert brought(database, "", limits=limits) == {}


def test_words_that_say_nothing_count_only_where_there_are_no_others(sqlite_database):
    fulltext.ensure(sqlite_database)
    speller, frequencies = Speller(sqlite_database), Frequencies()
    with writing(sqlite_database) as connection:
        made(connection, 1, title="The graph and what not")
        assert [it.word for it in planned(connection, parse("what the graph"), frequencies, speller).terms] == ["graph"]
        assert [it.word for it in planned(connection, parse("what the"), frequencies, speller).terms] == ["what", "the"]


def test_frequencies_remember_until_told(sqlite_database):
    fulltext.ensure(sqlite_database)
    frequencies, (word,) = Frequencies(), terms("graph")
    with writing(sqlite_database) as connection:
        assert frequencies.of(connection, word) == 0
        made(connection, 1, title="Graph")
        assert frequencies.of(connection, word) == 1  # a word that was in no paper is looked for again
        made(connection, 1, title="Graph")
        assert frequencies.of(connection, word) == 1
        frequencies.forget()
        assert frequencies.of(connection, word) == 2
