"""The protocol that every task follows, and by which the runner knows it.

A task has settings (regimes that claims are about); a setting loads a problem, lets each entry fit on its training
part and scores what comes back on the held-back part. An entry is a function: training data and context in, predictor
out. It never sees the held-back labels and never grades, times or counts itself.

This module imports nothing heavy, and neither do the task modules at their top: listing entries must stay instant.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from workingpapers.errors import UserError, import_object, unknown_name

if TYPE_CHECKING:
    from workingpapers.data.types import Backbone, LabelledData

Fit = Callable[..., Any]


@dataclass(frozen=True)
class Metric:
    """A number that a setting reports for every run.

    Attributes:
        name: key in the results.
        higher_is_better: direction.
        unit: "%", "nats"; empty for plain numbers. Values with "%" are percentages, 0 to 100.
        margin: the smallest difference that matters in practice: within it, entries count as equal.
        about: one sentence on what it is.
        optional: whether some entries, or some data, don't have it (a localisation score without masks, say).
    """

    name: str
    higher_is_better: bool
    unit: str = ""
    margin: float = 0.0
    about: str = ""
    optional: bool = False


@dataclass(frozen=True)
class Budget:
    """How much every entry of a setting may use; the same for all.

    Attributes:
        name: "quick" or "full".
        train: most training examples.
        test: most held-back examples.
        epochs: passes over the training data for what is trained by gradient.
        trials: most hyperparameter settings an entry may compare on data it splits off its training part.
    """

    name: Literal["quick", "full"]
    train: int
    test: int
    epochs: int
    trials: int


@dataclass
class Context:
    """What an entry gets beside its training data.

    Attributes:
        seed: of everything random.
        budget: what it may use.
        curves: learning curves that it chose to log, by name.
    """

    seed: int
    budget: Budget
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def log(self, curve: str, x: float, y: float) -> None:
        """Add a point to a learning curve; the report plots it."""
        self.curves.setdefault(curve, []).append((float(x), float(y)))


@dataclass(frozen=True)
class Conditions:
    """What is equal for all entries that are compared: together they make one leaderboard.

    Attributes:
        task: name of the task.
        setting: name of the setting.
        data: data set by name, path or "package.module:function".
        model: pre-trained model by name, path or "package.module:function"; "" where the setting uses none.
        budget: name of the budget.
        label: the label column of a table.
    """

    task: str
    setting: str
    data: str
    model: str
    budget: Literal["quick", "full"] = "quick"
    label: str = "label"


@dataclass(frozen=True)
class Entry:
    """A method or a baseline made runnable in a task.

    Attributes:
        name: unique in the task.
        fit: training data and context in, predictor out.
        paper: slug of the paper it stands for; None for a baseline.
        settings: the settings it takes part in.
        needs: what the setting must prepare for it, in the setting's own words: a view of the features, say.
    """

    name: str
    fit: Fit
    paper: str | None
    settings: tuple[str, ...]
    needs: tuple[str, ...] = ()

    @property
    def about(self) -> str:
        """One line on what it does: the first of the function's docstring."""
        return (self.fit.__doc__ or "").strip().split("\n")[0]


@dataclass(frozen=True)
class Setting:
    """A regime in which entries are compared.

    Attributes:
        name: unique in the task.
        title: one line on what is measured.
        metrics: the first one ranks the leaderboard and is not optional.
        baseline: the entry that all others are compared with.
        data: default data set.
        model: default pre-trained model; "" where none is used.
        budgets: by name.
        prepare: conditions and entries in; whatever is computed once for all runs (features, say) is computed and
            cached; out come the fingerprints of data and model, and remarks for the user.
        load: conditions, entry, seed and what was prepared in, problem out.
        measure: fit function (training data in, predictor out), problem and context in, metrics out. It may fit more
            than once: a label-efficiency curve does.
        check: conditions in; refuses within moments what a look at names and headers tells, before a process starts.
    """

    name: str
    title: str
    metrics: tuple[Metric, ...]
    baseline: str
    data: str
    model: str
    budgets: Mapping[str, Budget]
    prepare: Callable[[Conditions, list[Entry]], Prepared]
    load: Callable[[Conditions, Entry, int, Prepared], Any]
    measure: Callable[[Callable[[Any], Any], Any, Context], dict[str, float]]
    check: Callable[[Conditions], None] | None = None

    def metric(self, name: str | None = None) -> Metric:
        """Return a metric by name, the first one without a name.

        Raises:
            UserError: the setting has no such metric.
        """
        if name is None:
            return self.metrics[0]
        known = {metric.name: metric for metric in self.metrics}
        if name not in known:
            raise unknown_name("metric", name, known)
        return known[name]


