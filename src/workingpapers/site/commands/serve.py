"""`papers serve`: the page, on this machine or behind a proxy."""

from __future__ import annotations

import click


@click.command(
    epilog="""\b
Examples:
  papers serve --open
  papers serve --port 8080 --database ./site.sqlite
  WORKINGPAPERS_ADDRESS=https://papers.example.org papers serve --host 0.0.0.0"""
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen; 0.0.0.0 is every network.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--database", metavar="URL", help="A file, or a SQLAlchemy URL. [$WORKINGPAPERS_SITE]")
@click.option("--store", metavar="URL", help="Where runs are kept. [$WORKINGPAPERS_STORE]")
@click.option("--open", "open_", is_flag=True, help="Open it in a browser.")
def serve(host: str, port: int, database: str | None, store: str | None, open_: bool) -> None:
    """Open the page: trending papers, search, leaderboards.

    It works offline, with the catalogue's papers from the start; `papers sync` brings in more. Ctrl-C stops it once
    the requests that are under way are answered.
    """
    from workingpapers.site.serve import run

    run(host, port, database=database, store=store, open_=open_)
