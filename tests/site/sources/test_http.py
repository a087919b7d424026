"""The client is polite, patient and hard to lead astray."""

import socket
import time
from email.utils import formatdate

import pytest
from replay import Answer, answer_json

from workingpapers.site.sources import http
from workingpapers.site.sources.http import PAUSES, Client, Refused, SourceError, Unreadable, is_public, read_json

GOOD = answer_json({"fine": True})


def test_an_answer_is_read(client, server):
    server.in_turn(GOOD)
    assert client.fetch(f"{server.address}/a?b=c", read_json, headers={"X-Key": "k"}) == {"fine": True}
    (asked,) = server.asked
    assert (asked.method, asked.path, asked.query, asked.headers["x-key"]) == ("GET", "/a", {"b": "c"}, "k")
    assert asked.headers["user-agent"].startswith("workingpapers/")


def test_a_body_is_posted(client, server):
    server.in_turn(GOOD)
    client.fetch(f"{server.address}/a", read_json, body={"ids": [1]})
    assert (server.asked[0].method, server.asked[0].body) == ("POST", {"ids": [1]})


def test_requests_keep_their_distance(client, server, passing):
    server.in_turn(GOOD)
    for _ in range(3):
        client.fetch(server.address, read_json)
    passing.now += 2.0  # what the caller did meanwhile counts
    client.fetch(server.address, read_json)
    assert passing.slept == [3.0, 3.0, 1.0]


def test_arxiv_is_asked_once_in_three_seconds():
    assert PAUSES["export.arxiv.org"] == 3.0


@pytest.mark.parametrize(
    "bad",
    [
        Answer(status=503),
        Answer(status=429, headers={"Retry-After": "x"}),
        Answer(status=429, headers={"Retry-After": "²"}),
        Answer(status=500),
        Answer(b'{"fine": tru'),  # whole by its length, but no JSON
        Answer(b'{"fine": true}', cut=3),
        Answer(b'{"fine": true}', cut=8, chunked=True),
    ],
)
def test_what_may_pass_is_tried_again(client, server, passing, bad):
    server.in_turn(bad, bad, GOOD)
    assert client.fetch(server.address, read_json) == {"fine": True}
    assert len(server.asked) == 3
    assert sum(passing.slept) == pytest.approx(3 + 4)  # 2 and 1 more for the distance, then 4


def test_it_gives_up_and_says_why(client, server):
    server.in_turn(Answer(status=503))
    with pytest.raises(SourceError, match="no usable answer in 5 tries; the last: status 503"):
        client.fetch(server.address, read_json)
    assert len(server.asked) == 5


def test_a_wait_is_told(server, passing):
    server.in_turn(Answer(status=503), GOOD)
    told = []
    client = Client({}, local=[server.address], clock=passing.clock, sleep=passing.sleep, tell=told.append)
    client.fetch(server.address, read_json)
    assert told == ["127.0.0.1: status 503. It is asked again in 2 s."]


@pytest.mark.parametrize("told", [lambda: "40", lambda: formatdate(time.time() + 40, usegmt=True)])
def test_it_waits_as_long_as_it_is_told(client, server, passing, told):
    server.in_turn(Answer(status=429, headers={"Retry-After": told()}), GOOD)
    assert client.fetch(server.address, read_json) == {"fine": True}
    assert passing.slept[0] == pytest.approx(40, abs=2)  # a date has whole seconds, and the test takes some


def test_it_does_not_wait_for_hours(client, server, passing):
    server.in_turn(Answer(status=429, headers={"Retry-After": "7200"}))
    with pytest.raises(SourceError, match="asks to wait 120 minutes"):
        client.fetch(server.address, read_json)
    assert (len(server.asked), passing.slept) == (1, [])


def test_a_spent_allowance_is_waited_for(client, server, passing):
    spent = {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(int(time.time()) + 60)}
    server.in_turn(Answer(status=403, headers=spent), GOOD)
    assert client.fetch(server.address, read_json) == {"fine": True}
    assert passing.slept[0] == pytest.approx(60, abs=2)


def test_an_error_is_an_error(client, server):
    server.in_turn(Answer(b"no such thing", status=404))
    with pytest.raises(Refused, match=r"answered 404 .*no such thing") as caught:
        client.fetch(f"{server.address}/x", read_json)
    assert (caught.value.status, caught.value.body, len(server.asked)) == (404, b"no such thing", 1)


def test_nobody_answers(passing):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        origin = f"http://127.0.0.1:{free.getsockname()[1]}"
    client = Client({}, local=[origin], clock=passing.clock, sleep=passing.sleep)
    with pytest.raises(SourceError, match="no usable answer in 5 tries"):
        client.fetch(origin, read_json)


