import asyncio

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from workingpapers.site.web import security
from workingpapers.site.web.security import HEADERS, Buckets, Limits, SameOrigin, client_address, safe_path


@pytest.mark.parametrize("path", ["/", "/nothing", "/papers/hostile", "/?page=x", "/api/none", "/leaderboards/none"])
def test_every_answer_has_the_headers(client, path):
    answer = client.get(path)
    for name, value in HEADERS.items():
        assert answer.headers[name] == value
    assert "unsafe" not in answer.headers["content-security-policy"]


def test_refusals_have_the_headers_too(client):
    for answer in (client.post("/sign-in"), client.post("/sign-in", content=b"x" * 300_000)):
        assert answer.status_code in (403, 413)
        assert answer.headers["content-security-policy"] == HEADERS["Content-Security-Policy"]


def test_no_page_has_inline_style_or_script(client):
    for path in ("/", "/papers/hostile", "/papers/moment-probing", "/leaderboards", "/topics", "/about", "/search?q=a"):
        text = client.get(path).text
        assert " style=" not in text
        assert "<style" not in text
        assert " onclick" not in text
        assert text.count("<script") == text.count('<script type="module" src="/static/')


async def _echo(scope, receive, send):
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(len(body)).encode()})


@pytest.fixture
def guarded(world):
    return TestClient(SameOrigin(_echo, world.settings), base_url="http://papers.example.org:8000")


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, False),
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://papers.example.org:8000"}, False),
        ({"Origin": "http://papers.example.org:8000"}, True),
        ({"Origin": "http://127.0.0.1:8000"}, True),  # the settings' own address
        ({"Origin": "http://papers.example.org"}, False),  # another port
        ({"Origin": "https://papers.example.org:8000"}, False),
        ({"Origin": "http://evil.example.org"}, False),
        ({"Origin": "http://papers.example.org:8000.evil.example.org"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "http://[nonsense"}, False),
        ({"Authorization": "Bearer wp_x"}, True),
        ({"Authorization": "Basic eDp5"}, False),
        ({"Authorization": "Bearer wp_x", "Sec-Fetch-Site": "cross-site"}, True),  # preflighted, or no browser
    ],
)
def test_changes_come_from_this_page_or_with_a_token(guarded, headers, allowed):
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        assert guarded.request(method, "/x", headers=headers).status_code == (200 if allowed else 403)
    assert guarded.get("/x", headers=headers).status_code == 200


def test_mail_servers_may_post_to_the_one_click_address(guarded):
    assert guarded.post(security.ONE_CLICK, params={"token": "x"}).status_code == 200
    assert guarded.post(f"{security.ONE_CLICK}/x").status_code == 403


