"""Which paper a record belongs to, and what it changes there.

A record belongs to a paper that has the same catalogue slug, arXiv identifier or DOI, or else the same title
(`normal.title_key`) at most a year apart, an author in common where both name any, and no other arXiv identifier.
Records are placed one after another, so what comes out does not depend on where batches begin and end.

Merging never puts nothing in place of something. It fills what is empty; what is there is changed only by the source
that brought the paper, where the record names it by identifier, and by the catalogue for its own papers. So two sources
that differ do not overwrite each other in turns, and a second sync changes nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, select

from workingpapers.site import normal
from workingpapers.site.database import among
from workingpapers.site.schema import paper_topics, papers

if TYPE_CHECKING:
    from workingpapers.site.records import Record

CATALOGUE = "catalogue"  # the source that may say what is otherwise ours to say
PREPRINT = "arXiv"  # as a venue it says no more than that there is no other yet

IDENTITIES = ("card", "arxiv", "doi")
FACTS = ("title", "abstract", "summary", "authors", "year", "published", "url", "pdf", "code", "keywords")
COUNTS = ("citations", "stars")
OURS = ("task", "has_method", "standing")


@dataclass(eq=False, slots=True)
class Row:
    """A paper in the making.

    Attributes:
        values: its columns; topics: its topics.
        id: 0 until it is in the table.
        new: whether it came with this batch.
        old: what the columns that have changed were.
        old_topics: its topics in the table.
    """

    values: dict[str, Any]
    topics: frozenset[str] = frozenset()
    id: int = 0
    new: bool = False
    old: dict[str, Any] = field(default_factory=dict)
    old_topics: frozenset[str] = frozenset()

    def put(self, name: str, value: Any) -> None:
        """Change a column."""
        self.old.setdefault(name, self.values[name])
        self.values[name] = value

    def before(self, name: str) -> Any:
        """Return what the table had in a column before this batch; None for a new paper."""
        return None if self.new else self.old.get(name, self.values[name])


class Known:
    """The papers that a batch of records may belong to, by everything they can be known by.

    Args:
        connection: whose papers are looked up, with one query per kind of name, however long the batch.
        records: the batch.
    """

    def __init__(self, connection: Connection, records: Sequence[Record]) -> None:
        self._connection = connection
        self._by: dict[tuple[str, str], Row] = {}
        self._titles: dict[str, list[Row]] = {}
        self._keys = {record.title: normal.title_key(record.title) for record in records}
        self._slugs = {id(record): _slug(record) for record in records}
        wanted = {name: {getattr(record, name) for record in records} - {None} for name in IDENTITIES}
        wanted |= {"title_key": set(self._keys.values()), "slug": set(self._slugs.values())}
        found: dict[int, Row] = {}
        for name, values in wanted.items():
            for row in connection.execute(select(papers).where(among(connection, papers.c[name], values))).mappings():
                found.setdefault(row["id"], Row(dict(row), id=row["id"]))
        topics: dict[int, set[str]] = {}
        for paper, topic in connection.execute(
            select(paper_topics).where(among(connection, paper_topics.c.paper_id, found))
        ):
            topics.setdefault(paper, set()).add(topic)
        for number in sorted(found):
            found[number].topics = found[number].old_topics = frozenset(topics.get(number, ()))
            self._register(found[number])

    def place(self, record: Record, now: float) -> tuple[Row, str]:
        """Return the paper of a record with the record merged in, and what became of it: "new", "updated", ..."""
        row = self._find(record)
        if row is None:
            return self._make(record, now), "new"
        return row, "updated" if self._merge(row, record) else "unchanged"

    def _find(self, record: Record) -> Row | None:
        for name in IDENTITIES:
            if row := self._by.get((name, getattr(record, name))):
                return row
        alike = self._titles.get(self._keys[record.title], ())
        return next((row for row in alike if _same(row.values, record)), None)

    def _make(self, record: Record, now: float) -> Row:
        values = {name: getattr(record, name) for name in (*IDENTITIES, *FACTS, *COUNTS, *OURS, "venue", "source")}
        values |= {"authors": list(record.authors), "keywords": list(record.keywords), "votes": 0}
        values |= {"slug": self._free(self._slugs[id(record)]), "title_key": self._keys[record.title]}
        row = Row(values | {"added": now, "updated": now}, frozenset(record.topics), new=True)
        self._register(row)
        return row

    def _merge(self, row: Row, record: Record) -> bool:
        """Merge a record into its paper and return whether that changed anything."""
        values, before = row.values, (dict(row.values), row.topics)
        by_name = any(getattr(record, name) and getattr(record, name) == values[name] for name in IDENTITIES)
        for name in IDENTITIES:
            value = getattr(record, name)
            if value and values[name] is None and (name, value) not in self._by:
                row.put(name, value)
        ours = record.source == CATALOGUE
        corrects = ours or (by_name and values["card"] is None and values["source"] == record.source)
        for name in FACTS:
            value = getattr(record, name)
            value = list(value) if name in ("authors", "keywords") else value
            if value and value != values[name] and (corrects or not values[name]):
                row.put(name, value)
        if _says_more(record.venue, values["venue"], corrects):
            row.put("venue", record.venue)
        for name in COUNTS:
            if getattr(record, name) > values[name]:
                row.put(name, getattr(record, name))
        for name in OURS if ours else ():
            if getattr(record, name) != values[name]:
                row.put(name, getattr(record, name))
        row.topics = frozenset(record.topics) if ours else row.topics
        self._register(row)
        return (values, row.topics) != before

    def _register(self, row: Row) -> None:
        """Make a row known by what it holds by now."""
        for name in (*IDENTITIES, "slug"):
            if row.values[name] is not None:
                self._by.setdefault((name, row.values[name]), row)
        if "title" in row.old and row in (alike := self._titles[row.values["title_key"]]):
            alike.remove(row)
            row.values["title_key"] = normal.title_key(row.values["title"])
        alike = self._titles.setdefault(row.values["title_key"], [])
        if row not in alike:
            alike.append(row)

    def _free(self, slug: str) -> str:
        """Return a slug that no paper has; one is only taken where a paper has changed its title or year since."""
        if ("slug", slug) not in self._by:
            return slug
        used = set(self._connection.execute(select(papers.c.slug).where(papers.c.slug.startswith(slug))).scalars())
        used |= {value for name, value in self._by if name == "slug"}
        return next(free for number in itertools.count(2) if (free := f"{slug}-{number}") not in used)


def _slug(record: Record) -> str:
    if record.card or record.arxiv:
        return record.card or (record.arxiv or "").replace("/", "-")
    return normal.slug(record.title, record.year, *record.authors)


def _same(row: Mapping[str, Any], record: Record) -> bool:
    """Whether a paper with the same title is the same paper."""
    if None not in (row["arxiv"], record.arxiv) and row["arxiv"] != record.arxiv:
        return False
    if None not in (row["year"], record.year) and abs(row["year"] - record.year) > 1:
        return False
    ours, theirs = normal.family_names(row["authors"]), normal.family_names(record.authors)
    return not ours or not theirs or bool(ours & theirs)


def _says_more(venue: str, than: str, corrects: bool) -> bool:
    if venue in ("", PREPRINT, than):
        return bool(venue) and not than
    return corrects or than in ("", PREPRINT)
