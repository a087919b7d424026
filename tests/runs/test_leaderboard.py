"""The statistics against SciPy, the verdict at its edges, and the order of a leaderboard."""

import io
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import toytask
from hypothesis import assume, given
from hypothesis import strategies as st

from workingpapers.errors import UserError
from workingpapers.runs import leaderboard as module
from workingpapers.runs.leaderboard import Estimate, compare, estimate, leaderboard, leaderboards, t_quantile
from workingpapers.runs.store import Run
from workingpapers.tasks.protocol import Conditions, Metric, Task

UP = Metric("accuracy", higher_is_better=True, unit="%", margin=0.5)
DOWN = replace(UP, higher_is_better=False)
CONDITIONS = Conditions("toytask:task", "standard", "numbers", "")


def make(entry="base", seed=0, accuracy=50.0, *, loss=1.0, **changes):
    metrics = {"accuracy": accuracy, "loss": loss}
    if loss is None:
        del metrics["loss"]
    fields = {
        "task": "toytask:task",
        "setting": "standard",
        "data": "numbers",
        "data_fingerprint": "d",
        "model": "",
        "model_fingerprint": "",
        "budget": "quick",
        "paper": None,
        "status": "ok",
        "metrics": metrics,
        "measured": {"fit_seconds": 1.0 + seed, "parameters": 10.0, "peak_memory_mb": 100.0},
        "settings": {"label": "label"},
        "finished": f"2026-01-01T00:00:0{seed}",
    }
    return Run(key=f"{entry} {seed}", entry=entry, seed=seed, **fields | changes)


def failed(entry, seed=0, **changes):
    fields = {"status": "failed", "error": "no luck", "metrics": {}, "measured": {}}
    return make(entry, seed, **fields | changes)


def board(*runs, metric=None):
    return leaderboard(runs, CONDITIONS, metric)


@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_t_quantile_equals_scipy(level):
    for freedom in [*range(1, 60), 99, 100, 500, 1001]:
        expected = scipy.stats.t.ppf((1 + level) / 2, freedom)
        assert t_quantile(freedom, level) == pytest.approx(expected, rel=1e-10)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=12))
def test_estimate_equals_scipy(values):
    found = estimate(values)
    error = scipy.stats.sem(values)
    assert found.mean == pytest.approx(np.mean(values), abs=1e-6)
    # NumPy's variance loses digits where the values are large and alike.
    assert found.half == pytest.approx(error * scipy.stats.t.ppf(0.975, len(values) - 1), rel=1e-6, abs=1e-6)
    assert (found.low, found.high) == (found.mean - found.half, found.mean + found.half)


def test_one_value_has_no_interval():
    assert estimate([3.0]) == Estimate(3.0, math.inf)


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([1.0, 1.25, 0.75], "helps"),
        ([-1.0, -1.25, -0.75], "hurts"),
        ([2.0, 2.0, 2.0], "helps"),  # no spread at all: the interval is a point
        ([0.0, 0.0, 0.0], "no difference"),
        ([0.125, -0.125, 0.0, 0.0], "no difference"),
        ([3.0, -3.0, 1.0], "needs more seeds"),
        ([5.0, 5.0], "needs more seeds"),
        ([5.0], "needs more seeds"),
    ],
)
def test_verdicts(differences, verdict):
    baseline = {seed: 50.0 + seed for seed in range(len(differences))}
    values = {seed: 50.0 + seed + difference for seed, difference in enumerate(differences)}
    difference, found = compare(values, baseline, UP)
    assert found == verdict
    assert difference == estimate(differences)
    opposite = {"helps": "hurts", "hurts": "helps"}
    assert compare(values, baseline, DOWN)[1] == opposite.get(verdict, verdict)


def test_the_margin_separates_no_difference_from_too_few_seeds():
    baseline, values = dict.fromkeys(range(4), 0.0), {0: 0.25, 1: -0.25, 2: 0.25, 3: -0.25}
    half = compare(values, baseline, UP)[0].half
    assert compare(values, baseline, replace(UP, margin=half * 1.001))[1] == "no difference"
    assert compare(values, baseline, replace(UP, margin=half * 0.999))[1] == "needs more seeds"


