"""How often papers are cited, from Semantic Scholar's batch endpoint (api.semanticscholar.org/api-docs/graph)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Engine, func

from workingpapers.site.schema import papers
from workingpapers.site.sources import counting
from workingpapers.site.sources.batch import Batch, Cursor
from workingpapers.site.sources.http import Client, Refused, SourceError, read_json

_BASE = "https://api.semanticscholar.org"
_BATCH = 500  # the most that it takes at once


@dataclass(frozen=True)
class SemanticScholar:
    """Citations of the papers that have an arXiv identifier or a DOI.

    A key of one's own ($WORKINGPAPERS_S2_KEY) lifts the limit that all without one share.

    Args:
        engine: the page's database.
        client: that asks.
        base: where the API is.
        size: papers asked for at once.
    """

    engine: Engine
    client: Client
    base: str = _BASE
    size: int = _BATCH

    @property
    def name(self) -> str:
        """See `Source.name`."""
        return "citations"

    def batches(self, cursor: Cursor | None) -> Iterator[Batch]:
        """See `Source.batches`."""
        known = papers.c.arxiv.is_not(None) | papers.c.doi.is_not(None)
        name = func.coalesce("ARXIV:" + papers.c.arxiv, "DOI:" + papers.c.doi)
        return counting.batches(self.engine, "citations", name, known, self.size, cursor, self._ask)

    def _ask(self, names: dict[int, str]) -> counting.Asked:
        key = os.environ.get("WORKINGPAPERS_S2_KEY")
        try:
            found = self.client.fetch(
                f"{self.base}/graph/v1/paper/batch?fields=citationCount",
                read_json,
                headers={"x-api-key": key} if key else None,
                body={"ids": list(names.values())},
            )
        except Refused as error:
            if error.status == 400 and b"No valid paper ids" in error.body:
                return {}, []
            raise
        if not isinstance(found, list) or len(found) != len(names):
            raise SourceError("Semantic Scholar's answer has not one entry for each paper asked for.")
        counts, problems = {}, []
        for (number, name), entry in zip(names.items(), found, strict=True):
            if entry is None:
                continue  # it does not know the paper
            count = counting.usable(entry, "citationCount")
            if count is None:
                problems.append(f"Semantic Scholar, {name}: citationCount is no count")
            else:
                counts[number] = count
        return counts, problems
