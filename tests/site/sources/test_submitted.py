"""Submitted papers are fetched one by one; what does not exist is dropped, and what fails is tried again, last."""

import pytest
from replay import Answer
from sqlalchemy import select

from workingpapers.site import submissions
from workingpapers.site.database import writing
from workingpapers.site.schema import papers
from workingpapers.site.sources.submitted import Submitted
from workingpapers.site.sync import sync

NOW = 1_795_608_000.0


def feed(*names):
    """What arXiv answers when asked for papers by name."""
    entries = "".join(
        f"<entry><id>http://arxiv.org/abs/{name}v1</id><published>2026-11-24T17:59:58Z</published>"
        f"<title>Paper {name}</title><summary>About it.</summary><author><name>Ada Lovelace</name></author></entry>"
        for name in names
    )
    return Answer(
        f'<feed xmlns="http://www.w3.org/2005/Atom" xmlns:o="http://a9.com/-/spec/opensearch/1.1/">'
        f"<o:totalResults>{len(names)}</o:totalResults>{entries}</feed>".encode()
    )


@pytest.fixture
def arxiv(server):
    """arXiv that has two papers, knows a third not at all, and breaks on the fourth."""

    def script(asked):
        name = asked.query["id_list"]
        if name == "2401.00004":
            return Answer(status=500)
        return feed(name) if name in ("2401.00001", "2401.00003") else feed()

    server.script = script
    return server


def test_what_was_submitted_comes_in_or_is_reported(database, client, arxiv):
    with writing(database) as connection:
        for number in (1, 2, 3):
            submissions.submit(connection, 1, f"2401.0000{number}", NOW)
    (outcome,) = sync(database, [Submitted(database, client, arxiv.address)])
    assert (outcome.source, outcome.new, outcome.done, outcome.total) == ("submitted", 2, 3, 3)
    assert outcome.problems == ["2401.00002, submitted: arXiv has no paper '2401.00002'."]
    with database.connect() as connection:
        assert submissions.waiting(connection) == []
        assert set(connection.execute(select(papers.c.arxiv)).scalars()) == {"2401.00001", "2401.00003"}
    (again,) = sync(database, [Submitted(database, client, arxiv.address)])
    assert (again.new, again.total, len(arxiv.asked)) == (0, None, 3)


def test_one_that_fails_does_not_keep_the_others_out_for_ever(database, client, arxiv):
    with writing(database) as connection:
        for number in (4, 1, 3):
            submissions.submit(connection, 1, f"2401.0000{number}", NOW)
    (first,) = sync(database, [Submitted(database, client, arxiv.address)])
    assert "500" in first.error
    with database.connect() as connection:
        assert submissions.waiting(connection) == ["2401.00001", "2401.00003", "2401.00004"]
    (second,) = sync(database, [Submitted(database, client, arxiv.address)])
    assert second.new == 2
    assert "500" in second.error
    with database.connect() as connection:
        assert submissions.waiting(connection) == ["2401.00004"]
