"""Papers are found again by what names them, merged without loss, and come out the same in any order."""

import dataclasses
import itertools
import random
import sqlite3
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from workingpapers.site.database import open_database, writing
from workingpapers.site.records import Malformed, Record, add, checked, count
from workingpapers.site.schema import paper_topics, papers, signals

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC).timestamp()
TODAY = "2026-11-25"
ATTENTION = {
    "title": "Attention Is All You Need",
    "abstract": "The dominant models are recurrent.",
    "authors": ["Ashish Vaswani", "Noam Shazeer"],
    "venue": "NIPS",
    "year": 2017,
}


def put(database, *records, now=NOW):
    with writing(database) as connection:
        return add(connection, records, now)


def rows(database, *columns):
    with database.connect() as connection:
        found = select(*[papers.c[name] for name in columns]) if columns else select(papers)
        return connection.execute(found.order_by(papers.c.id)).mappings().all()


def happened(database):
    with database.connect() as connection:
        found = select(signals.c.paper_id, signals.c.kind, signals.c.day, signals.c.amount)
        return {tuple(row) for row in connection.execute(found)}


def test_a_new_paper_has_everything_that_came(database):
    given_ = ATTENTION | {"arxiv": "1706.03762v7", "doi": "10.5555/3295222", "code": "https://github.com/a/b"}
    given_ |= {"published": "2017-06-12T17:57:34Z", "keywords": ["attention"], "citations": 9, "stars": 2}
    added = put(database, checked("arxiv", given_))
    (row,) = rows(database)
    assert (added.ids, added.new, added.updated, added.unchanged) == ((row["id"],), 1, 0, 0)
    assert (row["slug"], row["arxiv"], row["doi"]) == ("1706.03762", "1706.03762", "10.5555/3295222")
    assert (row["authors"], row["keywords"]) == (["Ashish Vaswani", "Noam Shazeer"], ["attention"])
    assert (row["published"], row["year"], row["venue"]) == ("2017-06-12", 2017, "NIPS")
    assert (row["citations"], row["stars"], row["votes"]) == (9, 2, 0)
    assert (row["source"], row["added"], row["updated"]) == ("arxiv", NOW, NOW)


@pytest.mark.parametrize(
    "again",
    [
        {"title": "Another title", "arxiv": "1706.03762"},
        {"title": "Another title", "doi": "https://doi.org/10.5555/3295222"},
        {"title": "Another title", "doi": "10.48550/arXiv.1706.03762"},
        {"title": "attention is all you need!", "year": 2018},
        {"title": "Attention is <i>All</i> you Need", "authors": ["Shazeer, N."]},
    ],
)
def test_a_paper_is_found_again(database, again):
    put(database, checked("a", ATTENTION | {"arxiv": "1706.03762", "doi": "10.5555/3295222"}))
    added = put(database, checked("b", again))
    assert (added.new, added.unchanged) == (0, 1)
    assert [row["title"] for row in rows(database)] == ["Attention Is All You Need"]


@pytest.mark.parametrize(
    "other",
    [
        {"arxiv": "1706.09999"},
        {"year": 2019},
        {"authors": ["Grace Hopper"]},
        {"title": "Attention Is Not All You Need"},
    ],
)
def test_another_paper_is_not(database, other):
    added = put(database, checked("a", ATTENTION | {"arxiv": "1706.03762"}), checked("a", ATTENTION | other))
    assert added.new == 2


def test_nothing_never_replaces_something_and_gaps_are_filled(sqlite_database):
    put(sqlite_database, checked("a", ATTENTION))
    before = dict(rows(sqlite_database)[0])
    added = put(sqlite_database, checked("b", {"title": ATTENTION["title"]}), now=NOW + 9)
    assert added.unchanged == 1
    assert dict(rows(sqlite_database)[0]) == before
    fuller = {"title": ATTENTION["title"], "arxiv": "1706.03762", "url": "https://arxiv.org/abs/1706.03762"}
    added = put(sqlite_database, checked("b", fuller | {"abstract": "Another."}), now=NOW + 9)
    assert added.updated == 1
    changed = {"arxiv": "1706.03762", "url": "https://arxiv.org/abs/1706.03762", "updated": NOW + 9}
    assert dict(rows(sqlite_database)[0]) == before | changed


def test_only_the_source_that_brought_it_corrects_and_only_by_name(sqlite_database):
    named = ATTENTION | {"arxiv": "1706.03762"}
    put(sqlite_database, checked("arxiv", named))
    put(sqlite_database, checked("file:x", named | {"abstract": "From elsewhere."}))
    put(sqlite_database, checked("arxiv", ATTENTION | {"abstract": "By title alone."}))
    assert rows(sqlite_database)[0]["abstract"] == ATTENTION["abstract"]
    added = put(sqlite_database, checked("arxiv", named | {"title": "Attention!", "abstract": "Second version."}))
    assert added.updated == 1
    assert [tuple(row.values()) for row in rows(sqlite_database, "title", "title_key", "abstract", "slug")] == [
        ("Attention!", "attention", "Second version.", "1706.03762")
    ]


