"""`papers try` as a function: every run that is missing, each in its own process, each saved as soon as it is done."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from numbers import Integral, Real
from typing import Literal

from workingpapers import __version__
from workingpapers.errors import UserError
from workingpapers.runs import measure
from workingpapers.runs.leaderboard import Leaderboard, leaderboard
from workingpapers.runs.process import Executor, LocalExecutor, Outcome, RayExecutor
from workingpapers.runs.store import Run, Store
from workingpapers.tasks.protocol import Conditions, Entry, Prepared, load_task

MOST_THREADS = 1_000  # a process has no room for many more
LONGEST = 1_000_000  # seconds, eleven days; the system's clocks of waiting end not far beyond


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a command stands; given to the listener after every change. As text it is one line.

    Attributes:
        conditions: what is compared.
        runs: every finished run so far, those of earlier commands included.
        total: how many there will be; 0 while data and features are being prepared.
        running: "entry, seed n" of what runs now.
        remarks: what preparing found out, for the user.
    """

    conditions: Conditions
    runs: tuple[Run, ...]
    total: int
    running: tuple[str, ...]
    remarks: tuple[str, ...]

    def __str__(self) -> str:
        if not self.total:
            return f"Preparing {self.conditions.data} ..."
        now = f" · now: {'; '.join(self.running)}" if self.running else ""
        return f"{len(self.runs)} of {self.total} runs done{now}"


def try_(
    task: str,
    *,
    data: str | os.PathLike[str] | None = None,
    model: str | os.PathLike[str] | None = None,
    setting: str = "standard",
    entries: Iterable[str] | None = None,
    seeds: int = 5,
    budget: Literal["quick", "full"] = "quick",
    label: str = "label",
    workers: int = 1,
    ray: str | None = None,
    timeout: float | None = None,
    threads: int = 1,
    store: Store | str | os.PathLike[str] | None = None,
    force: bool = False,
    listen: Callable[[Progress], None] | None = None,
) -> Leaderboard:
    """Run the entries of a task on a data set and a model, and return the leaderboard.

    Runs that the store has already are not repeated, but for those that failed; an interrupted call goes on where it
    stopped. Whatever one run does (an exception, a crash, too much memory, too much time) touches no other.

    Args:
        task: a task's name, or "package.module:task" of your own.
        data: a data set by name, path or "package.module:function"; the setting's default if None.
        model: a pre-trained model by name, path or "package.module:function"; the setting's default if None.
        setting: a regime of the task.
        entries: names; all of the setting if None. The baseline always runs too.
        seeds: how many seeds, at least 1; three or more are needed for a verdict, five make a fair one.
        budget: "quick" or "full".
        label: the label column, where the data are a table.
        workers: runs at a time. Side by side they disturb each other's timing: 1 for comparisons of speed.
        ray: address of a Ray cluster to run on instead of this machine.
        timeout: seconds that one run may take.
        threads: of the numerical libraries, per run. More may be faster and change results in the last digits.
        store: where runs are kept; `default_store()` if None.
        force: repeat what the store has already.
        listen: called with the progress after every change, from one thread at a time; `print` will do.

    Raises:
        UserError: something given is unknown or cannot be used.
    """
    _check_kinds({"seeds": seeds, "workers": workers, "threads": threads}, timeout)
    if seeds < 1:
        raise UserError(f"seeds is {seeds}; it must be at least 1.")
    if workers < 1:
        raise UserError(f"workers is {workers}; it must be at least 1.")
    if not 1 <= threads <= MOST_THREADS:
        raise UserError(f"threads is {threads}; it must be at least 1 and at most {MOST_THREADS}.")
    if timeout is not None and not timeout > 0:
        raise UserError(f"timeout is {timeout:g} s; it must be above 0.")
    if timeout is not None and timeout > LONGEST:
        raise UserError(f"timeout is {timeout:g} s; it must be at most {LONGEST:g}. Leave it out to wait for ever.")
    if isinstance(entries, str):
        raise UserError(f"entries is {entries!r}; it must be a list of names: [{entries!r}].")
    entries = None if entries is None else list(entries)
    if entries == []:
        raise UserError(f"entries holds no name. `papers entries {task}` lists them; leave it out for all.")
    if not isinstance(label, str) or not label:  # it is kept with each run, where others read it as a text
        raise UserError(f"label is {label!r}; it must be the name of a column.")
    data, model = _name("data", data), _name("model", model)
    chosen = load_task(task).setting(setting)
    if model and not chosen.model:
        raise UserError(f"model is {model!r}, but the setting {setting!r} of task {task} uses no pre-trained model.")
    if budget not in chosen.budgets:
        raise UserError(f"Unknown budget {budget!r}. Known: {', '.join(chosen.budgets)}.")
    conditions = Conditions(task, setting, data or chosen.data, model or chosen.model, budget, label)
    selected = load_task(task).select(setting, entries)
    if chosen.check:
        chosen.check(conditions)
    kept = store if isinstance(store, Store) else Store(store)
    with _Session(conditions, selected, kept, threads, timeout, listen) as session:
        session.run(seeds, workers, ray, force)
    return leaderboard(session.runs.values(), conditions)