def test_a_slow_answer_is_not_waited_for(server, passing):
    server.in_turn(Answer(b"x" * 100, drip=0.02))
    client = Client({}, local=[server.address], deadline=0.1, tries=2, sleep=passing.sleep)
    begin = time.monotonic()
    with pytest.raises(SourceError, match=r"longer than 0\.1 seconds"):
        client.fetch(server.address, read_json)
    assert time.monotonic() - begin < 2 * 2.0  # less than the two whole answers take


def test_a_silent_server_is_not_waited_for(server, passing):
    server.in_turn(Answer(b"xx", drip=30.0))
    client = Client({}, local=[server.address], timeout=0.1, tries=2, sleep=passing.sleep)
    with pytest.raises(SourceError, match="timed out"):
        client.fetch(server.address, read_json)


@pytest.mark.parametrize("chunked", [False, True])
def test_an_answer_that_is_too_large_is_left(server, passing, chunked):
    server.in_turn(Answer(b"x" * 300_000, chunked=chunked))
    client = Client({}, local=[server.address], largest=200_000, sleep=passing.sleep)
    with pytest.raises(SourceError, match="more than 200,000 bytes"):
        client.fetch(server.address, read_json)
    assert len(server.asked) == 1


def test_a_redirect_on_the_same_host_is_followed(client, server):
    server.in_turn(Answer(status=301, headers={"Location": "/elsewhere?x=1"}), GOOD)
    assert client.fetch(server.address, read_json, headers={"X-Key": "k"}) == {"fine": True}
    assert (server.asked[1].path, server.asked[1].query, server.asked[1].headers["x-key"]) == (
        "/elsewhere",
        {"x": "1"},
        "k",
    )


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.1:1/",
        "http://localhost/",
        "http://169.254.169.254/latest/meta-data/",
        "https://10.0.0.1/",
        "https://[::1]/",
        "https://example.org/",
        "http://export.arxiv.org/",
        "https://export.arxiv.org:8443/",
        "https://export.arxiv.org@10.0.0.1/",
        "https://user@export.arxiv.org/",
        "file:///etc/passwd",
        "ftp://export.arxiv.org/",
        "https://[bad/",
        "https://export.arxiv.org:notaport/",
        "https://export.arxiv.org/ü",
        "https://export.arxiv.org/a b",
    ],
)
def test_a_redirect_elsewhere_is_not(server, passing, target, monkeypatch):
    monkeypatch.setattr(socket, "create_connection", only_to(server.port))
    server.in_turn(Answer(status=302, headers={"Location": target}))
    client = Client({**PAUSES, "127.0.0.1": 0.0}, local=[server.address], sleep=passing.sleep)
    with pytest.raises(SourceError, match=r"is not asked|is no address"):
        client.fetch(server.address, read_json)
    assert len(server.asked) == 1


def only_to(port):
    real = socket.create_connection

    def connect(address, *rest):
        assert address[1] == port, "it reached for another server"
        return real(address, *rest)

    return connect


def test_endless_redirects_end(client, server):
    server.in_turn(Answer(status=302, headers={"Location": "/again"}))
    with pytest.raises(SourceError, match="more than 5 times"):
        client.fetch(server.address, read_json)


def test_what_was_posted_is_not_redirected(client, server):
    server.in_turn(Answer(status=302, headers={"Location": "/again"}))
    with pytest.raises(SourceError, match="redirects what was posted"):
        client.fetch(server.address, read_json, body={})


@pytest.mark.parametrize("inner", ["127.0.0.1", "10.1.2.3", "::1", "::ffff:192.168.0.1"])
def test_a_name_that_resolves_to_an_inner_address_is_refused(monkeypatch, inner):
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443)) for address in ("93.184.215.14", inner)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    monkeypatch.setattr(socket, "create_connection", lambda *_: pytest.fail("it connected"))
    with pytest.raises(SourceError, match="no public address"):
        Client().fetch("https://export.arxiv.org/api/query", read_json)


@pytest.mark.parametrize("address", ["93.184.215.14", "8.8.8.8", "2606:4700::1111", "64:ff9b::808:808"])
def test_public_addresses(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    """0.0.0.0 127.8.8.8 10.0.0.1 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 224.0.0.1 255.255.255.255
    :: ::1 fe80::1%eth0 fc00::1 ff02::1 ::ffff:10.0.0.1 2002:a00:1::1 64:ff9b::a00:1""".split(),
)
def test_other_addresses(address):
    assert not is_public(address)


def test_json_that_is_none():
    with pytest.raises(Unreadable):
        http.read_json(b"[" * 100_000)
