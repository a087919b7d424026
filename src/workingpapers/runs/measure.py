"""What happens inside a run's process: the entry fits, the task scores, and everything else is measured here."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import inspect
import math
import os
import platform
import random
import resource
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from workingpapers.errors import UserError, module_file, remarks
from workingpapers.tasks.protocol import Conditions, Context, Metric, Prepared, load_task

# Where fitted models keep what they learned; the first group that a model has is counted, so that weights derived from
# means and variances are not counted beside them. What a model merely remembers (kNN's examples) doesn't count.
_LEARNED = (
    ("coef_", "intercept_"),
    ("coefs_", "intercepts_"),
    ("theta_", "var_"),
    ("centroids_",),
    ("components_", "mean_"),
    ("mean", "factor", "basis"),
)


def prepare(conditions: Conditions, entries: tuple[str, ...], ray: str | None = None) -> Prepared:
    """Compute and cache what the runs of a leaderboard share; return the fingerprints of data and model.

    Args:
        conditions: what all compared entries share.
        entries: their names.
        ray: address of a cluster that tasks may use; it stands in RAY_ADDRESS, where Ray looks for it.
    """
    if ray:
        os.environ["RAY_ADDRESS"] = ray
    task = load_task(conditions.task)
    setting = task.setting(conditions.setting)
    with remarks() as said:
        prepared = setting.prepare(conditions, [task.entries[name] for name in entries])
    return dataclasses.replace(prepared, remarks=(*prepared.remarks, *said))


def execute(conditions: Conditions, entry_name: str, seed: int, threads: int, prepared: Prepared) -> dict[str, Any]:
    """Run one entry on one seed.

    Args:
        conditions: what all compared entries share.
        entry_name: an entry of the task.
        seed: of everything random.
        threads: that the numerical libraries may use; results may depend on it in the last digits.
        prepared: what `prepare` returned.

    Returns:
        metrics, measured and curves, as a `Run` holds them, with versions and hardware; remarks and code, for its
        settings.

    Raises:
        UserError: a metric that is missing or not finite; and whatever the entry raises.
    """
    import threadpoolctl
    import torch

    torch.set_num_threads(threads)
    _seed_all(seed)
    task = load_task(conditions.task)
    setting, entry = task.setting(conditions.setting), task.entries[entry_name]
    budget = setting.budgets[conditions.budget]
    context = Context(seed=seed, budget=budget)
    timer = _Timer()

    def fit(train: Any) -> Any:
        with timer:
            predictor = entry.fit(train, context)
        timer.parameters = max(timer.parameters, count_parameters(predictor))
        return predictor

    with threadpoolctl.threadpool_limits(threads), remarks() as said:
        problem = setting.load(conditions, entry, seed, prepared)
        start = time.perf_counter()
        found = setting.measure(fit, problem, context)
        total = time.perf_counter() - start
    return {
        "metrics": _checked(found, setting.metrics),
        "measured": {
            "fit_seconds": timer.wall,
            "cpu_seconds": timer.cpu,
            "predict_seconds": max(0.0, total - timer.wall),
            "peak_memory_mb": peak_memory_mb(),
            "peak_gpu_mb": torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0,
            "parameters": float(timer.parameters),
        },
        "curves": context.curves,
        "remarks": said,
        "code": code(conditions.task),
        "versions": versions(),
        "hardware": hardware(),
    }


def _seed_all(seed: int) -> None:
    """Seed what an entry may draw from unasked: a plain nn.Linear would start alike for all seeds of a command."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


