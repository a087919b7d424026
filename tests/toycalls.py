"""Calls for processes of their own: they must be importable there, which the functions of a test module are not."""

import multiprocessing
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import numpy as np

from workingpapers.errors import UserError


def divide(a, b):
    return a / b


def throw(error):
    raise error


def refuse():
    raise UserError("This cannot be used.")


def environment(name):
    return os.environ.get(name)


def interrupt_myself():
    os.kill(os.getpid(), signal.SIGINT)
    return "still here"


def end_by(number):
    os.kill(os.getpid(), number)


def lock():
    """Return what no other process can be sent."""
    return threading.Lock()


def start_another(path):
    """Start a program, note its process id, and hang."""
    Path(path).write_text(str(subprocess.Popen(["sleep", "600"]).pid))
    time.sleep(600)


def fork_and_die(path):
    """Leave a fork behind that holds every open file of this process, and be killed."""
    child = os.fork()
    if child == 0:
        time.sleep(600)
        os._exit(0)
    Path(path).write_text(str(child))
    os.kill(os.getpid(), signal.SIGKILL)


def peak_after(megabytes):
    """Return the peak memory of this process after holding so many MiB."""
    from workingpapers.runs.measure import peak_memory_mb

    held = np.ones(megabytes * 2**17)  # 8 bytes each
    return peak_memory_mb() if held[-1] else 0.0


def keep_a_lock():
    """Leave a lock to be cleaned up after this process, as progress bars do."""
    globals()["kept"] = multiprocessing.RLock()
