"""Columns become ids and numbers: in one pass, the same however the table is cut, and refused where they can't."""

import datetime
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workingpapers.methods.recommenders.schema import FIRST, MISSING, PADDING, UNKNOWN, Rows, Schema


def table():
    return pd.DataFrame(
        {
            "city": ["b", "a", "b", None, "c"],
            "size": [1.0, 3.0, np.nan, 5.0, 3.0],
            "tags": ["x|y", "x", "", None, "y|x|y"],
            "seen": [["b", "a"], [], ["zzz", "b", "a"], None, ["a"]],
        }
    )


KINDS = {"tags": "multi", "seen": "sequence of city"}


def test_ids_are_by_frequency_then_by_name():
    schema = Schema.fit([table()], kinds=KINDS, min_count=1)
    # Histories count too: a has 1 + 3 occurrences, b 2 + 2; the tie goes by name.
    assert schema.field("city").values == ("a", "b", "c", "zzz")
    assert schema.field("tags").values == ("y", "x") or schema.field("tags").values == ("x", "y")
    rows = schema.encode(table())
    assert rows.ids[:, 0].tolist() == [FIRST + 1, FIRST, FIRST + 1, MISSING, FIRST + 2]


def test_numbers_are_standardised_and_missing_ones_are_the_mean():
    rows = Schema.fit([table()], kinds=KINDS).encode(table())
    np.testing.assert_allclose(rows.numbers[:, 0], np.array([-2, 0, 0, 2, 0]) / np.sqrt(2), rtol=1e-6)


def test_sequences_end_at_the_right_and_multi_fields_begin_at_the_left():
    schema = Schema.fit([table()], kinds=KINDS, min_count=1, length=2)
    rows = schema.encode(table())
    a, b, zzz = FIRST, FIRST + 1, FIRST + 3
    assert rows.lists["seen"].tolist() == [[b, a], [PADDING] * 2, [b, a], [PADDING] * 2, [PADDING, a]]
    assert zzz not in rows.lists["seen"]  # longer than the limit: the oldest went
    x, y = (FIRST + schema.field("tags").values.index(v) for v in "xy")
    assert rows.lists["tags"].tolist() == [[x, y], [x, PADDING], [PADDING] * 2, [PADDING] * 2, [y, x]]


def test_rare_and_unseen_values_are_unknown():
    schema = Schema.fit([table()], kinds={"tags": "multi", "seen": "multi"}, min_count=2)
    assert schema.field("city").values == ("b",)
    seen = schema.encode(pd.DataFrame({"city": ["a", "new", "b"], "size": 0.0, "tags": "", "seen": ""}))
    assert seen.ids[:, 0].tolist() == [UNKNOWN, UNKNOWN, FIRST]