def _check_kinds(whole: dict[str, object], timeout: object) -> None:
    """Refuse numbers that are none before anything runs.

    Raises:
        UserError: names the first.
    """
    for option, given in whole.items():
        if isinstance(given, bool) or not isinstance(given, Integral):
            raise UserError(f"{option} is {given!r}; it must be a whole number.")
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, Real)):
        raise UserError(f"timeout is {timeout!r}; it must be a number of seconds.")


def _name(option: str, given: object) -> str | None:
    """Return a name or a path as text.

    Raises:
        UserError: it is neither, or empty, as an unset variable of the shell's is, or no text that a store can keep.
    """
    if given is None:
        return None
    if not isinstance(given, (str, os.PathLike)):
        way = "`keep(features, labels)` makes a path of arrays, `to_parquet` one of a table."
        raise UserError(
            f"{option} is a {type(given).__name__}; it must be a name or a path.{f' {way}' if option == 'data' else ''}"
        )
    name = str(os.fspath(given))
    if not name.strip():
        raise UserError(f"{option} is empty. Name one, or leave it out for the default of the setting.")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{option} is {name!r}, whose bytes are no UTF-8 text; rename it, or name a link to it."
        ) from error
    return name


def _unprepared(outcome: Outcome) -> Exception:
    """Return the error of data or a model that could not be prepared."""
    if outcome.usage:
        return UserError(outcome.error)
    if outcome.status != "failed":
        return UserError(f"Preparing data and model: {outcome.status}: {outcome.error}.")
    error = RuntimeError(f"preparing data and model failed: {outcome.error}")
    error.add_note(outcome.details)
    return error


