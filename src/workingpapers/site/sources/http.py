"""A polite client for the few services that papers come from.

It asks each host no oftener than agreed, waits as long as it is told to, tries again what may work the next time, and
gives up with a sentence that says why. It reaches nothing but the hosts it was made for, over https and at public
addresses, through redirects too: whoever can make a service answer with a redirect, or a name resolve to an inner
address, gets no further. A body is read up to a size and a time.
"""

from __future__ import annotations

import ipaddress
import json
import socket
import ssl
import time
from collections.abc import Callable, Collection, Mapping
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException
from typing import Any, TypeVar
from urllib.parse import SplitResult, urljoin, urlsplit

from workingpapers import __version__
from workingpapers.errors import UserError

T = TypeVar("T")

PAUSES: Mapping[str, float] = {
    "export.arxiv.org": 3.0,  # arXiv's terms of use: one request in three seconds
    "huggingface.co": 0.5,
    "api.semanticscholar.org": 1.1,  # one request a second, for all that ask without a key together
    "api.github.com": 0.1,
}
_AGAIN = frozenset((429, 500, 502, 503, 504))
_MOVED = frozenset((301, 302, 303, 307, 308))
_MOST_HOPS = 5
_LONGEST_WAIT = 300.0  # seconds; whoever asks for more is asked again by another sync
_PIECE = 65536


class SourceError(UserError):
    """A service could not be asked, or did not answer as documented. What it gave before stands."""


class Refused(SourceError):
    """A service answered with an error that trying again does not mend.

    Attributes:
        status: of HTTP.
        body: the beginning of its answer.
    """

    def __init__(self, message: str, status: int, body: bytes) -> None:
        super().__init__(message)
        self.status = status
        self.body = body


class Unreadable(Exception):
    """An answer that cannot be read as it stands; another try may bring a whole one."""


def read_json(body: bytes) -> Any:
    """Return what a JSON body holds.

    Raises:
        Unreadable: it is no JSON.
    """
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Unreadable("an answer that is no JSON") from error


