"""The papers that people submitted by arXiv identifier, asked for one by one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Engine

from workingpapers.errors import UserError
from workingpapers.site import submissions
from workingpapers.site.database import writing
from workingpapers.site.sources.arxiv import by_identifier
from workingpapers.site.sources.batch import Batch, Cursor
from workingpapers.site.sources.http import Client, Refused, SourceError


@dataclass(frozen=True)
class Submitted:
    """Submissions that wait.

    Args:
        engine: of the page's database.
        client: that asks.
        base: where arXiv's API is; None for its usual address.
    """

    engine: Engine
    client: Client
    base: str | None = None

    @property
    def name(self) -> str:
        """See `Source.name`."""
        return "submitted"

    def batches(self, cursor: Cursor | None) -> Iterator[Batch]:
        """See `Source.batches`. The queue itself says where to go on, so that no cursor is needed."""
        with self.engine.connect() as connection:
            names = submissions.waiting(connection)
        place = {} if self.base is None else {"base": self.base}
        for number, name in enumerate(names, 1):
            try:
                records, problems = [by_identifier(self.client, name, **place)], []
            except UserError as error:
                is_refused = isinstance(error, Refused) and error.status in (400, 404)
                again = isinstance(error, SourceError) and not is_refused  # it may answer another time
                with writing(self.engine) as connection:
                    submissions.set_aside(connection, name, time.time(), again=again)
                if again:
                    raise
                records, problems = [], [f"{name}, submitted: {error}"]
            yield Batch(cursor={}, records=records, problems=problems, done=number, total=len(names))
