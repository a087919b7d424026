"""Working Papers: papers on large pre-trained models, each with a method that runs and claims that are re-measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workingpapers.data.datasets import load_dataset as load_dataset
    from workingpapers.data.models import load_model as load_model
    from workingpapers.data.own import keep as keep
    from workingpapers.runs.execute import try_ as try_
    from workingpapers.runs.store import Store as Store

__version__ = "0.1.0"

_HOMES = {
    "Store": "workingpapers.runs.store",
    "keep": "workingpapers.data.own",
    "load_dataset": "workingpapers.data.datasets",
    "load_model": "workingpapers.data.models",
    "try_": "workingpapers.runs.execute",
}
__all__ = ["Store", "keep", "load_dataset", "load_model", "try_"]


def __getattr__(name: str) -> Any:
    """Import what the package offers when it is first asked for: importing the package alone costs nothing."""
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'workingpapers' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__} - {"Any", "TYPE_CHECKING", "annotations"})
