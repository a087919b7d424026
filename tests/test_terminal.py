"""What the commands print on terminals of some width, as opposed to what they print into a pipe."""

import io
import math
from dataclasses import replace

import demo
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from workingpapers import terminal
from workingpapers.data.types import Info
from workingpapers.papers.catalogue import load_catalogue
from workingpapers.runs import leaderboard as rank
from workingpapers.runs.claims import findings
from workingpapers.runs.execute import Progress
from workingpapers.runs.leaderboard import Estimate, leaderboards
from workingpapers.tasks.protocol import Metric

CATALOGUE = load_catalogue()


@pytest.fixture
def printed(monkeypatch):
    """Return a function that prints on a terminal of some width and returns the lines, without styles."""

    def call(width, make):
        shown = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, markup=False)
        monkeypatch.setattr(terminal, "console", shown)
        terminal.show(make())
        return [line.rstrip() for line in shown.file.getvalue().splitlines()]

    return call


@pytest.fixture
def board(monkeypatch):
    monkeypatch.setattr(rank, "load_task", lambda name: demo.demo_task())
    runs = [demo.run(entry, seed) for entry in demo.ENTRIES for seed in range(3)]
    runs.append(demo.run("crashes", 0, status="failed", error="ValueError: [nothing] to fit"))
    [made] = leaderboards(runs)
    return made


# --- tables ---------------------------------------------------------------------------------------------------------


def titles():
    return terminal.titles(("slug", "year", "title"), [(c.slug, str(c.year), c.title) for c in CATALOGUE.values()])


@pytest.mark.parametrize("width", [60, 80, 140])
def test_a_list_has_one_line_a_paper_and_cuts_titles(printed, width):
    lines = printed(width, titles)[1:]
    assert [line.split()[0] for line in lines] == list(CATALOGUE)
    assert max(len(line) for line in lines) <= width
    for line, card in zip(lines, CATALOGUE.values(), strict=True):
        shown = line.split(maxsplit=2)[2]
        assert shown == card.title or card.title.startswith(shown.removesuffix("…"))


def test_a_narrow_list_leaves_out_what_a_title_needs_room_for(printed):
    head, *lines, last = printed(46, titles)
    assert head.split() == ["slug", "title"]
    assert last == "not shown for lack of space: year"
    assert [line.split()[0] for line in lines] == list(CATALOGUE)
    assert all(len(line) <= 46 for line in lines)


def test_names_are_not_broken_where_prose_can_be(printed):
    def make():
        made = terminal.table("name", "baseline", "about", names=["baseline"])
        made.add_row("a-long-name", "logistic-regression", "words that can stand on several lines " * 3)
        return made

    lines = printed(60, make)
    assert lines[1].startswith("a-long-name  logistic-regression  words")
    assert len(lines) > 3


INFO = Info(
    name="thing",
    title="What it is, in a sentence of some length",
    source="package thing (extra: packaged[all])",
    licence="CC-BY-4.0 (the data), BSD-3-Clause (the package)",
    size="1,000 images, 10 classes",
    here=lambda: False,
    load="nowhere:load",
)


def test_what_is_too_wide_for_a_table_gets_lines_of_its_own(printed):
    wide = printed(300, lambda: terminal.show_infos([INFO, INFO]))
    assert len(wide) == 3
    assert wide[1].startswith("thing  no    What it is")
    narrow = printed(80, lambda: terminal.show_infos([INFO, INFO]))
    assert narrow[0] == "thing"
    assert narrow[1].split() == ["here", "no"]
    assert "  source      package thing (extra: packaged[all])" in narrow  # brackets are no markup
    assert max(len(line) for line in narrow) <= 80


def test_numbers_that_have_no_room_in_a_table_get_lines_of_their_own(printed):
    rows = [("user_id", "+0.00060", "0.01114"), ("item_id", "-0.00131", "0.01622")]
    columns = ("column", "score nats", "information nats")
    assert printed(40, lambda: terminal.sheet(columns, rows, right=columns[1:]))[1].split() == [*rows[0]]
    narrow = printed(30, lambda: terminal.sheet(columns, rows, right=columns[1:]))
    assert [line.split() for line in narrow[:3]] == [
        ["user_id"],
        ["score", "nats", "+0.00060"],
        ["information", "nats", "0.01114"],
    ]


# --- leaderboards ---------------------------------------------------------------------------------------------------


def test_a_wide_leaderboard_shows_everything(printed, board):
    lines = printed(200, lambda: terminal.show_leaderboard(board))
    heads = ("entry", "accuracy %", "vs baseline", "verdict", "macro-f1 %", "calibration error", "fit s", "memory MB")
    for head in heads:
        assert head in lines[0]
    assert lines[1].startswith("moment-probing ")
    assert any("(baseline)" in line and line.startswith("logistic-regression") for line in lines)
    assert lines[-1].startswith("crashes: ")
    assert "ValueError: [nothing] to fit" in lines[-1]
    assert not any("not shown" in line for line in lines)
    assert any(" – " in line for line in lines)  # the entry without probabilities has no calibration error


