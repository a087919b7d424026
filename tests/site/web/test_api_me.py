"""Own marks over the API: behind a token, for their owner alone, and what is done twice is done once."""

import pytest
from api_tokens import slugs, token_for
from fastapi.testclient import TestClient


@pytest.fixture
def mine(world, client):
    """A client with the token of somebody who has nothing yet."""
    token = token_for(world.app.state.engine, f"{client.headers['X-Forwarded-For']}@example.org")
    client.headers["Authorization"] = f"Bearer {token}"
    return client


ME = ["", "/marks/paper-30", "/votes", "/library", "/tags", "/tags/x", "/searches", "/recommended"]


@pytest.mark.parametrize("path", ME)
def test_own_marks_need_a_token(client, mine, path):
    answer = mine.get(f"/api/v1/me{path}")
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "private, no-store"
    for wrong in ({"Authorization": ""}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic eDp5"}):
        refused = mine.get(f"/api/v1/me{path}", headers=wrong)
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"] == "Bearer"
        assert "/me/tokens" in refused.json()["error"]


def test_a_change_needs_a_token_even_from_our_own_pages(mine, world):
    bare = TestClient(world.app, headers={"Sec-Fetch-Site": "same-origin", "X-Forwarded-For": "10.9.9.9"})
    assert bare.put("/api/v1/me/votes/paper-30").status_code == 401
    del bare.headers["Sec-Fetch-Site"]
    assert bare.put("/api/v1/me/votes/paper-30").status_code == 403
    assert bare.put("/api/v1/me/votes/paper-30", headers={"Authorization": "Bearer wrong"}).status_code == 401


def test_votes_are_given_listed_and_taken_back(mine, client):
    before = mine.get("/api/v1/papers/paper-30").json()["votes"]
    for _ in range(2):
        assert mine.put("/api/v1/me/votes/paper-30").json()["voted"]
    assert mine.get("/api/v1/papers/paper-30").json()["votes"] == before + 1
    mine.put("/api/v1/me/votes/paper-31")
    listed = mine.get("/api/v1/me/votes?size=1").json()
    assert (slugs(listed["items"]), listed["total"], listed["more"]) == (["paper-31"], 2, True)
    assert listed["items"][0]["marks"] == {"voted": True, "tags": [], "in_library": False, "read": False}
    assert slugs(mine.get("/api/v1/me/votes?size=1&page=2").json()["items"]) == ["paper-30"]
    for _ in range(2):
        assert not mine.delete("/api/v1/me/votes/paper-30").json()["voted"]
    assert mine.get("/api/v1/papers/paper-30").json()["votes"] == before
    assert mine.put("/api/v1/me/votes/nope").status_code == 404


def test_the_library_keeps_read_and_unread(mine):
    assert mine.put("/api/v1/me/library/paper-32", json={}).json()["in_library"]
    assert mine.put("/api/v1/me/library/paper-33", json={"read": True}).json()["read"]
    assert slugs(mine.get("/api/v1/me/library").json()["items"]) == ["paper-33", "paper-32"]
    assert slugs(mine.get("/api/v1/me/library?read=false").json()["items"]) == ["paper-32"]
    mine.put("/api/v1/me/library/paper-32", json={"read": True})
    assert mine.get("/api/v1/me/library?read=true").json()["total"] == 2
    assert not mine.delete("/api/v1/me/library/paper-33").json()["in_library"]
    assert mine.get("/api/v1/me/library").json()["total"] == 1
    assert mine.put("/api/v1/me/library/paper-32", json={"red": True}).status_code == 422


def test_tags_are_put_on_listed_and_taken_off(mine):
    assert mine.put("/api/v1/me/tags/To  Read/paper-34").json()["tags"] == ["to read"]
    mine.put("/api/v1/me/tags/c++/paper-34")
    mine.put("/api/v1/me/tags/c++/paper-35")
    assert mine.get("/api/v1/me/tags").json()["items"] == [
        {"tag": "c++", "papers": 2},
        {"tag": "to read", "papers": 1},
    ]
    assert slugs(mine.get("/api/v1/me/tags/c++").json()["items"]) == ["paper-35", "paper-34"]
    assert mine.delete("/api/v1/me/tags/c++/paper-34").json()["tags"] == ["to read"]
    wrong = mine.put("/api/v1/me/tags/<b>/paper-34")
    assert wrong.status_code == 400
    assert "A tag has" in wrong.json()["error"]


def test_searches_are_kept_changed_and_deleted(mine):
    mine.put("/api/v1/me/searches", json={"query": " sparse   attention "})
    [kept] = mine.put("/api/v1/me/searches", json={"query": "sparse attention", "alert": True}).json()["items"]
    assert (kept["query"], kept["alert"]) == ("sparse attention", True)
    assert mine.delete(f"/api/v1/me/searches/{kept['id']}").json()["items"] == []
    assert mine.delete(f"/api/v1/me/searches/{2**40}").status_code == 422
    assert mine.put("/api/v1/me/searches", json={"query": "x" * 300}).status_code == 422
    assert mine.put("/api/v1/me/searches", json={"query": "\0"}).status_code == 400
    assert mine.put("/api/v1/me/searches", content=b'{"query": "\\ud800"}').status_code == 422


def test_nobody_sees_or_changes_what_others_have(mine, world):
    mine.put("/api/v1/me/votes/paper-36")
    [kept] = mine.put("/api/v1/me/searches", json={"query": "mine"}).json()["items"]
    other = TestClient(world.app, headers={"X-Forwarded-For": "10.8.8.8"})
    other.headers["Authorization"] = f"Bearer {token_for(world.app.state.engine, 'other@example.org')}"
    assert other.get("/api/v1/me").json() == {"email": "other@example.org", "curator": False}
    assert other.get("/api/v1/me/votes").json()["items"] == []
    other.delete("/api/v1/me/votes/paper-36")
    other.delete(f"/api/v1/me/searches/{kept['id']}")
    assert mine.get("/api/v1/me/votes").json()["total"] == 1
    assert mine.get("/api/v1/me/searches").json()["items"] == [kept]


def test_what_is_recommended_says_why_there_is_nothing(mine):
    found = mine.get("/api/v1/me/recommended").json()
    assert (found["items"], found["learnt_from"]) == ([], 0)
    assert "Vote" in found["note"]
