"""How many stars the linked code has, from GitHub (docs.github.com/rest/repos)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine

from workingpapers.site.schema import papers
from workingpapers.site.sources import counting
from workingpapers.site.sources.batch import Batch, Cursor
from workingpapers.site.sources.http import Client, Refused, read_json

_BASE = "https://api.github.com"
_BATCH = 20  # papers written at once; each takes a request
_REPOSITORY = re.compile(
    r"https?://(?:www\.)?github\.com/([A-Za-z0-9-]+)/([A-Za-z0-9._-]+?)(?:\.git)?(?:[/?#].*)?", re.IGNORECASE
)
_GONE = (404, 410, 451)


@dataclass(frozen=True)
class GitHub:
    """Stars of the papers whose code is on GitHub.

    Without a token ($WORKINGPAPERS_GITHUB_TOKEN) GitHub answers 60 requests an hour; each sync goes on where the one
    before had to stop.

    Args:
        engine: the page's database.
        client: that asks.
        base: where the API is.
        size: papers in a batch.
    """

    engine: Engine
    client: Client
    base: str = _BASE
    size: int = _BATCH

    @property
    def name(self) -> str:
        """See `Source.name`."""
        return "stars"

    def batches(self, cursor: Cursor | None) -> Iterator[Batch]:
        """See `Source.batches`."""
        linked = papers.c.code.ilike("%github.com/%")
        return counting.batches(self.engine, "stars", papers.c.code, linked, self.size, cursor, self._ask)

    def _ask(self, codes: dict[int, str]) -> counting.Asked:
        counts, problems = {}, []
        for number, code in codes.items():
            named = _REPOSITORY.fullmatch(code)
            if not named or named[2] in (".", ".."):
                continue  # a person's page, not a repository
            try:
                found = self._repository(f"{named[1]}/{named[2]}")
            except Refused as error:
                if error.status not in _GONE:
                    raise
                continue
            count = counting.usable(found, "stargazers_count")
            if count is None:
                problems.append(f"GitHub, {code}: stargazers_count is no count")
            else:
                counts[number] = count
        return counts, problems

    def _repository(self, name: str) -> Any:
        token = os.environ.get("WORKINGPAPERS_GITHUB_TOKEN")
        headers = {"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28"}
        headers |= {"Authorization": f"Bearer {token}"} if token else {}
        return self.client.fetch(f"{self.base}/repos/{name}", read_json, headers=headers)