def test_only_seeds_that_both_have_count():
    difference, verdict = compare({0: 1.0, 1: 2.0, 2: 3.0, 9: 99.0}, {0: 0.0, 1: 1.0, 2: 2.0, 7: -99.0}, UP)
    assert (difference, verdict) == (Estimate(1.0, 0.0), "helps")
    assert compare({0: 1.0}, {1: 1.0}, UP) == (None, "needs more seeds")
    assert compare({0: 1.0}, {}, UP) == (None, "needs more seeds")


# Sixty-fourths: sums and differences of such numbers are exact, so that equality may be asked for.
exact = st.integers(-6400, 6400).map(lambda n: n / 64)
paired = st.lists(st.tuples(exact, exact), min_size=1, max_size=8)
OPPOSITE = {"helps": "hurts", "hurts": "helps"}


def columns(pairs):
    return ({seed: pair[side] for seed, pair in enumerate(pairs)} for side in (0, 1))


@given(paired, st.booleans())
def test_the_verdict_turns_round_with_the_direction_and_with_the_order(pairs, up):
    values, baseline = columns(pairs)
    metric = UP if up else DOWN
    difference, verdict = compare(values, baseline, metric)
    turned = OPPOSITE.get(verdict, verdict)
    assert compare(values, baseline, replace(metric, higher_is_better=not up)) == (difference, turned)
    swapped, other = compare(baseline, values, metric)
    assert (swapped.mean, swapped.half, other) == (-difference.mean, difference.half, turned)
    negated = ({seed: -value for seed, value in side.items()} for side in (values, baseline))
    assert compare(*negated, replace(metric, higher_is_better=not up))[1] == verdict


@given(paired, exact)
def test_a_constant_added_to_both_changes_nothing(pairs, constant):
    values, baseline = columns(pairs)
    moved = ({seed: value + constant for seed, value in side.items()} for side in (values, baseline))
    assert compare(*moved, UP) == compare(values, baseline, UP)


@given(paired, st.integers(0, 6).map(lambda n: 2.0**n))
def test_scale_does_not_matter_when_the_margin_scales(pairs, scale):
    values, baseline = columns(pairs)
    scaled = ({seed: value * scale for seed, value in side.items()} for side in (values, baseline))
    assert compare(*scaled, replace(UP, margin=UP.margin * scale))[1] == compare(values, baseline, UP)[1]


@given(st.lists(st.floats(50, 60), min_size=3, max_size=8))
def test_the_baseline_against_itself_makes_no_difference(values):
    column = dict(enumerate(values))
    assert compare(column, column, UP) == (Estimate(0.0, 0.0), "no difference")
    assert compare(column, column, replace(UP, margin=0.0))[1] == "no difference"


@given(paired.filter(lambda pairs: len(pairs) >= 3))
def test_helping_agrees_with_a_paired_t_test(pairs):
    values, baseline = columns(pairs)
    differences = [a - b for a, b in pairs]
    assume(len(set(differences)) > 1)
    p = scipy.stats.ttest_1samp(differences, 0).pvalue
    assume(abs(p - 0.05) > 1e-9)
    assert (compare(values, baseline, UP)[1] in ("helps", "hurts")) == (p < 0.05)


def test_rows_are_ranked_with_failures_last():
    found = board(
        *(make("base", seed, 50.0 + seed) for seed in range(3)),
        *(make("better", seed, 52.0 + seed, paper="moment-probing") for seed in range(3)),
        *(make("slow", seed, 40.0 + seed) for seed in range(3)),
        failed("a-failure"),
    )
    assert [row.entry for row in found.rows] == ["better", "base", "slow", "a-failure"]
    assert [row.best for row in found.rows] == [True, False, False, False]
    assert [row.verdict for row in found.rows] == ["helps", None, "hurts", None]
    assert [row.paper for row in found.rows] == ["moment-probing", None, None, None]
    assert found.rows[0].difference == Estimate(2.0, 0.0)
    assert found.rows[1].difference is None
    assert found.rows[0].costs == {"fit_seconds": 2.0, "parameters": 10.0, "peak_memory_mb": 100.0}
    assert (found.rows[3].values, found.rows[3].costs, found.rows[3].seeds) == ({}, {}, 0)
    assert found.rows[3].failures == ("failed: no luck",)


