"""Filters take what papers can have, and name what is allowed where they don't."""

import pytest
from papers_made import made
from sqlalchemy import func, select

from workingpapers.errors import UserError
from workingpapers.papers.topics import load_topics
from workingpapers.site.database import writing
from workingpapers.site.schema import papers
from workingpapers.site.search import fulltext
from workingpapers.site.search.filters import Filters, conditions
from workingpapers.site.search.query import Query, parse


def test_a_topic_has_the_papers_of_those_below_it(database):
    below = next(topic for topic in load_topics().values() if topic.parent and load_topics()[topic.parent].parent)
    with writing(database) as connection:
        (inside,) = made(connection, 1, topics=[below.id])
        made(connection, 1)
        for name in (below.id, below.parent):
            limits = conditions(database.dialect.name, Filters(topic=name), Query())
            assert connection.execute(select(papers.c.id).where(*limits)).scalars().all() == [inside]


def test_the_years_of_filter_and_query_both_hold(sqlite_database):
    with writing(sqlite_database) as connection:
        ids = [made(connection, 1, year=year)[0] for year in range(2018, 2024)]
        limits = conditions("sqlite", Filters(year="2019..2022"), Query(years=(2021, None)))
        assert sorted(connection.execute(select(papers.c.id).where(*limits)).scalars()) == ids[3:5]


def test_what_is_excluded_is_looked_for_once_however_many_words_it_is(database):
    fulltext.ensure(database)
    with writing(database) as connection:
        ids = [made(connection, 1, title=title, abstract="")[0] for title in ("One two", "Two", "Three", "Four words")]
        limits = conditions(database.dialect.name, Filters(), parse('-one -one -three -"four words"'))
        assert connection.execute(select(papers.c.id).where(*limits)).scalars().all() == [ids[1]]
        assert len(limits) == 1


@pytest.mark.parametrize(
    "given",
    [{"task": "probe"}, {"standing": "reproduced"}, {"has": frozenset({"method"})}, {"has": frozenset({"code"})}],
)
def test_what_few_papers_have_is_found_without_reading_all(sqlite_database, given):
    query = select(func.count()).select_from(papers).where(*conditions("sqlite", Filters(**given), Query()))
    with sqlite_database.connect() as connection:
        asked = query.compile(sqlite_database, compile_kwargs={"render_postcompile": True})
        values = tuple(asked.params[name] for name in asked.positiontup)
        (step,) = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {asked}", values).all()
    assert "USING INDEX" in step.detail


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"topic": "no-such"}, "Unknown topic 'no-such'"),
        ({"task": "prob"}, "'probe'"),
        ({"year": "soon"}, "'soon'"),
        ({"has": frozenset({"cod"})}, "'code'"),
        ({"standing": "reproducd"}, "'reproduced'"),
    ],
)
def test_values_that_no_paper_has_are_named(given, message):
    with pytest.raises(UserError, match=message):
        Filters(**given)


def test_empty_strings_filter_nothing():
    assert not Filters()
    assert conditions("sqlite", Filters(topic="", task="", year=" ", venue="-", standing=""), Query()) == []