class _Session:
    """One call of `try_`: what is done, what runs, who listens."""

    def __init__(
        self,
        conditions: Conditions,
        entries: list[Entry],
        store: Store,
        threads: int,
        timeout: float | None,
        listen: Callable[[Progress], None] | None,
    ) -> None:
        self.conditions, self.entries, self.store = conditions, entries, store
        self.threads, self.timeout, self.listen = threads, timeout, listen
        self.runs: dict[str, Run] = {}
        self._running: dict[str, None] = {}
        self._lock = threading.Lock()
        self._stopping = False
        self._executor: Executor = LocalExecutor()
        self._remote: RayExecutor | None = None
        self._prepared = Prepared("", "")
        self._total = 0

    def __enter__(self) -> _Session:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.close()
        if self._remote:  # also where preparing failed, before anything ran there
            self._remote.close()

    def run(self, seeds: int, workers: int, ray: str | None, force: bool) -> None:
        if ray:  # an address that doesn't answer is refused before any work
            self._remote = RayExecutor(ray)
        names = tuple(entry.name for entry in self.entries)
        self._tell()
        address = self._remote.address if self._remote else None
        prepared = self._executor.call(measure.prepare, self.conditions, names, address)
        if prepared.status != "ok":
            raise _unprepared(prepared)
        self._prepared = prepared.value
        self.entries = [entry for entry in self.entries if entry.name not in self._prepared.left_out]
        if self._remote:
            self._executor.close()
            self._executor = self._remote
        wanted = {self._key(entry, seed): (entry, seed) for seed in range(seeds) for entry in self.entries}
        saved = {run.key: run for run in self.store.runs(task=self.conditions.task, setting=self.conditions.setting)}
        self.runs = {key: saved[key] for key in wanted if key in saved and saved[key].status == "ok" and not force}
        self._total = len(wanted)
        remarks = (*self._prepared.remarks, *self._on_saved())
        self._prepared = dataclasses.replace(self._prepared, remarks=remarks)
        self._tell()
        missing = [(key, *wanted[key]) for key in wanted if key not in self.runs]
        if missing:  # a store that can only be read shows what is there
            self.store.create()
        pool = ThreadPoolExecutor(workers if not ray else max(workers, len(missing)))
        try:
            waiting = {pool.submit(self._run_one, *job) for job in missing}
            while waiting:  # looking up each second: a Ctrl-C that another thread caught wakes no endless wait
                done, waiting = wait(waiting, timeout=1, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
        finally:  # also on Ctrl-C: kill what runs, start nothing more
            self._stopping = True
            pool.shutdown(wait=False, cancel_futures=True)
            self._executor.close()
            pool.shutdown(wait=True)

    def _on_saved(self) -> Iterator[str]:
        """Yield what the user should know of the runs that are not repeated."""
        others = sum(run.settings.get("threads") != self.threads for run in self.runs.values())
        if others:
            yield f"{others} saved runs were made with another number of threads: their times do not compare."
        code = measure.code(self.conditions.task)
        older = sum(run.settings.get("code") != code for run in self.runs.values())
        if older:
            yield f"{older} saved runs were made by other code than is here now; --force repeats them."

    def _key(self, entry: Entry, seed: int) -> str:
        decides = [
            *dataclasses.astuple(self.conditions),
            self._prepared.data_fingerprint,
            self._prepared.model_fingerprint,
            entry.name,
            seed,
            __version__,
        ]
        return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:32]

    def _run_one(self, key: str, entry: Entry, seed: int) -> None:
        name = f"{entry.name}, seed {seed}"
        with self._lock:
            self._running[name] = None
            self._tell()
        outcome = self._executor.call(
            measure.execute, self.conditions, entry.name, seed, self.threads, self._prepared, timeout=self.timeout
        )
        if self._stopping and outcome.status != "ok":
            return  # killed with everything else: it did not fail
        run = self._row(key, entry, seed, outcome)
        self.store.save(run)
        with self._lock:
            del self._running[name]
            self.runs[key] = run
            self._tell()

    def _row(self, key: str, entry: Entry, seed: int, outcome: Outcome) -> Run:
        found = dict(outcome.value or {})
        settings = {"label": self.conditions.label, "threads": self.threads, "remarks": found.pop("remarks", [])}
        settings["code"] = found.pop("code", "")
        budget = load_task(self.conditions.task).setting(self.conditions.setting).budgets[self.conditions.budget]
        return Run(
            key=key,
            task=self.conditions.task,
            setting=self.conditions.setting,
            data=self.conditions.data,
            data_fingerprint=self._prepared.data_fingerprint,
            model=self.conditions.model,
            model_fingerprint=self._prepared.model_fingerprint,
            budget=self.conditions.budget,
            entry=entry.name,
            paper=entry.paper,
            seed=seed,
            status=outcome.status,
            error=outcome.error,
            settings=settings | {"budget": dataclasses.asdict(budget)},
            **found,
        )

    def _tell(self) -> None:
        if self.listen:
            running, remarks = tuple(self._running), self._prepared.remarks
            self.listen(Progress(self.conditions, tuple(self.runs.values()), self._total, running, remarks))
