"""Whatever happens inside a call, the caller gets an outcome, and nothing is left running."""

import json
import operator
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import toycalls

from workingpapers.errors import UserError
from workingpapers.runs.process import LocalExecutor, RayExecutor, guarded


@pytest.fixture
def executor():
    made = LocalExecutor()
    yield made
    made.close()


def gone(pid, within=5.0):
    """Whether a process ends in so many seconds; a zombie has ended."""
    last = time.monotonic() + within
    while time.monotonic() < last:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_a_value_comes_back_from_another_process(executor):
    outcome = executor.call(os.getpid)
    assert outcome.status == "ok"
    assert outcome.value != os.getpid()
    assert gone(outcome.value)


def test_large_values_come_back(executor):
    # A pipe holds 64 KiB: the child blocks in sending until the caller reads.
    assert executor.call(operator.mul, b"x", 10**7, timeout=60).value == b"x" * 10**7


def test_an_exception_is_one_line_with_its_traceback_kept(executor):
    outcome = executor.call(toycalls.divide, 1, 0)
    place = f"toycalls.py, line {toycalls.divide.__code__.co_firstlineno + 1}"
    assert (outcome.status, outcome.usage) == ("failed", False)
    assert outcome.error == f"ZeroDivisionError: division by zero ({place})"
    assert "in divide" in outcome.details


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(4), KeyboardInterrupt()])
def test_where_an_exception_came_from_is_in_the_caller_s_own_code(error):
    def entry():
        json.loads("1", parse_int=lambda _: toycalls.throw(error))  # a library stands between the two

    def wrong():
        json.loads("{")

    assert guarded(entry).error.startswith(type(error).__name__)
    assert guarded(entry).error.endswith(f"(toycalls.py, line {toycalls.throw.__code__.co_firstlineno + 1})")
    assert guarded(wrong).error.endswith(f"(test_process.py, line {wrong.__code__.co_firstlineno + 1})")
    assert guarded(json.loads, "{").error.endswith("(char 1)")  # nothing of it is the caller's


def test_the_user_s_own_errors_are_marked(executor):
    outcome = executor.call(toycalls.refuse)
    assert (outcome.status, outcome.error, outcome.usage) == ("failed", "This cannot be used.", True)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_exceptions_for_lack_of_memory_are_told_apart(error):
    assert guarded(toycalls.throw, error).status == "out of memory"


def test_errors_can_be_written_to_any_store():
    # Names of files may hold bytes that are no text; PostgreSQL takes no NUL either.
    outcome = guarded(toycalls.throw, ValueError("bad name: \udcff\0é"))
    assert outcome.error.encode().startswith("ValueError: bad name: \\udcff\\x00é (".encode())


@pytest.mark.parametrize(
    ("function", "args", "status", "reason"),
    [
        (os._exit, (3,), "failed", "exit code 3"),
        (sys.exit, (4,), "failed", "SystemExit: 4"),
        (toycalls.end_by, (signal.SIGSEGV,), "failed", "SIGSEGV"),
        (toycalls.end_by, (signal.SIGKILL,), "out of memory", "signal 9"),
        (toycalls.lock, (), "failed", "no result"),
    ],
)
def test_a_process_that_ends_without_a_result(executor, function, args, status, reason):
    outcome = executor.call(function, *args)
    assert outcome.status == status
    assert reason in outcome.error
    assert executor.call(os.getpid).status == "ok"


def test_timeout(executor, tmp_path):
    start = time.monotonic()
    outcome = executor.call(toycalls.start_another, str(tmp_path / "pid"), timeout=2.5)
    assert (outcome.status, outcome.error) == ("timed out", "did not finish in 2.5 s")
    assert time.monotonic() - start < 10
    assert gone(int((tmp_path / "pid").read_text()))  # what the call started is ended with it


def test_a_fork_left_behind_does_not_keep_the_caller_waiting(executor, tmp_path):
    outcome = executor.call(toycalls.fork_and_die, str(tmp_path / "pid"), timeout=30)
    assert outcome.status == "out of memory"
    assert gone(int((tmp_path / "pid").read_text()))


def test_locks_left_behind_are_cleaned_up_without_a_word():
    program = (
        "import toycalls; from workingpapers.runs.process import LocalExecutor; made = LocalExecutor(); "
        "assert made.call(toycalls.keep_a_lock).status == 'ok'; made.close()"
    )
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(toycalls.__file__)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stderr == ""


def test_ctrl_c_is_the_caller_s_to_handle(executor):
    assert executor.call(toycalls.interrupt_myself).value == "still here"


def test_calls_see_the_environment_and_folder_of_the_moment(executor, monkeypatch, tmp_path):
    executor.call(os.getpid)  # the server from which calls are forked runs from here on
    monkeypatch.setenv("TOY_COLOUR", "green")
    monkeypatch.chdir(tmp_path)
    assert executor.call(toycalls.environment, "TOY_COLOUR").value == "green"
    assert executor.call(os.getcwd).value == str(tmp_path)
    monkeypatch.delenv("TOY_COLOUR")
    assert executor.call(toycalls.environment, "TOY_COLOUR").value is None


def test_closing_ends_what_runs_and_refuses_what_comes(tmp_path):
    executor = LocalExecutor()
    executor.call(os.getpid)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(executor.call, toycalls.start_another, str(tmp_path / "pid"))
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            time.sleep(0.05)
        executor.close()
        assert waiting.result(timeout=10).status != "ok"
    assert gone(int((tmp_path / "pid").read_text()))
    assert executor.call(os.getpid).error == "stopped before it started"


def test_executors_in_many_threads_leave_the_main_module_alone():
    main = sys.modules["__main__"]
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda n: LocalExecutor().call(operator.neg, n), range(24)))
    assert [outcome.value for outcome in outcomes] == [-n for n in range(24)]
    assert sys.modules["__main__"] is main


def test_peak_memory_is_each_call_s_own(executor):
    mine = bytearray(b"x") * (400 * 2**20)  # the caller's memory must not count
    before = executor.call(toycalls.peak_after, 1).value
    large = executor.call(toycalls.peak_after, 300).value
    after = executor.call(toycalls.peak_after, 1).value
    # In MiB; a fork server with its libraries takes some 250, and allocators round.
    assert large == pytest.approx(before + 299, abs=20)
    assert after == pytest.approx(before, abs=20)
    assert len(mine) == 400 * 2**20


@pytest.mark.parametrize("address", ["nonsense", "host", "host:port", "host:²", "ray://", ":"])
def test_what_is_no_ray_address_is_refused(address):
    pytest.importorskip("ray")
    with pytest.raises(UserError, match=f"'{address}' is not a Ray address"):
        RayExecutor(address)


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_ray_address_at_which_nothing_listens_is_refused(scheme):
    pytest.importorskip("ray")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"{scheme}127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(UserError, match=f"No Ray cluster answers at '{address}'"):
            RayExecutor(address)


@pytest.mark.parametrize("reply", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"], ids=["silent", "another server"])
def test_a_ray_address_at_which_something_else_listens_is_refused(reply):
    pytest.importorskip("ray")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            connection, _ = server.accept()
            with connection:
                connection.sendall(reply)
                time.sleep(0.1 if reply else 8)

        threading.Thread(target=answer, daemon=True).start()
        start = time.monotonic()
        with pytest.raises(UserError, match="No Ray cluster answers"):
            RayExecutor(f"127.0.0.1:{server.getsockname()[1]}")
        assert time.monotonic() - start < 15


def test_ray_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'workingpapers\[ray\]'"):
        RayExecutor("local")
