"""The index of embeddings in PostgreSQL, by its extension pgvector.

The table of embeddings gets one more column, which PostgreSQL computes from the bytes: vectors in half precision, null
where an embedding is of another model or size. An HNSW graph (Malkov and Yashunin, 2018) is over that column. So it
follows each insert, change and deletion within the same transaction, and every process on every machine sees the same.
The bytes remain what the rest of the page reads and writes; column and graph may be dropped, and are made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sqlalchemy import Engine, func, select, text
from sqlalchemy.exc import ProgrammingError

from workingpapers.site.database import reading, writing
from workingpapers.site.schema import embeddings
from workingpapers.site.search.encoder import DIMENSIONS, MODEL

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Candidates of a search: twice what is asked for, within these; the latter is the most that pgvector takes. Measured on
# 82,101 papers: of a query's nearest ten 98 % are among the hundred that it asks for, of a paper's nearest seven 99 %.
_LEAST, _MOST = 40, 1000
_OLDEST = (0, 8)  # pgvector that goes on searching where deleted vectors took up the places

_LOCK = text("SELECT pg_advisory_xact_lock(20230715)")  # of two processes that come at once one makes it
_AVAILABLE = text("SELECT coalesce(installed_version, default_version) AS version, installed_version IS NULL AS absent "
                  "FROM pg_available_extensions WHERE name = 'vector'")  # fmt: skip
# The settings hold for this statement alone, whose condition on them is looked at before the graph is.
_NEAREST = text(
    """SELECT paper_id FROM embeddings WHERE indexed IS NOT NULL
    AND (SELECT set_config('hnsw.ef_search', :expansion, true)
                || set_config('hnsw.iterative_scan', 'strict_order', true)) <> ''
    ORDER BY indexed <#> CAST(:asked AS halfvec) LIMIT :most"""
)
_SIMILARITIES = text("SELECT paper_id, -(indexed::vector <#> CAST(:asked AS vector)) FROM embeddings "
                     "WHERE paper_id = ANY(CAST(:ids AS integer[])) AND indexed IS NOT NULL")  # fmt: skip
_COUNT = text("SELECT count(indexed) FROM embeddings")

_INSTALL = (
    # A half has a sign, five bits of exponent and ten of mantissa, here little-endian; PostgreSQL has no cast for it.
    """CREATE OR REPLACE FUNCTION halfvec_of(given bytea) RETURNS halfvec LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN (SELECT array_agg((
        CASE WHEN bits & 31744 = 0 THEN (bits & 1023) * 2.0::float8 ^ (-24)
             ELSE (1024 + (bits & 1023)) * 2.0::float8 ^ ((bits >> 10 & 31) - 25) END
        * CASE WHEN bits & 32768 = 0 THEN 1 ELSE -1 END)::real ORDER BY place)::real[]::halfvec
    FROM (SELECT place, get_byte(given, 2 * place) + 256 * get_byte(given, 2 * place + 1) AS bits
          FROM generate_series(0, octet_length(given) / 2 - 1) AS place) AS halves)""",
    f"""ALTER TABLE embeddings ADD COLUMN IF NOT EXISTS indexed halfvec({DIMENSIONS}) GENERATED ALWAYS AS
    (CASE WHEN model = '{MODEL}' AND octet_length(vector) = {2 * DIMENSIONS} THEN halfvec_of(vector) END) STORED""",
    # In memory, or it takes many times as long; by one process, as containers have little memory for several to share.
    "SET LOCAL maintenance_work_mem = '512MB'",
    "SET LOCAL max_parallel_maintenance_workers = 0",
    "CREATE INDEX embeddings_indexed ON embeddings USING hnsw (indexed halfvec_ip_ops)",  # of unit vectors: the cosine
)


def missing(engine: Engine) -> str:
    """Return why a PostgreSQL database cannot use pgvector, "" where it can; the extension is created if need be."""
    with writing(engine) as connection:
        found = connection.execute(_AVAILABLE).one_or_none()
        if found is None:
            return "PostgreSQL's extension pgvector is not installed"
        if tuple(int(part) for part in found.version.split(".")[:2]) < _OLDEST:
            return f"PostgreSQL's extension pgvector {found.version} is too old (0.8 is needed)"
        if found.absent:
            connection.execute(_LOCK)
            try:
                with connection.begin_nested():
                    connection.execute(text("CREATE EXTENSION IF NOT EXISTS vector"))
            except ProgrammingError:
                return "PostgreSQL's extension pgvector may not be created by this user (CREATE EXTENSION vector)"
    return ""


def install(engine: Engine) -> None:
    """Make the column and the index where they are missing; the embeddings of 80,000 papers take a minute."""
    with writing(engine) as connection:
        connection.execute(_LOCK)
        if connection.execute(text("SELECT to_regclass('embeddings_indexed')")).scalar() is None:
            for statement in _INSTALL:
                connection.exec_driver_sql(statement)


class PgVectors:
    """The index as PostgreSQL answers for it, with the methods of `vectors.Vectors`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._count = 0

    def refresh(self) -> None:
        """Make the index where it is missing, and count its vectors."""
        if not self._count:
            install(self._engine)
        with reading(self._engine) as connection:
            self._count = connection.execute(_COUNT).scalar_one()

    def __len__(self) -> int:
        return self._count

    def nearest(self, vector: NDArray[np.float32], count: int) -> list[int]:
        """Return the ids of the papers nearest to a unit vector (384,), nearest first."""
        if not self._count:
            return []
        expansion = str(min(max(2 * count, _LEAST), _MOST))
        asked = {"expansion": expansion, "asked": _literal(vector), "most": count}
        with reading(self._engine) as connection:
            return list(connection.execute(_NEAREST, asked).scalars())

    def similarities(self, vector: NDArray[np.float32], ids: Sequence[int]) -> dict[int, float]:
        """Return the cosines of papers with a unit vector (384,); papers without a vector are left out."""
        if not self._count or not ids:
            return {}
        asked = {"asked": _literal(vector), "ids": list(ids)}
        with reading(self._engine) as connection:
            found: dict[int, float] = dict(connection.execute(_SIMILARITIES, asked).all())
        return {number: found[number] for number in ids if number in found}

    def vector(self, number: int) -> NDArray[np.float32] | None:
        """Return a paper's vector (384,), None where it has none."""
        import numpy as np

        its = (embeddings.c.paper_id == number, embeddings.c.model == MODEL)
        found = select(embeddings.c.vector).where(*its, func.octet_length(embeddings.c.vector) == 2 * DIMENSIONS)
        if not self._count:
            return None
        with reading(self._engine) as connection:
            kept = connection.execute(found).scalar()
        return None if kept is None else np.frombuffer(kept, dtype=np.float16).astype(np.float32)


def _literal(vector: NDArray[np.float32]) -> str:
    return str(vector.tolist())
