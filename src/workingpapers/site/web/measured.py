"""What the store of runs says, read again only when the store has changed: requests never wait for a measurement."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from workingpapers.errors import UserError, nearest, unknown_name
from workingpapers.runs.leaderboard import Leaderboard, leaderboard, machine
from workingpapers.runs.present import Assessed, all_boards, all_papers, permalink
from workingpapers.runs.store import Store

if TYPE_CHECKING:
    from workingpapers.runs.plot import Plot

log = logging.getLogger(__name__)

_LOOK = 5.0  # seconds between two looks at whether a store's file has changed
_ASK = 60.0  # seconds between two readings of a store that is no file
_drawing = threading.Lock()  # matplotlib draws one figure at a time
_MOST_DRAWN = 100  # leaderboards whose plots are kept, a tenth of a megabyte each


@dataclass(frozen=True)
class Snapshot:
    """The store at one moment.

    Attributes:
        boards: every leaderboard by its permalink.
        papers: every paper of the catalogue by slug, with findings and leaderboards.
        left_out: a line for each group of runs that cannot be shown.
    """

    boards: Mapping[str, Leaderboard]
    papers: Mapping[str, Assessed]
    left_out: Sequence[str]
    _plots: dict[str, list[Plot]] = field(default_factory=dict, repr=False)

    def drawn(self, name: str) -> list[Plot] | None:
        """Return the plots of a leaderboard if they are drawn already."""
        return self._plots.get(name)

    def plots(self, name: str) -> list[Plot]:
        """Return the plots of a leaderboard, drawn when first asked for."""
        from workingpapers.runs.plot import plots

        with _drawing:
            if name not in self._plots:
                self._plots[name] = plots(self.boards[name])
            while len(self._plots) > _MOST_DRAWN:
                del self._plots[next(iter(self._plots))]
            return self._plots[name]


class Measured:
    """The present snapshot of a store.

    Args:
        store: of runs.
        clock: seconds.
    """

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        self._reading = False
        self._snapshot: Snapshot | None = None
        self._stamp: object = None
        self._looked = 0.0

    def now(self) -> Snapshot:
        """Return the latest snapshot; the first call reads the store, later ones have it read beside them."""
        if self._snapshot is None:
            with self._lock:
                if self._snapshot is None:
                    self._read()
        elif self._clock() - self._looked > _LOOK and self._claim():
            threading.Thread(target=self._read_again, daemon=True).start()
        assert self._snapshot is not None
        return self._snapshot

    def _claim(self) -> bool:
        """Return whether the store must be read, and by the caller."""
        with self._lock:
            if self._reading or self._clock() - self._looked <= _LOOK:
                return False
            self._looked = self._clock()
            self._reading = self._seen() != self._stamp
            return self._reading

    def _read_again(self) -> None:
        try:
            self._read()
        except UserError:
            log.exception("The store of runs cannot be read; what was read before is shown on.")
        finally:
            self._reading = False

    def _read(self) -> None:
        stamp = self._seen()
        runs = self._store.runs()
        boards, left_out = all_boards(runs)
        named = {permalink(board.conditions): board for board in boards}
        old = self._snapshot
        same = {n for n in named if old and n in old.boards and old.boards[n].runs == named[n].runs}
        kept = {n: plots for n, plots in list(old._plots.items()) if n in same} if old else {}
        self._snapshot = Snapshot(named, all_papers(runs, boards), left_out, kept)
        self._stamp, self._looked = stamp, self._clock()

    def _seen(self) -> object:
        """Return what changes when the store does: its files' times and sizes, or every minute a new number."""
        path = self._store.url.removeprefix("sqlite:///")
        if "://" in path:
            return int(self._clock() / _ASK)
        stats = [file.stat() for file in (Path(path), Path(f"{path}-wal")) if file.exists()]
        return [(stat.st_mtime_ns, stat.st_size) for stat in stats if stat.st_size]  # readers leave empty logs behind


def fitting(
    snapshot: Snapshot, *, task: str = "", setting: str = "", data: str = "", hardware: str = ""
) -> list[Leaderboard]:
    """Return the leaderboards of a task, a setting, on a data set, with runs on some hardware; "" does not filter.

    Raises:
        UserError: nothing here has that name; the message has the nearest names.
    """
    every = list(snapshot.boards.values())
    asked = {"task": task, "setting": setting, "data set": data, "hardware": hardware}
    has = [_names(board) for board in every]
    for kind, value in asked.items():
        known = {name for names in has for name in names[kind]}
        if value and value not in known:
            raise unknown_name(kind, value, known)
    return [
        board
        for board, names in zip(every, has, strict=True)
        if all(value in names[kind] for kind, value in asked.items() if value)
    ]


def find_board(snapshot: Snapshot, name: str, hardware: str = "") -> Leaderboard:
    """Return a leaderboard by its permalink; with `hardware`, of what ran on it alone.

    Raises:
        UserError: no such leaderboard, or nothing on it ran on that hardware.
    """
    board = snapshot.boards.get(name)
    if board is None:
        raise UserError(f"No leaderboard {name!r} here. {nearest(name, snapshot.boards)}")
    if not hardware:
        return board
    ran = [run for run in board.runs if machine(run) == hardware]
    if not ran:
        raise UserError(f"Nothing on this leaderboard ran on {hardware!r}. {nearest(hardware, board.machines)}")
    return leaderboard(ran, board.conditions)


def _names(board: Leaderboard) -> dict[str, set[str]]:
    at = board.conditions
    return {"task": {at.task}, "setting": {at.setting}, "data set": {at.data}, "hardware": board.machines}
