"""The score is what its definition says, whatever the order; periods, pages, neighbours and reasons are right."""

import contextlib
import random
from datetime import date, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from papers_made import made
from sqlalchemy import select, text

from workingpapers.errors import UserError
from workingpapers.site import trending as under_test
from workingpapers.site.database import writing
from workingpapers.site.schema import signals, trends
from workingpapers.site.trending import (
    EPOCH,
    HALF_LIVES,
    PERIODS,
    WEIGHTS,
    Signal,
    day_of,
    period_of,
    read_period,
    record_all,
    trending,
)

DAYS = st.dates(date(1995, 1, 1), date(2105, 12, 31)).map(date.isoformat)
SIGNALS = st.lists(
    st.builds(
        Signal,
        st.integers(0, 3),
        st.sampled_from(list(WEIGHTS)),
        st.integers(-50, 5000),
        DAYS | st.dates(date(2026, 11, 20), date(2026, 12, 5)).map(date.isoformat) | st.sampled_from(["1987", "2026"]),
    ),
    max_size=20,
)


@contextlib.contextmanager
def undone(engine):
    """A transaction that is rolled back, so that examples don't see each other."""
    with engine.connect() as connection:
        yield connection
        connection.rollback()


def naive_score(happened, name, start, paper, seen):
    """The decayed score as defined, seen from a day: each signal halves every half-life after it happened."""
    score = 0.0
    for _, kind, amount, day in (signal for signal in happened if signal.paper_id == paper):
        if len(day) == 4 and name != "all":
            continue
        when = date.fromisoformat(day if len(day) > 4 else f"{day}-07-01")
        if period_of(name, when).start != start:
            continue
        if name == "all":
            when = min(max(when, EPOCH), date(2099, 12, 31))
        half_life = HALF_LIVES[name]
        score += amount * WEIGHTS[kind] * (0.5 ** ((seen - when).days / half_life) if half_life else 1)
    return score


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(happened=SIGNALS, seed=st.integers(0, 2**32), parts=st.integers(1, 5))
def test_any_order_and_any_batches_give_the_same_sums_and_these_are_the_definition(database, happened, seed, parts):
    shuffled = random.Random(seed).sample(happened, len(happened))
    stored = []
    for order in (happened, shuffled):
        with undone(database) as connection:
            ids = made(connection, 4)
            moved = [signal._replace(paper_id=ids[signal.paper_id]) for signal in order]
            for first in range(parts):
                record_all(connection, moved[first::parts])
            rows = connection.execute(select(trends.c.period, trends.c.start, trends.c.paper_id, trends.c.score)).all()
            stored.append({(name, start, number - ids[0]): score for name, start, number, score in rows})
    assert stored[0] == stored[1]  # to the last bit
    for (name, start, paper), score in stored[0].items():
        first = date.fromisoformat(start)
        positive = sum(abs(s.amount) for s in happened if s.paper_id == paper)
        expected = naive_score(happened, name, first, paper, first)
        # Units are rounded to whole numbers of 1/64 star: at most 1/128 for each one counted.
        assert score / 64 == pytest.approx(expected, abs=positive / 128 + 1e-6, rel=1e-9)


def test_what_is_taken_back_leaves_no_trace(database):
    with writing(database) as connection:
        (paper,) = made(connection, 1)
        record_all(connection, [Signal(paper, "stars", 10**6, "2026-11-23")])
        before = connection.execute(select(trends)).all()
        for _ in range(3):
            record_all(connection, [Signal(paper, "vote", 1, "2026-11-24")])
            record_all(connection, [Signal(paper, "citations", 7, "2041-11-24")])
        record_all(connection, [Signal(paper, "vote", -3, "2026-11-24")])
        record_all(connection, [Signal(paper, "citations", -21, "2041-11-24")])
        after = connection.execute(select(trends).where(trends.c.score != 0)).all()
    assert sorted(after) == sorted(before)


def test_a_million_citations_at_the_horizon_are_still_exact():
    ((_, _, unit),) = [unit for unit in under_test._units("citations", "2099-12-31") if unit[0] == "all"]
    assert 10**6 * unit < 2**53


