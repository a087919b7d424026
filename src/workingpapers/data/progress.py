"""How far a pass over many images has come."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PATIENCE = 2.0  # seconds before a bar shows

Progress = bool | Callable[[int, int], None]


@contextmanager
def counted(progress: Progress, total: int, title: str) -> Iterator[Callable[[int], None]]:
    """Yield a function that is told how many images are done.

    Args:
        progress: True shows a bar on stderr, if that is a terminal, when it takes more than two seconds, False shows
            nothing; a function is called with the images done and all images.
        total: all images.
        title: what stands before the bar.
    """
    if callable(progress):
        told = progress
        yield lambda done: told(done, total)
        return
    if not progress:
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    rate = TextColumn("{task.fields[rate]:.0f} images/s")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
    bar = Bar(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task(title, total=total, rate=0.0)
    start = time.monotonic()

    def update(done: int) -> None:
        elapsed = time.monotonic() - start
        bar.update(task, completed=done, rate=done / max(elapsed, 1e-9))
        if elapsed > PATIENCE and bar.console.is_terminal and not bar.live.is_started:
            bar.start()

    try:
        yield update
    finally:
        if bar.live.is_started:  # else it would leave an empty line
            bar.stop()
