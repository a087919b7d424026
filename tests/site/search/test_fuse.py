"""The fused score is its definition."""

import math

import pytest
from papers_made import made

from workingpapers.site.database import writing
from workingpapers.site.search import fulltext
from workingpapers.site.search.fuse import COVERED, ORDERED, TITLE, VERBATIM, WORDS, fused
from workingpapers.site.search.plan import Plan
from workingpapers.site.search.query import Term, parse
from workingpapers.site.search.titles import Titles


@pytest.fixture
def shelved(database):
    with writing(database) as connection:
        ids = [made(connection, 1, title=title)[0] for title in ("Deep graphs", "A graph of depth", "Something")]
    return database, ids


def score(engine, text, words, cosines, frequencies=None):
    query = parse(text)
    with engine.connect() as connection:
        plan = Plan(query.words, frequencies or (9,) * len(query.words), {}, {})
        return fused(connection, query, plan, words, cosines, Titles(engine))


def test_the_definition(shelved):
    engine, (whole, graph, other) = shelved
    cosines = {graph: 0.5, other: 0.8, whole: -0.1}
    scores = score(engine, "deep graph", {whole: 1.0, graph: 0.4}, cosines, (100, 9))
    deep, of_graph = math.log(1 + 1e5 / 101), math.log(1 + 1e5 / 10)
    wanted = {
        whole: WORDS + TITLE + COVERED + ORDERED + VERBATIM / 4,
        graph: 0.5 + 0.4 * WORDS + TITLE * of_graph / (deep + of_graph) + COVERED / 2,  # of "graph" and "depth"
        other: 0.8,
    }
    assert scores == pytest.approx(wanted)
    assert list(scores) == [whole, graph, other]


def test_authors_count_like_the_title(shelved):
    engine, (_, graph, other) = shelved
    scores = score(engine, "turing policies", {graph: 1.0}, {other: 1.0})  # every paper here is by Turing and another
    assert scores == pytest.approx({graph: WORDS + TITLE / 2, other: 1 + TITLE / 2})


def test_what_was_meant_counts_like_what_was_typed(shelved):
    engine, (whole, *_) = shelved
    query = parse("dep")
    with engine.connect() as connection:
        plan = Plan((Term((("depp",), ("deep", "graph")), None, "dep"),), (1,), {}, {})
        assert fused(connection, query, plan, {whole: 0.0}, None, Titles(engine)) == pytest.approx(
            {whole: TITLE + COVERED}
        )


@pytest.mark.parametrize(
    ("typed", "share"),
    [
        ("The Cost is 100% of_it", 1.0),
        ("the cost is 100%.", 0.75),
        ("cost is 100", 0.5),
        ("cost is", 0.0),  # two words stand in too many abstracts
        ("the cost is 1000 of_it", 0.0),
        ("the cost_is 100% of_it", 0.0),  # % and _ stand for themselves
        ("the%of_it now then", 0.0),
    ],
)
def test_a_sentence_of_the_abstract_as_it_was_typed(database, typed, share):
    fulltext.ensure(database)
    with writing(database) as connection:
        (one,) = made(
            connection, 1, title="Something", abstract="We know: the cost is 100% of_it. No more.", authors=[]
        )
    assert score(database, typed, {one: 1.0}, None) == pytest.approx({one: WORDS + VERBATIM * share})


def test_without_embeddings_and_without_papers(shelved):
    engine, (_, _, other) = shelved
    assert score(engine, "x", {other: 0.5}, None) == {other: WORDS / 2}
    assert score(engine, "x", {}, None) == {}


def test_papers_that_went_in_the_meantime_are_left_out(shelved):
    engine, (whole, *_) = shelved
    assert list(score(engine, "x", {whole: 0.5, 10_000: 1.0}, {})) == [whole]
