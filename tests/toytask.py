"""A task that needs no data: its entries succeed, fail, crash, hang or eat memory, as tests want."""

import os
import signal
import time
import warnings
from pathlib import Path

import numpy as np

from workingpapers.errors import UserError, UserRemark
from workingpapers.tasks.protocol import Budget, Metric, Prepared, Setting, Task

ACCURACY = Metric("accuracy", higher_is_better=True, unit="%", margin=0.5)
LOSS = Metric("loss", higher_is_better=False, unit="nats")


def prepare(conditions, entries):
    if conditions.data == "missing":
        raise UserError("Unknown data set 'missing'.")
    left_out = ("slow",) if conditions.data == "bare" else ()
    return Prepared(conditions.data, "", remarks=("1 image was skipped",), left_out=left_out)


def load(conditions, entry, seed, prepared):
    return np.random.default_rng(seed).normal(size=100)


def measure(fit, problem, context):
    value = fit(problem)
    context.log("loss", 1, 0.5)
    context.log("loss", 2, 0.25)
    return {"accuracy": value, "loss": -value}


def setting(name):
    budgets = {"quick": Budget("quick", 100, 100, 1, 1), "full": Budget("full", 1000, 1000, 10, 10)}
    return Setting(
        name=name,
        title="a toy",
        metrics=(ACCURACY, LOSS),
        baseline="base",
        data="numbers",
        model="",
        budgets=budgets,
        prepare=prepare,
        load=load,
        measure=measure,
    )


task = Task("toytask:task", title="Toy", settings=[setting("standard"), setting("trouble")])


@task.entry("standard", "trouble")
def base(train, context):
    """Mean of the numbers."""
    return 50 + train.mean()


@task.entry("standard", paper="moment-probing")
def better(train, context):
    """Two points better on every seed."""
    return 52 + train.mean() + 0.1 * context.seed


@task.entry()
def slow(train, context):
    """The same as the baseline, slowly, counting its executions in a file if told to."""
    if "TOY_LOG" in os.environ:
        with Path(os.environ["TOY_LOG"]).open("a") as log:
            log.write(f"{context.seed}\n")
    time.sleep(float(os.environ.get("TOY_SLEEP", "0")))
    return 50 + train.mean()


@task.entry("trouble")
def raises(train, context):
    """Raises an exception."""
    raise KeyError("no such thing")


@task.entry("trouble")
def crashes(train, context):
    """Ends its process without a word."""
    os._exit(3)


@task.entry("trouble")
def killed(train, context):
    """Is killed as the system's out-of-memory killer does it."""
    os.kill(os.getpid(), signal.SIGKILL)


@task.entry("trouble")
def eats(train, context):
    """Asks for more memory than any machine has."""
    return np.zeros((2**50,))


@task.entry("trouble")
def hangs(train, context):
    """Never comes back."""
    time.sleep(3600)


@task.entry("trouble")
def says(train, context):
    """Finishes, with a remark."""
    warnings.warn("no value was kept", UserRemark, stacklevel=1)
    return 40.0


@task.entry("trouble")
def undefined(train, context):
    """Measures something that is not a number."""
    return float("nan")
