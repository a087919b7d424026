"""Stars from GitHub, as it answers about repositories."""

import time

import pytest
from replay import Answer, answer_json

from workingpapers.site.database import writing
from workingpapers.site.records import add, checked
from workingpapers.site.sources.github import GitHub
from workingpapers.site.sources.http import Client, Refused, SourceError


def fill(database, *codes):
    with writing(database) as connection:
        given = [checked("a", {"title": f"Paper {n}", "code": code}) for n, code in enumerate(codes)]
        return add(connection, given, 1.7e9).ids


def repository(name, stars):
    owner, _, short = name.partition("/")
    return answer_json(
        {
            "id": 1296269,
            "name": short,
            "full_name": name,
            "owner": {"login": owner, "id": 1, "type": "User"},
            "private": False,
            "html_url": f"https://github.com/{name}",
            "fork": False,
            "stargazers_count": stars,
            "watchers_count": stars,
            "forks_count": 9,
        }
    )


def test_counts_by_paper(database, client, server, monkeypatch):
    monkeypatch.delenv("WORKINGPAPERS_GITHUB_TOKEN", raising=False)
    codes = [
        "https://github.com/a/b",
        "https://gitlab.com/a/b",
        "http://www.github.com/C-d/e.f.git",
        "",
        "https://github.com/a",
    ]
    codes += ["https://github.com/a/b/tree/main/x?y=z", "https://github.com/a/.."]
    ids = fill(database, *codes)
    stars = {"/repos/a/b": 5, "/repos/C-d/e.f": 0}
    server.script = lambda asked: repository(asked.path.removeprefix("/repos/"), stars[asked.path])
    (batch,) = GitHub(database, client, server.address).batches(None)
    assert batch.counts == {"stars": {ids[0]: 5, ids[2]: 0, ids[5]: 5}}
    assert (batch.problems, batch.cursor) == ([], {"after": 0})
    assert server.asked[0].headers["accept"] == "application/vnd.github+json"
    assert "authorization" not in server.asked[0].headers


def test_every_batch_can_be_gone_on_from(sqlite_database, client, server):
    fill(sqlite_database, *(f"https://github.com/a/{n}" for n in range(5)))
    server.script = lambda asked: repository("a/b", int(asked.path[-1]))
    source = GitHub(sqlite_database, client, server.address, 2)
    batches = list(source.batches(None))
    assert [batch.done for batch in batches] == [2, 4, 5]
    for number, batch in enumerate(batches[:-1], 1):
        assert list(source.batches(batch.cursor)) == batches[number:]


def test_a_repository_that_moved_or_is_gone(sqlite_database, client, server):
    ids = fill(sqlite_database, "https://github.com/old/name", "https://github.com/gone/away", "https://github.com/a/b")
    moved = answer_json(
        {"message": "Moved Permanently", "url": f"{server.address}/repositories/1"},
        status=301,
        headers={"Location": f"{server.address}/repositories/1"},
    )
    answers = {
        "/repos/old/name": moved,
        "/repositories/1": repository("new/name", 7),
        "/repos/gone/away": answer_json({"message": "Not Found"}, status=404),
        "/repos/a/b": answer_json({"stargazers_count": None}),
    }
    server.script = lambda asked: answers[asked.path]
    (batch,) = GitHub(sqlite_database, client, server.address).batches(None)
    assert batch.counts == {"stars": {ids[0]: 7}}
    assert batch.problems == ["GitHub, https://github.com/a/b: stargazers_count is no count"]


def test_a_token_goes_to_github_alone(sqlite_database, server, passing, monkeypatch):
    monkeypatch.setenv("WORKINGPAPERS_GITHUB_TOKEN", "secret")
    fill(sqlite_database, "https://github.com/a/b")
    elsewhere = f"http://localhost:{server.port}"
    server.in_turn(Answer(status=301, headers={"Location": f"{elsewhere}/x"}), repository("a/b", 3))
    client = Client({}, local=[server.address, elsewhere], sleep=passing.sleep)
    (batch,) = GitHub(sqlite_database, client, server.address).batches(None)
    assert list(batch.counts["stars"].values()) == [3]
    assert [asked.headers.get("authorization") for asked in server.asked] == ["Bearer secret", None]


def test_a_spent_allowance_ends_the_sync_where_it_is(sqlite_database, client, server):
    ids = fill(sqlite_database, *(f"https://github.com/a/{n}" for n in range(3)))
    spent = {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(int(time.time()) + 3000)}
    limit = answer_json({"message": "API rate limit exceeded"}, status=403, headers=spent)
    server.in_turn(repository("a/0", 1), repository("a/1", 1), limit)
    batches = GitHub(sqlite_database, client, server.address, 2).batches(None)
    assert next(batches).cursor == {"after": ids[1]}
    with pytest.raises(SourceError, match="asks to wait 50 minutes"):
        next(batches)


def test_what_is_forbidden_is_an_error(sqlite_database, client, server):
    fill(sqlite_database, "https://github.com/a/b")
    server.in_turn(answer_json({"message": "Bad credentials"}, status=401))
    with pytest.raises(Refused, match="Bad credentials"):
        list(GitHub(sqlite_database, client, server.address).batches(None))
