"""Options of estimators: one signature where they pass `**options` on, their types, and how they are saved."""

from __future__ import annotations

import inspect
import json
import reprlib
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from types import NoneType, SimpleNamespace, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import ArrayLike

from workingpapers.errors import unknown_name

_SAID = {int: "a whole number", float: "a number", bool: "True or False", str: "text", NoneType: "None"}


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


def check_options(estimator: Any) -> None:
    """Refuse options of an estimator of scikit-learn's kind whose values are not of their annotated types.

    Raises:
        ValueError: names the first such option, its value, and what is allowed.
    """
    left = estimator.get_params(deep=False)
    for kind in type(estimator).__mro__:
        own = vars(kind).get("__init__")
        known = left.keys() & getattr(own, "__annotations__", {}).keys()  # of two of one name the nearer counts
        if own is not None and known:
            check_types(own, {name: left.pop(name) for name in sorted(known)})


def check_types(function: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Refuse arguments whose values are not of the types that a function's parameters are annotated with.

    Numbers of numpy's are numbers; lists and arrays are sequences.

    Raises:
        ValueError: names the first such argument, its value, and what is allowed, or the nearest of allowed names.
    """
    wanted = SimpleNamespace(__annotations__={name: function.__annotations__[name] for name in given})
    try:
        hints = get_type_hints(wanted, function.__globals__)
    except NameError:  # a user's class may name types that are imported for type checkers alone
        return
    for name, value in given.items():
        if get_origin(hints[name]) is Literal and isinstance(value, str) and value not in get_args(hints[name]):
            raise unknown_name(name, value, get_args(hints[name]))
        if not _fits(value, hints[name]):
            raise ValueError(f"{name} is {reprlib.repr(value)}; it must be {_said(hints[name])}")


def _fits(value: Any, hint: Any) -> bool:
    kind, parts = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if kind is Literal:
        return isinstance(value, str)
    if kind in (tuple, Sequence):
        several = value.ndim == 1 if isinstance(value, np.ndarray) else isinstance(value, Sequence)
        return several and not isinstance(value, str) and all(_fits(one, parts[0]) for one in value)
    if hint in (int, float):
        return isinstance(value, Integral if hint is int else Real) and not isinstance(value, bool)
    if hint is bool:
        return isinstance(value, (bool, np.bool_))
    kind = kind or hint
    return hint is Any or not isinstance(kind, type) or isinstance(value, kind)


def _said(hint: Any) -> str:
    kind, parts = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        arrays = set(get_args(ArrayLike))
        others = [_said(part) for part in parts if part not in arrays]
        return " or ".join(["an array", *others] if arrays <= set(parts) else map(_said, parts))
    if kind is Literal:
        return f"one of {', '.join(map(repr, parts))}"
    if kind in (tuple, Sequence):
        return f"a list of {_said(parts[0]).removeprefix('a ')}s"
    return "a dict" if kind is Mapping else _SAID.get(hint, getattr(hint, "__name__", str(hint)))


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
