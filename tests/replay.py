"""A server of our own that answers as a test tells it to: whole, cut off, slowly, too much, or elsewhere."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit


@dataclass
class Asked:
    """One request, as the server got it."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


@dataclass
class Answer:
    """What the server sends: `cut` leaves out the last bytes, `drip` waits before each byte (seconds)."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: int = 0
    drip: float = 0.0
    chunked: bool = False


Script = Callable[[Asked], Answer]


class Server:
    """Answers every request by `script`, which a test may change; `asked` has what was asked so far."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.script: Script = lambda asked: Answer(status=404)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    port = 0

    def in_turn(self, *answers: Answer) -> None:
        """Give these answers one after another, the last one for ever."""
        left = list(answers)
        self.script = lambda asked: left.pop(0) if len(left) > 1 else left[0]


def answer_json(what: Any, **changes: Any) -> Answer:
    return Answer(json.dumps(what).encode(), **{"headers": {"Content-Type": "application/json"}, **changes})


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """Run a server on a free port."""
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            place = urlsplit(self.path)
            size = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(size)) if size else None
            headers = {name.lower(): value for name, value in self.headers.items()}
            server.asked.append(Asked(self.command, place.path, dict(parse_qsl(place.query)), headers, body))
            _send(self, server.script(server.asked[-1]))

        do_GET = do_POST = _answer

        def log_message(self, *args: Any) -> None:
            pass

    inner = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    inner.daemon_threads = True
    server.port = inner.server_address[1]
    thread = threading.Thread(target=inner.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        inner.shutdown()
        thread.join()
        inner.server_close()


def _send(handler: BaseHTTPRequestHandler, answer: Answer) -> None:
    handler.send_response(answer.status)
    for name, value in answer.headers.items():
        handler.send_header(name, value)
    body = answer.body
    if answer.chunked:
        handler.send_header("Transfer-Encoding", "chunked")
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    else:
        handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    with contextlib.suppress(OSError):  # the client may have seen enough
        if not answer.drip:
            handler.wfile.write(body[: len(body) - answer.cut])
            return
        for number in range(len(body)):
            time.sleep(answer.drip)
            handler.wfile.write(body[number : number + 1])
            handler.wfile.flush()


class Time:
    """Time that only passes by sleeping; `slept` has every sleep."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