def test_what_no_entry_measured_has_no_column(printed, board):
    rows = [replace(row, values={m: v for m, v in row.values.items() if m != "macro-f1"}) for row in board.rows]
    lines = printed(200, lambda: terminal.show_leaderboard(replace(board, rows=rows)))
    assert "macro-f1" not in lines[0]
    assert "calibration error" in lines[0]


@pytest.mark.parametrize("width", [80, 100, 120])
def test_a_narrow_leaderboard_names_what_it_leaves_out_and_cuts_nothing(printed, board, width):
    whole = printed(200, lambda: terminal.show_leaderboard(board))
    lines = printed(width, lambda: terminal.show_leaderboard(board))
    assert "calibration error" not in lines[0]
    rest = " ".join(lines)
    assert "not shown for lack of space: calibration error" in rest
    for wide, narrow in zip(whole[1:12], lines[1:12], strict=True):
        assert narrow.split()[:5] == wide.split()[:5]  # entry, mean ± half, difference
        assert ("needs more seeds" in narrow) == ("needs more seeds" in wide)
    assert max(len(line) for line in lines) <= width


@pytest.mark.parametrize("width", [45, 60])
def test_where_no_table_has_room_every_number_has_a_line(printed, board, width):
    whole = printed(200, lambda: terminal.show_leaderboard(board))
    lines = printed(width, lambda: terminal.show_leaderboard(board))
    assert lines[0] == "moment-probing"
    for wide in whole[1:12]:
        start = lines.index(wide.split()[0])
        accuracy = next(line for line in lines[start:] if line.startswith("  accuracy %"))
        assert accuracy.split()[2:] == wide.split()[1:4]  # mean, ±, half
    assert max(len(line) for line in lines) <= width


def test_where_nothing_finished_there_is_no_empty_table(printed, monkeypatch):
    monkeypatch.setattr(rank, "load_task", lambda name: demo.demo_task())
    [made] = leaderboards([demo.run("knn", 0, status="failed", error="no luck")])
    assert printed(40, lambda: terminal.show_leaderboard(made)) == ["knn: failed: no luck"]


def test_seeds_are_told_where_rows_have_different_ones(printed, monkeypatch):
    monkeypatch.setattr(rank, "load_task", lambda name: demo.demo_task())
    runs = [demo.run("logistic-regression", seed) for seed in range(3)]
    for others, told in ((3, False), (2, True)):
        [made] = leaderboards([*runs, *(demo.run("knn", seed) for seed in range(others))])
        lines = printed(200, lambda made=made: terminal.show_leaderboard(made))
        assert ("seeds" in lines[0].split()) == told
        assert terminal.describe(made).endswith("2 to 3 seeds" if told else "3 seeds")


def test_the_live_view_goes_by_the_width_of_standard_error(board, monkeypatch):
    shown = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    monkeypatch.setattr(terminal, "errors", shown)
    shown.print(terminal.show_progress(Progress(board.conditions, board.runs[:7], 10, ("knn, seed 2",), ()), board))
    lines = shown.file.getvalue().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    assert lines[-1].strip() == "7 of 10 runs done · now: knn, seed 2"
    shown.print(terminal.show_progress(Progress(board.conditions, (), 10, (), ()), None))
    assert shown.file.getvalue().splitlines()[-1].strip() == "0 of 10 runs done"


def test_a_leaderboard_says_what_it_compares(board):
    text = terminal.describe(board)
    for part in ("demo, standard: ", "data openmoji", "model efficientnet-lite0", "quick budget", "3 seeds"):
        assert part in text


def test_a_leaderboard_of_several_machines_says_so(monkeypatch):
    monkeypatch.setattr(rank, "load_task", lambda name: demo.demo_task())
    runs = [replace(demo.run("knn", seed), hardware={"processor": "EPYC", "gpu": seed * "H100"}) for seed in range(2)]
    told = [terminal.describe(leaderboards(some)[0]).rpartition("· ")[2] for some in (runs[:1], runs)]
    assert told == ["1 seed", "2 machines, whose times do not compare"]


# --- cards ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 200])
def test_prose_is_wrapped_and_code_is_not(printed, width):
    card = load_catalogue()["moment-probing"]
    lines = printed(width, lambda: terminal.show_card(card, findings(card, []), "entry"))
    code = card.usage.strip("\n").split("\n")
    at = lines.index(code[0])
    assert lines[at : at + len(code)] == code
    assert max(len(line) for line in code) > width or width > 80  # otherwise nothing was tested
    prose = lines[:at] + lines[at + len(code) :]
    assert max(len(line) for line in prose) <= min(width, terminal.READABLE)