def test_a_venue_says_more_than_a_preprint(sqlite_database):
    put(sqlite_database, checked("arxiv", ATTENTION | {"arxiv": "1706.03762", "venue": "arXiv"}))
    put(sqlite_database, checked("file:x", ATTENTION))
    assert rows(sqlite_database)[0]["venue"] == "NIPS"
    added = put(sqlite_database, checked("arxiv", ATTENTION | {"arxiv": "1706.03762", "venue": "arXiv"}))
    assert added.unchanged == 1


def test_a_name_that_another_paper_has_is_not_taken_away(database):
    one, other = ATTENTION | {"arxiv": "1706.03762"}, ATTENTION | {"title": "Other", "doi": "10.1000/2"}
    put(database, checked("a", one), checked("a", other))
    added = put(database, checked("a", one | {"doi": "10.1000/2"}))
    assert (added.new, [row["doi"] for row in rows(database)]) == (0, [None, "10.1000/2"])


def test_the_catalogue_has_the_last_word(sqlite_database):
    put(sqlite_database, checked("file:x", ATTENTION | {"arxiv": "1706.03762"}))
    card = Record(
        source="catalogue", title="Attention is all", arxiv="1706.03762", card="attention", summary="In our words.",
        topics=("transformers", "attention"), task="probe", has_method=True, standing="reproduced",
    )  # fmt: skip
    assert put(sqlite_database, card).updated == 1
    assert put(sqlite_database, card).unchanged == 1
    (row,) = rows(sqlite_database)
    assert (row["slug"], row["card"], row["title"], row["standing"]) == (
        "1706.03762",
        "attention",
        "Attention is all",
        "reproduced",
    )
    assert put(sqlite_database, checked("file:x", ATTENTION | {"arxiv": "1706.03762"})).unchanged == 1
    less = dataclasses.replace(card, topics=("transformers",), standing=None, task=None)
    assert put(sqlite_database, less).updated == 1
    (row,) = rows(sqlite_database)
    assert (row["standing"], row["task"], row["has_method"]) == (None, None, True)
    with sqlite_database.connect() as connection:
        assert connection.execute(select(paper_topics.c.topic)).scalars().all() == ["transformers"]


def test_slugs_stay_and_are_never_shared(database):
    first = checked("a", ATTENTION)
    put(database, first)
    slug = rows(database)[0]["slug"]
    assert slug.startswith("attention-is-all-you-need-")
    put(database, checked("a", ATTENTION | {"arxiv": "1706.03762"}))  # a name for the paper that is there
    put(database, checked("a", {"title": "Renamed", "arxiv": "1706.03762"}))  # which then changes its title
    put(database, first)  # so that this is another paper
    put(database, checked("a", ATTENTION | {"arxiv": "cs/0112017"}))  # and this a name for that one
    assert [row["slug"] for row in rows(database)] == [slug, f"{slug}-2"]


FIELDS = ("abstract", "authors", "venue", "year", "published", "arxiv", "doi", "url", "code", "keywords", "citations")


def truth(number):
    """A paper; two and three have one title, and differ by authors or by years."""
    title = "The same title" if number in (2, 3) else f"Title {number}"
    return {
        "title": title,
        "abstract": f"Abstract {number}",
        "authors": [f"Ada Author{number}", f"Bob Second{number}"],
        "venue": f"Venue {number}",
        "year": 2000 + 5 * number,
        "published": f"{2000 + 5 * number}-03-01",
        "arxiv": f"2001.0000{number}",
        "doi": f"10.1000/{number}",
        "url": f"https://example.org/{number}",
        "code": f"https://github.com/a/{number}",
        "keywords": [f"key{number}"],
        "citations": 10 + number,
    }


sightings = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from(["a", "b"]), st.sets(st.sampled_from(FIELDS))), min_size=1, max_size=9
)


def seen(number, source, hidden):
    """A paper as a source sees it that lacks some fields, though not what tells it from its namesake."""
    needed = {"authors", "year"}
    return checked(source, {k: v for k, v in truth(number).items() if k not in hidden - needed})


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), seen_=sightings, cuts=st.sets(st.integers(0, 9)))
def test_order_and_batches_make_no_difference(seed, seen_, cuts):
    """Partial sightings, shuffled and cut into batches anyhow, give the papers that all of them together describe."""
    records = [seen(*sighting) for sighting in seen_]
    random.Random(seed).shuffle(records)
    database = open_database("sqlite://")
    bounds = sorted({0, len(records), *(cut for cut in cuts if cut < len(records))})
    for begin, end in itertools.pairwise(bounds):
        put(database, *records[begin:end])
    expected = {}
    for number, _, hidden in seen_:
        known = {k: v for k, v in truth(number).items() if k not in hidden - {"authors", "year"}}
        expected[number] = {**expected.get(number, {}), **known}
    empty = dict.fromkeys(FIELDS, "") | {"keywords": [], "citations": 0} | dict.fromkeys(("published", "arxiv", "doi"))
    found = [{k: v for k, v in row.items() if k in ("title", *FIELDS)} for row in rows(database)]
    assert by_title(found) == by_title([empty | paper for paper in expected.values()])
    again = put(database, *records)
    assert (again.new, again.updated) == (0, 0)
    database.dispose()


