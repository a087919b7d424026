"""One call, one process: whatever happens inside, the caller gets an outcome and goes on."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import re
import signal
import sys
import sysconfig
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Literal, Protocol

import workingpapers
from workingpapers.errors import UserError, first_line

Status = Literal["ok", "failed", "timed out", "out of memory"]

# Imported once by the server from which every run is forked, so that a run starts in milliseconds and its own time
# holds no imports. torch.optim imports torch._dynamo at its first step.
PRELOAD = [
    "torch._dynamo",
    "pandas",
    "sklearn.discriminant_analysis",
    "sklearn.linear_model",
    "sklearn.neighbors",
    "sklearn.neural_network",
    "sklearn.pipeline",
    "sklearn.svm",
    "workingpapers.runs.measure",
]


STANDARD = os.path.join(sysconfig.get_path("stdlib"), "")
INSTALLED = re.compile(r"[\\/](site|dist)-packages[\\/]")


@dataclass(frozen=True)
class Outcome:
    """What became of a call.

    Attributes:
        status: "ok", or how it ended.
        value: what the function returned, if it did.
        error: one line for people, with the place in their own code where an exception came from; empty if ok.
        details: the traceback, where there is one.
        usage: whether the error is the user's to mend (a UserError).
    """

    status: Status
    value: Any = None
    error: str = ""
    details: str = ""
    usage: bool = False


class Executor(Protocol):
    """Where calls run."""

    def call(self, function: Callable[..., Any], *args: Any, timeout: float | None = None) -> Outcome:
        """Run a module-level function in a process of its own and wait for its outcome."""

    def close(self) -> None:
        """End everything that still runs."""


class LocalExecutor:
    """Processes of this machine, forked from a server that has imported what runs need."""

    def __init__(self) -> None:
        self._context: Any = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
        if os.name == "posix":
            self._context.set_forkserver_preload(PRELOAD)
            _start_server()
        self._alive: set[Any] = set()
        self._lock = threading.Lock()
        self._closed = False

    def call(self, function: Callable[..., Any], *args: Any, timeout: float | None = None) -> Outcome:
        """Run a function in a new process; the process is gone when this returns.

        Args:
            function: importable, not a lambda or a local function.
            args: picklable; the function finds the caller's environment and working directory, too.
            timeout: seconds from the start of the process; None waits for ever.
        """
        receiver, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_child, args=(sender, dict(os.environ), function, args))
        with self._lock:
            if self._closed:
                return Outcome("failed", error="stopped before it started")
            with _without_main():
                process.start()
            self._alive.add(process)
        sender.close()
        try:
            return _receive(receiver, process, timeout)
        finally:
            _end(process)
            receiver.close()
            with self._lock:
                self._alive.discard(process)

    def close(self) -> None:
        """Kill every process that still runs; calls that wait for one return at once."""
        with self._lock:
            self._closed = True
            for process in self._alive:
                _kill(process)


def _start_server() -> None:
    """Start the server from which calls are forked, deaf to Ctrl-C: it reaches the whole group, the caller decides."""
    from multiprocessing import forkserver, resource_tracker

    sys.warnoptions.append("ignore::UserWarning:multiprocessing.resource_tracker")  # on what killed calls leave to it
    try:
        resource_tracker.ensure_running()  # the server would start it, and unblock the signal in doing so
    finally:
        sys.warnoptions.pop()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _receive(receiver: Connection, process: Any, timeout: float | None) -> Outcome:
    """Wait for the result or the end of the process: what it left behind may hold the pipe open for ever."""
    if not wait([receiver, process.sentinel], timeout):
        return Outcome("timed out", error=f"did not finish in {timeout:g} s")
    try:
        if receiver.poll(0):
            outcome: Outcome = receiver.recv()
            return outcome
    except (EOFError, ConnectionResetError):
        pass
    process.join(10)
    return _death(process.exitcode)


def _death(exitcode: int | None) -> Outcome:
    if exitcode == -signal.SIGKILL:
        return Outcome("out of memory", error="killed by the system, most often for lack of memory (signal 9)")
    if exitcode is not None and exitcode < 0:
        return Outcome("failed", error=f"ended by signal {-exitcode} ({signal.Signals(-exitcode).name})")
    return Outcome("failed", error=f"its process ended with exit code {exitcode} and no result")


def _end(process: Any) -> None:
    process.join(0.5)
    _kill(process)
    process.join()


def _kill(process: Any) -> None:
    """Kill a call's process and what it started."""
    process.kill()
    if os.name == "posix":
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


_starting = threading.Lock()


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Hide the caller's main module: a child would import it again, and run a script that has no `__main__` guard."""
    with _starting:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