def test_later_weighs_more_and_kinds_weigh_as_documented(database):
    with writing(database) as connection:
        monday, sunday, starred = made(connection, 3)
        record_all(connection, [Signal(monday, "vote", 7, "2026-11-23")])
        record_all(connection, [Signal(sunday, "vote", 1, "2026-11-29")])
        record_all(connection, [Signal(starred, "stars", 9, "2026-11-29")])
        week = trending(connection, "week", date(2026, 11, 25))
        month = trending(connection, "month", date(2026, 11, 1))
    assert [row.paper.id for row in week.rows] == [sunday, starred, monday]  # 8 times after six days
    assert [row.score for row in week.rows] == pytest.approx([10, 9, 70 / 8], rel=0.01)
    assert [row.paper.id for row in month.rows] == [monday, sunday, starred]


def test_each_row_says_why(database):
    with writing(database) as connection:
        old, new = made(connection, 1, published="2026-10-01")[0], made(connection, 1)[0]
        for kind, amount in {"vote": 1, "stars": 1200, "citations": 2, "runs": 5}.items():
            record_all(connection, [Signal(old, kind, amount, "2026-11-25")])
        record_all(connection, [Signal(old, "vote", 5, "2026-11-24")])
        record_all(connection, [Signal(old, "citations", 40, "2025")])
        record_all(connection, [Signal(new, "published", 1, "2026-11-25")])
        day, week, ever = (trending(connection, name, date(2026, 11, 25)) for name in ("day", "week", "all"))
    assert [row.why for row in day.rows] == ["1 vote, 1,200 stars, 2 citations, 5 runs", "published"]
    assert [row.why for row in week.rows] == ["6 votes, 1,200 stars, 2 citations, 5 runs", "published"]
    assert ever.rows[0].counts == {"vote": 6, "stars": 1200, "citations": 42, "runs": 5}
    assert [row.is_new for row in day.rows] == [False, True]
    assert [row.is_new for row in ever.rows] == [False, False]


def test_new_without_a_day_of_publication_is_what_was_added_in_its_year(database):
    added = 1764072000.0  # 2025-11-25
    with writing(database) as connection:
        now = made(connection, 1, published=None, year=2025, added=added)[0]
        old = made(connection, 1, published=None, year=2019, added=added)[0]
        record_all(connection, [Signal(paper, "vote", 1, "2025-11-25") for paper in (now, old)])
        rows = trending(connection, "day", date(2025, 11, 25)).rows
    assert {row.paper.id: row.is_new for row in rows} == {now: True, old: False}


def test_neighbours_are_the_nearest_periods_with_anything(database):
    with writing(database) as connection:
        (paper,) = made(connection, 1)
        for day in ("2026-01-05", "2026-11-02", "2026-11-25", "2027-02-01"):
            record_all(connection, [Signal(paper, "vote", 1, day)])
        record_all(connection, [Signal(paper, "vote", -1, "2026-11-02")])  # an emptied day is no neighbour
        day = trending(connection, "day", date(2026, 11, 25))
        quiet = trending(connection, "day", date(2026, 11, 26))
        week = trending(connection, "week", date(2026, 11, 25))
        month = trending(connection, "month", date(2026, 11, 25))
        ever = trending(connection, "all", date(2026, 11, 25))
    assert (day.previous.key, day.next.key) == ("2026-01-05", "2027-02-01")
    assert (quiet.rows, quiet.previous.key) == ([], "2026-11-25")
    assert (week.previous.key, week.next.key) == ("2026-W02", "2027-W05")
    assert (month.previous.key, month.next.key) == ("2026-01", "2027-02")
    assert (ever.previous, ever.next) == (None, None)


def test_pages_hold_every_paper_once(database):
    with writing(database) as connection:
        ids = made(connection, 45)
        record_all(connection, [Signal(paper, "vote", 1 + paper % 3, "2026-11-25") for paper in ids])
        pages = [trending(connection, "day", date(2026, 11, 25), page) for page in (1, 2, 3)]
    shown = [row.paper.id for page in pages for row in page.rows]
    assert shown == sorted(ids, key=lambda paper: (-(paper % 3), -paper))
    assert [page.more for page in pages] == [True, True, False]


