"""Every table of the page's database, for SQLite and PostgreSQL alike.

Instants are seconds since 1970 (UTC, float), days are ISO dates as text ("2026-11-25"): both databases order and
compare them the same way. Full-text and vector indexes are derived from these tables and belong to `site.search`.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData()


def _paper() -> Column[int]:
    return Column("paper_id", ForeignKey("papers.id", ondelete="CASCADE"), primary_key=True)


def _user() -> Column[int]:
    return Column("user_id", ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)


papers = Table(
    "papers",
    metadata,
    Column("id", Integer, primary_key=True),
    Column(
        "slug", String, nullable=False, unique=True
    ),  # in addresses: a card's slug, an arXiv id, or words and digest
    Column("card", String, unique=True),  # slug in the catalogue
    Column("arxiv", String, unique=True),  # without version
    Column("doi", String, unique=True),  # lower case, without resolver
    Column("title_key", String, nullable=False, index=True),  # `normal.title_key`: equal for equal titles
    Column("title", Text, nullable=False),
    Column("abstract", Text, nullable=False, default=""),
    Column("summary", Text, nullable=False, default=""),  # of the catalogue, in our words
    Column("authors", JSON, nullable=False, default=list),
    Column("venue", String, nullable=False, default=""),
    Column("year", Integer),
    Column("published", String(10), index=True),  # day; None where only the year is known
    Column("url", String, nullable=False, default=""),
    Column("pdf", String, nullable=False, default=""),
    Column("code", String, nullable=False, default=""),
    Column("keywords", JSON, nullable=False, default=list),
    Column("source", String, nullable=False, index=True),  # the adapter that brought it first
    Column("citations", Integer, nullable=False, default=0),
    Column("stars", Integer, nullable=False, default=0),
    Column("votes", Integer, nullable=False, default=0),
    Column("task", String),  # of the catalogue, like the next two
    Column("has_method", Boolean, nullable=False, default=False),
    Column("standing", String),  # the best standing of its claims; None outside the catalogue
    Column("added", Float, nullable=False, index=True),
    Column("updated", Float, nullable=False),
    Index("papers_changed", "updated", "id"),
)

paper_topics = Table("paper_topics", metadata, _paper(), Column("topic", String, primary_key=True, index=True))

embeddings = Table(
    "embeddings",
    metadata,
    _paper(),
    Column("model", String, nullable=False),
    Column("digest", String, nullable=False),  # of the text that was embedded
    Column("vector", LargeBinary, nullable=False),  # float16, unit length
)

# Where each source's last sync stopped, as the source itself writes it.
syncs = Table(
    "syncs",
    metadata,
    Column("source", String, primary_key=True),
    Column("cursor", JSON, nullable=False),
    Column("updated", Float, nullable=False),
)

# What happened to a paper on a day: kind is "vote", "stars", "citations", "runs" or "published".
signals = Table(
    "signals",
    metadata,
    _paper(),
    Column("kind", String, primary_key=True),
    Column("day", String(10), primary_key=True, index=True),
    Column("amount", Float, nullable=False),
)

# Running scores: period is "day", "week", "month" or "all", start its first day.
trends = Table(
    "trends",
    metadata,
    Column("period", String, primary_key=True),
    Column("start", String(10), primary_key=True),
    _paper(),
    Column("score", Float, nullable=False),
    Index("trends_ranked", "period", "start", "score", "paper_id"),
)

users = Table(
    "users",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("email", String, nullable=False, unique=True),  # lower case
    Column("created", Float, nullable=False),
)

# Only digests of secrets are kept: reading the database signs nobody in.
sessions = Table(
    "sessions",
    metadata,
    Column("digest", String, primary_key=True),
    Column("user_id", ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("expires", Float, nullable=False),
)
api_tokens = Table(
    "api_tokens",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("digest", String, nullable=False, unique=True),
    Column("user_id", ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("name", String, nullable=False),
    Column("created", Float, nullable=False),
)
used_tokens = Table(
    "used_tokens", metadata, Column("digest", String, primary_key=True), Column("expires", Float, nullable=False)
)

votes = Table("votes", metadata, _user(), _paper(), Column("at", Float, nullable=False))
tags = Table("tags", metadata, _user(), _paper(), Column("tag", String, primary_key=True))
library = Table(
    "library",
    metadata,
    _user(),
    _paper(),
    Column("read", Boolean, nullable=False, default=False),
    Column("at", Float, nullable=False),
)
searches = Table(
    "searches",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("user_id", ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("query", String, nullable=False),
    Column("alert", Boolean, nullable=False, default=False),
    Column("created", Float, nullable=False),
    UniqueConstraint("user_id", "query"),
)
picks = Table(
    "picks",
    metadata,
    Column("day", String(10), primary_key=True),
    _paper(),
    Column("user_id", ForeignKey("users.id", ondelete="SET NULL")),
)

subscriptions = Table(
    "subscriptions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("email", String, nullable=False, unique=True),  # lower case
    Column("frequency", String, nullable=False),  # "daily", "weekdays" or "weekly"
    Column("topics", JSON, nullable=False, default=list),
    Column("queries", JSON, nullable=False, default=list),
    Column("state", String, nullable=False),  # "active", "ended" or "bounced"
    Column("created", Float, nullable=False),
    Column("confirmed", Float),
)

# All mail leaves through here. A digest's papers count as delivered from the moment its row is written, with the row.
outbox = Table(
    "outbox",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("kind", String, nullable=False),  # "digest", "confirm" or "sign-in"
    Column("email", String, nullable=False, index=True),
    Column("subscription_id", ForeignKey("subscriptions.id", ondelete="CASCADE")),
    Column("edition", String),  # the day of a digest
    Column("message", LargeBinary, nullable=False),
    Column("state", String, nullable=False),  # "waiting", "sending", "sent", "failed" or "empty"
    Column("attempts", Integer, nullable=False, default=0),
    Column("next_try", Float, nullable=False),
    Column("created", Float, nullable=False),
    Column("error", String, nullable=False, default=""),
    UniqueConstraint("subscription_id", "edition"),
    Index("outbox_due", "state", "next_try", "kind"),
    Index("outbox_created", "created"),
)
deliveries = Table(
    "deliveries",
    metadata,
    Column("subscription_id", ForeignKey("subscriptions.id", ondelete="CASCADE"), primary_key=True),
    _paper(),
    Column("edition", String, nullable=False),
)
