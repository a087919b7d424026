"""Empty parameters mean what is so without them, wherever they are sent."""

import pytest


@pytest.mark.parametrize(
    ("empty", "plain"),
    [
        ("/search?q=frozen&topic=&task=&standing=&year=&venue=&has=&sort=&page=", "/search?q=frozen"),
        ("/search?q=&sort=&page", "/search"),
        ("/?period=&date=&page=", "/"),
        ("/topics/feature-transfer?page=", "/topics/feature-transfer"),
        ("/leaderboards?task=&data=&hardware=", "/leaderboards"),
        ("/subscribe?topic=&query=", "/subscribe"),
        ("/feeds/trending.atom?period=", "/feeds/trending.atom"),
        ("/feeds/search.json?q=frozen&has=&year=", "/feeds/search.json?q=frozen"),
        ("/api/v1/trending?period=&date=&page=&size=", "/api/v1/trending"),
        ("/api/v1/topics/feature-transfer?page=&size=", "/api/v1/topics/feature-transfer"),
        ("/api/daily_papers?date=&sort=&limit=&p=", "/api/daily_papers"),
    ],
)
def test_an_empty_parameter_is_as_one_not_given(client, empty, plain):
    answers = [client.get(path) for path in (empty, plain)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].text == answers[1].text


def test_a_search_of_the_api_takes_an_empty_order_and_size(client):
    found, plain = (client.get(f"/api/v1/search?q=frozen{it}").json() for it in ("&sort=&size=&has=", ""))
    assert found["items"] == plain["items"] != []


@pytest.mark.parametrize("value", ["0", "+", "%20", "="])
def test_what_is_not_empty_stays(client, value):
    answer = client.get(f"/api/v1/search?q=frozen&sort={value}")
    assert answer.status_code == 422
    assert "sort must be" in answer.json()["error"]
