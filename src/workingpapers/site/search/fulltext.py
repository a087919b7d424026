"""Full text, by what the database brings: FTS5 in SQLite, tsvector in PostgreSQL.

The index stands beside the table of papers and the database itself keeps it up to date: triggers follow every insert,
update and delete, in the same transaction. A paper's words are indexed in five places: title; authors; keywords; venue
and year; abstract and summary. Words are stemmed and lose their accents.

Ranking, SQLite: BM25 over the places, each with its weight (Robertson and Zaragoza, 2009). PostgreSQL: `ts_rank_cd`,
the density of covers (Clarke, Cormack and Tudhope, 2000).

What is looked for is a conjunction of groups, each a disjunction of terms.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import sqlalchemy.dialects.postgresql  # noqa: F401  registers the types of func.to_tsquery
from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Integer,
    Select,
    bindparam,
    column,
    exists,
    func,
    literal_column,
    select,
    table,
    text,
)

from workingpapers.site.database import rows, writing
from workingpapers.site.schema import papers
from workingpapers.site.search.query import Term

Groups = Sequence[Sequence[Term]]

PLACES = {"title": 8.0, "authors": 3.0, "keywords": 2.0, "venue": 1.0, "body": 1.0}  # weights, tuned by the benchmark
_MANY = 1000  # papers, from which on PostgreSQL's statistics are near enough
_LABELS = {
    "title": "A",
    "authors": "B",
    "keywords": "C",
    "venue": "C",
    "body": "D",
}  # PostgreSQL has four, weighed 1, 0.4, 0.2 and 0.1


def ensure(engine: Engine) -> None:
    """Make the index with its triggers where it is missing, and fill it from the papers that are there."""
    with writing(engine) as connection:
        _install(connection)


def _install(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        # Of two processes that come at once one makes it, and the other finds it made.
        connection.execute(text("SELECT pg_advisory_xact_lock(20230714)"))
        there = connection.execute(text("SELECT to_regclass('search_text')")).scalar()
        statements: Sequence[str] = _POSTGRESQL
    else:
        there = connection.execute(text("SELECT 1 FROM sqlite_master WHERE name = 'search_text'")).scalar()
        statements = _SQLITE
    if there is None:
        for statement in statements:
            connection.exec_driver_sql(statement)


def ranked(
    connection: Connection, groups: Groups, conditions: Sequence[ColumnElement[bool]], limit: int
) -> list[tuple[int, float]]:
    """Return the best papers with their scores (higher is better), best first.

    Args:
        connection: that may read.
        groups: at least one, none of them empty.
        conditions: on columns of papers, which must hold too.
        limit: how many.
    """
    index = _index(connection.dialect.name)
    query = _within(index, _ranked(connection.dialect.name), conditions)
    asked = {"asked": index.expression(groups), "most": limit}
    return [(number, abs(score)) for number, score in rows(connection, query, asked)]


def matching(
    connection: Connection, groups: Groups, conditions: Sequence[ColumnElement[bool]], limit: int
) -> list[int]:
    """Return papers that match, in no order, up to a limit; arguments as of `ranked`."""
    index = _index(connection.dialect.name)
    query = _within(index, _matching(connection.dialect.name), conditions)
    return [number for (number,) in rows(connection, query, {"asked": index.expression(groups), "most": limit})]


def count(connection: Connection, groups: Groups, *, exact: bool = False) -> int:
    """Return how many papers match.

    PostgreSQL would read each of them. Of words in many papers it has statistics, so there it is what these say, unless
    it must be `exact`.
    """
    dialect = connection.dialect.name
    asked = {"asked": _index(dialect).expression(groups)}
    are_words = all(len(phrase) == 1 for group in groups for term in group for phrase in term.phrases)
    if dialect == "postgresql" and are_words and not exact:
        (plan,) = connection.execute(_ESTIMATING, asked).scalar_one()
        if plan["Plan"]["Plan Rows"] > _MANY:
            return int(plan["Plan"]["Plan Rows"])
    return connection.execute(_counting(dialect), asked).scalar_one()


def holding(dialect: str, groups: Groups) -> ColumnElement[bool]:
    """Return the condition that a paper matches; `dialect` is "sqlite" or "postgresql"."""
    index = _index(dialect)
    asked: ColumnElement[str] = bindparam("held", index.expression(groups), unique=True)
    return index.paper.in_(select(index.number).where(index.matches(asked)))


class _Fts5:
    """The index in SQLite: a virtual table without a copy of the texts."""

    table = table("search_text", column("rowid"), column("rank"))
    number = table.c.rowid
    # With its sign, so that the index of an order is gone through, which holds all that is asked for: to read the rows
    # of many papers that match, far apart as they are, takes ten times as long.
    paper: ColumnElement[int] = literal_column("+papers.id", Integer)
    score = table.c.rank  # BM25 with our weights, negative: the best is the least
    order = table.c.rank
    _weights = ", ".join(map(str, PLACES.values()))
    weighing = (table.c.rank.op("MATCH", is_comparison=True)(literal_column(f"'bm25({_weights})'")),)

    @staticmethod
    def matches(asked: ColumnElement[str]) -> ColumnElement[bool]:
        """Return the condition that a row of the index matches."""
        return literal_column("search_text").op("MATCH", is_comparison=True)(asked)

    @staticmethod
    def expression(groups: Groups) -> str:
        """Return the groups in FTS5's language. Words are quoted letters and digits, so nothing else is said in it."""

        def said(term: Term) -> str:
            phrases = " OR ".join(f'"{" ".join(phrase)}"' for phrase in term.phrases)
            return f"{{{term.place}}} : ({phrases})" if term.place else f"({phrases})"

        return " AND ".join(f"({' OR '.join(said(term) for term in group)})" for group in groups)


