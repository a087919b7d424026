"""The index of embeddings: approximate nearest neighbours, in a file beside the database.

The table of embeddings is the truth; the file is made from it and may be deleted. It is an HNSW graph (Malkov and
Yashunin, 2018) of usearch with vectors in half precision, read through a memory map: pages that nobody asks for cost no
memory. PostgreSQL keeps an index of its own where it has the extension pgvector (see `pgvector`). Where it has not, the
file is in the user's cache, and whoever serves the page on another machine runs `papers sync` there too.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, select

from workingpapers.errors import UserError, first_line
from workingpapers.site.schema import embeddings
from workingpapers.site.search import pgvector
from workingpapers.site.search.encoder import DIMENSIONS, MODEL, cache_folder
from workingpapers.site.search.pgvector import PgVectors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CONNECTIVITY, _EXPANSION_ADD, _EXPANSION_SEARCH = 16, 128, 20  # usearch's own, the last measured: recall@10 over 0.98
_AT_ONCE = 8192  # vectors read at a time
_log = logging.getLogger(__name__)


def index_file(engine: Engine) -> Path:
    """Return where a database's index is kept; it need not exist."""
    name = engine.url.database
    if engine.dialect.name == "sqlite" and name and name != ":memory:":
        return Path(f"{name}.vectors")
    place = engine.url.set(password=None, username=None).render_as_string()
    return cache_folder() / "vectors" / f"{hashlib.blake2b(place.encode(), digest_size=12).hexdigest()}.vectors"


def open_vectors(engine: Engine) -> Vectors | PgVectors:
    """Return the index that a database's embeddings are searched in: its own, or the file."""
    return PgVectors(engine) if _has_own(engine) else Vectors(engine)


def update_index(engine: Engine) -> None:
    """Make the index equal to the table of embeddings.

    New vectors are added to the file; where some changed or went, it is built anew. It is replaced in one step, so that
    readers see the old one or the new one. Two processes that do so at once do the work twice. An index of PostgreSQL's
    own is made where it is missing, and needs no more.

    Raises:
        UserError: the file cannot be written.
    """
    if _has_own(engine):
        pgvector.install(engine)
        return
    file = index_file(engine)
    index = _restored(file)
    keys, vectors = _table(engine)
    known = index.contains(keys) if len(keys) and len(index) else _none(len(keys))
    if len(index) != int(known.sum()) or _differ(index, keys[known], vectors[known]):
        index, known = _empty(), _none(len(keys))
    added = int((~known).sum())
    if not added and file.exists():
        return
    if added:
        index.add(keys[~known], vectors[~known], copy=True)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        made = file.with_name(f"{file.name}.{os.getpid()}")
        try:
            index.save(str(made))
            if made.stat().st_size != index.serialized_length:  # usearch does not notice that its last bytes are lost
                raise OSError("its end is missing; is the disk full?")
            made.replace(file)
        finally:
            made.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:  # the latter is usearch's, of a full disk too
        raise UserError(f"The index of embeddings cannot be written to {file}: {first_line(error)}") from error


class Vectors:
    """The index as a process reads it, looked up anew when the file was replaced: each method takes the one of then."""

    def __init__(self, engine: Engine) -> None:
        self._file = index_file(engine)
        self._lock = threading.Lock()
        self._seen: tuple[int, int] | None = None
        self._index: Any = None

    def refresh(self) -> None:
        """Look whether the file was replaced, and read the new one if so."""
        try:
            status = self._file.stat()
        except OSError:
            return
        with self._lock:
            if self._seen != (status.st_ino, status.st_mtime_ns):
                index = _restored(self._file, view=True)
                self._index = index if len(index) else None
                self._seen = (status.st_ino, status.st_mtime_ns)

    def __len__(self) -> int:
        return len(index) if (index := self._index) is not None else 0

    def nearest(self, vector: NDArray[np.float32], count: int) -> list[int]:
        """Return the ids of the papers nearest to a unit vector (384,), nearest first."""
        if (index := self._index) is None:
            return []
        found = index.search(vector, count)
        return [int(key) for key in found.keys]

    def similarities(self, vector: NDArray[np.float32], ids: Sequence[int]) -> dict[int, float]:
        """Return the cosines of papers with a unit vector (384,); papers without a vector are left out."""
        import numpy as np

        if (index := self._index) is None or not ids:
            return {}
        keys = np.asarray(ids, dtype=np.uint64)
        keys = keys[index.contains(keys)]
        if not len(keys):
            return {}
        rows = np.asarray(index.get(keys), dtype=np.float32)
        return dict(zip(keys.tolist(), (rows @ vector).tolist(), strict=True))

    def vector(self, number: int) -> NDArray[np.float32] | None:
        """Return a paper's vector (384,), None where it has none."""
        import numpy as np

        if (index := self._index) is None or number not in index:
            return None
        return np.asarray(index.get(number), dtype=np.float32)


def _has_own(engine: Engine) -> bool:
    """Return whether a database indexes embeddings itself; a PostgreSQL that cannot is told of in the log."""
    if engine.dialect.name != "postgresql":
        return False
    if why := pgvector.missing(engine):
        _log.warning("%s. Embeddings are searched in a file on this machine instead: %s", why, index_file(engine))
    return not why


def _empty() -> Any:
    with contextlib.suppress(ImportError):
        import onnxruntime  # noqa: F401  loaded after usearch's kernels (numkong 7), it crashes the process
    try:
        from usearch.index import Index
    except ImportError as error:
        raise UserError("The index of embeddings needs usearch: pip install 'workingpapers[site]'") from error
    return Index(
        ndim=DIMENSIONS,
        metric="ip",  # of unit vectors: the cosine
        dtype="f16",
        connectivity=_CONNECTIVITY,
        expansion_add=_EXPANSION_ADD,
        expansion_search=_EXPANSION_SEARCH,
    )


def _restored(file: Path, *, view: bool = False) -> Any:
    """Return the index of a file; an empty one where there is none or it cannot be read."""
    index = _empty()
    if file.exists():
        try:
            (index.view if view else index.load)(str(file))
        except Exception:  # usearch raises RuntimeError, ValueError and others of a damaged file
            return _empty()
        if index.ndim != DIMENSIONS:
            return _empty()
        index.expansion_search = _EXPANSION_SEARCH
    return index


def _table(engine: Engine) -> tuple[NDArray[np.uint64], NDArray[np.float16]]:
    """Return the ids and vectors of the table."""
    import numpy as np

    found = select(embeddings.c.paper_id, embeddings.c.vector).where(embeddings.c.model == MODEL)
    keys: list[int] = []
    blocks = []
    with engine.connect().execution_options(yield_per=_AT_ONCE) as connection:
        for part in connection.execute(found).partitions():
            rows = [(number, vector) for number, vector in part if len(vector) == 2 * DIMENSIONS]
            keys += [number for number, _ in rows]
            blocks.append(np.frombuffer(b"".join(vector for _, vector in rows), dtype=np.float16))
    vectors = np.concatenate(blocks) if blocks else np.empty(0, dtype=np.float16)
    return np.asarray(keys, dtype=np.uint64), vectors.reshape(-1, DIMENSIONS)


def _none(count: int) -> NDArray[np.bool_]:
    import numpy as np

    return np.zeros(count, dtype=bool)


def _differ(index: Any, keys: NDArray[np.uint64], vectors: NDArray[np.float16]) -> bool:
    import numpy as np

    return bool(len(keys)) and not np.array_equal(np.asarray(index.get(keys)), vectors)
