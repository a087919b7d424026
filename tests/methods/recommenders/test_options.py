"""Merged signatures: what `get_params` and `clone` of scikit-learn see."""

import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, clone

from workingpapers.methods.recommenders.options import MergedOptions, as_json, check_options, check_types


class Base(MergedOptions, BaseEstimator):
    def __init__(self, *, rate=0.1, size=4):
        self.rate = rate
        self.size = size


class Wide(Base):
    def __init__(self, *, width=2, size=8, **options):
        super().__init__(size=size, **options)
        self.width = width


class Same(Wide):
    """Takes what it builds on takes."""


def test_a_class_takes_its_own_options_and_those_below():
    assert list(inspect.signature(Wide).parameters) == ["width", "size", "rate"]
    assert inspect.signature(Wide).parameters["size"].default == 8
    assert inspect.signature(Same) == inspect.signature(Wide)
    assert list(inspect.signature(Base).parameters) == ["rate", "size"]


def test_estimators_can_be_cloned_and_set():
    one = Wide(rate=0.5, width=3)
    assert one.get_params() == {"rate": 0.5, "size": 8, "width": 3}
    assert clone(one).set_params(size=1).get_params() == {"rate": 0.5, "size": 1, "width": 3}


def test_what_numpy_draws_is_saved_and_what_is_no_plain_value_named():
    drawn = {"dim": np.int64(4), "rate": np.float32(0.5), "hidden": (np.int8(3), 2), "widths": np.arange(2)}
    assert json.loads(as_json(drawn)) == {"dim": 4, "rate": 0.5, "hidden": [3, 2], "widths": [0, 1]}
    with pytest.raises(ValueError, match=r"RandomState.* cannot be saved"):
        as_json({"options": {"random_state": np.random.RandomState(0)}})


def typed(
    whole: int = 0,
    share: float = 0.0,
    yes: bool = False,
    name: str | None = None,
    sizes: Sequence[int] = (),
    kinds: Mapping[str, str] | None = None,
    mode: Literal["mean", "median"] = "mean",
    vectors: ArrayLike | None = None,
    anything: Any = None,
):
    """Give options of every type."""


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"whole": "3"}, "whole is '3'; it must be a whole number"),
        ({"whole": True}, "whole is True"),
        ({"whole": 2.0}, "whole is 2.0"),
        ({"share": None}, "share is None; it must be a number"),
        ({"yes": 1}, "yes is 1; it must be True or False"),
        ({"name": 3}, "name is 3; it must be text or None"),
        ({"sizes": 128}, "sizes is 128; it must be a list of whole numbers"),
        ({"sizes": "128"}, "sizes is '128'"),
        ({"sizes": (8, 0.5)}, r"sizes is \(8, 0.5\)"),
        ({"kinds": ["a"]}, r"kinds is \['a'\]; it must be a dict or None"),
        ({"mode": "medan"}, "Unknown mode 'medan'. Did you mean 'median'"),
        ({"mode": 3}, "mode is 3; it must be one of 'mean', 'median'"),
        ({"vectors": {1}}, r"vectors is \{1\}; it must be an array or None$"),
    ],
)
def test_values_of_a_wrong_type_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        check_types(typed, given)


def test_numpys_numbers_and_arrays_are_of_the_right_type():
    fine = {
        "whole": np.int8(3),
        "share": 1,
        "yes": np.bool_(True),
        "name": None,
        "sizes": np.array([3]),
        "mode": "mean",
    }
    check_types(typed, fine | {"kinds": {"a": "b"}, "anything": object()})
    check_types(typed, {"share": np.float32(0.5), "sizes": [np.int64(3)], "name": np.str_("a")})


def test_the_nearest_of_two_types_of_an_option_counts():
    class Typed(Base):
        def __init__(self, *, size: int = 4, **options):
            super().__init__(size=size, **options)

    class Text(Typed):
        def __init__(self, *, size: str = "4", **options):
            super().__init__(size=size, **options)

    check_options(Text())
    check_options(Typed(rate="not annotated"))
    with pytest.raises(ValueError, match="size is 4; it must be text"):
        check_options(Text(size=4))


def test_types_that_are_not_imported_are_not_checked():
    def function(size: "Missing" = 3):  # noqa: F821
        """Take a type that is known to type checkers alone."""

    check_types(function, {"size": "any"})