class _TsVector:
    """The index in PostgreSQL: a table of documents with a GIN index."""

    table = table("search_text", column("paper_id"), column("document"))
    number = table.c.paper_id
    paper: ColumnElement[int] = papers.c.id
    _query = func.to_tsquery("english", bindparam("asked"))
    # 1: divided by the logarithm of the length, or long abstracts would win.
    score = func.ts_rank_cd(table.c.document, _query, 1)
    order = score.desc()
    weighing = ()

    @staticmethod
    def matches(asked: ColumnElement[str]) -> ColumnElement[bool]:
        """Return the condition that a row of the index matches."""
        return _TsVector.table.c.document.op("@@", is_comparison=True)(func.to_tsquery("english", asked))

    @staticmethod
    def expression(groups: Groups) -> str:
        """Return the groups in the language of `to_tsquery`."""

        def said(term: Term) -> str:
            label = f":{''.join(_LABELS[it] for it in term.place.split())}" if term.place else ""
            return " | ".join(
                "(" + " <-> ".join(f"'{word}'{label}" for word in phrase) + ")" for phrase in term.phrases
            )

        return " & ".join(f"({' | '.join(said(term) for term in group)})" for group in groups)


_Index = type[_Fts5] | type[_TsVector]
_ESTIMATING = text(
    "EXPLAIN (FORMAT JSON) SELECT FROM search_text WHERE document @@ to_tsquery('english', CAST(:asked AS text))"
)


# Built once: putting a statement together takes longer than running it.
@functools.cache
def _ranked(dialect: str) -> Select[Any]:
    index = _index(dialect)
    query = select(index.number, index.score).where(index.matches(bindparam("asked")), *index.weighing)
    return query.order_by(index.order).limit(bindparam("most"))


@functools.cache
def _matching(dialect: str) -> Select[Any]:
    index = _index(dialect)
    return select(index.number).where(index.matches(bindparam("asked"))).limit(bindparam("most"))


@functools.cache
def _counting(dialect: str) -> Select[int]:
    index = _index(dialect)
    return select(func.count()).select_from(index.table).where(index.matches(bindparam("asked")))


def _within(index: _Index, query: Select[Any], conditions: Sequence[ColumnElement[bool]]) -> Select[Any]:
    """Return the query with conditions on papers, tried paper by paper, so that the full-text index always leads."""
    return query.where(exists().where(papers.c.id == index.number, *conditions)) if conditions else query


def _index(dialect: str) -> _Index:
    return _TsVector if dialect == "postgresql" else _Fts5


def _values(row: str) -> str:
    """Return what SQLite indexes of a row, as SQL."""
    listed = "(SELECT group_concat(value, ' ; ') FROM json_each({}))"
    return (
        f"{row}.title, {listed.format(row + '.authors')}, {listed.format(row + '.keywords')}, "
        f"{row}.venue || ' ' || coalesce({row}.year, ''), {row}.abstract || ' ' || {row}.summary"
    )


