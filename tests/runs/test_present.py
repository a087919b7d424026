import json
import math
from dataclasses import replace

import pytest
from demo import EVIL, METRICS, run

from workingpapers.runs.leaderboard import Estimate, leaderboards
from workingpapers.runs.present import (
    BADGES,
    FILTERS,
    Places,
    all_boards,
    as_json,
    digest,
    next_step,
    permalink,
    prose,
    provenance,
    spelled,
    spread,
    verdicts,
)
from workingpapers.tasks import protocol
from workingpapers.tasks.protocol import Conditions


@pytest.fixture
def board(monkeypatch):
    """A leaderboard of three entries, one of which failed."""
    import sys
    from types import SimpleNamespace

    import demo

    monkeypatch.setitem(sys.modules, "workingpapers.tasks.demo", SimpleNamespace(task=demo.demo_task()))
    monkeypatch.setattr(protocol, "task_names", lambda: ("demo",))
    protocol.load_task.cache_clear()
    runs = [run(entry, seed) for entry in ("logistic-regression", "moment-probing") for seed in range(5)]
    yield leaderboards([*runs, run("crashes", 0, status="failed", error="ValueError")])[0]
    protocol.load_task.cache_clear()


def test_permalinks_are_readable_constant_and_distinct():
    at = Conditions("demo", "standard", "./my photos/Ünï", "google/vit", "full")
    assert permalink(at) == "demo-standard-my-photos-n-google-vit-full-fff4ae05"
    other = Conditions("demo", "standard", "./my photos/Ünï", "google/vit", "full", label="species")
    assert permalink(other) != permalink(at)
    assert len(permalink(Conditions("demo", "standard", "x" * 1000, "", "full"))) < 100


def test_places_lead_from_a_page_to_papers_and_leaderboards():
    at = Conditions("demo", "standard", "openmoji", "", "quick")
    assert Places("../", ".html").paper("knn") == "../papers/knn.html"
    assert Places("/", "").board(at) == f"/leaderboards/demo-standard-openmoji-quick-{digest(at)}"


def test_verdicts_are_counted_in_the_order_of_their_marks(board):
    assert list(verdicts(board).items()) == [("helps", 1), ("failed", 1)]
    assert set(verdicts(board)) <= set(BADGES)


def test_the_next_step_is_to_use_what_helps_or_to_decide_what_is_open(board):
    assert next_step([board]) == "Next: `papers show moment-probing` for its code; `papers report` for plots"
    [unsure] = leaderboards([run(entry, seed) for entry in ("logistic-regression", "mlp") for seed in range(2)])
    more = "papers try demo --entries mlp --seeds 5"
    assert next_step([unsure]) == f"Next: `{more}` to decide what is open; `papers report` for plots"
    assert next_step([board], "my runs.db").endswith("`papers report --store 'my runs.db'` for plots")
    [alone] = leaderboards([run("logistic-regression", seed) for seed in range(3)])
    assert next_step([alone]) == next_step([board, unsure]) == "Next: `papers report` for plots"


def test_settings_whose_task_is_gone_are_named(board):
    boards, left_out = all_boards([*board.runs, run("gone", 0, task="demo-of-the-past")])
    assert [len(it.rows) for it in boards] == [3]
    assert left_out[0].startswith("Left out: what was run of demo-of-the-past, standard (1 in all). Unknown task")


def test_what_json_has_no_number_for_is_null(board):
    [single] = leaderboards([run("knn", 0)])
    assert json.loads(as_json(single))["rows"][0]["values"]["accuracy"]["half"] is None
    runs = tuple(replace(it, curves={"loss": [(0.0, math.nan)]}) for it in single.runs)
    assert json.loads(as_json(replace(single, runs=runs)))["runs"][0]["curves"] == {"loss": [[0.0, None]]}


def test_provenance_has_every_value_once(board):
    found = provenance(board)
    assert found["settings"]["seeds"] == "0, 1, 2, 3, 4"
    assert found["settings"]["train"] == "2000"
    assert found["hardware"]["memory, GiB"] == "16"
    assert found["fingerprints"] == {"data": "3f9a0c3f9a0c3f9a", "model": "77aa1077aa1077aa"}


def test_prose_marks_code_and_escapes_the_rest():
    assert str(prose(f"see  `fit` {EVIL}")) == "see <code>fit</code> &lt;script&gt;alert(1)&lt;/script&gt;"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("auc", "AUC"),
        ("gauc", "GAUC"),
        ("new-ndcg-10", "new-NDCG-10"),
        ("macro-f1", "macro-F1"),
        ("NDCG@10 by size", "NDCG@10 by size"),
        ("recall-10", "recall-10"),
        ("piece", "piece"),  # not "piECE"
    ],
)
def test_acronyms_are_spelled_as_such(name, shown):
    assert spelled(name) == shown


def test_half_widths_step_back():
    accuracy = METRICS[0]
    assert str(spread(Estimate(91.44, 0.31), accuracy)) == "91.4<span class=half> ± 0.3</span>"
    assert str(spread(Estimate(-2.0, math.inf), accuracy, signed=True)) == "−2.0"
    assert FILTERS["interval"](Estimate(-2.0, 0.5), accuracy, signed=True) == "−2.0 ± 0.5"
