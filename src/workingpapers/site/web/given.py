"""Parameters without a value are as those not given: a form sends every field it has, also those left empty."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send


class Given:
    """Takes parameters without a value out of the query, so that what is so without them holds, in pages and API."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve."""
        if scope.get("query_string"):
            parts = [part for part in scope["query_string"].split(b"&") if part.partition(b"=")[2]]
            scope = {**scope, "query_string": b"&".join(parts)}
        await self._app(scope, receive, send)
