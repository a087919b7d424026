"""A connection to the server, with bounds on what one request may send and how long its head may take.

The layers of `web.security` meet a request when its head is whole. What comes before that the parser keeps, however
much it is, and a connection that never says what it asks for is one of the few that there may be.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST_BYTES = 1024 * 1024  # of a request with its head: four times the largest body, for one that comes in small chunks
MOST_SECONDS = 15.0  # until a head is whole, from the connection's begin or the head's


class Connection(HttpToolsProtocol):
    """Closes itself where a request is too long or too slow to begin with."""

    _received = 0
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take in what came."""
        self._received += len(data)
        if self._received > MOST_BYTES:
            self.transport.close()
        else:
            super().data_received(data)

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._received = 0
        self._expect_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Hand the request on."""
        self._stop_waiting()
        super().on_headers_complete()

    def _expect_head(self) -> None:
        self._stop_waiting()
        self._deadline = self.loop.call_later(MOST_SECONDS, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
