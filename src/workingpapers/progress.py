"""How far a pass over many images or rows has come."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

PATIENCE = 2.0  # seconds before a bar shows

Progress = bool | Callable[[int, int], None]


@contextmanager
def counted(progress: Progress, total: int, title: str, unit: str = "images") -> Iterator[Callable[[int], None]]:
    """Yield a function that is told how many images, or what else, are done.

    Args:
        progress: True shows a bar on stderr, if that is a terminal, when it takes more than two seconds, False shows
            nothing; a function is called with the images done and all images.
        total: all images.
        title: what stands before the bar.
        unit: what is counted.
    """
    if callable(progress):
        told = progress
        yield lambda done: told(done, total)
        return
    if not progress:
        yield lambda done: None
        return
    start = time.monotonic()
    bar: Bar | None = None

    def update(done: int) -> None:
        nonlocal bar
        elapsed = time.monotonic() - start
        if elapsed <= PATIENCE:
            return
        first = bar is None
        bar = bar or _bar(total, title, unit)
        if first or bar.live.is_started:
            bar.update(bar.task_ids[0], completed=done, rate=done / max(elapsed, 1e-9))
        if first and bar.console.is_terminal:
            bar.start()

    try:
        yield update
    finally:
        if bar is not None and bar.live.is_started:  # else it would leave an empty line
            bar.stop()


def _bar(total: int, title: str, unit: str) -> Bar:
    """Return a bar that does not show yet."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    rate = TextColumn(f"{{task.fields[rate]:.0f}} {unit}/s")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    bar.add_task(title, total=total, rate=0.0)
    return bar


def watched() -> bool:
    """Return whether people look at what happens here: not where it is one of several things that go on side by side.

    These are threads beside the main one, processes that Python started (those of runs, and joblib's), and those of
    torchrun but its first.
    """
    alone = multiprocessing.parent_process() is None and threading.current_thread() is threading.main_thread()
    return alone and os.environ.get("RANK", "0") == "0"
