"""The full-text index follows the table of papers, and no query is an error to it."""

import sqlalchemy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from papers_made import made
from sqlalchemy import delete, select, update

from workingpapers.site.database import writing
from workingpapers.site.schema import embeddings, papers
from workingpapers.site.search import fulltext
from workingpapers.site.search.filters import LATEST
from workingpapers.site.search.query import Term, parse


def found(engine, text, place=None):
    groups = [[Term(term.phrases, place)] for term in (*parse(text).words, *parse(text).needed)]
    with engine.connect() as connection:
        return [number for number, _ in fulltext.ranked(connection, groups, [], 50)]


def test_papers_that_were_there_are_indexed_and_those_that_come(database):
    with writing(database) as connection:
        (before,) = made(connection, 1, title="Sparse attention")
    fulltext.ensure(database)
    fulltext.ensure(database)
    with writing(database) as connection:
        (after,) = made(connection, 1, title="Attention, naïvely")
    assert sorted(found(database, "attentions")) == [before, after]  # by stem
    assert found(database, "naive") == [after]


def test_the_index_follows_updates_and_deletes(database):
    fulltext.ensure(database)
    with writing(database) as connection:
        one, two = made(connection, 2, title="Graph {}", abstract="Messages", authors=["Émile Zola"])
    with writing(database) as connection:
        connection.execute(update(papers).where(papers.c.id == one).values(title="Trees", authors=["Ada Byron"]))
    assert found(database, "graph") == [two]
    assert found(database, "trees") == [one]
    assert found(database, "zola", "authors") == [two]
    with writing(database) as connection:
        connection.execute(delete(papers).where(papers.c.id == two))
    assert found(database, "graph") == []
    assert found(database, "messages") == [one]


def test_an_aborted_change_leaves_the_index_as_it_was(database):
    fulltext.ensure(database)
    with writing(database) as connection:
        (one,) = made(connection, 1, title="Graph")
    with database.connect() as connection:
        connection.execute(update(papers).values(title="Trees"))
        connection.rollback()
    assert found(database, "graph") == [one]
    assert found(database, "trees") == []


def test_places(database):
    fulltext.ensure(database)
    with writing(database) as connection:
        (one,) = made(
            connection, 1, title="Title", abstract="Body", authors=["Writer"], venue="Venue", keywords=["Key"]
        )
    for word, place in [("title", "title"), ("writer", "authors"), ("venue", "venue"), ("2026", "venue")]:
        assert found(database, word, place) == [one]
        assert found(database, word) == [one]
    assert found(database, "body", "title") == []
    assert found(database, "key") == [one]


def test_phrases_and_compounds(database):
    fulltext.ensure(database)
    with writing(database) as connection:
        apart, joined, mixed = (
            made(connection, 1, title=title, abstract="")[0]
            for title in ("Pre-training deep nets", "Pretraining nets", "Training pre nets")
        )
    assert sorted(found(database, "pre-training")) == [apart, joined]
    assert found(database, '"deep nets"') == [apart]
    assert found(database, "training pre") == found(database, "pre training")
    assert mixed in found(database, "pre training")


def test_a_title_counts_more_than_an_abstract(database):
    fulltext.ensure(database)
    with writing(database) as connection:
        made(connection, 30)
        (low,) = made(connection, 1, title="Something", abstract="On kernels.")
        (high,) = made(connection, 1, title="Kernels", abstract="On something.")
    assert found(database, "kernels") == [high, low]


def test_counts_and_conditions(database):
    fulltext.ensure(database)
    with writing(database) as connection:
        made(connection, 3, title="Graph", year=2020)
        late = made(connection, 2, title="Graph", year=2024)
    groups = [[Term((("graph",),))]]
    with database.connect() as connection:
        assert fulltext.count(connection, groups) == 5
        held = select(papers.c.id).where(fulltext.holding(database.dialect.name, groups), papers.c.year > 2020)
        assert sorted(connection.execute(held).scalars()) == late
        ranked = fulltext.ranked(connection, groups, [papers.c.year > 2020], 10)
        assert sorted(number for number, _ in ranked) == late
        assert all(score > 0 for _, score in ranked)


def test_words_in_many_papers_are_counted_by_statistics_where_there_are_some(database, monkeypatch):
    monkeypatch.setattr(fulltext, "_MANY", 100)
    fulltext.ensure(database)
    with writing(database) as connection:
        made(connection, 150, title="Graph")
        made(connection, 90, title="Kernel")
    with database.connect() as connection:
        before = [fulltext.count(connection, [[Term(((word,),))]]) for word in ("graph", "kernel", "nothing")]
        connection.execute(sqlalchemy.text("ANALYZE"))
        after = [fulltext.count(connection, [[Term(((word,),))]]) for word in ("graph", "kernel", "nothing")]
    assert before == after == [150, 90, 0]  # of so few rows the statistics are of all


def test_an_orders_index_is_gone_through_and_not_every_paper_that_matches_read(sqlite_database):
    fulltext.ensure(sqlite_database)
    held = fulltext.holding("sqlite", [parse("graph").words])
    query = select(papers.c.id).where(held).order_by(*LATEST).limit(20)
    asked = query.compile(sqlite_database, compile_kwargs={"literal_binds": True})
    with sqlite_database.connect() as connection:
        steps = [row.detail for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {asked}")]
    assert steps[0] == "SCAN papers USING COVERING INDEX papers_dated"
    assert not any("ORDER BY" in step for step in steps)


def test_a_changed_text_loses_its_embedding_and_another_change_does_not(database):
    fulltext.ensure(database)
    with writing(database) as connection:
        one, two = made(connection, 2)
        for number in (one, two):
            row = {"paper_id": number, "model": "m", "digest": "d", "vector": b""}
            connection.execute(sqlalchemy.insert(embeddings).values(row))
        connection.execute(update(papers).where(papers.c.id == one).values(abstract="New"))
        connection.execute(update(papers).where(papers.c.id == two).values(citations=5))
        assert connection.execute(select(embeddings.c.paper_id)).scalars().all() == [two]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(text=st.text(max_size=60) | st.text(alphabet="ab\"-:(){}*^+&|!<>\\' ²ⅷ́", max_size=30))
def test_no_text_is_an_error(database, text):
    fulltext.ensure(database)
    query = parse(text)
    with database.connect() as connection:
        for terms in (query.words, query.needed, query.excluded):
            for term in terms:
                assert fulltext.ranked(connection, [[term]], [], 5) == []
            if terms:
                assert fulltext.count(connection, [list(terms), list(terms)]) == 0
