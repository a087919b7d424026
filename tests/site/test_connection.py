"""Connections that send too much, or nothing whole, are closed; all others never notice."""

import socket
import threading
import time

import pytest
import uvicorn

from workingpapers.site import connection
from workingpapers.site.connection import MOST_BYTES, Connection


async def _echo(scope, receive, send):
    size = 0
    while True:
        message = await receive()
        size += len(message.get("body", b""))
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"7")]})
    await send({"type": "http.response.body", "body": f"{size:07}".encode()})


@pytest.fixture(scope="module")
def port():
    """A server whose connections these are."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(_echo, http=Connection, lifespan="off", log_level="critical")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join(10)
    listener.close()


@pytest.fixture
def peer(port):
    with socket.create_connection(("127.0.0.1", port), timeout=20) as opened:
        yield opened


def answer(peer):
    """Return all that comes until the other side closes; nothing where it does so with a reset."""
    found = b""
    try:
        while part := peer.recv(65536):
            found += part
    except ConnectionError:
        pass
    return found


def sent(peer, data, times):
    """Return how many times data could be sent."""
    for number in range(times):
        try:
            peer.sendall(data)
        except ConnectionError:
            return number
    return times


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: ", b"a" * 65536),
        (b"GET / HTTP/1.1\r\nHost: a\r\n", b"X: b\r\n" * 10_000),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X: b\r\n" * 10_000),
    ],
    ids=["a header", "headers", "trailers"],
)
def test_what_never_ends_is_cut_off(peer, begin, more):
    peer.sendall(begin)
    times = 40 * MOST_BYTES // len(more)
    assert sent(peer, more, times) < times
    assert b" 200 " not in answer(peer)


def test_each_request_of_a_connection_may_send_what_it_may(peer):
    body = b"b" * (MOST_BYTES // 2)
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
    for _ in range(5):
        peer.sendall(head + body)
        found = b""
        while not found.endswith(f"{len(body):07}".encode()):
            found += peer.recv(65536)
        assert found.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("before", "begin"),
    [(b"", b""), (b"", b"GET / HTTP/1.1\r\nHost: a\r\nX-"), (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"GET / HT")],
    ids=["nothing", "half a head", "half a second one"],
)
def test_a_head_that_does_not_come_is_not_waited_for(port, monkeypatch, before, begin):
    monkeypatch.setattr(connection, "MOST_SECONDS", 0.3)
    with socket.create_connection(("127.0.0.1", port), timeout=20) as peer:
        peer.sendall(before)
        assert not before or peer.recv(65536).endswith(b"0000000")
        started = time.monotonic()
        peer.sendall(begin)
        answer(peer)
        assert time.monotonic() - started < 5


def test_an_answer_may_take_longer_than_a_head(monkeypatch, port):
    monkeypatch.setattr(connection, "MOST_SECONDS", 0.2)
    with socket.create_connection(("127.0.0.1", port), timeout=20) as peer:
        peer.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 2\r\n\r\na")
        time.sleep(0.6)
        peer.sendall(b"b")
        assert answer(peer).endswith(b"0000002")