@settings(max_examples=30)
@given(st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_batches_do_not_matter(parts, seed):
    rng = np.random.default_rng(seed)
    n = 40
    whole = pd.DataFrame(
        {
            "c": rng.integers(6, size=n),
            "x": np.where(rng.random(n) < 0.2, np.nan, rng.normal(3, 7, n)),
            "m": ["|".join(map(str, rng.integers(4, size=rng.integers(4)))) for _ in range(n)],
        }
    )
    cut = [whole.iloc[i::parts] for i in range(parts)]
    one, many = (Schema.fit(b, kinds={"m": "multi"}, min_count=1) for b in ([whole], cut))
    assert [f.values for f in one.fields] == [f.values for f in many.fields]
    # Means of parts are merged in float64.
    np.testing.assert_allclose(one.field("x").mean, many.field("x").mean, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(one.field("x").scale, many.field("x").scale, rtol=1e-12)
    np.testing.assert_allclose(one.field("x").mean, whole["x"].mean(), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(one.field("x").scale, whole["x"].std(ddof=0), rtol=1e-10)


def test_integers_that_pandas_made_floats_are_the_same_values():
    schema = Schema.fit([pd.DataFrame({"id": [1, 1, 2, 2]})])
    later = pd.DataFrame({"id": [1, None, 2]})  # float64 now
    assert schema.encode(later).ids[:, 0].tolist() == [FIRST, MISSING, FIRST + 1]


def test_numbers_and_text_of_one_value_are_counted_together():
    schema = Schema.fit([pd.DataFrame({"a": pd.Series([3, 3, "3", 4], dtype=object)})], min_count=3)
    assert schema.field("a").values == ("3",)


@pytest.mark.parametrize("value", [0.1, 0.3, -1e-9, 1e9 + 0.1])
@pytest.mark.parametrize("parts", [1, 7])
def test_equal_numbers_have_no_spread_whatever_rounding_says(value, parts):
    whole = pd.DataFrame({"x": np.full(777, value)})
    schema = Schema.fit([whole.iloc[i::parts] for i in range(parts)])
    assert schema.field("x").scale == 1
    np.testing.assert_allclose(schema.encode(whole).numbers, 0, atol=1e-6)  # of 1e9, half of its last digit
    # Numbers that differ in their last digits do have one.
    assert Schema.fit([pd.DataFrame({"x": [1e9, 1e9 + 1e-5]})]).field("x").scale == pytest.approx(5e-6, rel=0.1)


def test_histories_of_one_item_each_are_histories():
    frame = pd.DataFrame({"item": [1, 2, 2, 1], "seen": [2.0, np.nan, 1.0, 2.0]})  # as a CSV file gives them
    schema = Schema.fit([frame], kinds={"seen": "sequence of item"}, length=1)
    first, second = (FIRST + schema.field("item").values.index(v) for v in "12")
    assert schema.encode(frame).lists["seen"].tolist() == [[second], [PADDING], [first], [second]]


def test_arrow_lists_and_categories_are_understood():
    frame = pa.table({"tags": [["a", "b"], ["a"], []], "kind": ["u", "v", "u"]}).to_pandas()
    frame["kind"] = frame["kind"].astype("category")
    schema = Schema.fit([frame], min_count=1)
    assert [(f.name, f.kind) for f in schema.fields] == [("tags", "multi"), ("kind", "categorical")]
    assert schema.encode(frame).lists["tags"][0].tolist()[:2] == [FIRST, FIRST + 1]


def test_a_schema_comes_back_from_json():
    schema = Schema.fit([table()], kinds=KINDS)
    assert Schema.from_json(schema.to_json()) == schema
    with pytest.raises(ValueError, match="no schema"):
        Schema.from_json({"fields": [{"nam": "x"}]})


def test_rows_are_cut_and_joined():
    rows = Schema.fit([table()], kinds=KINDS).encode(table())
    again = Rows.cat([rows[torch.tensor([0, 1])], rows[2:]])
    assert torch.equal(again.ids, rows.ids)
    assert torch.equal(again.lists["seen"], rows.lists["seen"])
    assert len(again) == 5


@pytest.mark.parametrize(
    ("frame", "kinds", "message"),
    [
        (pd.DataFrame({"a": []}), {}, "no rows"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), {}, r"columns \['a'\] occur more than once"),
        (pd.DataFrame([[1]], columns=[7]), {}, "named by text"),
        (pd.DataFrame({"a": [1]}), {"b": "multi"}, r"\['b'\] that the table lacks"),
        (pd.DataFrame({"a": [1]}), ["a"], r"kinds is \['a'\]; it must be a dict"),
        (pd.DataFrame({"a": [1]}), {"a": "number"}, "'a' has kind 'number'; allowed: categorical"),
        (pd.DataFrame({"a": [1]}), {"a": 3}, "'a' has kind '3'; allowed: categorical"),
        (pd.DataFrame({"a": [1]}), {"a": "multi of b"}, "allowed"),
        (pd.DataFrame({"a": [[1]]}), {"a": "sequence of b"}, "no categorical column"),
        (pd.DataFrame({"a": ["x"]}), {"a": "numerical"}, "column 'a' is numerical, but holds other things"),
        (pd.DataFrame({"a": [1.0, np.inf]}), {}, "column 'a' holds infinite numbers, in row 1"),
        (pd.DataFrame({"a": pd.to_datetime(["2026-01-01"])}), {}, "holds datetime64"),
        (pd.DataFrame({"a": [None, datetime.date(2026, 1, 1)]}), {}, "'a' holds dates"),
        (
            pd.DataFrame({"a": pd.to_datetime(["2026-01-01", None])}),
            {"a": "numerical"},
            "numerical, but holds datetime",
        ),
    ],
)
def test_bad_tables_are_named(frame, kinds, message):
    with pytest.raises(ValueError, match=message):
        Schema.fit([frame], kinds=kinds)


def test_a_table_that_lacks_columns_is_refused():
    with pytest.raises(ValueError, match=r"lacks columns \['b'\]"):
        Schema.fit([pd.DataFrame({"a": [1], "b": [2]})]).encode(pd.DataFrame({"a": [1]}))
    with pytest.raises(ValueError, match=r"change between batches: a later one lacks \['a'\] and adds \['b'\]"):
        Schema.fit([pd.DataFrame({"a": [1], "c": [1]}), pd.DataFrame({"b": [1], "c": [1]})])


def test_batches_may_order_columns_otherwise():
    frame = pd.DataFrame({"a": ["x", "x", "y", "y"], "b": [1.0, 2.0, 3.0, 4.0]})
    assert Schema.fit([frame[:2], frame[2:][["b", "a"]]]) == Schema.fit([frame[:2], frame[2:]])


def test_decimals_are_numbers_if_written_with_digits_after_the_point():
    money, ids = [Decimal("1"), Decimal("0.5"), None], [Decimal(7), Decimal(7), None]
    for values, kind in ((money, "numerical"), (money[::-1], "numerical"), (ids, "categorical")):
        assert Schema.fit([pd.DataFrame({"a": values})]).field("a").kind == kind


def test_constant_missing_and_distinct_columns_say_nothing():
    frame = pd.DataFrame({"same": [2.0] * 4, "none": [np.nan] * 4, "each": list("abcd")})
    rows = Schema.fit([frame]).encode(frame)
    assert rows.numbers.eq(0).all()
    assert rows.ids.eq(UNKNOWN).all()
