"""Pages from templates: what every module of routes uses to answer."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from fastapi import HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from workingpapers import __version__
from workingpapers.errors import UserError
from workingpapers.runs.present import FILTERS, GLOBALS, TEMPLATES, Places
from workingpapers.site.papers import YEAR, Paper, authors_line, gist
from workingpapers.site.web import static_files
from workingpapers.site.web.strip import difference_strip
from workingpapers.site.web.tex import typeset, typeset_marked

_FOLDERS = (Path(__file__).parent / "templates", TEMPLATES)

TITLES = {
    400: "That can’t be answered",
    401: "Sign in first",
    403: "That isn’t allowed",
    404: "Nothing here",
    405: "Not that way",
    413: "Too much at once",
    414: "Too much at once",
    422: "That can’t be answered",
    429: "Too many requests",
    500: "Something broke",
    503: "Not just now",
}


@functools.cache
def environment() -> Environment:
    """Return the environment of all templates: the page's own first, then those it shares with the report."""
    templates = Environment(
        loader=FileSystemLoader(_FOLDERS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    templates.filters |= FILTERS | {
        "math": typeset,
        "math_marked": typeset_marked,
        "authors": authors_line,
        "dated": dated,
        "day": day,
        "short": short_count,
        "query": query,
        "gist": gist,
        "web": is_web,
        "strip": difference_strip,
    }
    templates.globals |= GLOBALS | {
        "static": static_files.address,
        "version": __version__,
        "places": Places("/", ""),
    }
    return templates


def compile_templates() -> None:
    """Read every template now, so that nobody who comes first waits for one."""
    for name in environment().list_templates():
        environment().get_template(name)


def page(
    request: Request, template: str, status: int = 200, headers: Mapping[str, str] | None = None, **values: Any
) -> HTMLResponse:
    """Return a page.

    Args:
        request: whose state may hold the signed-in person as `request.state.user`; the frame shows it.
        template: file name of a template that extends "base.html".
        status: of HTTP.
        headers: to send along.
        values: what the template needs beside `request` and `user`.
    """
    user = getattr(request.state, "user", None)
    text = environment().get_template(template).render(request=request, user=user, **values)
    private = {"Cache-Control": "private, no-store"} if user is not None else {}
    return HTMLResponse(text, status, headers=private | dict(headers or {}))


def problem(request: Request, status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return an error as the asker can read it: JSON under /api, a page elsewhere."""
    if request.url.path.startswith("/api"):
        return JSONResponse({"error": message}, status, headers=dict(headers or {}))
    return page(request, "error.html", status, headers, title=TITLES.get(status, "That didn’t work"), message=message)


@contextmanager
def or_missing() -> Iterator[None]:
    """Turn what a name in an address fails with into a page that says so, with status 404."""
    try:
        yield
    except UserError as error:
        raise HTTPException(404, str(error)) from error


def dated(paper: Paper) -> Markup:
    """Return where and when a paper appeared: "ICML, 2017", or its day where that is known."""
    place = paper.venue or ("arXiv" if paper.arxiv else "")
    if paper.published:
        when = Markup('<time datetime="{}">{}</time>').format(paper.published, day(paper.published))
        return Markup("{} · {}").format(place, when) if place else when
    year = str(paper.year) if paper.year and not YEAR.search(place) else ""
    return escape(", ".join(filter(None, (place, year))))


def is_web(address: str) -> bool:
    """Return whether an address from elsewhere may be linked: of the web, not one that runs something."""
    return address.startswith(("https://", "http://"))


def day(value: str | float | None) -> str:
    """Return "25 November 2026" for an ISO day or for seconds since 1970; text that is no day stays as it is."""
    if value is None:
        return ""
    try:
        found = date.fromisoformat(value) if isinstance(value, str) else datetime.fromtimestamp(value, UTC).date()
    except ValueError:
        return str(value)
    return f"{found.day} {found:%B %Y}"


def short_count(value: float) -> str:
    """Return a count in thousands and millions, without a space: "12.3k"."""
    return FILTERS["count"](value).replace(" ", "")


def query(values: Mapping[str, Any], **changes: Any) -> str:
    """Return "?a=b&c=d" of what is not empty, or nothing; changes are laid over the values first."""
    given = {name: value for name, value in (dict(values) | changes).items() if value not in (None, "", (), [])}
    return f"?{urlencode(given, doseq=True)}" if given else ""
