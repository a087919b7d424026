"""Lists of papers as feeds: Atom (RFC 4287), RSS 2.0 and JSON Feed 1.1.

A paper has the same id in every feed, for ever: a tag URI (RFC 4151) of the page's host and the paper's slug. Its date
is when it came onto the page, so that readers find what is new to them at the top; when it was published stands beside
it where the format has a place for it. Nothing that changes with every vote is in a feed, so that readers don't show a
paper as unread again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from workingpapers.papers.topics import load_topics
from workingpapers.site.papers import Paper

_ATOM, _DC = "http://www.w3.org/2005/Atom", "http://purl.org/dc/elements/1.1/"
ElementTree.register_namespace("atom", _ATOM)
ElementTree.register_namespace("dc", _DC)
# XML 1.0 (2.2) has no place for these, not even escaped.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Feed:
    """A list of papers.

    Attributes:
        title: of the list; description: one sentence.
        root: the page's address, without a slash at the end.
        page: path and query of the list as a page; path: path and query of the feed itself.
        papers: in the order of the list.
    """

    title: str
    description: str
    root: str
    page: str
    path: str
    papers: Sequence[Paper]

    @property
    def updated(self) -> float:
        """When the latest of its papers came; the beginning of 1970 for none."""
        return max((paper.added for paper in self.papers), default=0.0)

    def id(self, paper: Paper | None = None) -> str:
        """Return a paper's id, or the feed's own: the same in each format."""
        host = re.sub(r"^https?://([^:/]+).*", r"\1", self.root)
        return f"tag:{host},2026:papers/{paper.slug}" if paper else f"tag:{host},2026:{self.page}"

    def url(self, paper: Paper) -> str:
        """Return the address of a paper's page."""
        return f"{self.root}/papers/{paper.slug}"


def atom(feed: Feed) -> bytes:
    """Return a feed as Atom."""
    top = Element("feed", {"xmlns": _ATOM, "xml:lang": "en"})
    _add(top, "id", feed.id())
    _add(top, "title", feed.title)
    _add(top, "subtitle", feed.description)
    _add(top, "updated", _instant(feed.updated))
    _add(SubElement(top, "author"), "name", "Working Papers")
    _add(top, "link", rel="self", type="application/atom+xml", href=feed.root + feed.path)
    _add(top, "link", rel="alternate", type="text/html", href=feed.root + feed.page)
    for paper in feed.papers:
        entry = SubElement(top, "entry")
        _add(entry, "id", feed.id(paper))
        _add(entry, "title", paper.title)
        _add(entry, "link", rel="alternate", type="text/html", href=feed.url(paper))
        _add(entry, "updated", _instant(paper.added))
        if paper.published:
            _add(entry, "published", f"{paper.published}T00:00:00Z")
        for name in paper.authors:
            _add(SubElement(entry, "author"), "name", name)
        for name in paper.topics:
            _add(entry, "category", term=name, label=_topic(name))
        _add(entry, "summary", _text(paper))
    return _document(top)


def rss(feed: Feed) -> bytes:
    """Return a feed as RSS 2.0; authors are Dublin Core's creators, since RSS asks for e-mail addresses."""
    top = Element("rss", version="2.0")
    channel = SubElement(top, "channel")
    _add(channel, "title", feed.title)
    _add(channel, "link", feed.root + feed.page)
    _add(channel, "description", feed.description)
    _add(channel, "language", "en")
    _add(channel, "lastBuildDate", _mail_date(feed.updated))
    _add(channel, f"{{{_ATOM}}}link", rel="self", type="application/rss+xml", href=feed.root + feed.path)
    for paper in feed.papers:
        item = SubElement(channel, "item")
        _add(item, "title", paper.title)
        _add(item, "link", feed.url(paper))
        _add(item, "guid", feed.id(paper), isPermaLink="false")
        _add(item, "pubDate", _mail_date(paper.added))
        for name in paper.authors:
            _add(item, f"{{{_DC}}}creator", name)
        for name in paper.topics:
            _add(item, "category", _topic(name))
        # A description is read as HTML, so what looks like markup in an abstract is escaped for that as well.
        _add(item, "description", _text(paper).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))
    return _document(top)


def json_feed(feed: Feed) -> bytes:
    """Return a feed as JSON Feed 1.1."""
    made = {
        "version": "https://jsonfeed.org/version/1.1",
        "title": feed.title,
        "description": feed.description,
        "home_page_url": feed.root + feed.page,
        "feed_url": feed.root + feed.path,
        "language": "en",
        "items": [
            {
                "id": feed.id(paper),
                "url": feed.url(paper),
                "title": paper.title,
                "content_text": _text(paper),
                "date_published": _instant(paper.added),
                "authors": [{"name": name} for name in paper.authors],
                "tags": [_topic(name) for name in paper.topics],
            }
            | ({"external_url": paper.url} if paper.url else {})
            for paper in feed.papers
        ],
    }
    return json.dumps(made, ensure_ascii=False, indent=1).encode("utf-8", "replace")


# By the ending of its address: what writes a format, and its media type.
FORMATS: dict[str, tuple[Callable[[Feed], bytes], str]] = {
    "atom": (atom, "application/atom+xml; charset=utf-8"),
    "rss": (rss, "application/rss+xml; charset=utf-8"),
    "json": (json_feed, "application/feed+json; charset=utf-8"),
}


def _add(parent: Element, name: str, text: str | None = None, **attributes: str) -> None:
    clean = {key: _NOT_XML.sub("", value) for key, value in attributes.items()}
    SubElement(parent, name, clean).text = None if text is None else _NOT_XML.sub("", text)


def _document(top: Element) -> bytes:
    ElementTree.indent(top, " ")
    return bytes(ElementTree.tostring(top, encoding="utf-8", xml_declaration=True))


def _text(paper: Paper) -> str:
    """Return what a paper is about and what was measured, as plain text; its title if nothing else is known."""
    about = " ".join((paper.summary.replace("`", "") or paper.abstract).split())
    standing = f"Measured here: {paper.standing}." if paper.standing else ""
    return "\n\n".join(part for part in (about, standing) if part) or paper.title


def _topic(name: str) -> str:
    known = load_topics().get(name)
    return known.title if known else name


def _instant(seconds: float) -> str:
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _mail_date(seconds: float) -> str:
    return format_datetime(datetime.fromtimestamp(int(seconds), UTC), usegmt=True)
