"""The fused score is its definition."""

import math

import pytest
from papers_made import made

from workingpapers.site.database import writing
from workingpapers.site.search.fuse import (
    LONG,
    PHRASE,
    TITLE_LONG,
    TITLE_SHORT,
    WORDS_ALL_THERE,
    WORDS_LONG,
    WORDS_PARTLY,
    fused,
)
from workingpapers.site.search.plan import Plan
from workingpapers.site.search.query import parse


@pytest.fixture
def shelved(sqlite_database):
    with writing(sqlite_database) as connection:
        ids = [made(connection, 1, title=title)[0] for title in ("Deep graphs", "Graph of depth", "Something")]
    return sqlite_database, ids


def test_the_definition(shelved):
    engine, (phrase, graph, other) = shelved
    query = parse("deep graph")
    plan = Plan(query.words, (100, 9), {}, {})
    with engine.connect() as connection:
        scores = fused(connection, query, plan, {phrase: 4.0, graph: 2.0}, {graph: 0.5, other: 0.8, phrase: -0.1})
    deep, of_graph = math.log(1 + 1e5 / 101), math.log(1 + 1e5 / 10)
    w = WORDS_ALL_THERE
    wanted = {
        phrase: w + TITLE_SHORT + PHRASE,
        graph: w / 2 + (1 - w) * 0.5 + TITLE_SHORT * of_graph / (deep + of_graph),
        other: (1 - w) * 0.8,
    }
    assert scores == pytest.approx(wanted)
    assert list(scores) == [phrase, graph, other]


def test_words_that_no_paper_has_all_of_are_trusted_less_and_authors_count(shelved):
    engine, (_, graph, other) = shelved
    query = parse("turing policies")
    with engine.connect() as connection:
        scores = fused(connection, query, Plan(query.words, (9, 9), {}, {}), {graph: 1.0}, {other: 1.0})
    share = TITLE_SHORT / 2  # every paper here is by Turing and another
    assert scores == pytest.approx({graph: WORDS_PARTLY + share, other: 1 - WORDS_PARTLY + share})


def test_a_query_of_many_words_trusts_them_more(shelved):
    engine, (phrase, _, other) = shelved
    query = parse("deep a1 a2 a3 a4 a5 a6")
    plan = Plan(query.words, (9,) * LONG, {}, {})
    with engine.connect() as connection:
        scores = fused(connection, query, plan, {phrase: 1.0}, {other: 1.0})
    assert scores == pytest.approx({phrase: WORDS_LONG + TITLE_LONG / LONG, other: 1 - WORDS_LONG})


def test_without_embeddings_words_have_all_the_weight(shelved):
    engine, (_, _, other) = shelved
    with engine.connect() as connection:
        assert fused(connection, parse("x"), Plan((), (), {}, {}), {other: 3.0}, None) == {other: 1.0}
        assert fused(connection, parse("x"), Plan((), (), {}, {}), {}, None) == {}


def test_papers_beyond_those_compared_follow_in_their_order(shelved, monkeypatch):
    engine, ids = shelved
    monkeypatch.setattr("workingpapers.site.search.fuse._LOOKED_AT", 1)
    query = parse("something")
    words = {ids[0]: 3.0, ids[1]: 1.0, ids[2]: 2.0}
    with engine.connect() as connection:
        scores = fused(connection, query, Plan(query.words, (1,), {}, {}), words, None)
    assert list(scores) == [ids[0], ids[2], ids[1]]
