"""What stands between the net and the routes: headers, the origin of changes, and limits of rate, size and time.

Each is a plain ASGI layer. No form holds a token against forgery: browsers say where a request comes from, so that
anonymous pages are the same for everybody and can be kept for a moment.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from urllib.parse import urlsplit

from fastapi import HTTPException, Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from workingpapers.site.settings import Settings
from workingpapers.site.web.render import problem

log = logging.getLogger(__name__)

READING = frozenset(("GET", "HEAD", "OPTIONS"))
ONE_CLICK = (
    "/subscription/unsubscribe"  # RFC 8058: mail servers post here; the signed token in the query is the authority
)

ELSEWHERE = "This change was asked for from outside this page, so nothing was changed. Go to the page and try there."

MOST_BODY = 256 * 1024  # bytes of a request; the longest form is a few thousand
MOST_ADDRESS = 16 * 1024  # characters of path and query; the longest search is 12,000, of a thousand letters
MOST_TIME = 20.0  # seconds that a request may take
READ_RATE, READ_BURST = 50.0, 400.0  # requests a second and at once, per client
WRITE_RATE, WRITE_BURST = 0.5, 30.0
MAIL_RATE, MAIL_BURST = 1 / 120, 10.0  # mails a second and at once that one client can cause, whatever the recipients
_MOST_CLIENTS = 50_000
_HOST = re.compile(r"^https?://[^/]*")

_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


def client_address(scope: Scope, proxies: int) -> str:
    """Return who asks: the peer, or what the outermost of our own proxies saw; of IPv6 the network of a household.

    Args:
        scope: of the request.
        proxies: how many reverse proxies of ours stand in front, each of which adds to X-Forwarded-For; what stands
            before their entries was written by the client and proves nothing.
    """
    address = (scope.get("client") or ("unknown", 0))[0]
    if proxies:
        forwarded = ",".join(Headers(scope=scope).getlist("x-forwarded-for")).split(",")
        address = (forwarded[-proxies:][0]).strip() or address
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return str(address)[:64]
    return str(ipaddress.ip_network((found, 64), strict=False)) if found.version == 6 else str(found)


def safe_path(value: str | None, default: str = "/") -> str:
    """Return a path of this page to go on to, or the default for anything that could lead elsewhere."""
    if not value or not value.startswith("/") or value.startswith(("//", "/\\")) or not value.isprintable():
        return default
    place = urlsplit(value)
    return default if place.scheme or place.netloc or "\\" in value else value


class ResponseHeaders:
    """Adds the headers that every answer has, where a route has not set its own.

    All redirects stay on this page, and say so: an address with a host would be the one that the client wrote.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        secure = {"Strict-Transport-Security": "max-age=31536000"} if settings.secure else {}
        self._headers = [(name.lower().encode(), value.encode()) for name, value in (HEADERS | secure).items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(pair for pair in self._headers if pair[0] not in own)]
                if b"location" in own:
                    headers = MutableHeaders(raw=message["headers"])
                    headers["location"] = safe_path(_HOST.sub("", headers["location"]))
            await send(message)

        await self._app(scope, receive, with_headers if scope["type"] == "http" else send)


class SameOrigin:
    """Refuses changes that another site's page has a browser ask for.

    A browser says in Sec-Fetch-Site, or at least in Origin, where a request comes from. A request that says neither is
    no browser's; it needs a bearer token, which no other site can make a browser send.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._own = _origin(settings.address)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve."""
        if scope["type"] != "http" or scope["method"] in READING or self._is_ours(scope):
            await self._app(scope, receive, send)
            return
        await problem(Request(scope), 403, ELSEWHERE)(scope, receive, send)

    def _is_ours(self, scope: Scope) -> bool:
        headers = Headers(scope=scope)
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        if headers.get("authorization", "").lower().startswith("bearer ") or scope["path"] == ONE_CLICK:
            return True
        if site is not None:
            return site in ("same-origin", "none")
        if origin is not None:
            host = f"{scope.get('scheme', 'http')}://{headers.get('host', '')}"
            return origin != "null" and _origin(origin) in (self._own, _origin(host))
        return False


