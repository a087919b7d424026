"""Tasks, settings and entries by name, and what is refused."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import toytask

from workingpapers.errors import UserError
from workingpapers.tasks import protocol
from workingpapers.tasks.protocol import (
    Budget,
    Conditions,
    Context,
    Entry,
    Task,
    load_task,
    task_names,
)


def names(entries):
    return [entry.name for entry in entries]


@pytest.fixture
def task():
    """A task of three entries in two settings, whose names differ."""
    other = replace(toytask.setting("few-shot"), baseline="second")
    made = Task("made", title="Made", settings=[toytask.setting("standard"), other])

    @made.entry()
    def base(train, context):
        """The baseline.

        More about it.
        """

    @made.entry("standard", "few-shot", paper="some-paper", needs=["tokens"])
    def second_one(train, context):
        pass

    @made.entry("few-shot", name="second")
    def another(train, context):
        pass

    return made


def test_entries_are_registered_after_their_functions(task):
    assert list(task.entries) == ["base", "second-one", "second"]
    entry = task.entries["second-one"]
    assert (entry.paper, entry.needs, entry.settings) == ("some-paper", ("tokens",), ("standard", "few-shot"))
    assert entry.about == ""
    assert task.entries["base"].settings == ("standard",)
    assert task.entries["base"].about == "The baseline."


def test_registering_leaves_the_function_as_it_is(task):
    def fit(train, context):
        return train

    assert task.entry(name="kept")(fit) is fit
    assert task.entries["kept"].fit is fit


def test_two_entries_of_one_name_are_refused(task):
    with pytest.raises(UserError, match="Task made has two entries called 'base'"):
        task.entry(name="base")(lambda train, context: None)


def test_an_entry_in_a_setting_that_is_not_there_is_refused(task):
    with pytest.raises(UserError, match=r"setting 'standrad' of task made, in entry 'x'\. Did you mean 'standard'"):
        task.entry("few-shot", "standrad", name="x")(lambda train, context: None)
    assert "x" not in task.entries


def test_a_decorator_that_would_register_nothing_is_refused(task):
    with pytest.raises(UserError, match=r"`entry` takes names of settings: @task\.entry\('standard'\)"):

        @task.entry  # without parentheses
        def forgotten(train, context):
            pass

    with pytest.raises(UserError, match=r"`entry` takes names of settings"):
        task.entry(["standard"])
    with pytest.raises(UserError, match=r"needs is 'tokens'; it must be a list of names: \['tokens'\]"):
        task.entry("standard", needs="tokens")
    with pytest.raises(UserError, match=r"'<lambda>' is no name of an entry; the option `name` gives one"):
        task.entry("standard")(lambda train, context: None)


def test_select(task):
    assert names(task.select("standard")) == ["base", "second-one"]
    assert names(task.select("few-shot")) == ["second-one", "second"]
    assert names(task.select("standard", ["second-one", "second-one"])) == ["base", "second-one"]  # baseline first
    assert names(task.select("standard", [])) == ["base"]
    assert names(task.select("few-shot", iter(["second"]))) == ["second"]


@pytest.mark.parametrize(
    ("setting", "wanted", "message"),
    [
        ("standard", ["second-on"], "Unknown entry 'second-on'. Did you mean 'second-one'"),
        ("standard", ["zzz"], "Known: base, second-one. `papers entries made` lists them."),
        ("standard", ["second"], "Entry 'second' takes part in few-shot, not in 'standard'. Add --setting."),
        ("standart", None, "Unknown setting 'standart' of task made. Did you mean 'standard'?"),
    ],
)
def test_select_refuses_names_it_does_not_know(task, setting, wanted, message):
    with pytest.raises(UserError) as caught:
        task.select(setting, wanted)
    assert message in str(caught.value)


def test_metrics_by_name():
    setting = toytask.setting("standard")
    assert setting.metric() is toytask.ACCURACY
    assert setting.metric("loss") is toytask.LOSS
    with pytest.raises(UserError, match=r"Unknown metric 'los'. Did you mean 'loss'?"):
        setting.metric("los")


def test_logged_points_are_plain_numbers():
    context = Context(seed=0, budget=Budget("quick", 1, 1, 1, 1))
    context.log("loss", 1, toytask.np.float32(0.5))
    context.log("loss", 2, 0.25)
    context.log("accuracy", 1, 90)
    assert context.curves == {"loss": [(1.0, 0.5), (2.0, 0.25)], "accuracy": [(1.0, 90.0)]}
    assert all(type(number) is float for curve in context.curves.values() for point in curve for number in point)


def test_every_task_of_the_package_loads_and_is_consistent():
    assert "probe" in task_names()
    assert "protocol" not in task_names()
    for name in task_names():
        found = load_task(name)
        assert found.name == name
        assert "standard" in found.settings
        for setting in found.settings.values():
            chosen = names(found.select(setting.name))
            assert setting.baseline in chosen
            assert found.entries[setting.baseline].paper is None
            assert not setting.metrics[0].optional
            assert set(setting.budgets) == {"quick", "full"}
        assert all(entry.about for entry in found.entries.values())


def test_loading_tasks_imports_nothing_heavy():
    code = (
        "import sys; from workingpapers.tasks.protocol import all_tasks; all_tasks();"
        "print({'numpy', 'torch', 'sklearn', 'pandas', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_task_of_one_s_own_is_found_in_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "my_own_task.py").write_text("from toytask import task as mine\nnumber = 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert load_task("my_own_task:mine") is toytask.task
    with pytest.raises(UserError, match=r"my_own_task:number is a int, not a workingpapers.tasks.protocol.Task"):
        load_task("my_own_task:number")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("prob", "Unknown task 'prob'. Did you mean 'probe'?"),
        ("protocol", "Unknown task 'protocol'"),
        ("", "Unknown task ''"),
        ("no_such_module:task", "cannot be imported: No module named 'no_such_module'"),
        ("toytask:nothing", "Unknown object 'nothing' of module toytask."),
        ("toytask:", "Unknown object '' of module toytask."),
        (":task", "cannot be imported"),
    ],
)
def test_tasks_that_are_not_there(name, message):
    with pytest.raises(UserError) as caught:
        load_task(name)
    assert message in str(caught.value)


def test_a_module_of_one_s_own_that_fails_is_a_clear_error(tmp_path, monkeypatch):
    (tmp_path / "my_broken_task.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(UserError, match="'my_broken_task:task' cannot be imported: ZeroDivisionError"):
        protocol.load_task("my_broken_task:task")


@pytest.mark.parametrize("task", ["probe", "anomaly"])
def test_a_model_that_data_of_features_do_not_need_is_said_to_be_unused(task, tmp_path):
    labels = np.repeat([0, 1], 20)
    part = np.where((labels == 0) & (np.arange(40) < 10), "train", "test")
    arrays = {"features": np.eye(40, 5), "labels": labels} | ({"part": part} if task == "anomaly" else {})
    path = str(tmp_path / "own.npz")
    np.savez(path, **arrays)
    chosen = load_task(task).setting("standard")
    for model, said in (
        (chosen.model, []),
        ("no-such-model", [f"The model no-such-model is not used: {path} holds features already."]),
    ):
        remarks = chosen.prepare(Conditions(task, "standard", path, model), []).remarks
        assert [remark for remark in remarks if "model" in remark] == said


@pytest.mark.parametrize("task", ["probe", "anomaly"])
@pytest.mark.parametrize(
    ("needs", "said"),
    [
        ([], "Entry 'x' needs nothing; it must need one of: "),
        (["pixels", "hog"], "Entry 'x' needs pixels, hog; it must need one of: "),
        (["pixel"], "Unknown need 'pixel' of entry x. Did you mean 'pixels'?"),
    ],
)
def test_an_entry_on_features_needs_one_view(task, needs, said):
    chosen = load_task(task).setting("standard")
    wrong = Entry("x", lambda train, context: None, None, ("standard",), tuple(needs))
    with pytest.raises(UserError) as caught:
        chosen.prepare(Conditions(task, "standard", "digits", "pixels"), [wrong])
    assert said in str(caught.value)


CHANGING = """
import numpy as np, pandas as pd
rng = np.random.default_rng()  # without a seed
users = np.repeat(np.arange(30), 10)
def features(): return rng.normal(size=(300, 4)), np.arange(300) % 2
def images(): return rng.integers(0, 255, (300, 8, 8), dtype=np.uint8), np.arange(300) % 2
def clicks(): return pd.DataFrame({"a": rng.integers(9, size=300), "label": np.arange(300) % 2})
def log(): return pd.DataFrame({"user": users, "item": rng.integers(20, size=300), "time": np.arange(300)})
"""


@pytest.mark.parametrize(
    ("task", "setting", "function"),
    [
        ("probe", "standard", "features"),
        ("probe", "representation", "images"),
        ("ctr", "standard", "clicks"),
        ("recommend", "standard", "log"),
    ],
)
def test_data_that_change_between_runs_are_refused(task, setting, function, tmp_path, monkeypatch):
    (tmp_path / "changing.py").write_text(CHANGING)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("WORKINGPAPERS_CACHE", str(tmp_path / "cache"))
    chosen = load_task(task).setting(setting)
    where, entry = Conditions(task, setting, f"changing:{function}", chosen.model), load_task(task).select(setting)[0]
    with pytest.raises(UserError, match=f"changing:{function} holds other data than when it was prepared"):
        chosen.load(where, entry, 0, chosen.prepare(where, [entry]))
    sys.modules.pop("changing")
