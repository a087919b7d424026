"""Of many words the telling ones bring papers in."""

from papers_made import made

from workingpapers.site.database import writing
from workingpapers.site.search import fulltext, plan
from workingpapers.site.search.plan import Frequencies, Plan, planned, steps
from workingpapers.site.search.query import Term, parse
from workingpapers.site.search.spelling import Speller


def terms(*words):
    return tuple(Term(((word,),)) for word in words)


def test_rare_words_lead_and_common_ones_follow(sqlite_database, monkeypatch):
    monkeypatch.setattr(plan, "MOST_RANKED", 10)
    fulltext.ensure(sqlite_database)
    asked = terms("common", "rare", "middling", "nowhere")
    with sqlite_database.connect() as connection:
        found = list(steps(connection, Plan(asked, (50, 2, 7, 0), {}, {}), ()))
    rare, middling, common = asked[1], asked[2], asked[0]
    assert found == [[[rare, middling], [common]], [[common]]]


def test_words_that_are_all_too_common_are_looked_for_in_titles(sqlite_database, monkeypatch):
    monkeypatch.setattr(plan, "MOST_RANKED", 2)
    fulltext.ensure(sqlite_database)
    with writing(sqlite_database) as connection:
        made(connection, 5, abstract="common words")
        (group,) = steps(connection, Plan(terms("common", "words"), (5, 5), {}, {}), ())
    assert group == [[Term((("common",),), "title")], [Term((("words",),), "title")]]


def test_phrases_must_hold_in_every_step(sqlite_database):
    fulltext.ensure(sqlite_database)
    (must,) = parse('"a phrase"').needed
    with sqlite_database.connect() as connection:
        assert list(steps(connection, Plan((), (), {}, {}), [must])) == [[[must]]]
        (first,) = steps(connection, Plan(terms("x"), (1,), {}, {}), [must])
        assert first == [[must], [*terms("x")]]


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