def test_the_year_is_not_said_twice(printed):
    cards = load_catalogue()
    for slug, expected in (("moment-probing", "ICCV 2023 · moment-probing"), ("ptm-survey", "2021")):
        line = printed(100, lambda slug=slug: terminal.show_card(cards[slug], [], "card"))[1]
        assert expected in line
        assert line.count(str(cards[slug].year)) == 1


# --- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (terminal.number(91.43, "%"), "91.4"),
        (terminal.number(0.012345), "0.0123"),
        (terminal.number(-0.04, "%"), "0.0"),
        (terminal.number(1397), "1400"),
        (terminal.number(-0.00001234), "-0.0000123"),
        (terminal.number(float("nan")), "nan"),
        (terminal.count(0), "0"),
        (terminal.count(999), "999"),
        (terminal.count(12_810), "12.8 k"),
        (terminal.count(4_050_000), "4.05 M"),
        (terminal.count(7e9), "7 G"),
        (terminal.seconds(0.0123), "0.012"),
        (terminal.seconds(0.000018), "0.000018"),
        (terminal.seconds(0.0), "0"),
        (terminal.seconds(41.4), "41"),
    ],
)
def test_numbers_are_written_as_people_write_them(shown, expected):
    assert shown == expected


PERCENT, NATS = Metric("accuracy", higher_is_better=True, unit="%"), Metric("nll", higher_is_better=False, unit="nats")


@pytest.mark.parametrize(
    ("mean", "half", "metric", "shown", "signed"),
    [
        (91.43, 0.27, PERCENT, "91.4 ± 0.3", "+91.4 ± 0.3"),
        (-1.2, 14.32, PERCENT, "-1.2 ± 14.3", "-1.2 ± 14.3"),
        (-0.04, 0.1, PERCENT, "0.0 ± 0.1", "0.0 ± 0.1"),
        (5.0, 0.024, PERCENT, "5.00 ± 0.02", "+5.00 ± 0.02"),  # ± 0.0 would be a claim
        (5.0, 0.0, PERCENT, "5.0 ± 0.0", "+5.0 ± 0.0"),
        (5.0, 1e-14, PERCENT, "5.0 ± 0.0", "+5.0 ± 0.0"),  # rounding errors
        (91.43, math.inf, PERCENT, "91.4", "+91.4"),  # one seed
        (-0.04, math.inf, PERCENT, "0.0", "0.0"),
        (2.0, 0.08503, NATS, "2.000 ± 0.085", "+2.000 ± 0.085"),
        (0.0863, 0.238, NATS, "0.09 ± 0.24", "+0.09 ± 0.24"),
        (2.36, 0.0996, NATS, "2.36 ± 0.10", "+2.36 ± 0.10"),
        (-0.001, 0.2, NATS, "0.00 ± 0.20", "0.00 ± 0.20"),
        (740.67, 313.4, NATS, "740 ± 310", "+740 ± 310"),
        (55.24, 0.0, NATS, "55.2 ± 0.0", "+55.2 ± 0.0"),
        (5.07e-7, 1.2e-8, NATS, "0.000000507 ± 0.000000012", "+0.000000507 ± 0.000000012"),
        (0.0, 0.0, NATS, "0 ± 0", "0 ± 0"),
    ],
)
def test_a_mean_has_the_digits_that_its_interval_leaves_it(mean, half, metric, shown, signed):
    assert terminal.interval(Estimate(mean, half), metric) == shown
    assert terminal.interval(Estimate(mean, half), metric, signed=True) == signed


@given(st.floats(-1e6, 1e6), st.floats(0, 1e5), st.sampled_from([PERCENT, NATS]))
def test_mean_and_half_width_have_the_same_decimals_and_are_near(mean, half, metric):
    shown, spread = terminal.interval(Estimate(mean, half), metric).split(" ± ")
    decimals = len(shown.partition(".")[2])
    assert len(spread.partition(".")[2]) == decimals
    digit = 0.05 + 1e-9  # half of a percentage's last, and what floats may miss it by
    assert float(spread) == pytest.approx(half, rel=0.5, abs=digit if metric is PERCENT else 1e-9 * (1 + abs(mean)))
    assert float(shown) == pytest.approx(mean, abs=max(half, digit if metric is PERCENT else 0.005 * abs(mean) + 1e-9))
    assert not shown.startswith("-") or float(shown) < 0


def test_remarks_are_one_line_and_no_markup(monkeypatch):
    shown = Console(file=io.StringIO(), width=40, force_terminal=False, markup=False)
    monkeypatch.setattr(terminal, "errors", shown)
    terminal.say("a remark with [brackets] " * 5)
    assert shown.file.getvalue() == "a remark with [brackets] " * 5 + "\n"
