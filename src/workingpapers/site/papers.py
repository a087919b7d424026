"""Papers as the page shows them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from sqlalchemy import BindParameter, Connection, Row, bindparam, func, select

from workingpapers.errors import UserError
from workingpapers.papers.catalogue import load_catalogue
from workingpapers.site.schema import paper_topics, papers

YEAR = re.compile(r"\b(?:19|20)\d\d\b")  # as in the venue "ICML 2026"
_QUOTED = re.compile(r"``([^`]{1,200}?)''")


@dataclass(frozen=True, kw_only=True)
class Paper:
    """One paper, of the catalogue or brought in by a sync.

    Attributes:
        id: in this database; slug: in addresses, the same for ever.
        card: slug in the catalogue; None for a paper outside it.
        arxiv: identifier without version; doi: without resolver; None where unknown.
        title, abstract, summary: as text; summary is the catalogue's, in our words. The latter two may be empty.
        authors: names in order.
        venue, year, published: where and when; published is an ISO day, None where only the year is known.
        url, pdf, code: addresses; empty where unknown.
        keywords: of the authors; topics: ids of the topic tree, the catalogue's placements.
        source: the adapter that brought it first.
        citations, stars, votes: as last counted.
        task, has_method, standing: of the catalogue: the task that measures it, whether its method is here, and the
            best standing of its claims ("reproduced", ...).
        added: seconds since 1970.
    """

    id: int
    slug: str
    card: str | None
    arxiv: str | None
    doi: str | None
    title: str
    abstract: str
    summary: str
    authors: tuple[str, ...]
    venue: str
    year: int | None
    published: str | None
    url: str
    pdf: str
    code: str
    keywords: tuple[str, ...]
    topics: tuple[str, ...]
    source: str
    citations: int
    stars: int
    votes: int
    task: str | None
    has_method: bool
    standing: str | None
    added: float


_NAMES = tuple(Paper.__dataclass_fields__)
_PLACED = func.aggregate_strings(paper_topics.c.topic, " ")  # ids of topics hold no spaces
_COLUMNS = [
    select(_PLACED).where(paper_topics.c.paper_id == papers.c.id).scalar_subquery()
    if name == "topics"
    else papers.c[name]
    for name in _NAMES
]
# Built once: putting a statement of this many columns together takes longer than running it.
_IDS: BindParameter[int] = bindparam("ids", expanding=True)
_BY_IDS = select(*_COLUMNS).where(papers.c.id.in_(_IDS))
_BY_SLUG = select(*_COLUMNS).where(papers.c.slug == bindparam("slug"))


def by_ids(connection: Connection, ids: Sequence[int]) -> list[Paper]:
    """Return papers in the order of their ids; ids that are not there (any more) are left out."""
    if not ids:
        return []
    found = {paper.id: paper for paper in map(_paper, connection.execute(_BY_IDS, {"ids": ids}))}
    return [found[number] for number in ids if number in found]


def by_slug(connection: Connection, slug: str) -> Paper:
    """Return a paper by what stands in its address.

    Raises:
        UserError: no paper has that slug; the message names the catalogue's nearest.
    """
    known = "\0" not in slug  # PostgreSQL refuses to compare with a NUL
    row = connection.execute(_BY_SLUG, {"slug": slug}).first() if known else None
    if row is None:
        alike = get_close_matches(slug.lower(), load_catalogue(), n=1)
        raise UserError(f"No paper at {slug!r}.{f' Did you mean {alike[0]!r}?' if alike else ''}")
    return _paper(row)


def by_name(connection: Connection, name: str) -> Paper | None:
    """Return a paper by its arXiv identifier or else its slug; None if there is none."""
    is_arxiv = papers.c.arxiv == name
    found = connection.execute(select(papers.c.id).where(is_arxiv | (papers.c.slug == name)).order_by(~is_arxiv))
    return next(iter(by_ids(connection, list(found.scalars()))), None)


def _paper(row: Row[Any]) -> Paper:
    values = dict(zip(_NAMES, row, strict=True))
    for name in ("authors", "keywords"):
        values[name] = tuple(values[name])
    values["topics"] = tuple(sorted((values["topics"] or "").split()))
    return Paper(**values)


def authors_line(authors: Sequence[str], most: int = 4) -> str:
    """Return names with commas between them; "and 3 more" stands for those after the first `most`."""
    more = f" and {len(authors) - most} more" if len(authors) > most else ""
    return ", ".join(authors[:most]) + more


def gist(text: str, most: int = 280) -> str:
    """Return the first lines of a text, cut after a word and before a formula rather than within."""
    flat = _QUOTED.sub(r"“\1”", " ".join(text.split())).replace("`", "")
    if len(flat) <= most:
        return flat
    cut = flat[:most].rpartition(" ")[0] or flat[:most]
    if cut.count("$") % 2 and "$" in flat[len(cut) :]:
        cut = cut[: cut.rindex("$")]
    return f"{cut.rstrip(' ,;:.')} …"
