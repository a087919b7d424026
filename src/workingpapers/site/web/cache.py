"""A cache for pages that are the same for everybody, with compression and "not modified".

Popular pages are made once in `LIFETIME` seconds however many ask, and those who ask meanwhile wait for the one that is
being made. Where the database can tell cheaply that nothing was written (SQLite can), a page lives on until something
is, `LONGEST` seconds at most. Requests with a cookie or a token pass by.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from sqlalchemy import Engine
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LIFETIME = 4.0  # seconds
LONGEST = 60.0
MOST_BYTES = 20 * 1024 * 1024
_SHARE = 4  # an answer that takes up more than this part of them would drive out the pages that are asked for
_SMALLEST = 500  # bytes worth compressing
_OVERHEAD = 1500  # bytes that an answer takes beside its body and its key
_TEXT = ("text/", "application/json", "application/atom", "application/rss", "application/feed", "image/svg")

Version = Callable[[], object]


def data_version(engine: Engine) -> Version:
    """Return a function whose value changes with every commit to a database, or is None where that is not cheap."""
    file = engine.url.database
    if engine.dialect.name != "sqlite" or not file:
        return lambda: None
    connection = sqlite3.connect(file, check_same_thread=False, isolation_level=None)
    return lambda: connection.execute("PRAGMA data_version").fetchone()[0]


@dataclass
class _Answer:
    """A whole answer, and the same compressed as soon as somebody takes it so."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    etag: str = ""
    compressed: tuple[list[tuple[bytes, bytes]], bytes] | None = None
    made: float = 0.0
    version: object = None


class MicroCache:
    """Keeps anonymous pages for a moment, compresses text, answers "not modified", and answers HEAD from GET."""

    def __init__(self, app: ASGIApp, version: Version, clock: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._version = version
        self._clock = clock
        self._kept: OrderedDict[str, _Answer] = OrderedDict()
        self._size = 0
        self._making: dict[str, asyncio.Event] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve."""
        if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if "cookie" in headers or "authorization" in headers:
            made = await self._make(scope, receive, send)
        else:
            key = f"{scope['path']}?{scope['query_string'].decode('latin-1')}"
            made = self._found(key) or await self._made_once(key, scope, receive, send)
        if made is not None:
            await _send(made, headers, scope["method"] == "HEAD", send)

    def _found(self, key: str) -> _Answer | None:
        answer = self._kept.get(key)
        if answer is None:
            return None
        age = self._clock() - answer.made
        same = answer.version is not None and age < LONGEST and answer.version == self._version()
        return answer if age < LIFETIME or same else None

    async def _made_once(self, key: str, scope: Scope, receive: Receive, send: Send) -> _Answer | None:
        """Make an answer and keep it, or wait for the one who makes it already."""
        if key in self._making:
            await self._making[key].wait()
            if found := self._found(key):
                return found
            return await self._make(scope, receive, send)
        self._making[key] = asyncio.Event()
        try:
            version, begun = self._version(), self._clock()
            made = await self._make(scope, receive, send)
            if made is not None and _is_for_all(made):
                made.version, made.made = version, begun
                self._keep(key, made)
            return made
        finally:
            self._making.pop(key).set()

    def _keep(self, key: str, answer: _Answer) -> None:
        """Keep an answer, unless it is very large; the oldest go when there are too many."""
        if old := self._kept.pop(key, None):
            self._size -= _bytes(key, old)
        if _bytes(key, answer) > MOST_BYTES // _SHARE:
            return
        self._kept[key] = answer
        self._size += _bytes(key, answer)
        while self._size > MOST_BYTES:
            self._size -= _bytes(*self._kept.popitem(last=False))

    async def _make(self, scope: Scope, receive: Receive, send: Send) -> _Answer | None:
        """Return the whole answer of the application; None where it is a stream, which is passed through."""
        start: Message = {}
        parts: list[bytes] = []
        streams = False

        async def collect(message: Message) -> None:
            nonlocal start, streams
            if message["type"] == "http.response.start":
                start = message
                streams = "content-length" not in Headers(raw=message["headers"])
            if streams:
                await send(message)
            elif message["type"] == "http.response.body":
                parts.append(message.get("body", b""))

        await self._app({**scope, "method": "GET"}, receive, collect)
        return None if streams else _finished(_Answer(start["status"], list(start["headers"]), b"".join(parts)))


def _bytes(key: str, answer: _Answer) -> int:
    return len(key) + len(answer.body) + _OVERHEAD


def _finished(answer: _Answer) -> _Answer:
    """Add what tells the answer from others and who may keep it."""
    if answer.status == 200:
        headers = MutableHeaders(raw=answer.headers)
        answer.etag = headers.get("etag") or f'W/"{hashlib.blake2b(answer.body, digest_size=12).hexdigest()}"'
        headers["ETag"] = answer.etag
        headers.setdefault("Cache-Control", "no-cache")  # browsers may keep it, and ask whether it still holds
        if "content-encoding" not in headers and _is_text(headers):
            headers.add_vary_header("Accept-Encoding")
    return answer


def _is_text(headers: Headers) -> bool:
    return headers.get("content-type", "").startswith(_TEXT)


def _is_for_all(answer: _Answer) -> bool:
    headers = Headers(raw=answer.headers)
    control = headers.get("cache-control", "")
    return (
        answer.status == 200 and "set-cookie" not in headers and "private" not in control and "no-store" not in control
    )


async def _send(answer: _Answer, asked: Headers, head: bool, send: Send) -> None:
    status, headers, body = answer.status, answer.headers, answer.body
    if status == 200 and _has_it(asked, answer):
        status, body = 304, b""
        headers = [pair for pair in headers if not pair[0].startswith(b"content-")]
    elif len(body) >= _SMALLEST and _takes_gzip(asked.get("accept-encoding", "")):
        headers, body = _compressed(answer)
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": b"" if head else body})


def _takes_gzip(accepted: str) -> bool:
    """Return whether "Accept-Encoding" names gzip, with a weight that is not 0."""
    for choice in accepted.lower().replace(" ", "").split(","):
        name, _, weight = choice.partition(";q=")
        if name == "gzip":
            return not weight or weight.strip("0.") != ""
    return False


def _compressed(answer: _Answer) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Return headers and body of an answer as who takes gzip gets them."""
    if answer.compressed is None:
        headers, body = MutableHeaders(raw=list(answer.headers)), answer.body
        if "content-encoding" not in headers and _is_text(headers):
            body = gzip.compress(body, 4, mtime=0)
            headers["Content-Encoding"] = "gzip"
            headers["Content-Length"] = str(len(body))
        answer.compressed = (headers.raw, body)
    return answer.compressed


def _has_it(asked: Headers, answer: _Answer) -> bool:
    """Return whether who asks has an answer already: by its tag, or by its date where no tag is given."""
    if "if-none-match" in asked:  # it decides alone (RFC 9110, 13.1.3), and compares weakly
        names = {name.strip().removeprefix("W/") for name in asked["if-none-match"].split(",")}
        return "*" in names or answer.etag.removeprefix("W/") in names
    dates = asked.get("if-modified-since"), Headers(raw=answer.headers).get("last-modified")
    try:
        since, changed = (parsedate_to_datetime(text).timestamp() for text in dates if text)
    except (ValueError, OverflowError):  # one is missing or is no date
        return False
    return since >= changed