def test_another_metric_ranks_in_its_own_direction():
    runs = [make("base", 0, 50.0, loss=1.0), make("better", 0, 52.0, loss=2.0)]
    assert [row.entry for row in board(*runs).rows] == ["better", "base"]
    assert [row.entry for row in board(*runs, metric="loss").rows] == ["base", "better"]
    with pytest.raises(UserError, match=r"Unknown metric 'acuracy'. Did you mean 'accuracy'?"):
        board(*runs, metric="acuracy")


def test_equal_means_are_both_best_and_in_alphabetical_order():
    found = board(make("slow"), make("base"), make("better", accuracy=10.0))
    assert [(row.entry, row.best) for row in found.rows] == [("base", True), ("slow", True), ("better", False)]


def test_an_entry_with_some_failures_keeps_its_mean_and_shows_them_once():
    found = board(
        make("slow", 0, 40.0),
        failed("slow", 1),
        failed("slow", 2),
        failed("slow", 3, status="timed out", error="after 3 s"),
    )
    (row,) = found.rows
    assert (row.seeds, row.values["accuracy"]) == (1, Estimate(40.0, math.inf))
    assert row.failures == ("failed: no luck", "timed out: after 3 s")


def test_the_latest_run_of_a_seed_counts():
    old, new = make(accuracy=1.0, finished="2026-01-01"), make(accuracy=2.0, finished="2026-01-02")
    for runs in ((old, new), (new, old)):
        assert board(*runs).rows[0].values["accuracy"].mean == 2.0


def test_a_board_whose_baseline_failed_has_no_verdict_to_give():
    found = board(*(make("slow", seed) for seed in range(3)), *(failed("base", seed) for seed in range(3)))
    assert [(row.entry, row.difference, row.verdict) for row in found.rows] == [
        ("slow", None, "needs more seeds"),
        ("base", None, None),
    ]


@pytest.fixture
def optional_loss(monkeypatch):
    """The toy task with a loss that not every entry has."""
    loss = replace(toytask.LOSS, optional=True)
    setting = replace(toytask.setting("standard"), metrics=(toytask.ACCURACY, loss))
    monkeypatch.setattr(module, "load_task", lambda name: Task(name, title="", settings=[setting]))


@pytest.mark.usefixtures("optional_loss")
def test_optional_metrics_are_left_out_where_they_are_missing():
    runs = [make("base", loss=1.0), make("better", accuracy=60.0, loss=None), failed("slow")]
    found = board(*runs)
    assert [(row.entry, sorted(row.values)) for row in found.rows] == [
        ("better", ["accuracy"]),
        ("base", ["accuracy", "loss"]),
        ("slow", []),
    ]
    by_loss = board(*runs, metric="loss")  # without the ranking metric: after those that have it, before failures
    assert [(row.entry, row.best) for row in by_loss.rows] == [("base", True), ("better", False), ("slow", False)]
    assert by_loss.rows[1].verdict is None
    assert math.isnan(found.to_frame().loc["better", "loss"])


def test_to_frame():
    runs = [make("base", s, 50.0) for s in range(3)] + [make("better", s, 50.0 + s) for s in range(3)] + [failed("x")]
    frame = board(*runs).to_frame()
    assert list(frame.index) == ["better", "base", "x"]
    assert frame.loc["better", ["accuracy", "difference", "verdict"]].tolist() == [51.0, 1.0, "needs more seeds"]
    assert frame.loc["better", "accuracy ±"] == frame.loc["better", "difference ±"] == pytest.approx(2.484, abs=1e-3)
    assert frame.loc["base", "fit_seconds"] == 2.0
    assert frame.loc["x", "failures"] == "failed: no luck"
    assert "<table" in board(*runs)._repr_html_()


