import dataclasses
import itertools
import math
import re
from xml.etree import ElementTree

import matplotlib as mpl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toytask import LOSS

from workingpapers.runs import plot
from workingpapers.runs.leaderboard import Estimate, leaderboard
from workingpapers.runs.store import Run
from workingpapers.tasks.protocol import Conditions

CONDITIONS = Conditions("toytask:task", "standard", "numbers", "")


def run(entry, seed=0, accuracy=50.0, **changes):
    """Return a finished run of the toy task."""
    measured = {"fit_seconds": 0.5, "predict_seconds": 0.1, "peak_memory_mb": 100.0, "parameters": 1000.0}
    return Run(
        key=f"{entry} {seed}",
        task=CONDITIONS.task,
        setting="standard",
        data="numbers",
        data_fingerprint="",
        model="",
        model_fingerprint="",
        budget="quick",
        entry=entry,
        paper=None,
        seed=seed,
        status=changes.pop("status", "ok"),
        metrics={"accuracy": accuracy, "loss": -accuracy},
        measured=measured | {key: changes.pop(key) for key in list(changes) if key in measured},
        finished=f"2026-01-01T00:00:{seed:02d}",
        **changes,
    )


def board(*runs):
    return leaderboard(runs, CONDITIONS)


def seeds(entry, *values, **changes):
    return [run(entry, seed, value, **changes) for seed, value in enumerate(values)]


PAIR = [*seeds("base", 50.0, 50.2, 49.8), *seeds("better", 52.0, 52.3, 51.9, fit_seconds=20.0, parameters=5e6)]


def checked(svg):
    """Return the parsed plot, having checked what holds for every plot."""
    root = ElementTree.fromstring(svg)
    assert root.tag == "svg"
    assert root.attrib["role"] == "img"
    ids = re.findall(r'\bid="([^"]+)"', svg)
    assert len(ids) == len(set(ids))
    assert set(root.attrib["aria-labelledby"].split()) <= set(ids)
    assert set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg)) <= set(ids)
    assert not re.findall(r"#0000[0-9a-f]{2}", svg), "a placeholder colour was not replaced"
    assert "font-family" not in svg
    assert "xmlns" not in svg
    assert len(svg) < 60_000
    return root


def words(svg):
    return [text.text for text in checked(svg).iter("text")]


def heights(svg, name):
    """Return y of the texts with that name."""
    return [float(text.attrib["y"]) for text in checked(svg).iter("text") if text.text == name]


def test_a_board_has_intervals_time_and_parameters():
    made = plot.plots(board(*PAIR))
    assert [p.title for p in made] == [
        "Accuracy with 95 % intervals",
        "Accuracy against time to fit",
        "Accuracy against learned parameters",
    ]
    for p in made:
        checked(p.svg)


def test_acronyms_are_spelled_as_such_in_titles_and_at_axes():
    made = board(*seeds("base", 50.0, 51.0, curves={"nll by position": [(0, 1.0), (1, 0.5)]}))
    metric = dataclasses.replace(made.metric, name="image-auroc")
    rows = [dataclasses.replace(row, values={"image-auroc": row.values["accuracy"]}) for row in made.rows]
    intervals, cost, curve = plot.plots(dataclasses.replace(made, metric=metric, rows=tuple(rows)))
    assert (intervals.title, cost.title) == ("Image-AUROC with 95 % intervals", "Image-AUROC against time to fit")
    assert "image-AUROC, % (higher is better)" in words(intervals.svg)
    assert curve.title == "NLL by position"
    assert "NLL" in words(curve.svg)


def test_ids_of_a_page_are_distinct():
    curves = {"loss": [(0, 1.0), (1, 0.5)], "reward": [(0, 1.0), (1, 2.0)]}
    made = plot.plots(board(*seeds("base", 50.0, 51.0, curves=curves), run("better", parameters=5e6)))
    assert len(made) == 5
    ids = [found for p in made for found in re.findall(r'\bid="([^"]+)"', p.svg)]
    assert len(ids) == len(set(ids))


def test_the_best_is_on_top_and_described_first():
    svg = plot.interval_plot(board(*PAIR)).svg
    assert heights(svg, "better")[0] < heights(svg, "base")[0]
    assert checked(svg).find("desc").text == "Best first: better 52.1 ± 0.5; base 50.0 ± 0.5."