def _child(
    sender: Connection, environment: dict[str, str], function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    """Run in the new process: call, report, and never outlive the caller."""
    if os.name == "posix":
        os.setpgrp()  # so that it can be ended together with what it starts
    os.environ.clear()
    os.environ.update(environment)  # the server's is as old as the first call
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    with contextlib.suppress(BrokenPipeError):  # the caller has gone, and this process goes with it
        sender.send(guarded(function, *args))
    sender.close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # nothing is left to do, and taking down the imported libraries one by one takes longer than a run may


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        if os.name == "posix":
            os.killpg(0, signal.SIGKILL)
        os._exit(1)


def guarded(function: Callable[..., Any], *args: Any) -> Outcome:
    """Call a function and return its outcome, whatever it raises."""
    try:
        return Outcome("ok", function(*args))
    except (Exception, SystemExit, KeyboardInterrupt) as error:  # Ctrl-C does not reach this process: code raised it
        status: Status = "out of memory" if _is_memory(error) else "failed"
        usage = isinstance(error, UserError)
        message = str(error).strip() or "no message"
        text = message if usage else f"{type(error).__name__}: {message.splitlines()[0]}{_place(error)}"
        return Outcome(status, error=_printable(text), details=traceback.format_exc(), usage=usage)


def _place(error: BaseException) -> str:
    """Return where an exception was raised, " (file.py, line 7)": in the innermost function that is no library's."""
    package = os.path.dirname(workingpapers.__file__)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = frame.filename
        if file.startswith(os.path.join(package, "")):
            own = not file.startswith(os.path.join(package, "runs", ""))
        else:
            own = os.path.isfile(file) and not (file.startswith(STANDARD) or INSTALLED.search(file))
        if own:
            return f" ({os.path.basename(file)}, line {frame.lineno})"
    return ""


def _printable(text: str) -> str:
    """Escape what a database can't store: NUL, and the halves of characters that undecodable file names hold."""
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()


def _is_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, in NumPy's, PyTorch's or CUDA's words."""
    words = (
        "out of memory",
        "not enough memory",
        "can't allocate memory",
        "cannot allocate memory",
        "unable to allocate",
    )
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)


class RayExecutor:
    """The same calls on a Ray cluster, each in a process of its own beside a worker of Ray.

    Args:
        address: as `ray.init` takes it: "host:port", "ray://host:port", or "local" for a cluster on this machine. A
            program that is connected to a cluster already stays with that one.

    Attributes:
        address: at which other processes of this machine find the cluster.

    Raises:
        UserError: Ray is not installed, or nothing answers at the address.
    """

    def __init__(self, address: str) -> None:
        try:
            import ray
        except ImportError as error:
            raise UserError("--ray needs Ray: pip install 'workingpapers[ray]'.") from error
        _check_answers(address)
        self._ray = ray
        self._connected = not ray.is_initialized()
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", ignore_reinit_error=True)
        except (ConnectionError, ValueError, RuntimeError, TimeoutError, ImportError) as error:
            raise UserError(f"No Ray cluster answers at {address!r}: {first_line(error)}") from error
        self.address: str = address if "://" in address else ray.get_runtime_context().gcs_address
        # A run that fails is the runner's to record, not Ray's to repeat.
        self._remote = ray.remote(max_retries=0, num_cpus=1)(_beside_worker)
        self._waiting: set[Any] = set()
        self._lock = threading.Lock()
        self._closed = False

    def call(self, function: Callable[..., Any], *args: Any, timeout: float | None = None) -> Outcome:
        """Run a function on the cluster; the timeout counts from when it starts there."""
        ray = self._ray
        with self._lock:
            if self._closed:
                return Outcome("failed", error="stopped before it started")
            reference = self._remote.remote(function, args, timeout)
            self._waiting.add(reference)
        try:
            outcome: Outcome = ray.get(reference)
        except ray.exceptions.OutOfMemoryError as error:
            return Outcome("out of memory", error=first_line(error))
        except ray.exceptions.RayError as error:
            return Outcome("failed", error=f"{type(error).__name__}: {first_line(error)}")
        finally:
            with self._lock:
                self._waiting.discard(reference)
        return outcome

    def close(self) -> None:
        """Cancel what still runs, and leave the cluster unless the program was connected to it before."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for reference in self._waiting:
                self._ray.cancel(reference, force=True)
        last = time.monotonic() + 10
        while self._waiting and time.monotonic() < last:
            time.sleep(0.05)
        if self._connected:
            self._ray.shutdown()


def _beside_worker(function: Callable[..., Any], args: tuple[Any, ...], timeout: float | None) -> Outcome:
    """Run a call in a process of its own, as on one machine: workers stay warm, and die of no call."""
    return _executor_of_worker().call(function, *args, timeout=timeout)


@functools.cache
def _executor_of_worker() -> LocalExecutor:
    return LocalExecutor()


def _check_answers(address: str) -> None:
    """Refuse an address at which no Ray listens, before Ray waits for it for minutes.

    Ray speaks gRPC, which is HTTP/2: to the preface of a connection (RFC 9113, 3.4) it answers with a SETTINGS frame.
    """
    import socket

    if address in ("local", "auto"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"{address!r} is not a Ray address. Allowed: host:port, ray://host:port, local, auto.")
    try:
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            if os.environ.get("RAY_USE_TLS") == "1":
                return
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
            header = connection.recv(9, socket.MSG_WAITALL)
    except (OSError, OverflowError) as error:
        raise UserError(f"No Ray cluster answers at {address!r}: {error}.") from error
    if header[3:4] != b"\x04":
        raise UserError(f"No Ray cluster answers at {address!r}: what listens there is not Ray.")
