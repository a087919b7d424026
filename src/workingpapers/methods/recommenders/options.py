"""One signature for estimators that pass `**options` on to what they build on."""

from __future__ import annotations

import inspect
from typing import Any


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
