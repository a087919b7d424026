"""Papers from a local file: Parquet, or JSON lines (one object a line).

Columns and keys are those of `records.checked`: title, abstract, authors, venue, year, published, arxiv, doi, url, pdf,
code, keywords, citations, stars; the rest is passed over. A paper whose `status` says that it was rejected or withdrawn
did not appear at its venue, so it comes without.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workingpapers.errors import UserError
from workingpapers.site.records import Malformed, Record, checked
from workingpapers.site.sources.batch import Batch, Cursor

ENDINGS = (".parquet", ".jsonl")

_LONGEST_LINE = 4 * 1024 * 1024  # bytes
_NOT_PUBLISHED = ("reject", "withdraw")


@dataclass(frozen=True)
class File:
    """A file of papers.

    Its cursor counts rows and belongs to the file's content: a file that has changed is read from its first row, and so
    is one that was read to its end.

    Args:
        path: ends in .parquet or .jsonl.
        size: rows in a batch.

    Raises:
        UserError: there is no such file, or its ending says something else.
    """

    path: Path
    size: int = 2500

    def __post_init__(self) -> None:
        if self.path.suffix not in ENDINGS:
            raise UserError(f"Papers are read from files that end in {' or '.join(ENDINGS)}; got {self.path}.")
        if not self.path.is_file():
            raise UserError(f"There is no file {self.path}.")

    @property
    def name(self) -> str:
        """The file's name without its folder and ending; what papers remember as their source."""
        return f"file:{self.path.stem}"

    @functools.cached_property
    def _digest(self) -> str:
        with self.path.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()

    def batches(self, cursor: Cursor | None) -> Iterator[Batch]:
        """See `Source.batches`."""
        first = cursor["row"] if cursor and cursor["digest"] == self._digest and not cursor["done"] else 0
        chunks = self._parquet(first) if self.path.suffix == ".parquet" else self._lines(first)
        row = first
        for rows, total, last in chunks:
            records, problems = [], []
            for number, given in enumerate(rows, row + 1):
                try:
                    records.append(self._record(given))
                except Malformed as error:
                    problems.append(f"{self.path.name}, row {number}: {error}")
            row += len(rows)
            at = {"digest": self._digest, "row": row, "done": last}
            yield Batch(cursor=at, records=records, problems=problems, done=row, total=total)

    def _record(self, given: Any) -> Record:
        if isinstance(given, str):
            raise Malformed(given)
        status = str(given.get("status") or "").lower()
        if any(word in status for word in _NOT_PUBLISHED):
            given = given | {"venue": None}
        return checked(self.name, given)

    def _parquet(self, first: int) -> Iterator[tuple[list[Any], int | None, bool]]:
        """Yield rows, how many there are in all, and whether these are the last."""
        import pyarrow
        from pyarrow import parquet

        try:
            with parquet.ParquetFile(self.path) as opened:
                wanted = [name for name in opened.schema_arrow.names if name in _COLUMNS]
                if "title" not in wanted:
                    raise UserError(f"{self.path.name} has no column 'title'; it has {opened.schema_arrow.names}.")
                total, at = opened.metadata.num_rows, 0
                for chunk in opened.iter_batches(self.size, columns=wanted):
                    skipped = min(max(first - at, 0), len(chunk))
                    at += len(chunk)
                    if rows := chunk.slice(skipped).to_pylist():
                        yield rows, total, at == total
        except pyarrow.ArrowException as error:
            raise UserError(f"{self.path.name} cannot be read as Parquet: {str(error).splitlines()[0]}") from error

    def _lines(self, first: int) -> Iterator[tuple[list[Any], int | None, bool]]:
        """Yield what lines hold; in place of one that cannot be read, a sentence that says why."""
        with self.path.open("rb") as opened:
            rows: list[Any] = []
            for number, line in enumerate(_bounded(opened)):
                if number < first:
                    continue
                if len(rows) == self.size:
                    yield rows, None, False
                    rows = []
                rows.append(_object(line))
            if rows:
                yield rows, None, True


_COLUMNS = frozenset(Record.__dataclass_fields__) - {"source"} | {"status"}


def _bounded(opened: Any) -> Iterator[bytes]:
    """Yield lines; of one that is too long only the beginning, which is too long still."""
    while line := opened.readline(_LONGEST_LINE + 1):
        piece = line
        while len(piece) > _LONGEST_LINE and not piece.endswith(b"\n"):
            piece = opened.readline(_LONGEST_LINE + 1)
        yield line


def _object(line: bytes) -> Any:
    if len(line) > _LONGEST_LINE:
        return f"longer than {_LONGEST_LINE:,} bytes"
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"no JSON ({str(error)[:100]})"
    return found if isinstance(found, dict) else "no JSON object"