class Client:
    """Asks services, one request after another.

    Args:
        pauses: the hosts that may be reached, with the seconds between two requests.
        local: origins ("http://127.0.0.1:8080") that may be reached without https and at any address, in tests.
        tries: how often a request is tried in all.
        timeout: seconds that a connection may be silent.
        deadline: seconds that one answer may take.
        largest: bytes that one answer may have.
        clock, sleep: what time is told by.
        tell: called with a sentence before a request is tried again.
    """

    def __init__(
        self,
        pauses: Mapping[str, float] = PAUSES,
        *,
        local: Collection[str] = (),
        tries: int = 5,
        timeout: float = 30.0,
        deadline: float = 120.0,
        largest: int = 32 * 1024 * 1024,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        tell: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        self._pauses = dict(pauses)
        self._local = frozenset(local)
        self._tries = tries
        self._timeout = timeout
        self._deadline = deadline
        self._largest = largest
        self._clock = clock
        self._sleep = sleep
        self._tell = tell
        self._turn: dict[str, float] = {}  # when a host may be asked next
        self._tls = ssl.create_default_context()

    def fetch(
        self,
        url: str,
        read: Callable[[bytes], T],
        *,
        headers: Mapping[str, str] | None = None,
        body: Any = None,
    ) -> T:
        """Ask for an address and return what `read` makes of the answer.

        Args:
            url: of one of the hosts.
            read: takes the body; raises `Unreadable` where another try may help.
            headers: sent to the host of `url`, not to others that it redirects to.
            body: sent as JSON by POST; None asks by GET.

        Raises:
            SourceError: the address is not one that may be reached, or there was no usable answer in all tries.
            Refused: the service answered with an error.
        """
        host = urlsplit(url).hostname or url
        for attempt in range(1, self._tries + 1):
            try:
                answer = self._follow(url, headers or {}, None if body is None else json.dumps(body).encode())
                wait = answer.wait(2.0**attempt)
                if wait is None:
                    return read(answer.body)
                problem = f"status {answer.status}"
            except (OSError, HTTPException, Unreadable) as error:
                wait, problem = 2.0**attempt, str(error) or type(error).__name__
            if wait > _LONGEST_WAIT:
                raise SourceError(f"{host} asks to wait {wait / 60:.0f} minutes. The same command goes on from here.")
            if attempt < self._tries:
                self._tell(f"{host}: {problem}. It is asked again in {wait:.0f} s.")
                self._sleep(wait)
        raise SourceError(
            f"{host} gave no usable answer in {self._tries} tries; the last: {problem}. "
            "The same command goes on from here."
        )

    def _follow(self, url: str, headers: Mapping[str, str], body: bytes | None) -> _Answer:
        host = urlsplit(url).hostname
        for _ in range(_MOST_HOPS):
            place = self._allowed(url)
            answer = self._ask(place, headers if place.hostname == host else {}, body)
            to = answer.headers.get("location")
            if answer.status not in _MOVED or not to:
                if answer.status >= 400 and answer.wait(0.0) is None:
                    begins = answer.body[:200].decode(errors="replace")
                    raise Refused(f"{host} answered {answer.status} to {url}: {begins}", answer.status, answer.body)
                return answer
            if body is not None and answer.status < 307:
                raise SourceError(f"{host} redirects what was posted to it.")
            url = _joined(url, to)
        raise SourceError(f"{host} redirects more than {_MOST_HOPS} times.")

    def _allowed(self, url: str) -> SplitResult:
        """Return the parts of an address that may be reached.

        Raises:
            SourceError: it may not.
        """
        try:
            place = urlsplit(url)
            standard = place.port in (None, 443) and url.isascii() and url.isprintable() and " " not in url
        except ValueError as error:
            raise SourceError(f"{url!r} is no address.") from error
        if self._is_local(place) and url.isascii():
            return place
        if place.scheme != "https" or place.hostname not in self._pauses or "@" in place.netloc or not standard:
            raise SourceError(f"{url!r} is not asked: papers come over https from {', '.join(sorted(self._pauses))}.")
        return place

    def _is_local(self, place: SplitResult) -> bool:
        return f"{place.scheme}://{place.netloc}" in self._local

    def _ask(self, place: SplitResult, headers: Mapping[str, str], body: bytes | None) -> _Answer:
        self._wait_for_turn(place.hostname or "")
        last = self._clock() + self._deadline
        connection = HTTPConnection(place.hostname or "", timeout=self._timeout)
        connection.sock = self._connect(place)
        try:
            sent = {"Host": place.netloc, "User-Agent": f"workingpapers/{__version__}", "Connection": "close"}
            sent |= {"Content-Type": "application/json"} if body is not None else {}
            target = (place.path or "/") + (f"?{place.query}" if place.query else "")
            connection.request("GET" if body is None else "POST", target, body, {**sent, **headers})
            response = connection.getresponse()
            pieces = []
            size = 0
            while piece := response.read1(_PIECE):
                pieces.append(piece)
                size += len(piece)
                if size > self._largest:
                    raise SourceError(f"{place.hostname} answers with more than {self._largest:,} bytes.")
                if self._clock() > last:
                    raise TimeoutError(f"an answer that takes longer than {self._deadline:g} seconds")
            if response.length:
                raise ConnectionError("an answer that was cut off")
            return _Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, b"".join(pieces))
        finally:
            connection.close()

    def _wait_for_turn(self, host: str) -> None:
        early = self._turn.get(host, 0.0) - self._clock()
        if early > 0:
            self._sleep(early)
        self._turn[host] = self._clock() + self._pauses.get(host, 0.0)

    def _connect(self, place: SplitResult) -> socket.socket:
        """Connect to an address that was looked at, not to a name that may resolve otherwise the next time."""
        local = self._is_local(place)
        host, port = place.hostname or "", place.port or (443 if place.scheme == "https" else 80)
        found = {str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
        inner = [address for address in found if not is_public(address)]
        if inner and not local:
            raise SourceError(f"{host} resolves to {inner[0]}, which is no public address.")
        problem = OSError(f"{host} has no address")
        for address in sorted(found, key=lambda address: ":" in address):
            try:
                raw = socket.create_connection((address, port), self._timeout)
                return self._tls.wrap_socket(raw, server_hostname=host) if place.scheme == "https" else raw
            except OSError as error:
                problem = error
        raise problem


def _joined(url: str, to: str) -> str:
    try:
        return urljoin(url, to)
    except ValueError as error:
        raise SourceError(f"{to!r} is no address.") from error


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open internet, not of this machine, its network, or a way to them."""
    number = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(number, ipaddress.IPv6Address):
        if inner := number.ipv4_mapped or number.sixtofour:
            return is_public(str(inner))
        if number in ipaddress.ip_network("64:ff9b::/96"):  # translated to IPv4 on the way
            return is_public(str(ipaddress.IPv4Address(int(number) & 0xFFFFFFFF)))
    return number.is_global and not number.is_multicast


class _Answer:
    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    def wait(self, otherwise: float) -> float | None:
        """Return the seconds to wait before another try, None where the answer is final."""
        limited = self.status == 403 and self.headers.get("x-ratelimit-remaining") == "0"
        if self.status not in _AGAIN and not limited:
            return None
        told = self.headers.get("retry-after", "")
        reset = self.headers.get("x-ratelimit-reset", "")
        if told.isdecimal():
            return max(float(told), otherwise)
        if told:
            try:
                return max(parsedate_to_datetime(told).timestamp() - time.time(), otherwise)
            except ValueError:
                return otherwise
        return max(float(reset) - time.time(), otherwise) if reset.isdecimal() else otherwise