_COLUMNS = ", ".join(PLACES)
_INDEXED = ("title", "authors", "keywords", "venue", "year", "abstract", "summary")
_TEXT_CHANGED = "old.title <> new.title OR old.abstract <> new.abstract"
_CHANGED = " OR ".join(f"old.{name} IS NOT new.{name}" for name in _INDEXED)
_DROP = f"INSERT INTO search_text (search_text, rowid, {_COLUMNS}) VALUES ('delete', old.id, {_values('old')});"
_PUT = f"INSERT INTO search_text (rowid, {_COLUMNS}) VALUES (new.id, {_values('new')});"
_ORDERS = (
    "CREATE INDEX papers_cited ON papers (citations, id)",
    "CREATE INDEX papers_dated ON papers (year, published, id)",
)
# The index keeps no copy of the texts: an entry is taken out by the values that were put in.
_SQLITE = (
    *_ORDERS,
    f"CREATE VIRTUAL TABLE search_text USING fts5 "
    f"({_COLUMNS}, content='', tokenize='porter unicode61 remove_diacritics 2')",
    # Parts of the index are put together when there are eight of a size instead of four: a tenth less work for a sync.
    "INSERT INTO search_text (search_text, rank) VALUES ('automerge', 8)",
    f"INSERT INTO search_text (rowid, {_COLUMNS}) SELECT id, {_values('papers')} FROM papers",
    f"CREATE TRIGGER search_text_insert AFTER INSERT ON papers BEGIN {_PUT} END",
    f"CREATE TRIGGER search_text_delete AFTER DELETE ON papers BEGIN {_DROP} END",
    f"CREATE TRIGGER search_text_update AFTER UPDATE ON papers WHEN {_CHANGED} BEGIN {_DROP} {_PUT} END",
    f"CREATE TRIGGER embeddings_outdated AFTER UPDATE ON papers WHEN {_TEXT_CHANGED} "
    "BEGIN DELETE FROM embeddings WHERE paper_id = new.id; END",
)

_LISTED = "(SELECT string_agg(value, ' ') FROM json_array_elements_text({}) AS value)"
_PARTS = {
    "A": "paper.title",
    "B": _LISTED.format("paper.authors"),
    "C": f"concat_ws(' ', {_LISTED.format('paper.keywords')}, paper.venue, paper.year)",
    "D": "paper.abstract || ' ' || paper.summary",
}
_DOCUMENT = " || ".join(
    f"setweight(to_tsvector('english', search_words({it})), '{name}')" for name, it in _PARTS.items()
)
_CHANGED_ROW = " OR ".join(f"old.{name}::text IS DISTINCT FROM new.{name}::text" for name in _INDEXED)
_POSTGRESQL = (
    *_ORDERS,
    # Letters lose their accents, and punctuation is a space: words are then those of `query.split`.
    """CREATE FUNCTION search_words(given text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT regexp_replace(regexp_replace(normalize(coalesce(given, ''), NFKD), '[\\u0300-\\u036f]', '', 'g'),
                          '[!-/:-@\\[-`{-~‐-―]+', ' ', 'g') $$""",
    f"CREATE FUNCTION search_document(paper papers) RETURNS tsvector LANGUAGE sql STABLE AS $$ SELECT {_DOCUMENT} $$",
    """CREATE TABLE search_text (
    paper_id integer PRIMARY KEY REFERENCES papers (id) ON DELETE CASCADE, document tsvector NOT NULL)""",
    "INSERT INTO search_text SELECT paper.id, search_document(paper) FROM papers AS paper",
    "CREATE INDEX search_text_document ON search_text USING gin (document)",
    """CREATE FUNCTION search_text_follow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO search_text VALUES (new.id, search_document(new))
    ON CONFLICT (paper_id) DO UPDATE SET document = excluded.document;
    RETURN NULL; END $$""",
    """CREATE FUNCTION embeddings_outdated() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    DELETE FROM embeddings WHERE paper_id = new.id; RETURN NULL; END $$""",
    "CREATE TRIGGER search_text_insert AFTER INSERT ON papers FOR EACH ROW EXECUTE FUNCTION search_text_follow()",
    f"CREATE TRIGGER search_text_update AFTER UPDATE ON papers FOR EACH ROW WHEN ({_CHANGED_ROW}) "
    "EXECUTE FUNCTION search_text_follow()",
    f"CREATE TRIGGER embeddings_outdated AFTER UPDATE ON papers FOR EACH ROW WHEN ({_TEXT_CHANGED}) "
    "EXECUTE FUNCTION embeddings_outdated()",
)
