"""`try_`: each failure becomes a row and costs no other run; what is done is not done again."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from workingpapers.errors import UserError
from workingpapers.runs import execute, measure
from workingpapers.runs.execute import try_
from workingpapers.runs.store import Store

TASK = "toytask:task"
TESTS = str(Path(__file__).parents[1])


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "runs.sqlite"))


@pytest.fixture
def log(tmp_path, monkeypatch):
    """The seeds for which the entry `slow` was executed, in order."""
    path = tmp_path / "log"
    path.touch()
    monkeypatch.setenv("TOY_LOG", str(path))
    return lambda: [int(line) for line in path.read_text().split()]


def values(board):
    return {(run.entry, run.seed): run.metrics for run in board.runs}


def test_every_kind_of_failure_becomes_a_row_and_costs_no_other_run(store):
    board = try_(TASK, setting="trouble", seeds=1, timeout=5, store=store)
    found = {run.entry: (run.status, run.error) for run in store.runs()}
    assert found == {
        "base": ("ok", ""),
        "raises": ("failed", found["raises"][1]),
        "crashes": ("failed", "its process ended with exit code 3 and no result"),
        "killed": ("out of memory", "killed by the system, most often for lack of memory (signal 9)"),
        "eats": ("out of memory", found["eats"][1]),
        "hangs": ("timed out", "did not finish in 5 s"),
        "says": ("ok", ""),
        "undefined": ("failed", "Not a finite number: accuracy = nan, loss = nan."),
    }
    assert re.fullmatch(r"KeyError: 'no such thing' \(toytask\.py, line \d+\)", found["raises"][1])
    assert found["eats"][1].startswith("MemoryError: Unable to allocate 8.00 PiB")
    assert board.rows[0].entry == "base"
    assert {row.entry: row.failures for row in board.rows} == {
        name: (f"{status}: {error}",) if error else () for name, (status, error) in found.items()
    }


def test_a_run_records_conditions_measurements_versions_and_hardware(store):
    try_(TASK, entries=["better"], seeds=1, store=store, data="mine", label="kind", threads=2, budget="full")
    run = next(run for run in store.runs() if run.entry == "better")
    assert (run.task, run.setting, run.data, run.model, run.budget) == (TASK, "standard", "mine", "", "full")
    assert (run.data_fingerprint, run.paper, run.seed) == ("mine", "moment-probing", 0)
    assert run.settings == {
        "label": "kind",
        "threads": 2,
        "remarks": [],
        "code": measure.code(TASK),
        "budget": {"name": "full", "train": 1000, "test": 1000, "epochs": 10, "trials": 10},
    }
    assert run.curves == {"loss": [(1.0, 0.5), (2.0, 0.25)]}
    assert 0 <= run.measured["fit_seconds"] < 5
    assert run.measured["peak_memory_mb"] > 50
    assert run.versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"torch", "numpy", "workingpapers"} <= set(run.versions)
    assert run.hardware["cores"] == os.cpu_count()


def test_the_board_is_the_same_from_memory_and_from_the_store(store):
    first = try_(TASK, seeds=3, store=store)
    assert try_(TASK, seeds=3, store=store) == first
    assert [(row.entry, row.verdict) for row in first.rows] == [
        ("better", "helps"),
        ("base", None),
        ("slow", "no difference"),
    ]


def test_only_what_is_missing_runs(store, log):
    try_(TASK, entries=["slow"], seeds=1, store=store)
    try_(TASK, entries=["slow"], seeds=3, store=store)
    assert log() == [0, 1, 2]
    try_(TASK, entries=["slow"], seeds=2, store=store)  # fewer seeds are a part of what is there
    assert log() == [0, 1, 2]
    try_(TASK, entries=["slow"], seeds=1, store=store, data="others")
    try_(TASK, entries=["slow"], seeds=1, store=store, budget="full")
    try_(TASK, entries=["slow"], seeds=1, store=store, label="kind")
    assert log() == [0, 1, 2, 0, 0, 0]


def test_saved_runs_of_other_threads_are_told(store):
    try_(TASK, entries=["better"], seeds=2, store=store)
    said = []
    try_(TASK, entries=["better"], seeds=2, store=store, listen=lambda progress: said.extend(progress.remarks))
    assert not any("threads" in remark for remark in said)
    try_(TASK, seeds=2, store=store, threads=2, listen=lambda progress: said.extend(progress.remarks))
    assert "4 saved runs were made with another number of threads: their times do not compare." in said


def test_saved_runs_of_other_code_are_told(store, tmp_path, monkeypatch):
    code = tmp_path / "owntask.py"
    shutil.copy(f"{TESTS}/toytask.py", code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    options = {"entries": ["better"], "seeds": 2, "store": store}
    said = []
    try_("owntask:task", **options)
    for _ in range(2):
        try_("owntask:task", **options, listen=lambda progress: said.append(progress.remarks[1:]))
        code.write_text(code.read_text() + "# changed\n")
    assert set(said) == {(), ("4 saved runs were made by other code than is here now; --force repeats them.",)}


def test_the_code_of_runs_is_that_of_methods_data_and_tasks(tmp_path, monkeypatch):
    for name in ("methods/heads/one.py", "methods/fast.cpp", "data/two.py", "tasks/three.py", "site/four.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(measure, "__file__", str(tmp_path / "runs" / "measure.py"))
    digests = [measure.code("probe")]
    for name in ("methods/heads/one.py", "methods/fast.cpp", "data/two.py", "tasks/three.py"):
        (tmp_path / name).write_text("changed")
        digests.append(measure.code("probe"))
    assert len(set(digests)) == 5
    (tmp_path / "site/four.py").write_text("changed")
    (tmp_path / "data/.#two.py").symlink_to("user@host.1234")  # an editor's lock
    assert measure.code("probe") == digests[-1]


def test_a_store_that_cannot_be_written_shows_what_is_there(store, monkeypatch):
    def refuse(self):
        raise UserError("The store cannot be written")

    options = {"entries": ["slow"], "seeds": 2, "store": store}
    board = try_(TASK, **options)
    monkeypatch.setattr(Store, "create", refuse)
    assert values(try_(TASK, **options)) == values(board)
    with pytest.raises(UserError, match="cannot be written"):  # before any work
        try_(TASK, **options | {"seeds": 3})


def test_force_repeats_everything(store, log):
    before = try_(TASK, entries=["slow"], seeds=2, store=store)
    after = try_(TASK, entries=["slow"], seeds=2, store=store, force=True)
    assert log() == [0, 1, 0, 1]
    assert len(store.runs()) == 4
    assert values(after) == values(before)
    assert min(run.finished for run in after.runs) > max(run.finished for run in before.runs)


def test_a_repetition_that_fails_loses_no_result(store, log, monkeypatch):
    before = try_(TASK, entries=["slow"], seeds=1, store=store)
    monkeypatch.setenv("TOY_SLEEP", "600")
    again = try_(TASK, entries=["slow"], seeds=1, timeout=1, store=store, force=True)
    assert [row.failures for row in again.rows if row.entry == "slow"] == [("timed out: did not finish in 1 s",)]
    after = try_(TASK, entries=["slow"], seeds=1, timeout=1, store=store)  # nothing is missing
    assert values(after) == values(before)
    assert log() == [0, 0]


def test_entries_that_the_data_have_nothing_for_are_not_run(store, log):
    totals = set()
    board = try_(TASK, data="bare", seeds=2, store=store, listen=lambda progress: totals.add(progress.total))
    assert {row.entry for row in board.rows} == {"base", "better"}
    assert len(store.runs()) == max(totals) == 4
    assert log() == []


def test_runs_that_failed_are_tried_again(store, log, monkeypatch):
    monkeypatch.setenv("TOY_SLEEP", "600")
    board = try_(TASK, entries=["slow"], seeds=1, timeout=2, store=store)
    assert board.rows[-1].failures == ("timed out: did not finish in 2 s",)
    monkeypatch.setenv("TOY_SLEEP", "0")
    board = try_(TASK, entries=["slow"], seeds=1, timeout=60, store=store)
    assert board.rows[-1].failures == ()
    assert log() == [0, 0]
    assert [run.status for run in store.runs()] == ["ok", "ok"]


def test_workers_side_by_side_change_no_metric(store, tmp_path):
    one = try_(TASK, seeds=4, store=store)
    two = try_(TASK, seeds=4, workers=2, store=str(tmp_path / "other.sqlite"))
    assert values(one) == values(two)
    assert [row.entry for row in one.rows] == [row.entry for row in two.rows]


def test_workers_do_run_side_by_side(store, monkeypatch):
    monkeypatch.setenv("TOY_SLEEP", "1.5")
    together = []
    try_(TASK, entries=["slow"], seeds=4, workers=4, store=store, listen=lambda p: together.append(p.running))
    assert max(map(len, together)) > 1


def test_calls_in_threads_share_a_store(store):
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(try_, TASK, entries=[name], seeds=3, store=store) for name in ("better", "slow")]
    assert all(len(call.result().rows) == 2 for call in calls)
    assert len(store.runs()) == 9


def test_progress(store):
    seen = []
    try_(TASK, entries=["better"], seeds=2, store=store, listen=seen.append)
    preparing, *seen = seen
    assert (preparing.total, preparing.runs) == (0, ())
    assert [len(p.runs) for p in seen] == [0, 0, 1, 1, 2, 2, 3, 3, 4]
    assert {p.total for p in seen} == {4}
    assert seen[1].running == ("base, seed 0",)
    assert seen[-1].running == ()
    assert str(preparing).startswith("Preparing ")
    assert [str(p) for p in (seen[1], seen[-1])] == ["0 of 4 runs done · now: base, seed 0", "4 of 4 runs done"]
    assert seen[0].remarks == ("1 image was skipped",)
    again = []
    try_(TASK, entries=["better"], seeds=2, store=store, listen=again.append)
    assert [(len(p.runs), p.total) for p in again] == [(0, 0), (4, 4)]


def test_ctrl_c_keeps_what_finished_and_records_nothing_else(store, monkeypatch):
    monkeypatch.setenv("TOY_SLEEP", "600")
    listened = []

    def interrupt(progress):
        listened.append(progress)
        if "slow, seed 0" in progress.running:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        try_(TASK, seeds=2, store=store, listen=interrupt)
    assert [(run.entry, run.status) for run in store.runs()] == [("base", "ok"), ("better", "ok")]
    assert listened[-1].running == ("slow, seed 0",)
    monkeypatch.setenv("TOY_SLEEP", "0")
    assert len(try_(TASK, seeds=2, store=store).runs) == 6


def test_a_listener_that_fails_stops_the_call(store):
    def complain(progress):
        if len(progress.runs) == 1:
            raise RuntimeError("the listener")

    with pytest.raises(RuntimeError, match="the listener"):
        try_(TASK, seeds=2, store=store, listen=complain)
    assert [run.entry for run in store.runs()] == ["base"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seeds": 0}, "seeds is 0; it must be at least 1"),
        ({"seeds": -3}, "seeds is -3"),
        ({"workers": 0}, "workers is 0"),
        ({"threads": 0}, "threads is 0"),
        ({"threads": 100_000}, "threads is 100000; it must be at least 1 and at most 1000"),
        ({"timeout": 0}, "timeout is 0 s; it must be above 0"),
        ({"timeout": float("nan")}, "timeout is nan s; it must be above 0"),
        ({"timeout": float("inf")}, "timeout is inf s; it must be at most 1e+06. Leave it out"),
        ({"seeds": "5"}, "seeds is '5'; it must be a whole number."),
        ({"workers": 2.0}, "workers is 2.0; it must be a whole number."),
        ({"timeout": "60"}, "timeout is '60'; it must be a number of seconds."),
        ({"label": 3}, "label is 3; it must be the name of a column."),
        ({"label": ""}, "label is ''; it must be the name of a column."),
        ({"entries": [3]}, "Unknown entry 3. Known: base, better,"),
        ({"budget": "quik"}, "Unknown budget 'quik'. Known: quick, full"),
        ({"setting": "standrad"}, "Unknown setting 'standrad' of task toytask:task. Did you mean 'standard'?"),
        ({"entries": ["beter"]}, "Unknown entry 'beter'. Did you mean 'better'?"),
        ({"entries": ["raises"]}, "Entry 'raises' takes part in trouble, not in 'standard'. Add --setting"),
        ({"entries": "better"}, "entries is 'better'; it must be a list of names: ['better']"),
        ({"data": "missing"}, "Unknown data set 'missing'."),
        ({"ray": "nonsense"}, "'nonsense' is not a Ray address"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(store, given, message):
    if "ray" in given:
        pytest.importorskip("ray")
    with pytest.raises(UserError) as caught:
        try_(TASK, store=store, **given)
    assert message in str(caught.value)
    assert not os.path.exists(store.url)


@pytest.mark.parametrize("option", ["data", "model"])
def test_a_name_that_no_store_can_keep_is_refused_before_anything_runs(store, option):
    with pytest.raises(UserError, match=f"{option} is .*, whose bytes are no UTF-8 text"):
        try_("probe", **{option: os.fsdecode(b"./f\xe9tes")}, store=store)


def test_a_cluster_is_left_where_the_data_cannot_be_used(store, monkeypatch):
    left = []

    class Cluster:
        def __init__(self, address):
            self.address = address

        def close(self):
            left.append(self.address)

    monkeypatch.setattr(execute, "RayExecutor", Cluster)
    with pytest.raises(UserError, match="Unknown data set 'missing'"):
        try_(TASK, data="missing", ray="local", store=store)
    assert left == ["local"]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("prob", "Unknown task 'prob'. Did you mean 'probe'?"),
        ("toytask:tsk", "Unknown object 'tsk' of module toytask. Did you mean 'task' or"),
        ("toytask:setting", "toytask:setting is a function, not a workingpapers.tasks.protocol.Task"),
        ("no_such_module:task", "The task 'no_such_module:task' cannot be imported"),
    ],
)
def test_unknown_tasks(store, task, message):
    with pytest.raises(UserError) as caught:
        try_(task, store=store)
    assert message in str(caught.value)


def test_a_store_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        try_(TASK, seeds=1, store=str(tmp_path / "file" / "runs.sqlite"))


def test_a_script_without_main_guard(tmp_path):
    """The script must run once: processes that import it again would call try_ again."""
    script = tmp_path / "script.py"
    script.write_text(
        "from workingpapers.runs.execute import try_\n"
        "print('once')\n"
        f"board = try_('{TASK}', seeds=1, store='runs.sqlite')\n"
        "print(board.to_frame().loc['better', 'difference'].round(3))\n"
    )
    environment = os.environ | {"PYTHONPATH": TESTS}
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert (done.stdout, done.stderr) == ("once\n2.0\n", "")


@pytest.fixture(scope="module")
def cluster():
    """A local Ray cluster that this process is connected to; calls with an address stay with it."""
    ray = pytest.importorskip("ray")
    environment = {"env_vars": {"PYTHONPATH": TESTS}}
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=environment)
    yield ray
    ray.shutdown()


@pytest.mark.slow
def test_ray_gives_the_same_and_counts_the_timeout_from_the_start_of_a_run(cluster, store, tmp_path):
    local = try_(TASK, setting="trouble", seeds=1, timeout=3, store=store)
    # Seven runs on two processors: some wait for longer than the timeout before they start.
    remote = try_(TASK, setting="trouble", seeds=1, timeout=3, ray="local", store=str(tmp_path / "ray.sqlite"))
    assert values(remote) == values(local)
    assert {run.entry: (run.status, run.error) for run in remote.runs} == {
        run.entry: (run.status, run.error) for run in local.runs
    }
    assert cluster.is_initialized()  # the program's own connection stays


@pytest.mark.slow
def test_ctrl_c_ends_what_runs_on_ray(cluster, store, tmp_path):
    def interrupt(progress):
        if len(progress.runs) == 1:
            threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        try_(TASK, setting="trouble", entries=["hangs"], seeds=4, ray="local", store=store, listen=interrupt)
    assert time.monotonic() - start < 60
    assert {run.status for run in store.runs()} == {"ok"}


@pytest.mark.parametrize("data", [np.zeros((4, 2)), ([[1.0]], [0]), 3])
def test_what_is_no_path_is_told_how_to_become_one(store, data):
    with pytest.raises(UserError, match=r"it must be a name or a path. `keep\(features, labels\)` makes a path"):
        try_("probe", data=data, store=store)