@dataclass(frozen=True)
class Prepared:
    """What preparing a leaderboard's data and model found out.

    Attributes:
        data_fingerprint: hex digest of the data.
        model_fingerprint: hex digest of the model; "" where none is used.
        remarks: what the user should know: files that were skipped, say.
        model: the model, or what stands for it until it is needed; None where none is used.
        left_out: names of entries that the data have nothing for; they are not run. A remark says why.
    """

    data_fingerprint: str
    model_fingerprint: str
    remarks: tuple[str, ...] = ()
    model: Backbone | None = None
    left_out: tuple[str, ...] = ()

    def check_data(self, name: str, fingerprint: str) -> None:
        """Refuse data that a run finds, by their fingerprint, to be others than those that were prepared.

        Raises:
            UserError: entries would be compared on different data.
        """
        if fingerprint != self.data_fingerprint:
            raise UserError(
                f"{name} holds other data than when it was prepared. Files must stay as they are while entries run; a "
                "function must return the same each time: give a seed to whatever is random in it."
            )


class Task:
    """A protocol with its settings and entries.

    Args:
        name: as in `papers try NAME`.
        title: one line on the question it answers.
        settings: at least one; the one called "standard" is the default.
    """

    def __init__(self, name: str, *, title: str, settings: Iterable[Setting]) -> None:
        self.name = name
        self.title = title
        self.settings = {setting.name: setting for setting in settings}
        self.entries: dict[str, Entry] = {}

    def entry(
        self, *settings: str, paper: str | None = None, needs: Iterable[str] = (), name: str | None = None
    ) -> Callable[[Fit], Fit]:
        """Register a function as an entry; it is called after the function, with dashes, unless named.

        Args:
            settings: the settings it takes part in; "standard" if none is given.
            paper: slug of the paper it stands for; None for a baseline.
            needs: what the setting must prepare for it.
            name: the entry's name, where it differs from the function's.

        Raises:
            UserError: settings or needs that are no names, a setting that the task doesn't have, a name that no command
                could take, or two entries of one name.
        """
        if not all(isinstance(setting, str) for setting in settings):
            raise UserError(
                f"Task {self.name}: `entry` takes names of settings: @task.entry({next(iter(self.settings))!r})."
            )
        if isinstance(needs, str):
            raise UserError(f"Task {self.name}: needs is {needs!r}; it must be a list of names: [{needs!r}].")

        def register(fit: Fit) -> Fit:
            entry = Entry(
                name=name or fit.__name__.replace("_", "-"),
                fit=fit,
                paper=paper,
                settings=settings or ("standard",),
                needs=tuple(needs),
            )
            if not re.fullmatch(r"[\w.+-]+", entry.name):
                raise UserError(
                    f"Task {self.name}: {entry.name!r} is no name of an entry; the option `name` gives one."
                )
            if entry.name in self.entries:
                raise UserError(f"Task {self.name} has two entries called {entry.name!r}.")
            unknown = [s for s in entry.settings if s not in self.settings]
            if unknown:
                raise unknown_name(
                    "setting", unknown[0], self.settings, of=f"task {self.name}, in entry {entry.name!r}"
                )
            self.entries[entry.name] = entry
            return fit

        return register

    def setting(self, name: str) -> Setting:
        """Return a setting by name.

        Raises:
            UserError: the task has no such setting.
        """
        if name not in self.settings:
            raise unknown_name("setting", name, self.settings, of=f"task {self.name}")
        return self.settings[name]

    def select(self, setting: str, names: Iterable[str] | None = None) -> list[Entry]:
        """Return the entries of a setting, or those of them that are named, with the named baseline always among them.

        Raises:
            UserError: an unknown name, or an entry that doesn't take part in the setting.
        """
        chosen = self.setting(setting)
        here = {entry.name: entry for entry in self.entries.values() if setting in entry.settings}
        if names is None:
            return list(here.values())
        wanted = dict.fromkeys([chosen.baseline, *names])
        for name in wanted:
            if name in self.entries and name not in here:
                others = ", ".join(self.entries[name].settings)
                raise UserError(f"Entry {name!r} takes part in {others}, not in {setting!r}. Add --setting.")
            if name not in here:
                raise unknown_name("entry", name, here, f"`papers entries {self.name}` lists them.")
        return [here[name] for name in wanted]


