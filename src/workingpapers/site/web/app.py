"""The application: routes, what they share, and the layers before them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException

from workingpapers import __version__
from workingpapers.errors import UserError
from workingpapers.runs.store import Store
from workingpapers.site.catalogue import add_catalogue, is_missing
from workingpapers.site.database import open_database, writing
from workingpapers.site.recommend import Recommender
from workingpapers.site.search.engine import Searcher
from workingpapers.site.settings import Settings
from workingpapers.site.web import account, api, boards, feed_routes, find, pages, static_files, subscribe
from workingpapers.site.web.cache import MicroCache, data_version
from workingpapers.site.web.given import Given
from workingpapers.site.web.measured import Measured
from workingpapers.site.web.refusal import wrong_value
from workingpapers.site.web.render import compile_templates, problem
from workingpapers.site.web.security import MAIL_BURST, MAIL_RATE, Buckets, Limits, ResponseHeaders, SameOrigin

log = logging.getLogger(__name__)

THREADS = 4  # requests worked on at a time: threads of one interpreter only wait for each other when there are more

_LATER = 1.0  # seconds that the first requests get before the catalogue is looked through


def create_app(settings: Settings) -> FastAPI:
    """Return the application; its database is opened, and closed when the server stops.

    Routes find what they share in `request.app.state`: settings, engine (of the page's database), store (of runs),
    measured (what the store says, see `Measured.now`), searcher, recommender, recommending and drawing (who may do so
    now), mails (how many each client caused, see `slow_down`) and feed_changes.

    Raises:
        UserError: the database or the store cannot be opened.
    """
    app = _Page(
        title="workingpapers",
        version=__version__,
        description="Papers, claims and what was measured. A parameter without a value is as one not given.",
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/v1/openapi.json",
    )
    app.state.settings = settings
    app.state.engine = open_database(settings.database)
    app.state.store = Store(settings.store)
    app.state.measured = Measured(app.state.store)
    app.state.searcher = Searcher(app.state.engine, settings)
    app.state.recommender = Recommender(app.state.engine)
    # Who waits for a list or a plot holds none of the threads that answer requests.
    app.state.recommending, app.state.drawing = CapacityLimiter(1), CapacityLimiter(1)
    app.state.mails = Buckets(MAIL_RATE, MAIL_BURST)
    app.state.feed_changes = feed_routes.Changes()
    for module in (static_files, find, pages, boards, account, subscribe, feed_routes, api):
        app.include_router(module.router)
    app.add_exception_handler(UserError, _user_error)
    app.add_exception_handler(OperationalError, _database_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    for layer, options in (  # the last one added is the first one met
        (MicroCache, {"version": data_version(app.state.engine)}),
        (Given, {}),
        (SameOrigin, {"settings": settings}),
        (Limits, {"settings": settings}),
        (ResponseHeaders, {"settings": settings}),
    ):
        app.add_middleware(layer, **options)
    return app


class _Page(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """Return the description of the API, with examples."""
        return api.exemplify(super().openapi())


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Bring the catalogue in before the first request if it is not there, and up to date beside them if it is."""
    to_thread.current_default_thread_limiter().total_tokens = THREADS
    with app.state.engine.connect() as connection:
        at_once = is_missing(connection)
    later = threading.Timer(_LATER, _bring_catalogue, [app])
    later.daemon = True
    threading.Thread(target=compile_templates, name="compile-templates", daemon=True).start()
    if at_once:
        _bring_catalogue(app)
    else:
        later.start()
    yield
    later.cancel()
    app.state.engine.dispose()


def _bring_catalogue(app: FastAPI) -> None:
    app.state.measured.now()
    try:
        with writing(app.state.engine) as connection:
            add_catalogue(connection, app.state.store, time.time())
    except Exception:
        log.exception("The catalogue could not be brought up to date; what is there is shown.")


def _user_error(request: Request, error: Exception) -> Response:
    return problem(request, 400, str(error))


def _database_error(request: Request, error: Exception) -> Response:
    """Answer where the database is away, full or locked: what was to be changed was not."""
    log.error("%s %s: the database failed", request.method, request.url.path, exc_info=error)
    message = (
        "The database cannot be used just now, so nothing was changed. It was written to the log; try again later."
    )
    return problem(request, 503, message, {"Retry-After": "60"})


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = error.detail
    if error.status_code == 404 and message == "Not Found":
        message = f"There is no page at {request.url.path}."
    headers = dict(error.headers or {})
    if error.status_code == 405:
        message = f"{request.method} is not what {request.url.path} answers to."
        headers["Allow"] = headers.get("Allow", "").replace("GET", "GET, HEAD")  # which the cache answers from GET
    return problem(request, error.status_code, message, headers)


def _invalid(request: Request, error: Exception) -> Response:
    """Answer what cannot be read with the name of each value, what is allowed, and what was given."""
    assert isinstance(error, RequestValidationError)
    return problem(request, 422, " ".join(wrong_value(it) for it in error.errors()))
