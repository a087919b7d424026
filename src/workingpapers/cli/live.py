"""How far a command that runs things has come."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workingpapers.runs.execute import Progress


class Live:
    """Shows progress: a table that grows on a terminal that can take lines back, a line per run elsewhere."""

    def __enter__(self) -> Live:
        from rich.live import Live

        from workingpapers import terminal

        self._terminal = terminal
        self._seen: set[str] | None = None
        self._remarks: set[str] = set()
        self._live = Live(console=terminal.errors, transient=True, refresh_per_second=4)
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def update(self, progress: Progress) -> None:
        """Take in a change."""
        if progress.total == 0:  # the process that prepares shows how far it is; this one keeps out of its way
            self._live.stop()
            self._seen = None
            self._terminal.say(str(progress))  # features need no model: not said yet
            return
        for remark in progress.remarks:
            if remark not in self._remarks:
                self._terminal.say(remark)
        self._remarks.update(progress.remarks)
        if self._terminal.errors.is_terminal and not self._terminal.errors.is_dumb_terminal:
            from workingpapers.runs.leaderboard import leaderboard as rank

            board = rank(progress.runs, progress.conditions) if progress.runs else None
            self._live.start()
            self._live.update(self._terminal.show_progress(progress, board))
            return
        if self._seen is None:  # runs of earlier commands are counted, not told again
            self._seen = {run.key for run in progress.runs}
            self._terminal.say(f"{len(self._seen)} of {progress.total} runs are in the store already")
        for run in progress.runs:
            if run.key not in self._seen:
                self._seen.add(run.key)
                took = run.measured.get("fit_seconds", 0.0) + run.measured.get("predict_seconds", 0.0)
                result = f"{took:.1f} s" if run.status == "ok" else f"{run.status}: {run.error}"
                said = "".join(f" ({remark})" for remark in run.settings.get("remarks", ()))
                self._terminal.say(f"{len(self._seen)}/{progress.total} {run.entry}, seed {run.seed}: {result}{said}")