@pytest.mark.parametrize(
    ("client", "forwarded", "proxies", "expected"),
    [
        ("192.0.2.1", "", 0, "192.0.2.1"),
        ("192.0.2.1", "198.51.100.7", 0, "192.0.2.1"),  # nobody of ours wrote that
        ("10.0.0.1", "198.51.100.7", 1, "198.51.100.7"),
        ("10.0.0.1", "203.0.113.9, 198.51.100.7", 1, "198.51.100.7"),  # the client made up the first
        ("10.0.0.1", "203.0.113.9, 198.51.100.7, 10.0.0.2", 2, "198.51.100.7"),
        ("10.0.0.1", "198.51.100.7", 3, "198.51.100.7"),
        ("10.0.0.1", "", 1, "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "", 0, "2001:db8:1:2::/64"),
        ("10.0.0.1", "x" * 500, 1, "x" * 64),
    ],
)
def test_the_client_is_who_our_own_proxies_saw(client, forwarded, proxies, expected):
    headers = [(b"x-forwarded-for", forwarded.encode())] if forwarded else []
    scope = {"type": "http", "client": (client, 5), "headers": headers}
    assert client_address(scope, proxies) == expected


@pytest.mark.parametrize("value", ["/me", "/search?q=a%20b&page=2", "/papers/x#claims"])
def test_paths_of_ours_are_safe(value):
    assert safe_path(value) == value


@pytest.mark.parametrize(
    "value",
    [None, "", "me", "//evil.org", "/\\evil.org", "https://evil.org", "/x\r\nSet-Cookie: a=b", "javascript:x", "/\t/x"],
)
def test_what_leads_elsewhere_is_not(value):
    assert safe_path(value, "/home") == "/home"


@given(st.floats(0.1, 100), st.integers(1, 50), st.lists(st.floats(0, 10), max_size=60))
def test_a_bucket_never_gives_more_than_its_rate_allows(rate, burst, pauses):
    now = [0.0]
    buckets = Buckets(rate, burst, clock=lambda: now[0])
    given_out = 0
    for pause in pauses:
        now[0] += pause
        given_out += buckets.wait("x") == 0
    assert given_out <= burst + rate * now[0] + 1e-6


def test_a_bucket_says_how_long_to_wait_and_clients_have_their_own():
    now = [0.0]
    buckets = Buckets(0.5, 2, clock=lambda: now[0])
    assert [buckets.wait("a") for _ in range(3)] == [0, 0, 2.0]
    assert buckets.wait("b") == 0
    now[0] = 2.0
    assert [buckets.wait("a") for _ in range(2)] == [0, 2.0]


def test_no_flood_of_clients_fills_the_memory(monkeypatch):
    monkeypatch.setattr(security, "_MOST_CLIENTS", 10)
    buckets = Buckets(1, 1)
    for number in range(100):
        buckets.wait(str(number))
    assert len(buckets._levels) == 10


def test_writing_is_limited_sooner_than_reading(client):
    answers = [client.post("/sign-in") for _ in range(40)]
    assert {answer.status_code for answer in answers} == {403, 429}
    last = answers[-1]
    assert int(last.headers["retry-after"]) >= 1
    assert "Too many requests" in last.text
    assert client.get("/").status_code == 200


def test_reading_is_limited_and_programs_get_json(client, world, monkeypatch):
    monkeypatch.setattr(security, "READ_RATE", 0.01)  # however slowly the requests below are made
    limited = TestClient(Limits(world.app, world.settings))
    codes = [limited.get("/api/none").status_code for _ in range(int(security.READ_BURST) + 100)]
    assert codes[0] == 404
    assert 429 in codes
    assert limited.get("/api/none").json()["error"].startswith("Too many requests")


@pytest.mark.parametrize("is_announced", [True, False])
def test_bodies_are_limited(world, is_announced):
    limited = TestClient(Limits(_echo, world.settings))
    assert limited.post("/", content=b"x" * security.MOST_BODY).text == str(security.MOST_BODY)
    body = b"x" * (security.MOST_BODY + 1)
    answer = limited.post("/", content=body if is_announced else iter([body[:1000], body[1000:]]))
    assert answer.status_code == 413
    assert "256 KiB" in answer.text
    assert limited.post("/", content=b"", headers={"Content-Length": "many"}).status_code == 413


@pytest.mark.parametrize("address", ["/{}", "/?{}"])
def test_addresses_are_limited(world, address):
    limited = TestClient(Limits(_echo, world.settings))
    assert limited.get(address.format("a" * 15_000)).status_code == 200
    answer = limited.get(address.format("a" * 17_000))
    assert answer.status_code == 414
    assert "16 KiB" in answer.text
    assert len(answer.text) < 17_000


def test_answers_are_limited_in_time(world, monkeypatch):
    async def slow(scope, receive, send):
        await asyncio.sleep(30)

    monkeypatch.setattr(security, "MOST_TIME", 0.05)
    assert TestClient(Limits(slow, world.settings)).get("/").status_code == 503


def test_what_breaks_is_logged_and_not_shown(world, logged):
    async def broken(scope, receive, send):
        raise RuntimeError("a secret of the inside")

    log = logged(security)
    answer = TestClient(Limits(broken, world.settings)).get("/")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "a secret of the inside" in log.text


def test_https_is_insisted_on_where_the_page_has_it(world):
    import dataclasses

    secure = dataclasses.replace(world.settings, address="https://papers.example.org")
    answer = TestClient(security.ResponseHeaders(_echo, secure)).get("/")
    assert answer.headers["strict-transport-security"].startswith("max-age=")
    plain = TestClient(security.ResponseHeaders(_echo, world.settings)).get("/")
    assert "strict-transport-security" not in plain.headers


def test_a_route_may_set_a_header_of_its_own(world):
    async def own(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"referrer-policy", b"no-referrer")]})
        await send({"type": "http.response.body", "body": b""})

    answer = TestClient(security.ResponseHeaders(own, world.settings)).get("/")
    assert answer.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:99", "[", "a@b", "", "evil.example/papers?"])
def test_redirects_never_name_the_host_that_a_client_wrote(client, host):
    answer = client.get("/search/?q=a%26b", headers={"Host": host})
    assert (answer.status_code, answer.headers["location"]) == (307, "/search?q=a%26b")


def test_a_form_without_an_announced_length_is_limited_too(client):
    parts = iter([b"email=", b"a" * security.MOST_BODY])
    headers = {"Sec-Fetch-Site": "same-origin", "Content-Type": "application/x-www-form-urlencoded"}
    answer = client.post("/sign-in", content=parts, headers=headers)
    assert answer.status_code == 413
    assert "256 KiB" in answer.text
