"""One call, one process: whatever happens inside, the caller gets an outcome and goes on."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import traceback
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Literal, Protocol

from workingpapers.errors import UserError

Status = Literal["ok", "failed", "timed out", "out of memory"]

# Imported once by the server from which every run is forked, so that a run starts in milliseconds and its own time holds
# no imports. torch.optim imports torch._dynamo at its first step.
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


@dataclass(frozen=True)
class Outcome:
    """What became of a call.

    Attributes:
        status: "ok", or how it ended.
        value: what the function returned, if it did.
        error: one line for people; empty if ok.
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
        self._alive: set[Any] = set()
        self._lock = threading.Lock()
        self._closed = False

    def call(self, function: Callable[..., Any], *args: Any, timeout: float | None = None) -> Outcome:
        """Run a function in a new process; the process is gone when this returns.

        Args:
            function: importable, not a lambda or a local function.
            args: picklable.
            timeout: seconds from the start of the process; None waits for ever.
        """
        receiver, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_child, args=(sender, function, args))
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
                process.kill()


def _receive(receiver: Connection, process: Any, timeout: float | None) -> Outcome:
    if not receiver.poll(timeout):
        return Outcome("timed out", error=f"did not finish in {timeout:g} s")
    try:
        outcome: Outcome = receiver.recv()
    except (EOFError, ConnectionResetError):
        process.join(10)
        return _death(process.exitcode)
    return outcome


def _death(exitcode: int | None) -> Outcome:
    if exitcode == -signal.SIGKILL:
        return Outcome("out of memory", error="killed by the system, most often for lack of memory (signal 9)")
    if exitcode is not None and exitcode < 0:
        return Outcome("failed", error=f"ended by signal {-exitcode} ({signal.Signals(-exitcode).name})")
    return Outcome("failed", error=f"its process ended with exit code {exitcode} and no result")


def _end(process: Any) -> None:
    process.join(0.5)
    if process.is_alive():
        process.kill()
        process.join()


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Hide the caller's main module: a child would import it again, and run a script that has no `__main__` guard."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _child(sender: Connection, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Run in the new process: call, report, and never outlive the caller."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the caller decides
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    sender.send(guarded(function, *args))
    sender.close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # nothing is left to do, and taking down the imported libraries one by one takes longer than a run may


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def guarded(function: Callable[..., Any], *args: Any) -> Outcome:
    """Call a function and return its outcome, whatever it raises."""
    try:
        return Outcome("ok", function(*args))
    except Exception as error:
        status: Status = "out of memory" if _is_memory(error) else "failed"
        usage = isinstance(error, UserError)
        message = str(error).strip() or "no message"
        text = message if usage else f"{type(error).__name__}: {message.splitlines()[0]}"
        return Outcome(status, error=text, details=traceback.format_exc(), usage=usage)


def _is_memory(error: Exception) -> bool:
    """Whether an exception says that memory ran out, in NumPy's, PyTorch's or CUDA's words."""
    words = ("out of memory", "not enough memory", "can't allocate memory", "unable to allocate")
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)


class RayExecutor:
    """The same calls on a Ray cluster, each in a worker process that ends with it.

    Args:
        address: as `ray.init` takes it: "host:port", "ray://host:port", or "local" for a cluster on this machine.

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
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", ignore_reinit_error=True)
        except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
            raise UserError(f"No Ray cluster answers at {address!r}: {str(error).splitlines()[0]}") from error
        # One call per worker process; a run that fails is the runner's to record, not Ray's to repeat.
        self._remote = ray.remote(max_calls=1, max_retries=0, num_cpus=1)(guarded)

    def call(self, function: Callable[..., Any], *args: Any, timeout: float | None = None) -> Outcome:
        """Run a function on the cluster; the timeout counts from when the call is handed in."""
        ray = self._ray
        reference = self._remote.remote(function, *args)
        try:
            outcome: Outcome = ray.get(reference, timeout=timeout)
        except ray.exceptions.GetTimeoutError:
            ray.cancel(reference, force=True)
            return Outcome("timed out", error=f"did not finish in {timeout:g} s")
        except ray.exceptions.OutOfMemoryError as error:
            return Outcome("out of memory", error=str(error).splitlines()[0])
        except ray.exceptions.RayError as error:
            return Outcome("failed", error=f"{type(error).__name__}: {str(error).splitlines()[0]}")
        return outcome

    def close(self) -> None:
        """Leave the cluster; what still runs there is cancelled."""
        self._ray.shutdown()


def _check_answers(address: str) -> None:
    """Refuse an address at which nothing listens, before Ray waits for it for minutes."""
    import socket

    if address in ("local", "auto"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"{address!r} is not a Ray address. Allowed: host:port, ray://host:port, local, auto.")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise UserError(f"No Ray cluster answers at {address!r}: {error}.") from error