class _Timer:
    """Adds up the wall and CPU seconds of what runs inside it."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0
        self.parameters = 0

    def __enter__(self) -> None:
        self._start = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self.wall += time.perf_counter() - self._start[0]
        self.cpu += time.process_time() - self._start[1]


def _checked(found: dict[str, float], expected: tuple[Metric, ...]) -> dict[str, float]:
    """Return the metrics as plain floats.

    Raises:
        UserError: one is missing that isn't optional, unknown or not finite.
    """
    known = {metric.name for metric in expected}
    required = {metric.name for metric in expected if not metric.optional}
    if not required <= set(found) <= known:
        raise UserError(f"The task measured {sorted(found)}; its metrics are {sorted(known)}.")
    metrics = {name: float(value) for name, value in found.items()}
    bad = [f"{name} = {value}" for name, value in metrics.items() if not math.isfinite(value)]
    if bad:
        raise UserError(f"Not a finite number: {', '.join(bad)}.")
    return metrics


def count_parameters(model: Any) -> int:
    """Return how many numbers a fitted model learned: trainable tensor elements and scikit-learn's learned arrays.

    What is inside a model (pipelines, wrappers, tuples of models, closures, the object of a bound method) is counted
    too, and what is shared is counted once.
    """
    return _count(model, set())


def _count(model: Any, seen: set[int]) -> int:
    from torch import Tensor

    if id(model) in seen or inspect.isclass(model) or type(model).__module__.startswith("sklearn.preprocessing"):
        return 0
    seen.add(id(model))
    if isinstance(model, Tensor):
        return model.numel() if model.requires_grad else 0
    inside = getattr(model, "__dict__", {})
    learned = next((names for names in _LEARNED if names[0] in inside), ())
    own = sum(_size(inside.get(name)) for name in learned) + _tree_nodes(model)
    return own + sum(_count(part, seen) for part in _parts(model, learned))


def _tree_nodes(model: Any) -> int:
    """Return how many nodes a tree of scikit-learn or the trees of LightGBM have: a threshold or a value each."""
    kind = f"{type(model).__module__.partition('.')[0]}.{type(model).__name__}"
    if kind == "lightgbm.Booster":
        return sum(2 * int(tree["num_leaves"]) - 1 for tree in model.dump_model()["tree_info"])
    return int(model.node_count) if kind == "sklearn.Tree" else 0


def _parts(model: Any, counted: Iterable[str]) -> Iterable[Any]:
    """Return what a model is made of, but for the attributes that are counted already."""
    from torch import nn

    if inspect.ismodule(model):
        return ()
    if isinstance(model, nn.Module):
        return model.parameters()
    if isinstance(model, (list, tuple)):
        return model
    if isinstance(model, dict):
        return model.values()
    if isinstance(model, functools.partial):
        return [model.func, *model.args, *model.keywords.values()]
    if inspect.ismethod(model):
        return [model.__self__]
    if inspect.isfunction(model):
        return [cell.cell_contents for cell in model.__closure__ or ()]
    return [value for name, value in getattr(model, "__dict__", {}).items() if name not in counted]


def _size(array: Any) -> int:
    """Return the number of elements of an array, a tensor or a list of them."""
    if isinstance(array, list):
        return sum(map(_size, array))
    return math.prod(array.shape) if hasattr(array, "shape") else 0


def peak_memory_mb() -> float:
    """Return the most memory this process has held, in MiB: its peak resident set."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def code(task: str) -> str:
    """Return a digest of the source that a task's runs depend on: this package's, and the file of a task of one's own.

    The version alone says too little where methods are being worked on.
    """
    package = Path(__file__).parents[1]
    parts = [file for part in ("data", "methods", "tasks") for file in sorted((package / part).rglob("*.*"))]
    files = [file for file in parts if file.suffix in (".py", ".cpp", ".h") and file.is_file()]  # no editor's lock
    if ":" in task and (own := module_file(task)):
        files.append(own)
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:12]


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that results depend on."""
    libraries = ("workingpapers", "torch", "numpy", "scipy", "scikit-learn", "transformers")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in libraries}


@functools.cache
def hardware() -> dict[str, Any]:
    """Return what this machine is: processor, cores, memory in GiB and accelerator."""
    import psutil
    import torch

    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    """Return the processor's name where the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
