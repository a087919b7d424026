"""Votes, tags, the library and searches: doing twice is doing once, nobody sees another's, everything is bounded."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from papers_made import made
from sqlalchemy import insert, select

from workingpapers.errors import UserError
from workingpapers.site import marks
from workingpapers.site.database import writing
from workingpapers.site.marks import Marks
from workingpapers.site.schema import papers, signals, trends, users

NOW = 1_795_608_000.0  # 2026-11-25, noon


@pytest.fixture
def people_and_papers(database):
    """A connection that writes, two people, three papers."""
    with writing(database) as connection:
        for number in (1, 2):
            connection.execute(insert(users).values(id=number, email=f"u{number}@b.example", created=NOW))
        yield connection, 1, 2, made(connection, 3)


def test_a_vote_counts_once_and_leaves_no_trace_when_withdrawn(people_and_papers):
    connection, one, two, (paper, *_) = people_and_papers

    def standing():
        return (
            connection.execute(select(papers.c.votes).where(papers.c.id == paper)).scalar_one(),
            connection.execute(select(signals.c.day, signals.c.amount).where(signals.c.amount != 0)).all(),
        )

    for _ in range(2):
        marks.vote(connection, one, paper, NOW)
    assert standing() == (1, [("2026-11-25", 1)])
    marks.vote(connection, two, paper, NOW + 86_400)
    for _ in range(2):
        marks.withdraw_vote(connection, one, paper)  # on another day than it was given
    assert standing() == (1, [("2026-11-26", 1)])
    marks.withdraw_vote(connection, two, paper)
    assert standing() == (0, [])
    assert set(connection.execute(select(trends.c.score)).scalars()) == {0}


def test_tags_are_normalised_and_private(people_and_papers):
    connection, one, two, (paper, other, _) = people_and_papers
    for text in ("To  Read", "to read", " ＴＯ READ\t"):
        assert marks.add_tag(connection, one, paper, text) == "to read"
    marks.add_tag(connection, one, other, "to read")
    marks.add_tag(connection, one, paper, "c++")
    marks.add_tag(connection, two, paper, "mine")
    assert marks.tags_of(connection, one) == {"c++": 1, "to read": 2}
    assert marks.tagged(connection, one, "to read", 1) == ([other, paper], 2)
    assert marks.tagged(connection, two, "to read", 1) == ([], 0)
    marks.remove_tag(connection, one, paper, "To Read")
    assert marks.marks_on(connection, one, [paper])[paper].tags == ("c++",)


@given(st.text(max_size=60))
def test_a_tag_in_its_normal_form_stays_as_it_is(text):
    try:
        tag = marks.clean_tag(text)
    except UserError:
        return
    assert marks.clean_tag(tag) == tag
    assert 0 < len(tag) <= 40
    assert tag.isprintable()


@pytest.mark.parametrize("text", ["", "  ", "a/b", "a\0", "<b>", "x" * 41, "a,b", "\u202eabc", "..", "-_-"])
def test_no_tag_is_refused(text):
    with pytest.raises(UserError, match="A tag has 1 to 40"):
        marks.clean_tag(text)


def test_what_a_person_keeps_is_bounded(people_and_papers, monkeypatch):
    connection, one, _, (paper, other, third) = people_and_papers
    for number in range(marks.MOST_TAGS_ON_A_PAPER):
        marks.add_tag(connection, one, paper, f"tag {number}")
    marks.add_tag(connection, one, paper, "tag 0")  # is there
    with pytest.raises(UserError, match="20 tags on this paper"):
        marks.add_tag(connection, one, paper, "more")
    monkeypatch.setattr(marks, "MOST_TAGGED", 21)
    marks.add_tag(connection, one, other, "x")
    with pytest.raises(UserError, match="21 tags in all"):
        marks.add_tag(connection, one, third, "x")
    monkeypatch.setattr(marks, "MOST_KEPT", 1)
    marks.keep(connection, one, paper, NOW)
    marks.keep(connection, one, paper, NOW, read=True)
    with pytest.raises(UserError, match="papers in your library"):
        marks.keep(connection, one, other, NOW)
    for number in range(marks.MOST_SEARCHES):
        marks.save_search(connection, one, f"query {number}", NOW)
    marks.save_search(connection, one, "query 0", NOW, alert=True)
    with pytest.raises(UserError, match="50 saved searches"):
        marks.save_search(connection, one, "more", NOW)


def test_the_library_is_paged_and_knows_what_was_read(people_and_papers):
    connection, one, two, _ = people_and_papers
    ids = made(connection, 5)
    for number, paper in enumerate(ids):
        marks.keep(connection, one, paper, NOW + number)
    marks.keep(connection, one, ids[1], NOW + 100, read=True)  # stays in its place
    assert marks.kept(connection, one, None, 1, size=3) == (ids[:1:-1], 5)
    assert marks.kept(connection, one, None, 2, size=3) == (ids[1::-1], 5)
    assert marks.kept(connection, one, True, 1) == ([ids[1]], 1)
    assert marks.kept(connection, one, False, 1) == ([ids[4], ids[3], ids[2], ids[0]], 4)
    assert marks.kept(connection, two, None, 1) == ([], 0)
    marks.keep(connection, one, ids[1], NOW, read=False)
    marks.drop(connection, one, ids[0])
    assert marks.kept(connection, one, False, 1) == (ids[:0:-1], 4)


def test_marks_on_papers_are_one_persons(people_and_papers):
    connection, one, two, (paper, other, third) = people_and_papers
    marks.vote(connection, one, paper, NOW)
    marks.vote(connection, two, other, NOW)
    marks.keep(connection, one, other, NOW, read=True)
    marks.keep(connection, one, paper, NOW)
    for tag in ("b", "a"):
        marks.add_tag(connection, one, paper, tag)
    assert marks.marks_on(connection, one, [paper, other, third]) == {
        paper: Marks(voted=True, tags=("a", "b"), read=False),
        other: Marks(voted=False, tags=(), read=True),
        third: Marks(voted=False, tags=(), read=None),
    }
    assert marks.marks_on(connection, one, []) == {}


def test_searches_are_kept_once_with_or_without_alert(people_and_papers):
    connection, one, two, _ = people_and_papers
    marks.save_search(connection, one, '  "linear  probe" year:2024.. ', NOW)
    marks.save_search(connection, one, '"linear\u200cprobe" year:2024..\0', NOW, alert=True)
    (kept,) = marks.searches_of(connection, one)
    assert (kept.query, kept.alert) == ('"linear probe" year:2024..', True)
    marks.forget_search(connection, two, kept.id)
    assert marks.searches_of(connection, one) == [kept]
    marks.forget_search(connection, one, kept.id)
    assert marks.searches_of(connection, one) == []
    for query in ("", "\0\u202e", "x" * 201):
        with pytest.raises(UserError, match="1 to 200 characters"):
            marks.save_search(connection, one, query, NOW)
