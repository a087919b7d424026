"""Merged signatures: what `get_params` and `clone` of scikit-learn see."""

import inspect
import json

import numpy as np
import pytest
from sklearn.base import BaseEstimator, clone

from workingpapers.methods.recommenders.options import MergedOptions, as_json


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