@pytest.mark.parametrize(
    ("name", "key", "label", "first", "last"),
    [
        ("day", "2026-11-25", "Wednesday 25 November 2026", "2026-11-25", "2026-11-25"),
        ("week", "2026-W48", "Week 48, 23 to 29 November 2026", "2026-11-23", "2026-11-29"),
        ("week", "2026-W49", "Week 49, 30 November to 6 December 2026", "2026-11-30", "2026-12-06"),
        ("week", "2020-W53", "Week 53, 28 December 2020 to 3 January 2021", "2020-12-28", "2021-01-03"),
        ("month", "2024-02", "February 2024", "2024-02-01", "2024-02-29"),
        ("all", "", "All time", "2000-01-01", "2026-11-25"),
    ],
)
def test_periods_are_read_and_named(name, key, label, first, last):
    period = read_period(name, key, date(2026, 11, 25))
    assert (period.key, period.label) == (key, label)
    assert (period.start.isoformat(), period.end.isoformat()) == (first, last)


@given(st.sampled_from(PERIODS[:3]), st.dates(date(2000, 1, 3), date(2099, 12, 1)))
def test_a_period_holds_its_day_and_its_key_leads_back(name, day):
    period = period_of(name, day)
    assert period.start <= day <= period.end
    assert period_of(name, period.end + timedelta(days=1)).start == period.end + timedelta(days=1)
    if period.start >= EPOCH:
        assert read_period(name, period.key, date(2001, 1, 1)) == period


@pytest.mark.parametrize(
    "when", ["tomorrow", "2026-13", "2026-W54", "2026-02-30", "1999-12-31", "20261125x", "٢٠٢٦-11"]
)
def test_no_date_is_refused(when):
    with pytest.raises(UserError, match="write a day like"):
        read_period("day", when, date(2026, 11, 25))


def test_bad_questions_are_refused_by_name(sqlite_database):
    with sqlite_database.connect() as connection:
        with pytest.raises(UserError, match="Did you mean 'week'"):
            trending(connection, "weekk", date(2026, 11, 25))
        with pytest.raises(UserError, match="pages 1 to 50; got 51"):
            trending(connection, "week", date(2026, 11, 25), page=51)
        with pytest.raises(UserError, match="1 to 100 papers; got 0"):
            trending(connection, "week", date(2026, 11, 25), size=0)


@pytest.mark.parametrize(
    ("kind", "amount", "day", "said"),
    [
        ("votes", 1, "2026-11-25", "there are vote, stars"),
        ("vote", 0.5, "2026-11-25", "whole numbers; got 0.5"),
        ("vote", 1, "20261125", "like 2026-11-25; got '20261125'"),
        ("vote", 1, "26", "isoformat"),
    ],
)
def test_bad_signals_are_refused(sqlite_database, kind, amount, day, said):
    with writing(sqlite_database) as connection, pytest.raises(ValueError, match=said):
        record_all(connection, [Signal(made(connection, 1)[0], kind, amount, day)])
    with sqlite_database.connect() as connection:
        assert connection.execute(select(signals)).all() == []


def test_instants_fall_into_days_of_utc():
    assert day_of(1764115199.9) == date(2025, 11, 25)
    assert day_of(1764115200.0) == date(2025, 11, 26)


def test_the_first_page_walks_the_index_alone(sqlite_database):
    query = (
        "SELECT paper_id, score FROM trends WHERE period = 'all' AND start = '2000-01-01' AND score > 0 "
        "ORDER BY score DESC, paper_id DESC LIMIT 21"
    )
    with sqlite_database.connect() as connection:
        plan = " ".join(row[-1] for row in connection.execute(text(f"EXPLAIN QUERY PLAN {query}")))
    assert "trends_ranked" in plan
    assert "SCAN" not in plan
