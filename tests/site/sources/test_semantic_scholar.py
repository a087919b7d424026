"""Citations from the batch endpoint of Semantic Scholar, as it answers."""

import pytest
from replay import Answer, answer_json

from workingpapers.site.database import writing
from workingpapers.site.records import add, checked
from workingpapers.site.sources.http import Refused, SourceError
from workingpapers.site.sources.semantic_scholar import SemanticScholar

NAMES = ["ARXIV:2001.00000", "DOI:10.1000/1", "ARXIV:2001.00002"]


def fill(database):
    """Three papers with names, and one without."""
    given = [{"arxiv": "2001.00000"}, {"doi": "10.1000/1"}, {}, {"arxiv": "2001.00002", "doi": "10.1000/2"}]
    with writing(database) as connection:
        return add(connection, [checked("a", {"title": f"Paper {n}"} | it) for n, it in enumerate(given)], 1.7e9).ids


def cited(number):
    return {"paperId": "649def34f8be52c8b66281af98ae884c09aef38b", "citationCount": number}


def script(asked):
    known = dict(zip(NAMES, (5, 0, 11), strict=True))
    return answer_json([cited(known[name]) if name in known else None for name in asked.body["ids"]])


def test_counts_by_paper(database, client, server, monkeypatch):
    monkeypatch.delenv("WORKINGPAPERS_S2_KEY", raising=False)
    ids = fill(database)
    server.script = script
    (batch,) = SemanticScholar(database, client, server.address).batches(None)
    assert batch.counts == {"citations": {ids[0]: 5, ids[1]: 0, ids[3]: 11}}
    assert (batch.done, batch.total, batch.problems, batch.cursor) == (3, 3, [], {"after": 0})
    (asked,) = server.asked
    assert (asked.method, asked.path) == ("POST", "/graph/v1/paper/batch")
    assert (asked.query, asked.body) == ({"fields": "citationCount"}, {"ids": NAMES})
    assert "x-api-key" not in asked.headers


def test_every_batch_can_be_gone_on_from(sqlite_database, client, server):
    fill(sqlite_database)
    server.script = script
    for size in (1, 2, 3):
        source = SemanticScholar(sqlite_database, client, server.address, size)
        batches = list(source.batches(None))
        assert [batch.done for batch in batches] == sorted({size, min(2 * size, 3), 3})
        for number, batch in enumerate(batches[:-1], 1):
            assert list(source.batches(batch.cursor)) == batches[number:]
        assert batches[-1].cursor == {"after": 0}


def test_a_cursor_after_the_last_paper_begins_again(sqlite_database, client, server):
    (batch,) = SemanticScholar(sqlite_database, client, server.address).batches({"after": 99})
    assert (batch.cursor, server.asked) == ({"after": 0}, [])


def test_a_key_is_sent(sqlite_database, client, server, monkeypatch):
    monkeypatch.setenv("WORKINGPAPERS_S2_KEY", "secret")
    fill(sqlite_database)
    server.script = script
    list(SemanticScholar(sqlite_database, client, server.address).batches(None))
    assert server.asked[0].headers["x-api-key"] == "secret"


def test_what_it_does_not_know_or_say(sqlite_database, client, server):
    ids = fill(sqlite_database)
    server.in_turn(answer_json([None, cited("many"), cited(3)]))
    (batch,) = SemanticScholar(sqlite_database, client, server.address).batches(None)
    assert batch.counts == {"citations": {ids[3]: 3}}
    assert batch.problems == ["Semantic Scholar, DOI:10.1000/1: citationCount is no count"]


def test_it_knows_none(sqlite_database, client, server):
    fill(sqlite_database)
    server.in_turn(answer_json({"error": "No valid paper ids given"}, status=400))
    (batch,) = SemanticScholar(sqlite_database, client, server.address).batches(None)
    assert batch.counts == {"citations": {}}


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (answer_json([cited(1)]), SourceError),
        (answer_json({"data": []}), SourceError),
        (answer_json({"message": "Forbidden"}, status=403), Refused),
        (Answer(status=429), SourceError),
    ],
)
def test_failures(sqlite_database, client, server, answer, error):
    fill(sqlite_database)
    server.in_turn(answer)
    with pytest.raises(error):
        list(SemanticScholar(sqlite_database, client, server.address).batches(None))
