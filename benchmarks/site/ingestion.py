"""How fast papers come in: into the tables with the full-text index, and through the encoder.

    python benchmarks/site/ingestion.py conference-papers.parquet [--embedded 1500]

All papers of the file are brought into a database of their own, as `papers sync` does; then some of them, drawn at
random, are embedded there. The encoder is timed before and after that on the same texts in the same order and batches;
the share is the mean of these two times over the time of `embed_missing`. Times are of the process' CPU, all threads
together, and in brackets by the clock.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import delete, select

from workingpapers.site.database import open_database, writing
from workingpapers.site.papers import by_ids
from workingpapers.site.schema import papers
from workingpapers.site.search.embed import AT_ONCE, embed_missing
from workingpapers.site.search.encoder import embedded_text, make_encoder
from workingpapers.site.sources.files import File
from workingpapers.site.sync import sync


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds of CPU and of the clock that work takes."""
    cpu, clock = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - clock


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of bringing papers in.")
    parser.add_argument("file", type=Path, help="Parquet or JSONL")
    parser.add_argument("--embedded", type=int, default=1500, help="papers that are embedded; 0 skips it")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        engine = open_database(f"sqlite:///{folder}/site.sqlite")
        cpu, clock = timed(lambda: sync(engine, [File(given.file)]))
        with engine.connect() as connection:
            ids = list(connection.execute(select(papers.c.id)).scalars())
        count = len(ids)
        print(
            f"{count:,} papers with full text: {count / cpu:,.0f} a CPU second ({count / clock:,.0f} a second)",
            flush=True,
        )
        kept = sorted(random.Random(0).sample(ids, min(given.embedded, count)))
        if not kept:
            return
        with writing(engine) as connection:
            connection.execute(delete(papers).where(papers.c.id.not_in(kept)))
        with engine.connect() as connection:
            texts = [embedded_text(paper.title, paper.abstract) for paper in by_ids(connection, kept)]
        encoder = make_encoder()

        def bare() -> None:
            for start in range(0, len(texts), AT_ONCE):
                encoder.encode(texts[start : start + AT_ONCE])

        first = timed(bare)
        whole = timed(lambda: embed_missing(engine, encoder))
        second = timed(bare)
    for name, (cpu, clock) in {"encoder alone": first, "embed_missing": whole, "encoder alone, again": second}.items():
        print(f"{name:22} {len(kept) / cpu:6.1f} papers a CPU second ({len(kept) / clock:.1f} a second)")
    shares = [(one + two) / 2 / both for one, two, both in zip(first, second, whole, strict=True)]
    print(f"{'share':22} {shares[0]:6.0%} ({shares[1]:.0%})")


if __name__ == "__main__":
    main()