def test_a_board_shows_itself_as_the_command_does():
    shown = repr(
        board(*(make(entry, seed, 50 + 2 * (entry == "other")) for entry in ("base", "other") for seed in range(3)))
    )
    assert [line.split()[0] for line in shown.splitlines()[1:]] == ["entry", "other", "base"]
    assert "\x1b" not in shown
    assert all(line == line.rstrip() for line in shown.splitlines())


@pytest.mark.parametrize("print_", ["", "m1"])
def test_a_model_that_made_no_feature_is_not_named(print_):
    conditions = replace(CONDITIONS, model="some-model")
    made = leaderboard([make(model="some-model", model_fingerprint=print_)], conditions)
    assert made.model == ("some-model" if print_ else "")
    assert ("some-model" in repr(made)) == bool(print_)


def test_no_text_of_the_csv_is_a_formula():
    runs = [make("=HYPERLINK(1)", accuracy=-2.5), failed("base", error="@SUM(1)"), failed("+x")]
    frame = pd.read_csv(io.StringIO(board(*runs).to_csv()), index_col="entry")
    assert set(frame.index) == {"'=HYPERLINK(1)", "base", "'+x"}
    assert frame.loc["'=HYPERLINK(1)", "accuracy"] == -2.5  # numbers stay numbers
    assert frame.loc["base", "failures"] == "failed: @SUM(1)"  # within a cell it is no formula
    assert "inf" not in board(make("base", accuracy=1.0)).to_csv()


def test_an_empty_board():
    assert board().rows == ()
    assert leaderboards([]) == []


def test_boards_group_equal_conditions_with_the_latest_first():
    runs = [
        make("base", 0),
        make("base", 0, data="other", finished="2026-01-03"),
        make("base", 0, budget="full", finished="2026-01-02"),
        make("base", 0, setting="trouble", finished="2025-01-01"),
        make("base", 0, settings={"label": "kind"}, finished="2025-01-02"),
    ]
    found = [board.conditions for board in leaderboards(runs)]
    assert found == [
        replace(CONDITIONS, data="other"),
        replace(CONDITIONS, budget="full"),
        CONDITIONS,
        replace(CONDITIONS, label="kind"),
        replace(CONDITIONS, setting="trouble"),
    ]


def test_a_label_that_an_older_version_kept_as_a_number_is_read_as_text():
    [found] = leaderboards([make(settings={"label": 3})])
    assert found.conditions == replace(CONDITIONS, label="3")


def test_a_model_that_plays_no_part_makes_no_second_board():
    runs = [make("base", 0), make("other", 0, model="a"), make("other", 1, model="b")]
    [found] = leaderboards(runs)
    assert (found.conditions, len(found.runs)) == (CONDITIONS, 3)
    assert len(leaderboards([replace(run, model_fingerprint=run.model) for run in runs])) == 3


def test_a_repeated_first_run_makes_its_board_the_latest():
    runs = [make("base", 0), make("slow", 0, finished="2026-01-02"), make("base", 0, data="other", finished="2026-02")]
    assert leaderboards([*runs, make("base", 0, finished="2026-03")])[0].conditions == CONDITIONS


@pytest.mark.parametrize("newest_first", [False, True])
def test_only_the_latest_meaning_of_a_name_is_shown(newest_first):
    runs = [
        make("base", 0, 1.0),
        make("slow", 0, 2.0),
        make("base", 0, 3.0, data_fingerprint="changed", finished="2026-02"),
    ]
    (found,) = leaderboards(runs[::-1] if newest_first else runs)
    assert [(row.entry, row.values["accuracy"].mean) for row in found.rows] == [("base", 3.0)]


def test_a_difference_too_small_to_matter_is_none_even_where_it_is_certain():
    metric = Metric("accuracy", higher_is_better=True, margin=0.5)
    values = {seed: 50.2 + 0.001 * seed for seed in range(5)}
    difference, verdict = compare(values, dict.fromkeys(range(5), 50.0), metric)
    assert difference.low > 0
    assert verdict == "no difference"


def test_a_run_that_failed_is_of_no_machine():
    here = {"processor": "EPYC"}
    assert board(make(hardware=here), failed("x")).machines == {"EPYC"}
    assert board(make(hardware=here), make("x", hardware={"processor": "Xeon"})).machines == {"EPYC", "Xeon"}