def _origin(address: str) -> tuple[str, str, int | None]:
    """Return scheme, host and port of an address; ports that go without saying are said."""
    try:
        place = urlsplit(address)
        port = place.port or {"http": 80, "https": 443}.get(place.scheme)
    except ValueError:
        return ("", "", None)
    return (place.scheme, place.hostname or "", port)


class Buckets:
    """A token bucket per name; of too many the least recently used are forgotten.

    Args:
        rate: tokens a second.
        burst: tokens that a bucket holds.
        clock: seconds.
    """

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, name: str) -> float:
        """Take a token and return 0, or return the seconds until there is one."""
        now = self._clock()
        level, at = self._levels.pop(name, (self._burst, now))
        level = min(self._burst, level + (now - at) * self._rate)
        short = level < 1
        self._levels[name] = (level if short else level - 1, now)
        if len(self._levels) > _MOST_CLIENTS:
            self._levels.popitem(last=False)
        return (1 - level) / self._rate if short else 0.0


def slow_down(request: Request, what: str) -> None:
    """Refuse to send more mails of a kind than one client may cause.

    Raises:
        HTTPException: 429.
    """
    state = request.app.state
    if wait := state.mails.wait(f"{what} for {client_address(request.scope, state.settings.proxies)}"):
        seconds = int(wait) + 1
        message = f"Too many {what} were asked for from here. Try again in {seconds} seconds."
        raise HTTPException(429, message, {"Retry-After": str(seconds)})


class Limits:
    """Limits how often a client asks, how much it sends and how long an answer may take, and answers for what broke."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._proxies = settings.proxies
        self._reading, self._writing = Buckets(READ_RATE, READ_BURST), Buckets(WRITE_RATE, WRITE_BURST)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        buckets = self._reading if scope["method"] in READING else self._writing
        wait = buckets.wait(client_address(scope, self._proxies))
        if wait:
            seconds = int(wait) + 1
            message = f"Too many requests from your address. Try again in {seconds} second{'s' * (seconds > 1)}."
            await problem(Request(scope), 429, message, {"Retry-After": str(seconds)})(scope, receive, send)
            return
        if len(scope["path"]) + len(scope["query_string"]) > MOST_ADDRESS:
            message = f"An address may have {MOST_ADDRESS // 1024} KiB at most."
            await problem(Request(scope), 414, message)(scope, receive, send)
            return
        await self._in_time(scope, _Measured(receive), send)

    async def _in_time(self, scope: Scope, receive: _Measured, send: Send) -> None:
        has_begun = False

        async def noticing(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            receive.expect(Headers(scope=scope).get("content-length"))
            async with asyncio.timeout(MOST_TIME):
                await self._app(scope, receive, noticing)
        except _TooLarge as error:
            answer = problem(Request(scope), error.status_code, error.detail, error.headers)
        except TimeoutError:
            answer = problem(Request(scope), 503, f"No answer within {MOST_TIME:.0f} seconds.", {"Connection": "close"})
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"])
            answer = problem(
                Request(scope), 500, "This is a fault of ours. It was written to the log; try again later."
            )
        else:
            return
        if not has_begun:
            await answer(scope, receive, send)


class _TooLarge(HTTPException):
    """A request's body exceeds the limit. Whoever reads the body may answer with it."""

    def __init__(self) -> None:
        super().__init__(413, f"A request may hold {MOST_BODY // 1024} KiB at most.", {"Connection": "close"})


class _Measured:
    """Receives a body and counts it."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._size = 0

    def expect(self, length: str | None) -> None:
        """Refuse what announces itself as too large."""
        if length is not None and (not length.isdecimal() or int(length) > MOST_BODY):
            raise _TooLarge

    async def __call__(self) -> Message:
        message = await self._receive()
        self._size += len(message.get("body", b""))
        if self._size > MOST_BODY:
            raise _TooLarge
        return message
