"""The page under load: requests a second, latencies, start time and memory, on a database that is there already.

    python benchmarks/site/serve.py --database site.sqlite

starts the server in a process of its own and asks it from this one, over connections that stay open, on the same
machine. Four loads, each for `--seconds`:

* trending: the four periods' pages, as fast as the server answers;
* papers: pages of papers drawn with the skew that visits have (Zipf, exponent 1), as fast as it answers;
* papers, all different: each page asked for once, so that nothing is served from a cache;
* search: titles' words, at 50 requests a second (an open loop: a late answer does not slow the next question).

Every client has an address of its own (X-Forwarded-For, one trusted proxy), as the rate limits are per client. Latency
is from the moment a request was due to its last byte.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote_plus

import psutil
import sqlalchemy

_PROGRAM = "from workingpapers.site.commands.serve import serve; serve()"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--database", required=True, help="the page's database: a SQLite file or a URL")
    options.add_argument("--store", type=Path, help="a store of runs")
    options.add_argument("--seconds", type=float, default=10.0)
    options.add_argument("--connections", type=int, default=16)
    given = options.parse_args()
    url = given.database if "://" in given.database else f"sqlite:///{given.database}"
    with sqlalchemy.create_engine(url).connect() as connection:
        found = connection.execute(sqlalchemy.text("SELECT slug, title FROM papers ORDER BY id"))
        rows = [(row.slug, row.title) for row in found]
    print(f"{len(rows):,} papers, {given.connections} connections, {given.seconds:.0f} s each")
    with tempfile.TemporaryDirectory() as folder:
        server, port, started = _start(given, Path(folder))
        try:
            print(f"start to first answer: {started:.2f} s; resident {_resident(server):.0f} MB")
            asyncio.run(_measure(given, port, rows))
            print(f"resident after all that: {_resident(server):.0f} MB")
        finally:
            server.terminate()
            server.wait(20)


def _start(given: argparse.Namespace, folder: Path) -> tuple[subprocess.Popen[str], int, float]:
    """Return the server's process, its port, and the seconds until it had answered with the trending page."""
    store = str(given.store or folder / "runs.sqlite")
    command = [sys.executable, "-c", _PROGRAM, "--port", "0", "--database", given.database]
    environment = os.environ | {"WORKINGPAPERS_PROXIES": "1", "WORKINGPAPERS_SECRET": "benchmark" * 5}
    begun = time.perf_counter()
    server = subprocess.Popen([*command, "--store", store], stderr=subprocess.PIPE, text=True, env=environment)
    assert server.stderr is not None
    line = next((line for line in server.stderr if "http://" in line), "")
    if not line:
        raise SystemExit("the server did not start")
    port = int(line.split("http://")[1].split()[0].rpartition(":")[2].rstrip("/"))
    asyncio.run(_first(port))
    return server, port, time.perf_counter() - begun


async def _first(port: int) -> None:
    while True:
        try:
            await _Client(port).ask("/")
            return
        except OSError:
            await asyncio.sleep(0.01)


def _resident(server: subprocess.Popen[str]) -> float:
    return float(psutil.Process(server.pid).memory_info().rss / 2**20)


async def _measure(given: argparse.Namespace, port: int, rows: list[tuple[str, str]]) -> None:
    draw = random.Random(0)
    slugs = [f"/papers/{slug}" for slug, _ in rows]
    draw.shuffle(slugs)
    weights = [1 / rank for rank in range(1, len(slugs) + 1)]
    skewed = draw.choices(slugs, weights, k=100_000)
    different = iter(slugs)
    trending = [f"/?period={period}" for period in ("day", "week", "month", "all")]
    await _closed("trending", port, given, lambda: draw.choice(trending))
    await _closed("papers", port, given, lambda: skewed[draw.randrange(len(skewed))])
    await _closed("papers, all different", port, given, lambda: next(different))
    await _open("search, 50/s", port, given, _queries(draw, [title for _, title in rows]), 50.0)


def _queries(draw: random.Random, titles: list[str]) -> Iterator[str]:
    """Yield addresses of searches for two to five words that follow each other in a title."""
    while True:
        words = draw.choice(titles).split()
        start = draw.randrange(max(1, len(words) - 3))
        yield f"/search?q={quote_plus(' '.join(words[start : start + draw.randint(2, 5)]))}"


async def _closed(name: str, port: int, given: argparse.Namespace, address: Callable[[], str]) -> None:
    """Ask as fast as answers come, over some connections at once."""
    taken: list[float] = []
    end = time.perf_counter() + given.seconds

    async def visit() -> None:
        client = _Client(port)
        while time.perf_counter() < end:
            begun = time.perf_counter()
            await client.ask(address())
            taken.append(time.perf_counter() - begun)

    begun = time.perf_counter()
    await asyncio.gather(*(visit() for _ in range(given.connections)))
    _tell(name, taken, time.perf_counter() - begun)


async def _open(name: str, port: int, given: argparse.Namespace, addresses: Iterator[str], rate: float) -> None:
    """Ask at a steady rate, whether or not earlier questions are answered."""
    taken: list[float] = []
    idle: list[_Client] = []

    async def visit(due: float) -> None:
        client = idle.pop() if idle else _Client(port)
        await client.ask(next(addresses))
        taken.append(time.perf_counter() - due)
        idle.append(client)

    begun = time.perf_counter()
    tasks = []
    for index in range(int(given.seconds * rate)):
        due = begun + index / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(visit(due)))
    await asyncio.gather(*tasks)
    _tell(name, taken, time.perf_counter() - begun)


class _Client:
    """One connection that stays open, from an address that is new now and then."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, path: str) -> bytes:
        """Return the body of an answer; anything but 200 ends the benchmark."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        client = ".".join(str(random.randrange(1, 255)) for _ in range(4))
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Accept-Encoding: gzip\r\nX-Forwarded-For: {client}\r\n\r\n".encode()
        )
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        if " 200 " not in head.partition("\r\n")[0]:
            raise SystemExit(f"{path}: {head.partition(chr(13))[0]}")
        return await reader.readexactly(int(head.partition("content-length: ")[2].partition("\r\n")[0]))


def _tell(name: str, taken: list[float], seconds: float) -> None:
    cuts = statistics.quantiles(taken, n=100)
    print(
        f"{name:<24} {len(taken) / seconds:7.0f} requests/s   "
        f"p50 {1000 * cuts[49]:6.1f} ms   p99 {1000 * cuts[98]:6.1f} ms   max {1000 * max(taken):6.1f} ms",
        flush=True,
    )


if __name__ == "__main__":
    main()