def test_verdicts_have_their_colours():
    hurting = seeds("slow", 40.0, 40.3, 39.9)
    svg = plot.interval_plot(board(*PAIR, *hurting)).svg
    assert "var(--helps)" in svg
    assert "var(--hurts)" in svg
    assert "var(--unsure)" not in svg
    assert "var(--unsure)" in plot.interval_plot(board(*PAIR, *seeds("slow", 40.0, 60.0, 50.0))).svg


def test_nothing_is_drawn_when_nothing_finished():
    assert plot.plots(board(run("base", status="failed", error="no"))) == []


def test_a_single_seed_has_no_interval_and_a_plot():
    one = plot.interval_plot(board(run("base")))
    checked(one.svg)
    assert "cut" not in one.caption


def test_an_interval_that_dwarfs_the_differences_is_cut_and_said_to_be():
    wide = board(*seeds("base", 50.0, 50.1, 49.9), *seeds("better", 50.0, 52.0), *seeds("slow", 51.2, 51.2, 51.2))
    assert "cut off" in plot.interval_plot(wide).caption
    assert "cut off" in plot.cost_plot(wide, "fit_seconds", "time", str).caption
    assert "cut off" not in plot.interval_plot(board(*PAIR)).caption


def test_entries_without_cost_stand_in_a_column_of_their_own():
    mixed = board(*PAIR, *seeds("slow", 49.0, 49.1, 49.2, parameters=0.0))
    assert "0" in words(plot.cost_plot(mixed, "parameters", "parameters", lambda value: f"{value:g}").svg)
    without = words(plot.cost_plot(board(*PAIR), "parameters", "parameters", lambda value: f"{value:g}").svg)
    assert "0" not in without
    assert {"base", "better", "1000", "1e+06"} <= set(without)


def test_a_cost_that_is_zero_for_all_has_no_plot():
    assert plot.cost_plot(board(run("base", parameters=0.0)), "parameters", "parameters", str) is None


def test_parameters_that_are_the_same_for_all_have_no_plot():
    both = board(run("base"), run("better", accuracy=52.0))
    assert [made.title for made in plot.plots(both)] == ["Accuracy with 95 % intervals", "Accuracy against time to fit"]


def test_where_nothing_is_fitted_time_is_what_the_task_measured():
    timed = dataclasses.replace(LOSS, name="prefill-seconds", unit="s")
    both = board(run("base", fit_seconds=1e-5), run("better", accuracy=52.0, fit_seconds=2e-5))
    assert [made.title for made in plot.plots(both)] == ["Accuracy with 95 % intervals"]
    setting = dataclasses.replace(both.setting, metrics=(*both.setting.metrics, timed))
    rows = [
        dataclasses.replace(r, values=r.values | {timed.name: Estimate(1.0 + i, 0.1)}) for i, r in enumerate(both.rows)
    ]
    made = plot.plots(dataclasses.replace(both, setting=setting, rows=tuple(rows)))
    assert [one.title for one in made] == ["Accuracy with 95 % intervals", "Accuracy against prefill seconds"]
    assert {"1 s", "2 s"} <= set(words(made[1].svg))
    ranked_by_time = dataclasses.replace(both, setting=setting, rows=tuple(rows), metric=timed)
    assert [one.title for one in plot.plots(ranked_by_time)] == ["Prefill-seconds with 95 % intervals"]


def test_a_cost_on_a_narrow_range_still_has_ticks():
    narrow = board(*seeds("base", 50.0, 51.0, 52.0, fit_seconds=1.30), *seeds("better", 53.0, 54.0, fit_seconds=1.31))
    found = words(plot.cost_plot(narrow, "fit_seconds", "time", lambda value: f"{value:g} s").svg)
    assert len([word for word in found if word.endswith(" s")]) >= 2


def test_points_at_one_place_are_labelled_apart_or_named_in_the_caption():
    crowd = board(*(r for i in range(30) for r in seeds(f"entry-with-a-name-{i:02d}", 50.0, 50.1, 49.9)))
    made = plot.cost_plot(crowd, "fit_seconds", "time", str)
    labels = [w for w in words(made.svg) if w.startswith("entry-with")]
    assert 4 <= len(labels) < 30
    assert all((f"entry-with-a-name-{i:02d}" in labels) != (f"-name-{i:02d}" in made.caption) for i in range(30))


