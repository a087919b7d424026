"""Submitted papers wait once each, lead to what is here already, and are bounded."""

import threading

import pytest
from papers_made import made

from workingpapers.errors import UserError
from workingpapers.site import submissions
from workingpapers.site.database import writing

NOW = 1_795_608_000.0


def test_a_new_paper_waits_once_and_leaves_when_it_is_here_or_nowhere(database):
    with writing(database) as connection:
        for text in ("2401.00001", "arXiv:2401.00001v3", "https://arxiv.org/abs/2401.00001?context=cs", "cs/0112017"):
            assert submissions.submit(connection, 1, text, NOW) is None
        assert submissions.waiting(connection) == ["2401.00001", "cs/0112017"]
        made(connection, 1, arxiv="2401.00001")
        assert submissions.waiting(connection) == submissions.of_user(connection, 1) == ["cs/0112017"]
        submissions.submit(connection, 1, "2401.00002", NOW)
        submissions.set_aside(connection, "cs/0112017", NOW, again=True)
        assert submissions.waiting(connection) == ["2401.00002", "cs/0112017"]
        for name in ("2401.99999", "cs/0112017"):
            submissions.set_aside(connection, name, NOW, again=False)
        assert submissions.waiting(connection) == ["2401.00002"]


def test_a_paper_that_is_here_is_named(database):
    with writing(database) as connection:
        made(connection, 1, arxiv="2401.00001", slug="here")
        assert submissions.submit(connection, 1, "https://arxiv.org/pdf/2401.00001v2.pdf", NOW) == "here"
        assert submissions.waiting(connection) == []


@pytest.mark.parametrize(
    "text", ["", "x", "2401.1", "2413.00001", "https://evil.example/abs/2401.00001", "2401.00001\0"]
)
def test_what_is_no_identifier_is_refused(sqlite_database, text):
    with writing(sqlite_database) as connection, pytest.raises(UserError, match="no arXiv identifier"):
        submissions.submit(connection, 1, text, NOW)


def test_the_queue_is_bounded_for_one_and_for_all(sqlite_database, monkeypatch):
    monkeypatch.setattr(submissions, "MOST_WAITING", 22)
    with writing(sqlite_database) as connection:
        for number in range(20):
            submissions.submit(connection, 1, f"2401.{number:05}", NOW)
        submissions.submit(connection, 1, "2401.00000", NOW)  # waits already
        with pytest.raises(UserError, match="20 of your papers"):
            submissions.submit(connection, 1, "2402.00001", NOW)
        for number in (1, 2):
            submissions.submit(connection, 2, f"2402.0000{number}", NOW)
        with pytest.raises(UserError, match="Very many papers"):
            submissions.submit(connection, 3, "2403.00001", NOW)


def test_who_is_forgotten_leaves_the_paper(database):
    with writing(database) as connection:
        submissions.forget_user(connection, 1)  # before there is a queue
        submissions.submit(connection, 1, "2401.00001", NOW)
        submissions.submit(connection, 2, "2401.00002", NOW)
        assert submissions.of_user(connection, 1) == ["2401.00001"]
        submissions.forget_user(connection, 1)
        assert submissions.of_user(connection, 1) == []
        assert submissions.waiting(connection) == ["2401.00001", "2401.00002"]


def test_nothing_is_lost_when_many_submit_at_once(database):
    def submit(user):
        for number in range(5):
            with writing(database) as connection:
                submissions.submit(connection, user, f"24{user:02}.0000{number}", NOW)

    threads = [threading.Thread(target=submit, args=[user]) for user in range(1, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.connect() as connection:
        assert len(submissions.waiting(connection)) == 25
