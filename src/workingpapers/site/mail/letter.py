"""An edition of the digest as a mail: HTML that mail programs show as meant, and text that reads as well alone."""

from __future__ import annotations

import functools
import textwrap
from email.message import EmailMessage
from pathlib import Path
from urllib.parse import urlencode, urlsplit

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from workingpapers.runs.present import BADGES
from workingpapers.site.mail.digest import Edition
from workingpapers.site.mail.message import compose
from workingpapers.site.mail.subscriptions import FREQUENCIES, MANAGE_PATH, STOP_PATH, link_token
from workingpapers.site.papers import YEAR, Paper, authors_line, gist
from workingpapers.site.settings import Settings
from workingpapers.site.trending import span

_COLUMNS = 72  # of the text
_GIST, _SUBJECT = 230, 70  # characters


def letter(settings: Settings, edition: Edition, now: float) -> EmailMessage:
    """Return the mail of an edition.

    Its List-Unsubscribe headers let a mail program's own button end the subscription at once (RFC 8058).

    Args:
        settings: its address begins every link.
        edition: with at least one paper.
        now: seconds since 1970, from which its links count their age.
    """
    token = urlencode({"token": link_token(settings, edition.subscription, now)})
    stop = f"{settings.address}{STOP_PATH}?{token}"
    values = {
        "edition": edition,
        "address": settings.address,
        "stop": stop,
        "manage": f"{settings.address}{MANAGE_PATH}?{token}",
        "days": span(edition.first, edition.last),
        "frequency": FREQUENCIES[edition.subscription.wish.frequency],
        "badges": BADGES,
    }
    headers = {
        "List-Unsubscribe": f"<{stop}>",
        "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
        "List-Id": f"Working Papers digest <digest.{urlsplit(settings.address).hostname}>",
    }
    text, html = (_environment().get_template(f"digest.{kind}").render(values) for kind in ("txt", "html"))
    return compose(settings, edition.subscription.email, subject(edition), text, html, headers)


def subject(edition: Edition) -> str:
    """Return the first paper's title and how many follow."""
    first = gist(edition.picks[0].paper.title, _SUBJECT)
    more = len(edition.picks) - 1
    return f"{first}, and {more} more paper{'s' * (more > 1)}" if more else first


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=lambda name: bool(name and name.endswith(".html")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "byline": _byline,
        "gist": _gist,
        "wrapped": _wrapped,
        "query": _query,
        "measured": _measured,
    }
    return environment


def _byline(paper: Paper) -> str:
    """Return the first authors, and where and when."""
    place = paper.venue if YEAR.search(paper.venue) else f"{paper.venue} {paper.year or ''}"
    return " · ".join(part for part in (authors_line(paper.authors), place.strip()) if part)


def _measured(paper: Paper) -> bool:
    """Whether there is a verdict to show: the mail has colours for those alone."""
    return paper.standing in ("reproduced", "not reproduced", "needs more seeds")


def _gist(paper: Paper) -> str:
    return gist(paper.summary or paper.abstract, _GIST)


def _wrapped(text: str, indent: int = 0) -> str:
    """Return text in lines that fit; links are never broken."""
    return textwrap.fill(
        " ".join(text.split()),
        _COLUMNS,
        initial_indent=" " * indent,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _query(text: str) -> str:
    return urlencode({"q": text})
