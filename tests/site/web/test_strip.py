import dataclasses
import math
import re

import pytest
from demo import EVIL

from workingpapers.runs.leaderboard import Estimate
from workingpapers.site.web.strip import difference_strip


@pytest.fixture
def finding(world):
    return world.app.state.measured.now().papers["moment-probing"].found[0]


def xs(svg, part):
    return [float(x) for x in re.findall(rf'class="{part}[^"]*" d="M([\d.]+),', svg)]


def test_the_plot_shows_difference_interval_seeds_and_margin(finding):
    svg = difference_strip(finding)
    middle = 170.0
    assert finding.verdict == "helps"
    assert len(xs(svg, "seed")) == 5
    [bar] = xs(svg, "bar")
    end = float(re.search(r'class="bar helps" d="M[\d.]+,34 H([\d.]+)"', svg)[1])
    [mark] = xs(svg, "mark")
    assert middle < bar < mark < end  # the interval leaves out zero
    assert (bar + end) / 2 == pytest.approx(mark, abs=0.11)
    scale = (mark - middle) / finding.difference.mean
    assert end - bar == pytest.approx(2 * finding.difference.half * scale, rel=0.02)
    width = float(re.search(r'class="band"[^>]* width="([\d.]+)"', svg)[1])
    assert width == pytest.approx(2 * finding.metric.margin * scale, rel=0.05)
    assert "difference +" in svg


def test_better_is_right_whatever_the_metrics_direction(finding):
    lower = dataclasses.replace(finding.metric, higher_is_better=False)
    svg = difference_strip(dataclasses.replace(finding, metric=lower, verdict="hurts"))
    assert xs(svg, "mark")[0] < 170
    assert 'class="mark hurts"' in svg


def test_a_single_seed_has_no_bar(finding):
    svg = difference_strip(dataclasses.replace(finding, difference=Estimate(1.0, math.inf), verdict="needs more seeds"))
    assert 'class="bar' not in svg
    assert "hollow" in svg


def test_no_difference_at_all_is_drawn_at_zero(finding):
    svg = difference_strip(dataclasses.replace(finding, difference=Estimate(0.0, 0.0), verdict="no difference"))
    assert xs(svg, "mark") == [170.0]
    assert "nan" not in svg


def test_without_a_difference_there_is_nothing(finding):
    assert difference_strip(dataclasses.replace(finding, difference=None)) == ""


def test_names_are_escaped_and_nothing_is_styled(finding):
    svg = difference_strip(dataclasses.replace(finding, metric=dataclasses.replace(finding.metric, unit=EVIL)))
    assert EVIL not in svg
    assert "style=" not in svg
    assert 'role="img"' in svg
