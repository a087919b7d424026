"""How long a search takes while others search too: latency at a given rate, straight at `Searcher`.

    papers sync conference-papers.parquet
    python benchmarks/site/search_speed.py [DATABASE] [--rate 50] [--seconds 30]

Queries are those of search_quality.py, all kinds in turn, no two the same. They arrive on a clock, whether or not those
before have been answered, and are taken up by the threads of a pool, as the web server does; a latency is the time from
arrival to answer, waiting included. Printed are the median and the 99th percentile, of all and by kind, and the memory.
"""

from __future__ import annotations

import argparse
import random
import resource
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import search_quality
from sqlalchemy import Engine, select

from workingpapers.site.database import open_database
from workingpapers.site.papers import by_ids
from workingpapers.site.schema import papers
from workingpapers.site.search.engine import Searcher
from workingpapers.site.settings import load_settings

THREADS = 8
WARM_UP = 100  # queries that are not counted


def made(engine: Engine, count: int) -> list[tuple[str, str]]:
    """Return queries with their kinds, kinds in turn."""
    with engine.connect() as connection:
        ids = sorted(connection.execute(select(papers.c.id)).scalars())
        random.Random(search_quality.SEED + 1).shuffle(ids)
        chosen = by_ids(connection, ids[: 2 * count])
    kinds = {kind: search_quality.queries(chosen, kind, count) for kind in search_quality.KINDS}
    mixed = [[(kind, text) for _, text in asked] for kind, asked in kinds.items()]
    return [query for turn in zip(*mixed, strict=False) for query in turn][:count]


def resident() -> float:
    """Return the resident memory in MB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description="Latency of search at a rate.")
    parser.add_argument("database", nargs="?", help="path or URL; the page's own where left out")
    parser.add_argument("--rate", type=float, default=50.0, help="queries a second")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--words", action="store_true", help="without embeddings")
    given = parser.parse_args()
    settings = load_settings(database=given.database, embeddings=not given.words)
    engine = open_database(settings.database)
    asked = made(engine, WARM_UP + int(given.rate * given.seconds))
    begin = time.perf_counter()
    searcher = Searcher(engine, settings)
    ready = time.perf_counter() - begin
    searcher.refresh()
    print(f"ready in {ready:.2f} s, all read in {time.perf_counter() - begin:.2f} s; {resident():.0f} MB resident")
    for _, text in asked[:WARM_UP]:
        notes = searcher.search(text).notes
    print(*(note for note in notes if "alone" in note), sep="\n")

    start = time.perf_counter() + 0.1

    def answer(place: int, text: str) -> float:
        searcher.search(text)
        return float(time.perf_counter() - (start + place / given.rate))

    with ThreadPoolExecutor(THREADS) as pool:
        waiting = []
        for place, (_, text) in enumerate(asked[WARM_UP:]):
            time.sleep(max(0.0, start + place / given.rate - time.perf_counter()))
            waiting.append(pool.submit(answer, place, text))
        latencies = 1e3 * np.array([it.result() for it in waiting])
    kinds = np.array([kind for kind, _ in asked[WARM_UP:]])
    print(f"{len(latencies)} queries at {given.rate:g} a second, {THREADS} threads; {resident():.0f} MB resident")
    for kind in ["all", *search_quality.KINDS]:
        of_kind = latencies if kind == "all" else latencies[kinds == kind]
        print(f"{kind:26} p50 {np.median(of_kind):7.1f} ms   p99 {np.quantile(of_kind, 0.99):7.1f} ms")


if __name__ == "__main__":
    main()
