"""The page for language models: a server of the Model Context Protocol, on its official SDK, over standard input.

Five tools, which only read: search, a paper with its claims, what trends, leaderboards, and how to use a method. Their
results are typed, with the models of the JSON API where those fit.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Any, Literal

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError, UnexpectedToolError
from mcp_types import CallToolResult, InputRequiredResult, ToolAnnotations
from pydantic import BaseModel, Field, ValidationError

from workingpapers import __version__
from workingpapers.errors import UserError, unknown_name
from workingpapers.runs.present import Assessed
from workingpapers.runs.store import Store
from workingpapers.site import trending
from workingpapers.site.catalogue import add_catalogue, is_missing
from workingpapers.site.database import open_database, writing
from workingpapers.site.normal import arxiv_id
from workingpapers.site.papers import Paper, by_name, gist
from workingpapers.site.search.engine import Searcher
from workingpapers.site.search.filters import Filters
from workingpapers.site.settings import Settings, load_settings
from workingpapers.site.web.api_boards import Leaderboard, LeaderboardDetail
from workingpapers.site.web.api_models import Claim, Method, PaperDetail, method_of
from workingpapers.site.web.measured import Measured, fitting
from workingpapers.site.web.refusal import wrong_value

INSTRUCTIONS = (
    "Papers on large pre-trained models, and whether they work. Papers of the catalogue have claims, each as reported "
    "in the paper beside what was measured here, with a verdict and the command that measures it. Say what was "
    "measured and on what data, model and hardware; a claim that was not run is not refuted. Find papers with "
    "search_papers, read one with show_paper, and write code with how_to_use."
)
_MOST_WHOLE = 3  # leaderboards that are shown whole; of more, the list alone
_AUTHORS = 5  # of a paper in a list
_READS = ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False)

Limit = Annotated[int, Field(ge=1, le=50, description="most papers to return")]
PaperName = Annotated[str, Field(description="a paper's slug, as other tools give it, or its arXiv identifier")]


class Listed(BaseModel):
    """A paper in a list; show_paper shows it whole."""

    slug: str
    title: str
    authors: list[str] = Field(description="the first five")
    venue: str
    year: int | None
    gist: str = Field(description="how its summary or abstract begins")
    standing: str | None = Field(description="the best that became of its claims; null outside the catalogue")
    has_method: bool = Field(description="whether how_to_use gives code")
    why: str = Field(default="", description="why it trends")


class FoundPapers(BaseModel):
    """What a search found."""

    papers: list[Listed]
    total: int
    notes: list[str] = Field(description="how it was searched, where that is not as asked")
    did_you_mean: str | None


class TrendingPapers(BaseModel):
    """What trends, the first first."""

    period: str
    papers: list[Listed]


class ShownPaper(BaseModel):
    """A paper, its claims reported beside measured, and papers like it."""

    paper: PaperDetail
    claims: list[Claim]
    similar: list[Listed]


class Boards(BaseModel):
    """Leaderboards: listed, and shown whole where they are few."""

    listed: list[Leaderboard]
    whole: list[LeaderboardDetail] = Field(description="the first three, if no more fit")


class HowToUse(BaseModel):
    """How a paper's method is used, and how its claims are measured."""

    slug: str
    title: str
    method: Method | None = Field(description="null where its method is not here")
    install: str
    notes: list[str] = Field(description="what is unverified, where code and paper differ")
    measure: list[str] = Field(description="commands that measure its claims")
    otherwise: str = Field(description="what to do where the method is not here; empty where it is")


@contextmanager
def _telling() -> Iterator[None]:
    """Tell the model what it can mend; anything else is a crash, of which it learns only that."""
    try:
        yield
    except UserError as error:
        raise ToolError(str(error)) from error


