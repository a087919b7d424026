"""`papers mcp`, spoken to by the client of the official SDK over standard input and output."""

import subprocess
import sys

import anyio
import pytest
from click.testing import CliRunner
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from papers_made import made

from workingpapers.papers.catalogue import load_catalogue, paper
from workingpapers.runs.store import Store
from workingpapers.site import trending
from workingpapers.site.catalogue import add_catalogue
from workingpapers.site.commands.mcp import mcp
from workingpapers.site.database import open_database, writing

NOW = 1_795_600_000.0  # an instant of 25 November 2026


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """Arguments that name a database with the catalogue and a paper that trended on a known day."""
    folder = tmp_path_factory.mktemp("mcp")
    engine = open_database(f"sqlite:///{folder}/site.sqlite")
    with writing(engine) as connection:
        add_catalogue(connection, Store(str(folder / "runs.sqlite")), NOW)
        [number] = made(connection, 1, code="https://example.org/code", arxiv="2611.00001")
        trending.record_all(connection, [trending.Signal(number, "vote", 2, "2026-11-25")])
    engine.dispose()
    return ["--database", str(folder / "site.sqlite"), "--store", str(folder / "runs.sqlite")]


@pytest.fixture(scope="module")
def said(arguments):
    """What the server answers to one conversation: a name of ours to the result."""
    program = "from workingpapers.site.commands.mcp import mcp; mcp()"
    server = StdioServerParameters(
        command=sys.executable, args=["-c", program, *arguments], env={"WORKINGPAPERS_EMBEDDINGS": "0"}
    )
    calls = {
        "found": ("search_papers", {"query": "moment probing", "has": ["method"], "limit": 3}),
        "shown": ("show_paper", {"paper": "moment-probing"}),
        "by arxiv": ("show_paper", {"paper": "https://arxiv.org/abs/2611.00001v2"}),
        "trending": ("trending", {"period": "day", "date": "2026-11-25"}),
        "boards": ("leaderboard", {}),
        "used": ("how_to_use", {"paper": "moment-probing"}),
        "unused": ("how_to_use", {"paper": "2611.00001"}),
        "no paper": ("show_paper", {"paper": "nope"}),
        "no topic": ("search_papers", {"query": "x", "topic": "feature-transfr"}),
        "too many": ("search_papers", {"query": "x", "limit": 1000}),
        "no number": ("search_papers", {"query": "x", "limit": "ten"}),
        "no whole number": ("search_papers", {"query": "x", "limit": 2.5}),
        "nothing": ("search_papers", {}),
        "no text": ("search_papers", {"query": None, "topic": 5}),
        "too long": ("search_papers", {"query": "x" * 1001}),
        "no order": ("search_papers", {"query": "x", "sort": "newest"}),
        "no list": ("search_papers", {"query": "x", "has": "method"}),
        "no thing to have": ("search_papers", {"query": "x", "has": ["method", "data"]}),
        "no argument": ("search_papers", {"query": "x", "topics": "probe"}),
        "no tool": ("search_paper", {"query": "x"}),
        "no task": ("leaderboard", {"task": "nope"}),
        "no date": ("trending", {"date": "soon"}),
    }
    answers = {}

    async def talk():
        async with Client(stdio_client(server)) as client:
            answers["tools"] = (await client.list_tools()).tools
            answers["instructions"] = client.instructions
            for name, (tool, given) in calls.items():
                answers[name] = await client.call_tool(tool, given)

    anyio.run(talk)
    return answers


def result(said, name):
    assert not said[name].is_error
    return said[name].structured_content


def test_the_tools_say_what_they_do_take_and_give(said):
    tools = {tool.name: tool for tool in said["tools"]}
    assert set(tools) == {"search_papers", "show_paper", "trending", "leaderboard", "how_to_use"}
    assert "not refuted" in said["instructions"]
    for tool in tools.values():
        assert len(tool.description) > 80
        assert tool.output_schema["properties"]
        assert tool.annotations.read_only_hint
        assert not tool.annotations.open_world_hint
    taken = tools["search_papers"].input_schema
    assert taken["required"] == ["query"]
    assert taken["properties"]["sort"]["enum"] == ["relevance", "date", "trending", "citations"]


def test_it_finds_papers(said):
    found = result(said, "found")
    assert found["papers"][0]["slug"] == "moment-probing"
    assert found["papers"][0]["gist"].endswith("…")
    assert len(found["papers"]) <= 3
    assert all(it["has_method"] for it in found["papers"])
    assert "by words alone" in found["notes"][0]


