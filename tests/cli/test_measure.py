"""`papers try` and `papers leaderboard` as people meet them: exit codes, messages, interruptions of every kind."""

import io
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import demo
import psutil
import pytest
from click.testing import CliRunner
from rich.console import Console

from workingpapers import terminal
from workingpapers.cli import main
from workingpapers.cli.live import Live
from workingpapers.runs.execute import Progress
from workingpapers.runs.leaderboard import leaderboards
from workingpapers.runs.store import Store
from workingpapers.tasks.protocol import Conditions

TASK = "toytask:task"


@pytest.fixture
def store(tmp_path):
    return str(tmp_path / "runs.sqlite")


def papers(*words, store):
    """Run a command in this process, where it costs no start."""
    return CliRunner().invoke(main, [*words, "--store", store])


def start(*words, store, **environment):
    """Start a command as a process of its own, in a group of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", "from workingpapers.cli import main; main()", *words, "--store", store],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "COLUMNS": "300"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finished(store):
    """The runs in a store that another process writes."""
    return {(run.entry, run.seed): run.metrics for run in Store(store).runs() if run.status == "ok"}


def wait_for(condition, process, seconds=60):
    last = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < last, "waited in vain"
        time.sleep(0.02)


def all_gone(processes, within=10.0):
    """Whether processes end in so many seconds."""
    _, alive = psutil.wait_procs(processes, timeout=within)
    return not [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_the_leaderboard_goes_to_stdout_and_progress_to_stderr(store):
    first = papers("try", TASK, "--seeds", "3", store=store)
    assert first.exit_code == 0
    lines = first.stdout.splitlines()
    assert "toytask:task" in lines[0]
    assert [line.split()[0] for line in lines[2:5]] == ["better", "base", "slow"]
    assert "helps" in lines[2]
    assert "1 image was skipped" in first.stderr
    assert "9/9" in first.stderr
    again = papers("try", TASK, "--seeds", "3", store=store)
    assert again.stdout == first.stdout
    assert "9 of 9 runs are in the store already" in again.stderr
    shown = papers("leaderboard", TASK, store=store)
    assert shown.stdout.strip() == first.stdout.strip()


def test_progress_tells_how_long_a_run_took_its_measurement_included(capsys):
    done = demo.run("knn", 0)
    done.measured.update(fit_seconds=0.1, predict_seconds=2.0)
    with Live() as live:
        live.update(Progress(done, (), 1, (), ()))
        live.update(Progress(done, (done,), 1, (), ()))
    assert "1/1 knn, seed 0: 2.1 s" in capsys.readouterr().err


def test_a_terminal_that_takes_no_line_back_gets_a_line_for_each_run(monkeypatch):
    screen = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"})
    monkeypatch.setattr(terminal, "errors", screen)
    done = demo.run("knn", 0)
    with Live() as live:
        live.update(Progress(done, (), 1, (), ()))
        live.update(Progress(done, (done,), 1, (), ()))
    assert "1/1 knn, seed 0: " in screen.file.getvalue()


def test_preparing_names_no_model_that_features_may_not_need(store, capsys):
    with Live() as live:
        live.update(Progress(Conditions("probe", "standard", "table.csv", "efficientnet-lite0"), (), 0, (), ()))
    assert capsys.readouterr().err == "Preparing table.csv ...\n"


def test_a_hint_on_what_to_do_next_is_for_people_alone(store, monkeypatch):
    words = ("try", TASK, "--seeds", "1", "--entries", "better")
    assert "Next:" not in papers(*words, store=store).output
    screen = Console(file=io.StringIO(), width=60, force_terminal=True, color_system=None)
    monkeypatch.setattr(terminal, "console", screen)
    for command in (words, ("leaderboard", TASK)):
        papers(*command, store=store)
        *_, last = screen.file.getvalue().splitlines()
        more = f"papers try {TASK} --entries better --seeds 5 --store {store}"
        assert last == f"Next: `{more}` to decide what is open; `papers report --store {store}` for plots"


def test_a_home_that_cannot_be_written_is_no_news_to_a_report(store, tmp_path):
    papers("try", TASK, "--seeds", "1", "--entries", "better", store=store)
    homeless = {"HOME": "/proc/nowhere", "MPLCONFIGDIR": "", "XDG_CONFIG_HOME": ""}
    process = start("report", "-o", str(tmp_path / "report"), store=store, **homeless)
    assert process.communicate(timeout=120) == ("", f"Wrote {tmp_path}/report/index.html\n")


def test_rank_features_prints_columns_by_score_and_remarks_apart(tmp_path):
    rows = [f"{i % 2},{i % 2},{i % 3},{i}" for i in range(60)]
    (tmp_path / "log.csv").write_text("\n".join(["label,copy,noise,number", *rows]))
    done = CliRunner().invoke(main, ["rank-features", str(tmp_path / "log.csv"), "--limit", "2"])
    assert done.exit_code == 0, done.output
    head, first, second = done.stdout.splitlines()
    assert head.split() == ["column", "score", "nats", "information", "nats", "coverage", "%", "values"]
    assert first.split() == ["copy", "+0.69315", "0.69315", "100", "2"]
    assert "-0.00000" not in second
    assert "own in 'number', so nothing is said about them." in done.stderr
    assert "2 of 3 columns; --limit shows more" in done.stderr


def test_failures_are_shown_and_some_success_is_success(store):
    done = papers("try", TASK, "--setting", "trouble", "--entries", "raises,crashes", "--seeds", "1", store=store)
    assert done.exit_code == 0
    assert "KeyError: 'no such thing'" in done.stdout
    assert "exit code 3" in done.stdout


def test_what_a_run_says_of_itself_is_a_plain_remark(store):
    words = ("--setting", "trouble", "--entries", "says", "--seeds", "2")
    done = papers("try", TASK, *words, store=store)
    assert "says, seed 1: 0.0 s (no value was kept)" in done.stderr
    assert done.stdout.splitlines()[-1] == "says: no value was kept"
    assert "UserRemark" not in done.output
    shown = papers("leaderboard", TASK, store=store)
    assert shown.stdout.count("no value was kept") == 1


def test_a_setting_that_is_gone_hides_no_other(store):
    papers("try", TASK, "--seeds", "1", "--entries", "better", store=store)
    kept = Store(store)
    [run, _] = kept.runs()
    kept.save(replace(run, key="old", setting="of-an-earlier-version"))
    done = papers("leaderboard", TASK, store=store)
    assert done.exit_code == 0
    assert "better" in done.stdout
    assert "Unknown setting 'of-an-earlier-version' of task toytask:task." in done.stderr


def test_data_that_no_run_in_the_store_used(store):
    papers("try", TASK, "--seeds", "1", "--entries", "better", store=store)
    done = papers("leaderboard", TASK, "--data", "numbrs", store=store)
    assert done.exit_code == 2
    assert f"Unknown data set 'numbrs' of the runs of {TASK}. Did you mean 'numbers'?" in done.stderr


def test_nothing_finished_is_exit_code_1(store):
    done = papers("try", TASK, "--seeds", "1", "--timeout", "1e-9", store=store)
    assert done.exit_code == 1
    assert "timed out" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["try", "prob"], "Unknown task 'prob'. Did you mean 'probe'?"),
        (["try", "no_such_module:task"], "cannot be imported"),
        (["try", TASK, "--entries", "beter"], "Unknown entry 'beter'. Did you mean 'better'?"),
        (["try", TASK, "--setting", "standrad"], "Did you mean 'standard'?"),
        (["try", TASK, "--data", "missing"], "Unknown data set 'missing'."),
        (["try", TASK, "--data", ""], "data is empty. Name one, or leave it out for the default of the setting."),
        (["try", TASK, "--model", ""], "model is empty."),
        (["try", TASK, "--seeds", "0"], "seeds is 0; it must be at least 1."),
        (["try", TASK, "--workers", "0"], "workers is 0"),
        (["try", TASK, "--threads", "-1"], "threads is -1; it must be at least 1 and at most 1000."),
        (["try", TASK, "--entries", ","], "entries holds no name."),
        (["try", TASK, "--model", "pixels"], "model is 'pixels', but the setting 'standard' of task toytask:task uses"),
        (["try", TASK, "--timeout", "0"], "timeout is 0 s; it must be above 0."),
        (["leaderboard", "prob"], "Unknown task 'prob'. Did you mean 'probe'?"),
        (["leaderboard", TASK], "No runs of toytask:task in the store "),
        (["leaderboard", TASK, "--setting", "standrad"], "Did you mean 'standard'?"),
    ],
)
def test_what_users_can_mend_is_one_line_and_exit_code_2(store, words, message):
    done = papers(*words, store=store)
    assert done.exit_code == 2
    assert "\npapers: " in f"\n{done.stderr}"
    assert message in done.stderr
    assert "Traceback" not in done.output
    assert not os.path.exists(store)


@pytest.mark.parametrize("words", [["--budget", "huge"], ["--seeds", "many"], ["--timeout", "soon"], ["--no-such"]])
def test_options_that_do_not_exist_are_exit_code_2(store, words):
    done = papers("try", TASK, *words, store=store)
    assert done.exit_code == 2
    assert words[0] in done.stderr


def test_an_unknown_metric(store):
    papers("try", TASK, "--seeds", "1", "--entries", "better", store=store)
    done = papers("leaderboard", TASK, "--metric", "lss", store=store)
    assert done.exit_code == 2
    assert "Unknown metric 'lss'. Did you mean 'loss'?" in done.stderr


@pytest.mark.parametrize("command", ["try", "leaderboard"])
def test_a_damaged_store_is_refused_and_left_alone(store, command):
    Path(store).write_bytes(b"not a store" * 100)
    done = papers(command, TASK, store=store)
    assert done.exit_code == 2
    assert "is damaged or not a store" in done.stderr
    assert Path(store).read_bytes() == b"not a store" * 100


def test_a_store_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    done = papers("try", TASK, "--seeds", "1", store=str(tmp_path / "file" / "runs.sqlite"))
    assert done.exit_code == 2
    assert "cannot be written" in done.stderr
    assert "1/3" not in done.stderr  # refused before any run, whose work would be lost


@pytest.mark.parametrize("debug", [False, True])
def test_debug_shows_the_traceback(store, debug):
    process = start(*["--debug"] * debug, "try", "prob", store=store)
    out, err = process.communicate(timeout=60)
    assert out == ""
    assert "Unknown task 'prob'" in err
    assert ("Traceback" in err) == debug
    assert (process.returncode == 2) != debug


def test_ctrl_c_while_runs_run(store):
    process = start("try", TASK, store=store, TOY_SLEEP="600")
    wait_for(lambda: len(finished(store)) == 2, process)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 2  # the fork server and the run
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted. What finished is kept" in err
    assert "Traceback" not in err
    assert all_gone(family)
    assert [(run.entry, run.status) for run in Store(store).runs()] == [("base", "ok"), ("better", "ok")]


def test_ctrl_c_promises_to_go_on_only_where_something_is_kept(store, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("workingpapers.runs.report.write_report", interrupted)
    done = papers("report", store=store)
    assert (done.exit_code, done.stderr) == (130, "\npapers: interrupted.\n")


@pytest.mark.parametrize("delay", [0.1, 1.0])
def test_ctrl_c_while_everything_still_starts(store, delay):
    process = start("try", TASK, store=store, TOY_SLEEP="600")
    wait_for(lambda: psutil.Process(process.pid).children(), process)  # importing has come so far
    family = psutil.Process(process.pid).children(recursive=True)
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert all_gone(family, within=30)  # the fork server notices when its imports are done


def test_sigkill_leaves_no_run_behind(store):
    process = start("try", TASK, store=store, TOY_SLEEP="600")
    wait_for(lambda: len(finished(store)) == 2, process)
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    assert all_gone(family)
    assert set(finished(store)) == {("base", 0), ("better", 0)}


def test_two_commands_share_a_store(store):
    words = ["try", TASK, "--seeds", "6"]
    commands = [start(*words, "--entries", name, store=store) for name in ("better", "slow")]
    outputs = [command.communicate(timeout=120) for command in commands]
    assert [command.returncode for command in commands] == [0, 0], outputs
    assert not any("locked" in err for _, err in outputs)
    assert set(finished(store)) == {(name, seed) for name in ("base", "better", "slow") for seed in range(6)}


def shown(store):
    """A leaderboard without what differs from one execution to the next: seconds and memory."""
    (board,) = leaderboards(Store(store).runs())
    return [(row.entry, row.seeds, row.values, row.difference, row.verdict, row.best) for row in board.rows]


@pytest.mark.slow
def test_killed_at_twenty_random_moments_and_resumed_to_the_same_leaderboard(store, tmp_path):
    words = ["try", TASK, "--entries", "slow", "--seeds", "40"]
    log, random_moment = tmp_path / "log", random.Random(20).uniform
    log.touch()
    kept = 0
    for kill in range(20):
        before, logged = finished(store), len(log.read_text().split())
        process = start(*words, store=store, TOY_LOG=str(log), TOY_SLEEP="0.1")
        if kill % 5 < 2:  # among runs
            wait_for(lambda before=before: len(finished(store)) > len(before), process)
            time.sleep(random_moment(0, 0.8))
            process.kill()
        else:  # while it starts, with its server, which would go on importing to the end
            time.sleep(random_moment(0, 1.5))
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        repeated = {("slow", int(seed)) for seed in log.read_text().split()[logged:]} & set(before)
        assert not repeated
        assert before.items() <= finished(store).items()
        kept += len(finished(store)) > len(before)
    assert kept >= 8
    assert len(finished(store)) < 80
    process = start(*words, store=store, TOY_LOG=str(log))
    assert process.wait(timeout=60) == 0, process.communicate()
    assert len(Store(store).runs()) == 80
    undisturbed = str(tmp_path / "undisturbed.sqlite")
    assert papers(*words, store=undisturbed).exit_code == 0
    assert shown(store) == shown(undisturbed)
