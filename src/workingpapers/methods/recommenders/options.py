"""Options of estimators: one signature where they pass `**options` on to what they build on, and how they are saved."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any

import numpy as np


class MergedOptions:
    """Gives every subclass that passes on `**options` one signature: its own options and those that it builds on.

    A base for scikit-learn's estimators, to stand before `BaseEstimator`: parameters, clones and `help` then know all
    options, and none is written twice.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        """Merge the keywords of all `__init__` from the class up; of two of one name the nearer counts."""
        super().__init_subclass__(**options)
        made = [inspect.signature(vars(kind)["__init__"]) for kind in cls.__mro__[:-1] if "__init__" in vars(kind)]
        named: dict[str, inspect.Parameter] = {}
        for one in made:
            for parameter in one.parameters.values():
                if parameter.kind is parameter.KEYWORD_ONLY:
                    named.setdefault(parameter.name, parameter)
        cls.__signature__ = inspect.Signature(list(named.values()))  # type: ignore[attr-defined]

    @classmethod
    def _get_param_names(cls) -> list[str]:
        return sorted(inspect.signature(cls).parameters)


def as_json(held: Mapping[str, Any]) -> str:
    """Return what a saved model is made with as JSON; numpy's numbers, which searches over options draw, are numbers.

    Raises:
        ValueError: a value that is none of JSON's, such as a random generator.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, (np.generic, np.ndarray)):
            return value.tolist()
        raise ValueError(f"{value!r} cannot be saved; set the option to a plain value first")

    return json.dumps(held, indent=1, default=plain)
