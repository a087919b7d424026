"""`papers mcp`: the page for language models, over standard input and output."""

from __future__ import annotations

import click


@click.command(
    epilog="""\b
Examples:
  claude mcp add papers -- papers mcp
  papers mcp --database ./site.sqlite

\b
In the settings of other clients:
  {"mcpServers": {"papers": {"command": "papers", "args": ["mcp"]}}}"""
)
@click.option("--database", metavar="URL", help="A file, or a SQLAlchemy URL. [$WORKINGPAPERS_SITE]")
@click.option("--store", metavar="URL", help="Where runs are kept. [$WORKINGPAPERS_STORE]")
def mcp(database: str | None, store: str | None) -> None:
    """Serve papers to a language model (Model Context Protocol).

    Its tools search, show a paper with its claims reported beside measured, show what trends and leaderboards, and give
    code that uses a method. A client starts this command and speaks with it; it only reads.
    """
    from workingpapers.site.mcp import run

    run(database=database, store=store)
