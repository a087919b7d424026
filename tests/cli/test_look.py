"""The commands that show what is known: what they print, what they refuse, and what they do without.

What concerns all commands (help, errors, closed pipes) is tested here, too.
"""

import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner
from rich.console import Console

from workingpapers import terminal
from workingpapers.cli import main
from workingpapers.data.datasets import DATASETS
from workingpapers.data.impressions import IMPRESSIONS
from workingpapers.data.language_models import LANGUAGE_MODELS
from workingpapers.data.models import MODELS
from workingpapers.data.texts import TEXTS
from workingpapers.errors import UserError
from workingpapers.papers.catalogue import load_catalogue
from workingpapers.papers.topics import load_topics
from workingpapers.runs.store import Run, Store
from workingpapers.tasks.protocol import all_tasks, load_task

HEAVY = ("torch", "numpy", "pandas", "sqlalchemy", "scipy", "sklearn", "matplotlib", "transformers", "PIL", "pyarrow")
CARDS = load_catalogue()


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store of its own for every test, not made yet."""
    file = tmp_path / "runs.sqlite"
    monkeypatch.setenv("WORKINGPAPERS_STORE", str(file))
    return file


@pytest.fixture
def papers(store):
    """Return a function that runs a command and returns the lines it prints."""

    def call(*arguments, code=0):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == code, result.output
        return result.stdout.splitlines()

    return call


def refused(*arguments):
    """Return the one line with which a command is refused."""
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    [line] = result.stderr.splitlines()
    return line


def process(*arguments, **environment):
    """Run the program as people do."""
    command = [sys.executable, "-c", "from workingpapers.cli import main; main(prog_name='papers')", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)


def keep_runs(store, setting="standard"):
    """Put runs into a store in which moment-probing is clearly better than the baseline it is compared with."""
    setting = load_task("probe").setting(setting)
    for entry, paper, accuracy in (("moment-probing", "moment-probing", 90.0), ("logistic-regression", None, 85.0)):
        for seed in range(4):
            run = Run(
                key=f"{setting.name} {entry} {seed}",
                task="probe",
                setting=setting.name,
                data=setting.data,
                data_fingerprint="d",
                model=setting.model,
                model_fingerprint="m",
                budget="quick",
                entry=entry,
                paper=paper,
                seed=seed,
                status="ok",
                metrics={metric.name: accuracy + seed / 10 for metric in setting.metrics},
                measured={"fit_seconds": 1.0, "peak_memory_mb": 1.0, "parameters": 1.0},
                settings={"label": "label"},
            )
            Store(str(store)).save(run)


def test_leaderboards_by_a_metric_are_those_that_have_it(papers, store):
    keep_runs(store)
    keep_runs(store, "label-efficiency")
    assert [
        line for line in papers("leaderboard", "probe", "--metric", "fewest-accuracy") if line.startswith("probe")
    ] == [line for line in papers("leaderboard", "probe") if line.startswith("probe, label-efficiency")]


# --- list -----------------------------------------------------------------------------------------------------------


def test_list_has_a_line_for_every_paper(papers):
    head, *lines = papers("list")
    assert head.split() == ["slug", "year", "task", "status", "title"]
    assert [line.split()[0] for line in lines] == list(CARDS)
    assert all(line.endswith(CARDS[line.split()[0]].title) for line in lines)


@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        (["--task", "probe"], lambda card: card.task == "probe"),
        (["--year", "2023"], lambda card: card.year == 2023),
        (["--topic", "pruning"], lambda card: "pruning" in card.topics),
        (["--task", "probe", "--year", "2023"], lambda card: card.task == "probe" and card.year == 2023),
        (["--task", "probe", "--year", "2025"], lambda card: False),
        (["--status", "card"], lambda card: card.method is None),
    ],
)
def test_list_filters(papers, filters, kept):
    assert [line.split()[0] for line in papers("list", *filters)[1:]] == [c.slug for c in CARDS.values() if kept(c)]


def test_the_status_follows_from_runs(papers, store):
    with_entry = [line.split()[0] for line in papers("list", "--status", "entry")[1:]]
    assert "moment-probing" in with_entry
    assert papers("list", "--status", "measured")[1:] == []
    keep_runs(store)
    assert [line.split()[0] for line in papers("list", "--status", "measured")[1:]] == ["moment-probing"]


def test_the_number_of_papers_goes_to_standard_error(store):
    result = CliRunner().invoke(main, ["list", "--task", "anomaly", "--year", "2020"])
    assert result.stderr.strip() == "1 paper"


# --- search ---------------------------------------------------------------------------------------------------------


def test_search_ranks_and_limits(papers):
    head, *lines = papers("search", "linear", "probe", "--limit", "3")
    assert head.split() == ["slug", "year", "task", "title"]
    assert len(lines) == 3
    assert lines[0].startswith("moment-probing")


def test_search_says_how_many_more_there_are(store):
    result = CliRunner().invoke(main, ["search", "attention", "--limit", "1"])
    assert len(result.stdout.splitlines()) == 2
    assert "1 of " in result.stderr
    assert "--limit" in result.stderr


def test_a_search_without_result_says_so(store):
    result = CliRunner().invoke(main, ["search", "zzzzqqq"])
    assert result.exit_code == 0
    assert result.stdout == ""
    assert result.stderr.strip() == "No paper matches 'zzzzqqq'."


# --- show -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slug", CARDS)
def test_show_has_all_of_a_card(papers, slug):
    card = CARDS[slug]
    text = "\n".join(papers("show", slug))
    words = " ".join(text.split())
    for part in (card.title, card.arxiv, card.code or "no official code", card.door, card.summary, *card.notes):
        assert " ".join(part.split()) in words
    for claim in card.claims:
        assert " ".join(f"{claim.id}: {claim.text}".split()) in words
        if claim.untestable:
            assert " ".join(f"not testable: {claim.untestable}".split()) in words
    if card.usage:
        assert card.usage.strip("\n") in text  # line for line, so that it can be copied


def test_show_has_reported_beside_measured(papers, store):
    before = " ".join(" ".join(papers("show", "moment-probing")).split())
    assert "not run: papers try probe --entries moment-probing" in before
    keep_runs(store)
    after = " ".join(" ".join(papers("show", "moment-probing")).split())
    assert "83.15 % against 82.04 %" in after
    assert (
        "reproduced: accuracy 90.2 ± 0.2 against 85.2 ± 0.2, difference +5.0 ± 0.0 (helps; openmoji, quick budget)"
        in after
    )
    assert "status measured" in after


# --- topics, tasks, entries, data, models ---------------------------------------------------------------------------


def test_topics_shows_the_tree(papers):
    lines = papers("topics")[1:]
    assert [line.split()[0] for line in lines] == list(load_topics())
    assert lines[0].split()[:2] == ["pre-trained-models", str(len(CARDS))]
    assert lines[1].startswith("  background ")
    below = papers("topics", "compression")[1:]
    assert below[0].startswith("compression ")
    assert all(line.startswith("  ") for line in below[1:])


@pytest.mark.parametrize("width", [40, 60, 79])
def test_topics_has_one_line_each_on_a_narrow_terminal(papers, monkeypatch, width):
    monkeypatch.setattr(terminal, "console", Console(width=width))
    head, *lines = papers("topics")
    assert "gist" in head
    assert [line.split()[0] for line in lines[: len(load_topics())]] == list(load_topics())


def test_tasks_shows_every_setting(papers):
    lines = papers("tasks")[1:]
    expected = [(task.name, name) for task in all_tasks() for name in task.settings]
    assert [tuple(line.split()[:2]) for line in lines] == expected


@pytest.mark.parametrize("task", [task.name for task in all_tasks()])
def test_entries_shows_every_entry(papers, task):
    lines = papers("entries", task)[1:]
    entries = load_task(task).entries
    assert [line.split()[0] for line in lines] == list(entries)
    for line, entry in zip(lines, entries.values(), strict=True):
        assert (entry.paper or "(baseline)") in line
        assert line.endswith(entry.about)


@pytest.mark.parametrize(
    ("command", "known"), [("data", DATASETS | IMPRESSIONS | TEXTS), ("models", MODELS | LANGUAGE_MODELS)]
)
def test_data_and_models_are_listed_with_source_licence_and_size(papers, command, known):
    head, *lines = papers(command)
    assert head.split()[:2] == ["name", "here"]
    assert [line.split()[0] for line in lines] == list(known)
    for line, info in zip(lines, known.values(), strict=True):
        assert line.split()[1] == ("yes" if info.here() else "no")
        for part in (info.title, info.size, info.licence, info.source):
            assert part in line


# --- help, version, errors ------------------------------------------------------------------------------------------


def test_help_names_every_command_and_where_to_start(papers):
    text = "\n".join(papers("--help"))
    for name in main.commands:
        assert f"\n  {name} " in text
    assert "papers try probe" in text
    assert "..." not in text.partition("Commands:")[2]  # every command's line is whole
    assert papers("-h") == papers("--help")


@pytest.mark.parametrize("name", main.commands)
def test_every_command_has_help(papers, name):
    assert papers(name, "--help")[0].startswith("Usage: main " + name)


def test_version(papers):
    [line] = papers("--version")
    assert line.startswith("papers, version ")


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [
        (["show", "moment-probe"], "Unknown paper 'moment-probe'. Did you mean 'moment-probing'"),
        (["list", "--task", "probes"], "Unknown task 'probes'. Did you mean 'probe'"),
        (["list", "--topic", "compresion"], "Unknown topic 'compresion'. Did you mean 'compression'"),
        (["list", "--year", "1950"], "No paper of the year 1950. Known: 20"),
        (["topics", "prunning"], "Unknown topic 'prunning'. Did you mean 'pruning'"),
        (["entries", "prob"], "Unknown task 'prob'. Did you mean 'probe'"),
        (["entries", "no_module:task"], "The task 'no_module:task' cannot be imported"),
        (
            ["entries", "math:sqrt"],
            "math:sqrt is a builtin_function_or_method, not a",
        ),
    ],
)
def test_an_unknown_name_is_refused_in_one_line_with_the_nearest(store, arguments, nearest):
    assert refused(*arguments).startswith(f"papers: {nearest}")


def test_a_store_that_is_none_is_refused(tmp_path):
    file = tmp_path / "runs.sqlite"
    file.write_bytes(b"no database at all" * 100)
    assert str(file) in refused("list", "--store", str(file))
    assert str(file) in refused("show", "loki", "--store", str(file))
    assert file.read_bytes() == b"no database at all" * 100


def test_looking_makes_no_store(papers, store):
    papers("list")
    papers("show", "loki")
    assert not store.exists()


@pytest.mark.parametrize("arguments", [["list", "--status", "better"], ["list", "--year", "x"], ["shwo"], ["search"]])
def test_wrong_usage_is_refused(store, arguments):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr


def test_debug_shows_the_traceback(store):
    result = CliRunner().invoke(main, ["--debug", "show", "nothing"])
    assert isinstance(result.exception, UserError)
    shown = process("--debug", "show", "nothing")
    assert shown.returncode != 0
    assert "Traceback" in shown.stderr


def test_the_program_exits_with_2_and_one_line():
    shown = process("show", "nothing")
    assert shown.returncode == 2
    assert shown.stdout == ""
    assert len(shown.stderr.splitlines()) == 1


# --- what it does without -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["list"], ["search", "linear probe"], ["show", "moment-probing"], ["topics"]])
def test_what_is_piped_is_plain(store, arguments):
    shown = process(*arguments, COLUMNS="40")
    assert shown.returncode == 0
    assert "\x1b" not in shown.stdout + shown.stderr
    assert "…" not in shown.stdout
    assert all(line == line.rstrip() for line in shown.stdout.splitlines())


def test_a_terminal_that_lacks_characters_shows_question_marks(store):
    shown = process("show", "moment-probing", PYTHONIOENCODING="ascii", FORCE_COLOR="1", COLUMNS="90")
    assert shown.returncode == 0, shown.stderr
    assert "ICCV 2023 ? moment-probing" in shown.stdout


def test_standard_output_may_be_closed(store):
    program = f"{sys.executable} -c 'from workingpapers.cli import main; main()' list >&-"
    done = subprocess.run(["sh", "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, f"{len(load_catalogue())} papers\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that is always full is Linux's")
@pytest.mark.parametrize("command", ["list", "--help", "--version", "list --help"])
def test_a_full_disk_is_one_line_and_no_traceback(store, command):
    program = f"{sys.executable} -c 'from workingpapers.cli import main; main()' {command} >/dev/full"
    done = subprocess.run(["sh", "-c", program], capture_output=True, text=True)
    [line] = done.stderr.splitlines()
    assert line.startswith("papers: what was to be written has no room: ")
    assert done.returncode == 1


@pytest.mark.parametrize("command", ["list", "data", "--help"])
def test_a_reader_that_has_gone_is_no_error(store, command):
    program = [sys.executable, "-c", "from workingpapers.cli import main; main()", command]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        running.stdout.close()  # as `papers list | true` does
        assert running.stderr.read() == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["list"],
        ["search", "lable efficient"],
        ["show", "moment-probing"],
        ["--help"],
        ["topics"],
        ["tasks"],
        ["entries", "probe"],
    ],
)
def test_looking_needs_no_numerical_library(store, arguments):
    keep_runs(store)
    program = (
        "import json, sys\n"
        "from workingpapers.cli import main\n"
        f"main({arguments!r}, standalone_mode=False)\n"
        f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]), file=sys.stderr)"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(shown.stderr.splitlines()[-1]) == []