class Tools:
    """The tools; their docstrings are what a model reads.

    Args:
        settings: of the page whose database and store are read. A database that has no catalogue gets it.

    Raises:
        UserError: the database or the store cannot be opened.
    """

    def __init__(self, settings: Settings) -> None:
        self._engine = open_database(settings.database)
        self._address = settings.address
        store = Store(settings.store)
        with self._engine.connect() as connection:
            incomplete = is_missing(connection)
        if incomplete:
            with writing(self._engine) as connection:
                add_catalogue(connection, store, time.time())
        self._measured = Measured(store)
        self._searcher = Searcher(self._engine, settings)

    @_telling()
    def search_papers(
        self,
        query: Annotated[
            str,
            Field(
                max_length=1000,
                description='words or a sentence; "exact phrase", -word, author:, venue:, year:2020..2023',
            ),
        ],
        topic: Annotated[str, Field(description="id of a topic, such as feature-transfer")] = "",
        task: Annotated[str, Field(description="a task that measures papers, such as probe")] = "",
        has: Annotated[list[Literal["method", "code"]], Field(description="what papers must have")] = [],  # noqa: B006
        sort: Literal["relevance", "date", "trending", "citations"] = "relevance",
        limit: Limit = 10,
    ) -> FoundPapers:
        """Find papers by words and by meaning: say what you look for in words or in a sentence.

        With has=["method"] it finds only papers whose method can be used from this library, with has=["code"] only
        those whose authors' code is known. Typos are forgiven; notes say what was searched for instead.
        """
        filters = Filters(topic=topic or None, task=task or None, has=frozenset(has))
        found = self._searcher.search(query, filters, sort, size=limit)
        return FoundPapers(
            papers=[_listed(hit.paper) for hit in found.hits],
            total=found.total,
            notes=list(found.notes),
            did_you_mean=found.did_you_mean,
        )

    @_telling()
    def show_paper(self, paper: PaperName) -> ShownPaper:
        """Show a paper: abstract, links, citation, and every claim as reported, as measured here, with the verdict.

        A verdict compares with a baseline on the data and the model of the leaderboard that the claim names.
        """
        found, assessed = self._find(paper)
        return ShownPaper(
            paper=PaperDetail.whole(found, assessed, self._address),
            claims=[Claim.of(finding) for finding in (assessed.found if assessed else ())],
            similar=[_listed(other) for other in self._searcher.similar(found.id, 5)],
        )

    @_telling()
    def trending(
        self,
        period: Literal["day", "week", "month", "all"] = "week",
        date: Annotated[str, Field(description="2026-11-25, 2026-W48 or 2026-11; empty for today")] = "",
        limit: Limit = 10,
    ) -> TrendingPapers:
        """Show which papers trend in a day, week or month, and why: votes, stars, citations, runs.

        This is what readers and programs did within the period, later counting more; it says nothing about quality.
        """
        asked = trending.read_period(period, date, trending.day_of(time.time()))
        with self._engine.connect() as connection:
            found = trending.trending(connection, period, asked.end, size=limit)
        return TrendingPapers(period=found.period.label, papers=[_listed(row.paper, row.why) for row in found.rows])

    @_telling()
    def leaderboard(
        self,
        task: Annotated[str, Field(description="name of a task, such as probe; empty for all")] = "",
        setting: Annotated[str, Field(description="a regime of the task, such as standard")] = "",
        data: Annotated[str, Field(description="name of a data set")] = "",
    ) -> Boards:
        """Show leaderboards: which methods help on which data, with intervals, verdicts, costs and the command.

        Without arguments, lists every leaderboard; narrow it to three or fewer to see their entries.
        """
        found = fitting(self._measured.now(), task=task, setting=setting, data=data)
        whole = found if len(found) <= _MOST_WHOLE else []
        return Boards(
            listed=[Leaderboard.of(board, self._address) for board in found],
            whole=[LeaderboardDetail.of(board, self._address) for board in whole],
        )

    @_telling()
    def how_to_use(self, paper: PaperName) -> HowToUse:
        """Give code that uses a paper's method, ready to copy, where it plugs in, and commands that measure it."""
        found, assessed = self._find(paper)
        method = method_of(assessed.card) if assessed else None
        commands = [finding.command for finding in (assessed.found if assessed else ()) if finding.command]
        elsewhere = f"The authors' code is at {found.code}." if found.code else "No code of the authors is known."
        return HowToUse(
            slug=found.slug,
            title=found.title,
            method=method,
            install="pip install workingpapers",
            notes=list(assessed.card.notes) if assessed else [],
            measure=list(dict.fromkeys(commands)),
            otherwise="" if method else f"This paper's method is not here. {elsewhere}",
        )

    def _find(self, name: str) -> tuple[Paper, Assessed | None]:
        """Return a paper by slug or arXiv identifier, and what is known about it if it is of the catalogue.

        Raises:
            UserError: there is none.
        """
        name = name.strip()
        with suppress(ValueError):
            name = arxiv_id(name)
        with self._engine.connect() as connection:
            found = by_name(connection, name)
        if found is None:
            raise UserError(f"No paper {name!r} here. search_papers finds papers and gives their slugs.")
        return found, self._measured.now().papers.get(found.card or "")


class _Server(MCPServer[Any]):
    """The SDK's server, which says what is wrong with a call in the page's own sentences."""

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[Any, Any] | None = None
    ) -> CallToolResult | InputRequiredResult:
        """Call a tool.

        Raises:
            ToolError: a tool or an argument that is not known, a value that is not allowed, or what the tool refuses.
        """
        taken = {tool.name: tool.input_schema["properties"] for tool in await self.list_tools()}
        with _telling():
            if name not in taken:
                raise unknown_name("tool", name, taken)
            for it in arguments:
                if it not in taken[name]:
                    raise unknown_name("argument", it, taken[name], of=name)
        try:
            return await super().call_tool(name, arguments, context)
        except UnexpectedToolError:
            raise
        except ToolError as error:
            why = error.__cause__
            if isinstance(why, ValidationError):
                wrong = ({**it, "loc": ("arguments", *it["loc"])} for it in why.errors())
                raise ToolError(" ".join(map(wrong_value, wrong))) from why
            raise ToolError(str(why or error)) from why


def make_server(settings: Settings) -> MCPServer[Any]:
    """Return the server; `run()` speaks over standard input and output."""
    server = _Server(
        "workingpapers", title="Working Papers", instructions=INSTRUCTIONS, version=__version__, log_level="WARNING"
    )
    tools = Tools(settings)
    for tool in (tools.search_papers, tools.show_paper, tools.trending, tools.leaderboard, tools.how_to_use):
        server.add_tool(tool, annotations=_READS)
    return server


def run(*, database: str | None, store: str | None) -> None:
    """Serve until standard input ends.

    Args:
        database: of the page; None takes the settings' own.
        store: of runs; None takes the settings' own.
    """
    # Nothing is signed here, so that no secret is needed.
    make_server(load_settings(database=database, store=store, secret=secrets.token_urlsafe(48))).run()


def _listed(paper: Paper, why: str = "") -> Listed:
    return Listed(
        slug=paper.slug,
        title=paper.title,
        authors=list(paper.authors[:_AUTHORS]),
        venue=paper.venue,
        year=paper.year,
        gist=gist(paper.summary or paper.abstract),
        standing=paper.standing,
        has_method=paper.has_method,
        why=why,
    )