@functools.cache
def task_names() -> tuple[str, ...]:
    """Return the name of every task: one per module or folder of this package, but for what tasks share."""
    import workingpapers.tasks as package

    names = [module.name.replace("_", "-") for module in pkgutil.iter_modules(package.__path__)]
    return tuple(name for name in names if name not in ("protocol", "returned"))


@functools.cache
def load_task(name: str) -> Task:
    """Return a task by name, or a task of the user's own by "package.module:object".

    Raises:
        UserError: there is no such task.
    """
    if ":" in name:
        found = import_object("task", name)
        if not isinstance(found, Task):
            raise UserError(f"{name} is a {type(found).__name__}, not a workingpapers.tasks.protocol.Task.")
        return found
    if name not in task_names():
        raise unknown_name("task", name, task_names())
    task: Task = importlib.import_module(f"workingpapers.tasks.{name.replace('-', '_')}").task
    return task


def all_tasks() -> list[Task]:
    """Return every task, in alphabetical order."""
    return [load_task(name) for name in task_names()]


def prepared_features(
    conditions: Conditions, entries: list[Entry], data: LabelledData, remarks: Iterable[str], read: Fit
) -> Prepared:
    """Return what preparing finds out of data that are features already: no model is used.

    Entries that need something else are left out.

    Args:
        conditions: what is compared.
        entries: that are to run.
        data: the features.
        remarks: on the data.
        read: a need in, features out; a `UserError` says what the data lack.

    Raises:
        UserError: the baseline is among those that are left out.
    """
    setting = load_task(conditions.task).setting(conditions.setting)
    said = list(remarks)
    if conditions.model != setting.model:
        said.append(f"The model {conditions.model} is not used: {conditions.data} holds features already.")
    lacking: dict[str, str] = {}
    for need in dict.fromkeys(entry.needs[0] for entry in entries):  # one each: `views_of`
        try:
            read(need)
        except UserError as error:
            lacking[need] = str(error)
    for reason in dict.fromkeys(lacking.values()):
        names = [entry.name for entry in entries if lacking.get(entry.needs[0]) == reason]
        if setting.baseline in names:
            raise UserError(reason)
        said.append(f"{reason} Left out: {', '.join(names)}.")
    left_out = tuple(entry.name for entry in entries if entry.needs[0] in lacking)
    return Prepared(data.fingerprint, "", tuple(said), left_out=left_out)


def views_of(entries: Iterable[Entry], known: Iterable[str]) -> list[str]:
    """Return what entries on features need, each once: one view of the images an entry.

    Raises:
        UserError: an entry that names none or several, or one that is not known.
    """
    for entry in entries:
        if len(entry.needs) != 1:
            listed = ", ".join(entry.needs) or "nothing"
            raise UserError(f"Entry {entry.name!r} needs {listed}; it must need one of: {', '.join(known)}.")
        if entry.needs[0] not in known:
            raise unknown_name("need", entry.needs[0], known, of=f"entry {entry.name}")
    return list(dict.fromkeys(entry.needs[0] for entry in entries))
