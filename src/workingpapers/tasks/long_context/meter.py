"""How much memory a piece of work takes in this process, from inside it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

INTERVAL = 0.002  # seconds between two looks


def peak_growth(work: Callable[[], Any], device: str = "cpu") -> tuple[Any, float]:
    """Run something and return its result and the most memory held meanwhile beyond what was held before, in MiB.

    Args:
        work: what to run.
        device: where it holds its tensors. "cpu" counts the resident set, looked at every 2 ms, so a shorter peak may
            be missed, and memory that the process holds free from earlier work is not seen: measure the largest work
            first. "cuda" counts what torch allocated there, exactly.
    """
    import psutil
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        result = work()
        torch.cuda.synchronize()
        return result, (torch.cuda.max_memory_allocated() - before) / 2**20
    process, done, most = psutil.Process(), threading.Event(), 0

    def look() -> None:
        nonlocal most
        while not done.wait(INTERVAL):
            most = max(most, process.memory_info().rss)

    before = process.memory_info().rss
    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        result = work()
    finally:
        most = max(most, process.memory_info().rss)
        done.set()
        watcher.join()
    return result, max(0, most - before) / 2**20