@pytest.mark.parametrize("name", ["<b>&amp;</b>", "cost $x^2$ $", "bell\x07 and \x00", "漢字 🎉", "a" * 300])
def test_any_name_can_be_drawn(name, recwarn):
    curves = {name: [(0.0, 1.0), (1.0, 2.0)]}
    for p in plot.plots(board(*seeds(name, 50.0, 51.0, 52.0, curves=curves), *seeds("base", 50.0, 51.0, 52.0))):
        checked(p.svg)
    shown = "".join(c if c.isprintable() else " " for c in name)
    svg = plot.interval_plot(board(*seeds(name, 50.0, 51.0))).svg
    assert (shown if len(name) < 27 else f"{'a' * 25}…") in words(svg)
    assert not [w for w in recwarn if "lyph" in str(w.message)]


def test_curves_are_means_over_seeds_without_what_is_not_finite():
    curve = {"loss": [(0, 4.0), (1, math.nan), (2, 1.0)]}
    other = {"loss": [(0, 2.0), (1, math.inf), (2, 3.0)]}
    made = plot.curve_plot(board(run("base", 0, curves=curve), run("base", 1, curves=other)), "loss")
    assert "base ends at 2." in checked(made.svg).find("desc").text
    broken = {"loss": [(0, math.nan)]}
    assert plot.curve_plot(board(run("base", curves=broken)), "loss") is None


def test_a_curves_axes_are_what_its_name_says():
    for name, said in {
        "AUC by memory (% of the full table)": {"AUC", "memory (% of the full table)"},
        "loss": {"loss", "step, as the entry counts it"},
    }.items():
        made = plot.curve_plot(board(run("base", curves={name: [(10, 1.0), (30, 2.0), (50, 3.0)]})), name)
        assert said <= set(words(made.svg))
        assert {"10", "20", "50"} <= set(words(made.svg))  # round numbers
        assert made.title == name[:1].upper() + name[1:]


def test_long_curves_are_thinned_out_and_keep_their_ends():
    curve = {"loss": [(step, 1 / (1 + step)) for step in range(10_000)]}
    many = [r for name in "abcdefgh" for r in seeds(name, 50.0, 51.0, 52.0, curves=curve)]
    made = plot.curve_plot(board(*many), "loss")
    assert f"ends at {1 / 10_000:.3g}" in checked(made.svg).find("desc").text  # checked() bounds the size too


def test_more_curves_than_colours_are_counted_in_the_caption():
    curve = {"loss": [(0, 1.0), (1, 0.5)]}
    many = board(*(run(f"e{i:02d}", 0, 90.0 - i, curves=curve) for i in range(11)))
    made = plot.curve_plot(many, "loss")
    assert "The 8 best of 11 entries." in made.caption
    assert {"e00", "e07"} <= set(words(made.svg))
    assert "e08" not in words(made.svg)


def test_names_at_the_ends_of_curves_keep_apart():
    curve = {"loss": [(0, 1.0), (1, 0.5)]}
    svg = plot.curve_plot(board(*(run(f"e{i}", 0, 50.0, curves=curve) for i in range(8))), "loss").svg
    at = sorted(heights(svg, f"e{i}")[0] for i in range(8))
    assert all(b - a > 10 for a, b in itertools.pairwise(at))  # a line of 8.5 points


def test_matplotlib_is_left_as_it_was():
    before = dict(mpl.rcParams)
    plot.plots(board(*PAIR))
    assert dict(mpl.rcParams) == before


def test_the_same_board_gives_the_same_plot():
    assert plot.plots(board(*PAIR)) == plot.plots(board(*map(dataclasses.replace, PAIR)))


@given(st.lists(st.floats(-50, 150), max_size=9))
def test_apart_keeps_order_distance_and_bounds(values):
    placed = plot._apart(sorted(values), 11.0, 0.0, 100.0)
    assert len(placed) == len(values)
    assert all(b - a >= 11.0 - 1e-9 for a, b in itertools.pairwise(placed))
    assert all(-1e-9 <= value <= 100 + 1e-9 for value in placed)  # nine at 11 apart fit


@given(st.lists(st.tuples(st.floats(-100, 100), st.floats(0, 1e6) | st.just(math.inf)), min_size=1, max_size=5))
def test_limits_hold_every_mean_and_say_whether_they_cut(pairs):
    values = [Estimate(mean, half) for mean, half in pairs]
    low, high, cut = plot._limits(values)
    assert math.isfinite(low)
    assert math.isfinite(high)
    assert all(low < value.mean < high for value in values)
    finite = [value for value in values if math.isfinite(value.half)]
    if not cut:
        assert all(low <= value.low and value.high <= high for value in finite)
