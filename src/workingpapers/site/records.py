"""How papers come into the database: checked, merged with what is there, counted.

A record is one sighting of a paper by one source. `checked` brings what came into its normal form, `add` finds the
paper that it belongs to (`merge` has the rules) and writes, all records of a batch in a handful of statements.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Annotated, Any

import msgspec
from sqlalchemy import Connection, bindparam, delete, insert, select, text, update

from workingpapers.errors import UserError
from workingpapers.site import normal
from workingpapers.site.database import insert_rows
from workingpapers.site.merge import COUNTS, FACTS, IDENTITIES, OURS, Known, Row
from workingpapers.site.schema import paper_topics, papers
from workingpapers.site.trending import Signal, day_of, record_all

_LONGEST_TITLE, _LONGEST_TEXT, _LONGEST_NAME = 1000, 20_000, 200
_MOST_AUTHORS, _MOST_KEYWORDS = 5000, 50
_FRESH_DAYS = 30  # a paper this young has earned all its stars and citations just now

Count = Annotated[int, msgspec.Meta(ge=0, le=2_000_000_000)]  # what the databases' integers hold


class Malformed(UserError):
    """A record that cannot be kept; the message names the field and what is wrong."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """A paper as one source sees it; empty, None or 0 where the source does not say. Made by `checked`.

    Attributes:
        source: the adapter, and which of its collections: "arxiv", "file:conference-papers".
        title, abstract, summary, authors, keywords: as in `papers.Paper`, like the next lines.
        venue, year, published, arxiv, doi: where and when, and what it is known by.
        url, pdf, code, citations, stars: addresses and counts.
        card, topics, task, has_method, standing: what the catalogue alone says.
    """

    source: str
    title: str
    abstract: str = ""
    authors: Sequence[str] = ()
    venue: str = ""
    year: int | None = None
    published: str | None = None
    arxiv: str | None = None
    doi: str | None = None
    url: str = ""
    pdf: str = ""
    code: str = ""
    keywords: Sequence[str] = ()
    citations: int = 0
    stars: int = 0
    card: str | None = None
    summary: str = ""
    topics: Sequence[str] = ()
    task: str | None = None
    has_method: bool = False
    standing: str | None = None


@dataclass(frozen=True)
class Added:
    """What became of records: the paper of each in order, and how many were new, changed their paper, or did not."""

    ids: tuple[int, ...]
    new: int
    updated: int
    unchanged: int


class _Given(msgspec.Struct, frozen=True):
    """The fields that a source may give, with their types; others are passed over."""

    title: str
    abstract: str | None = None
    authors: list[str] | None = None
    venue: str | None = None
    year: Annotated[int, msgspec.Meta(ge=1800, le=2100)] | None = None
    published: str | None = None
    arxiv: str | None = None
    doi: str | None = None
    url: str | None = None
    pdf: str | None = None
    code: str | None = None
    keywords: list[str] | None = None
    citations: Count | None = None
    stars: Count | None = None


def checked(source: str, given: Mapping[str, Any]) -> Record:
    """Return a record from fields as they came, brought into their normal form.

    Args:
        source: as in `Record`.
        given: any of title (the only one needed), abstract, authors, venue, year (1800 to 2100), published (a day or an
            instant, ISO 8601), arxiv, doi, url, pdf, code, keywords, citations and stars. None is the same as nothing;
            other names are passed over. Addresses that are not http or https are left out, long texts are cut.

    Raises:
        Malformed: a field has the wrong type, is out of range or is no such identifier, or there is no usable title.
    """
    try:
        it = msgspec.convert(given, _Given)
        title = normal.text(it.title, _LONGEST_TITLE + 1)
        if not title or len(title) > _LONGEST_TITLE:
            raise ValueError(f"title: must have 1 to {_LONGEST_TITLE} characters; got {title[:60]!r}")
        arxiv = normal.arxiv_id(it.arxiv) if it.arxiv else None
        doi = normal.doi(it.doi) if it.doi else None
        if doi and (named := normal.arxiv_of(doi)):
            arxiv, doi = arxiv or named, None
        published = _day(it.published) if it.published else None
    except msgspec.ValidationError as error:
        problem, _, place = str(error).partition(" - at `$")
        raise Malformed(f"{place.strip('.`') or 'record'}: {problem}") from error
    except ValueError as error:
        raise Malformed(str(error)) from error
    return Record(
        source=source,
        title=title,
        abstract=normal.text(it.abstract or "", _LONGEST_TEXT),
        authors=normal.names(it.authors or (), _LONGEST_NAME, _MOST_AUTHORS),
        venue=normal.text(it.venue or "", _LONGEST_NAME),
        year=it.year or (int(published[:4]) if published else None),
        published=published,
        arxiv=arxiv,
        doi=doi,
        url=normal.web_address(it.url or ""),
        pdf=normal.web_address(it.pdf or ""),
        code=normal.web_address(it.code or ""),
        keywords=normal.names(it.keywords or (), _LONGEST_NAME, _MOST_KEYWORDS),
        citations=it.citations or 0,
        stars=it.stars or 0,
    )


def _day(value: str) -> str:
    try:
        return date.fromisoformat(value[:10]).isoformat()
    except ValueError:
        raise ValueError(f"published: {value[:40]!r} is no day, such as 2026-11-25") from None


_COLUMNS = (*IDENTITIES, *FACTS, *COUNTS, *OURS, "venue", "title_key", "updated")
_NEW = [column for column in papers.c if column is not papers.c.id]
_UPDATE = (
    update(papers).where(papers.c.id == bindparam("of_id")).values({name: bindparam(f"of_{name}") for name in _COLUMNS})
)


def add(connection: Connection, records: Sequence[Record], now: float) -> Added:
    """Bring records in: as new papers, or merged into those that are there (see `merge`).

    Also records what happened as signals: the day of publication, and counts that went up. The full-text index follows
    by itself.

    Args:
        connection: that may write; all happens in its transaction.
        records: in the order in which they count.
        now: seconds since 1970.
    """
    if connection.dialect.name == "postgresql":  # one adds at a time, as on SQLite
        connection.execute(text("SELECT pg_advisory_xact_lock(20230713)"))
    known = Known(connection, records)
    placed = [known.place(record, now) for record in records]
    rows = list({id(row): row for row, _ in placed}.values())
    _write(connection, rows, now)
    record_all(connection, [signal for row in rows for signal in _signals(row, now)])
    outcome = Counter(became for _, became in placed)
    return Added(tuple(row.id for row, _ in placed), outcome["new"], outcome["updated"], outcome["unchanged"])


def _write(connection: Connection, rows: Sequence[Row], now: float) -> None:
    """Write new and changed papers with their topics, and give the new ones their ids."""
    new = {row.values["slug"]: row for row in rows if row.new}
    changed = [row for row in rows if row.old and not row.new]
    if new:
        cells = [[row.values[column.name] for column in _NEW] for row in new.values()]
        # Many in one statement, for after each FTS5 writes out what it indexed.
        for number, slug in insert_rows(connection, _NEW, cells, "RETURNING id, slug"):
            new[slug].id = number
    if changed:
        values = [row.values | {"id": row.id, "updated": now} for row in changed]
        connection.execute(_UPDATE, [{f"of_{name}": it[name] for name in ("id", *_COLUMNS)} for it in values])
    for row in rows:
        if row.topics != row.old_topics:
            connection.execute(delete(paper_topics).where(paper_topics.c.paper_id == row.id))
            if places := [{"paper_id": row.id, "topic": topic} for topic in sorted(row.topics)]:
                connection.execute(insert(paper_topics), places)


def _signals(row: Row, now: float) -> Iterator[Signal]:
    """Yield what happened to a paper in a batch: its columns against what they were."""
    published = _appeared(row.values["published"], row.values["year"], row.values["card"])
    before = None if row.new else _appeared(row.before("published"), row.before("year"), row.before("card"))
    if published != before:
        if before:
            yield Signal(row.id, "published", -1, before)
        if published:
            yield Signal(row.id, "published", 1, published)
    for kind in COUNTS:
        yield from _gain(row.id, kind, row.before(kind) or 0, row.values, now)


def _appeared(published: str | None, year: int | None, card: str | None) -> str | None:
    """Return when a paper was published: its day, or for the catalogue's papers, which open the page, its year."""
    return published or (f"{year:04}" if card and year else None)


