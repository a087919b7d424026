"""Columns of any table become text, numbers and lists, and nothing is lost on the way."""

import datetime
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from workingpapers.methods.recommenders.columns import as_numbers, as_text, distinct_of, flattened, from_arrow

LARGE = 2**60 + 1  # float64 has no such number


def test_integers_stay_integers_where_some_are_missing():
    table = pa.table({"id": pa.array([LARGE, None, 3]), "x": pa.array([1.5, None, 2.0]), "n": pa.array([1, 2, 3])})
    for found in (from_arrow(table), from_arrow(table.to_batches()[0])):
        codes, values = distinct_of("id", found["id"])
        assert (codes.tolist(), values) == ([0, -1, 1], [str(LARGE), "3"])
        assert as_numbers(found["id"]).tolist()[2] == 3
        assert found["x"].dtype == np.float64
        assert found["n"].to_numpy().dtype == np.int64


def test_whole_numbers_are_one_value_in_every_type():
    assert as_text([3, 3.0, np.float32(3), np.uint8(3), "3"]) == ["3"] * 5
    assert as_text([0.5, np.float16(0.5), True, 1e20]) == ["0.5", "0.5", "True", "1" + "0" * 20]
    many = "1" * 38  # more digits than calculations with decimals keep
    assert as_text([Decimal("3.00"), Decimal("0.50"), Decimal("1E2"), Decimal(many)]) == ["3", "0.5", "100", many]


def test_what_pandas_wrote_into_a_table_is_no_obstacle():
    lists = pd.arrays.ArrowExtensionArray(pa.array([[1], [2, 3]]))
    table = pa.Table.from_pandas(pd.DataFrame({"a": lists, "b": [1, 2]}, index=["x", "y"]))
    for given in (table, table.to_batches()[0]):
        found = from_arrow(given)
        assert list(found.columns) == ["a", "b"]
        assert [list(row) for row in found["a"]] == [[1], [2, 3]]


def test_a_cell_that_is_no_list_is_one_value():
    column = pd.Series([7, 7.0, "a|b", "", None, np.nan, pd.NA, ["c", 1], np.array([2]), (3,)], dtype=object)
    lengths, values = flattened(column)
    assert lengths.tolist() == [1, 1, 2, 0, 0, 0, 0, 2, 1, 1]
    assert as_text(values) == ["7", "7", "a", "b", "c", "1", "2", "3"]
    # A column of lists of one item each, as a CSV gives it.
    assert flattened(pd.Series([12.0, np.nan]))[0].tolist() == [1, 0]


@pytest.mark.parametrize("kind", ["float16", "uint8", "Int64", "boolean", "object", "str"])
def test_numbers_of_every_type(kind):
    given = [1, 0, 1] if kind != "str" else ["1", "0", "1"]
    assert as_numbers(pd.Series(given, dtype=kind)).tolist() == [1, 0, 1]


def test_missing_and_decimal_numbers():
    assert np.isnan(as_numbers(pd.Series([pd.NA, 2], dtype="Int64"))).tolist() == [True, False]
    assert as_numbers(pd.Series([Decimal("1.10"), Decimal("2")])).tolist() == [1.1, 2]


def test_numbers_beyond_float32_are_named():
    with pytest.raises(ValueError, match=r"column 'x' holds -1e\+39 in row 1, which is beyond float32's range"):
        as_numbers(pd.Series([3e38, -1e39], name="x"))


@pytest.mark.parametrize("values", [["2026-01-01", None], [datetime.timedelta(1), None]])
def test_times_are_no_numbers(values):
    column = pd.to_datetime(pd.Series(values)) if isinstance(values[0], str) else pd.Series(values)
    with pytest.raises(ValueError, match="is numerical, but holds"):
        as_numbers(column.rename("t"))


def test_values_that_cannot_be_told_apart_are_named():
    with pytest.raises(ValueError, match="column 'a' holds values that are not single ones"):
        distinct_of("a", pd.Series([{"b": 1}]))