def by_title(found):
    return sorted(found, key=lambda paper: (paper["title"], paper["year"]))


def test_signals_are_what_happened(database):
    fresh = ATTENTION | {"year": 2026, "published": "2026-11-20", "arxiv": "2611.00001", "stars": 7}
    old = {"title": "Old", "year": 1998, "citations": 100}
    one, other = put(database, checked("a", fresh), checked("a", old)).ids
    assert happened(database) == {
        (one, "published", "2026-11-20", 1.0),
        (one, "stars", TODAY, 7.0),
        (other, "citations", "1998", 100.0),
    }
    put(database, checked("a", fresh | {"stars": 10}), checked("a", old | {"citations": 90}))
    put(
        database, checked("a", fresh | {"stars": 10, "published": "2026-11-21"}), checked("a", old | {"citations": 103})
    )
    assert happened(database) == {
        (one, "published", "2026-11-20", 0.0),
        (one, "published", "2026-11-21", 1.0),
        (one, "stars", TODAY, 10.0),
        (other, "citations", TODAY, 3.0),
        (other, "citations", "1998", 100.0),
    }
    assert rows(database, "citations")[1]["citations"] == 103


def test_counts_are_set_and_their_gains_recorded(database):
    (number,) = put(database, checked("a", ATTENTION)).ids
    with writing(database) as connection:
        assert count(connection, "citations", {number: 5, number + 1: 9}, NOW) == 1
        assert count(connection, "citations", {number: 5}, NOW) == 0
        assert count(connection, "citations", {number: 3}, NOW) == 1
        assert count(connection, "citations", {number: 4}, NOW) == 1
        assert connection.execute(select(papers.c.citations)).scalar_one() == 4
    assert happened(database) == {(number, "citations", "2017", 5.0), (number, "citations", TODAY, 1.0)}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({}, "title"),
        ({"title": " \x00\u200b "}, "title: must have 1 to 1000 characters"),
        ({"title": "x" * 1001}, "title: must have 1 to 1000 characters"),
        ({"title": 3}, "title: Expected `str`, got `int`"),
        ({"title": "x", "year": 1500}, "year: Expected `int` >= 1800"),
        ({"title": "x", "year": 99999}, "year: Expected `int` <= 2100"),
        ({"title": "x", "year": float("nan")}, "year: Expected `int | null`, got `float`"),
        ({"title": "x", "citations": -1}, "citations: Expected `int` >= 0"),
        ({"title": "x", "stars": 10**12}, "stars: Expected `int` <= 2000000000"),
        ({"title": "x", "authors": "Ada"}, "authors: Expected `array | null`"),
        ({"title": "x", "authors": ["Ada", None]}, r"authors\[1\]: Expected `str`, got `null`"),
        ({"title": "x", "published": "yesterday"}, "published: 'yesterday' is no day"),
        ({"title": "x", "published": "2026-02-30"}, "published: '2026-02-30' is no day"),
        ({"title": "x", "arxiv": "nonsense"}, "arxiv: 'nonsense' is no arXiv identifier"),
        ({"title": "x", "doi": "10.1"}, "doi: '10.1' is no DOI"),
    ],
)
def test_malformed_records_are_named(wrong, says):
    with pytest.raises(Malformed, match=says):
        checked("a", wrong)


def test_hostile_texts_are_kept_harmless(database):
    nasty = checked(
        "a",
        {
            "title": "<script>alert(1)</script> $\\alpha$ '; DROP TABLE papers; --\x00\u202e\ud800",
            "abstract": "a\x07" * 30_000,
            "authors": ["Bobby \x1b[31mTables", "Bobby \x1b[31mTables", ""] * 3,
            "venue": "v" * 999,
            "url": "javascript:alert(1)",
            "pdf": "file:///etc/passwd",
            "code": "https://user:pw@example.org",
        },
    )
    put(database, nasty)
    (row,) = rows(database)
    assert row["title"] == "<script>alert(1)</script> $\\alpha$ '; DROP TABLE papers; --"
    assert (len(row["abstract"]), len(row["venue"])) == (20_000, 200)
    assert row["authors"] == ["Bobby [31mTables"]
    assert (row["url"], row["pdf"], row["code"]) == ("", "", "")


def test_a_batch_takes_a_handful_of_statements(sqlite_database, monkeypatch):
    """As many for a thousand records as for ten: nothing is looked up or written paper by paper."""
    asked = []
    raw = sqlite_database.raw_connection()
    assert isinstance(raw.driver_connection, sqlite3.Connection)
    raw.driver_connection.set_trace_callback(asked.append)
    raw.close()
    selects = {}
    for size in (10, 1000):
        asked.clear()
        put(sqlite_database, *(checked("a", {"title": f"Paper {size} {n}", "year": 2020}) for n in range(size)))
        selects[size] = sum(statement.lstrip().startswith("SELECT") for statement in asked)
    assert selects[10] == selects[1000] < 20
    with sqlite_database.connect() as connection:
        assert connection.execute(select(func.count()).select_from(papers)).scalar_one() == 1010