def test_it_shows_a_paper_with_its_claims(said):
    shown = result(said, "shown")
    card = paper("moment-probing")
    assert shown["paper"]["title"] == card.title
    assert [claim["id"] for claim in shown["claims"]] == [claim.id for claim in card.claims]
    assert {claim["standing"] for claim in shown["claims"]} <= {"not run", "not testable", "no entry yet"}
    assert any(claim["command"].startswith("papers try ") for claim in shown["claims"])
    assert 0 < len(shown["similar"]) <= 5
    assert result(said, "by arxiv")["paper"]["slug"] == f"paper-{len(load_catalogue()) + 1}"


def test_it_shows_what_trends_and_why(said):
    found = result(said, "trending")
    assert found["period"] == "Wednesday 25 November 2026"
    assert [(it["slug"], it["why"]) for it in found["papers"]] == [(f"paper-{len(load_catalogue()) + 1}", "2 votes")]


def test_it_says_how_to_use_a_method(said):
    used = result(said, "used")
    assert used["method"]["usage"] == paper("moment-probing").usage.strip("\n")
    assert used["measure"][0].startswith("papers try ")
    assert used["otherwise"] == ""
    unused = result(said, "unused")
    assert unused["method"] is None
    assert "https://example.org/code" in unused["otherwise"]


def test_leaderboards_are_those_of_the_store(said):
    assert result(said, "boards") == {"listed": [], "whole": []}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no paper", "search_papers finds papers"),
        ("no topic", "Did you mean 'feature-transfer'"),
        ("no task", "Unknown task 'nope'"),
        ("no date", "2026-W48"),
    ],
)
def test_mistakes_are_explained(said, name, words):
    assert said[name].is_error
    assert words in said[name].content[0].text


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("too many", "limit must be 50 or less; got 1000."),
        ("no number", "limit must be a whole number; got 'ten'."),
        ("no whole number", "limit must be a whole number; got 2.5."),
        ("nothing", "query is missing."),
        ("no text", "query must be text; got null. topic must be text; got 5."),
        ("too long", f"query may have 1000 characters at most; got '{'x' * 80}'."),
        ("no order", "sort must be 'relevance', 'date', 'trending' or 'citations'; got 'newest'."),
        ("no list", "has must be a list; got 'method'."),
        ("no thing to have", "has.1 must be 'method' or 'code'; got 'data'."),
        ("no paper", "No paper 'nope' here. search_papers finds papers and gives their slugs."),
    ],
)
def test_values_that_are_not_allowed_are_named(said, name, sentence):
    assert said[name].is_error
    assert said[name].content[0].text == sentence


def test_tools_and_arguments_that_are_not_known_are_refused_with_the_nearest(said):
    for name, words in (("no argument", "Unknown argument 'topics' of search_papers"), ("no tool", "Unknown tool")):
        assert said[name].is_error
        assert said[name].content[0].text.startswith(words)
    assert "'topic'" in said["no argument"].content[0].text
    assert "'search_papers'" in said["no tool"].content[0].text


def test_leaderboards_are_listed_or_whole(tmp_path):
    """In a process of its own: a made-up task stands in for the real ones, and nothing may bring torch in."""
    program = f"""
import sys
from types import SimpleNamespace
import demo
from workingpapers.runs.store import Store
from workingpapers.site import mcp
from workingpapers.site.settings import Settings
from workingpapers.tasks import protocol
sys.modules["workingpapers.tasks.demo"] = SimpleNamespace(task=demo.demo_task())
names = protocol.task_names()
protocol.task_names = lambda: (*names, "demo")
demo.fill(Store("{tmp_path}/r.sqlite"))
tools = mcp.Tools(Settings(database="sqlite:///{tmp_path}/s.sqlite", store="{tmp_path}/r.sqlite", secret="s" * 32))
found = tools.leaderboard()
assert len(found.listed) == len(found.whole) == 3, found
mcp._MOST_WHOLE = 2
assert (len(tools.leaderboard().listed), tools.leaderboard().whole) == (3, [])
[few] = tools.leaderboard(task="demo", setting="few-shot").whole
assert (few.setting, few.rows[0].entry, few.rows[0].rank) == ("few-shot", "moment-probing", 1), few
assert few.command.startswith("papers try demo --setting few-shot --entries moment-probing,"), few.command
assert tools.search_papers("linear probe").papers
assert tools.how_to_use("moment-probing").method
assert not {{"torch", "transformers"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, cwd="tests")
    assert done.returncode == 0, done.stderr


def test_the_command_says_how_it_is_used():
    said = CliRunner().invoke(mcp, ["--help"]).output
    assert "claude mcp add" in said
    assert '"command": "papers"' in said