def _gain(paper: int, kind: str, before: int, values: Mapping[str, Any], now: float) -> Iterator[Signal]:
    """Yield the signal of a count that went up.

    A first count says nothing about when it was earned, unless the paper is so fresh that it must have been just now.
    """
    gained = values[kind] - before
    if gained > 0:
        today = day_of(now)
        day = values["published"]
        fresh = day is not None and day >= (today - timedelta(days=_FRESH_DAYS)).isoformat()
        known = before > 0 or fresh
        yield Signal(paper, kind, gained, today.isoformat() if known else f"{values['year'] or today.year:04}")


def count(connection: Connection, kind: str, totals: Mapping[int, int], now: float) -> int:
    """Set the citations or stars of papers to what was just counted, and record what they gained.

    Args:
        connection: that may write.
        kind: "citations" or "stars".
        totals: by the paper's id; papers that are not there are passed over.
        now: seconds since 1970.

    Returns:
        How many papers have another count than before.
    """
    column = papers.c[kind]
    found = select(papers.c.id, column, papers.c.published, papers.c.year).where(papers.c.id.in_(totals))
    changed = [row for row in connection.execute(found).mappings() if row[kind] != totals[row["id"]]]
    if changed:
        setting = update(papers).where(papers.c.id == bindparam("of_id")).values({kind: bindparam("total")})
        connection.execute(setting, [{"of_id": row["id"], "total": totals[row["id"]]} for row in changed])
    happened = (_gain(row["id"], kind, row[kind], dict(row) | {kind: totals[row["id"]]}, now) for row in changed)
    record_all(connection, itertools.chain.from_iterable(happened))
    return len(changed)
