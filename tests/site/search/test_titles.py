"""Titles and authors, compared all at once, are what they are one by one."""

import re
import time

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from papers_made import made

from workingpapers.site.database import writing
from workingpapers.site.schema import papers
from workingpapers.site.search.query import STOP, Term, split, stem
from workingpapers.site.search.titles import Titles

WORDS = st.lists(st.sampled_from("learn learning the of graph graphs deep Ünder".split()), max_size=6).map(" ".join)


def put(engine, *shelf):
    with writing(engine) as connection:
        return [made(connection, 1, title=title, authors=authors)[0] for title, authors in shelf]


def of(titles, engine, ids):
    with engine.connect() as connection:
        return titles.of(titles.known(connection, ids))


def stems(text):
    return [stem(word) for word in split(text)]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(shelf=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=5), asked=WORDS)
def test_it_is_what_a_look_at_each_paper_says(sqlite_database, shelf, asked):
    ids = put(sqlite_database, *((title, [name]) for title, name in shelf))
    words = of(Titles(sqlite_database), sqlite_database, ids)
    typed = split(asked)
    terms = [Term(((word,),)) for word in typed]
    for term in terms:
        has = [stem(term.word) in stems(f"{title} {name}") for title, name in shelf]
        assert words.holding(term).tolist() == has
    for place, (title, _) in enumerate(shelf):
        telling = [stem(word) for word in split(title) if word not in STOP]
        share = sum(word in stems(asked) for word in telling) / max(1, len(telling))
        assert words.covered(terms)[place] == share
        line = f" {' '.join(stems(title))} "
        assert words.verbatim(typed)[place] == (bool(typed) and f" {' '.join(stems(asked))} " in line)
        in_order = re.search(" (.* )?".join(["", *stems(asked), ""]), line) if typed else True
        assert words.ordered(typed)[place] == bool(in_order)


def test_a_term_holds_by_any_of_its_phrases(sqlite_database):
    ids = put(sqlite_database, ("Pre training", []), ("Pretraining", []), ("Training", ["Ada Pre"]), ("Training", []))
    words = of(Titles(sqlite_database), sqlite_database, ids)
    assert words.holding(Term((("pre", "training"), ("pretraining",)))).tolist() == [True, True, True, False]


def test_of_all_papers_those_that_hold_terms(database):
    one, two, three = put(database, ("Deep graphs", ["Ada"]), ("Graph of depth", ["Deep Ada"]), ("Graph", []))
    titles = Titles(database)
    titles.refresh()
    deep, graph = Term((("deep",),)), Term((("graph",),))
    assert titles.holding([graph]) == [one, two, three]
    assert titles.holding([deep, graph]) == [one, two]
    assert titles.holding([Term((("ada", "deep"), ("deeply",)))]) == [one, two]
    assert titles.holding([Term((("nothing",),))]) == []
    with writing(database) as connection:
        connection.execute(papers.update().where(papers.c.id == one).values(title="Trees", updated=time.time()))
    titles.refresh()
    assert titles.holding([graph]) == [two, three]


def test_what_changes_is_read_again(database):
    one, two = put(database, ("Deep graphs", ["Ada"]), ("Other", []))
    titles = Titles(database)
    titles.refresh()
    with writing(database) as connection:
        connection.execute(papers.update().where(papers.c.id == one).values(title="Trees", updated=time.time()))
    graph, tree = Term((("graph",),)), Term((("tree",),))
    titles.refresh()
    words = of(titles, database, [one, two])
    assert words.holding(graph).tolist() == [False, False]
    assert words.holding(tree).tolist() == [True, False]


def test_what_is_known_is_not_read_again(sqlite_database, monkeypatch):
    ids = put(sqlite_database, *((f"Paper {number}", ["Ada"]) for number in range(7)))
    titles = Titles(sqlite_database)
    read = []
    learn = titles._learn
    monkeypatch.setattr(titles, "_learn", lambda rows, known: (read.extend(row[0] for row in rows), learn(rows, known)))
    titles.refresh()
    titles.refresh()
    assert sorted(read) == ids


def test_those_that_came_since_are_read_and_those_that_went_left_out(sqlite_database):
    titles = Titles(sqlite_database)
    titles.refresh()
    (one,) = put(sqlite_database, ("Deep graphs", []))
    with sqlite_database.connect() as connection:
        assert titles.known(connection, [10_000, one]) == [one]
        assert titles.known(connection, []) == []
    assert titles.of([]).count == 0
    assert titles.of([one]).holding(Term((("graph",),))).tolist() == [True]


def test_more_papers_than_are_read_at_once(sqlite_database):
    with writing(sqlite_database) as connection:
        ids = made(connection, 3000, title="Deep graphs and trees", authors=["Ada Lovelace"])
    titles = Titles(sqlite_database)
    titles.refresh()
    assert titles.of(ids).holding(Term((("lovelace",),))).all()
