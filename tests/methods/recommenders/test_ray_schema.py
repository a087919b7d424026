"""A schema counted by Ray Data is the one that a single pass builds."""

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from clicks import impressions
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from workingpapers.methods.recommenders.schema import Counts, Schema

KINDS = {"genres": "multi", "history": "sequence of item"}


def table(n=3000):
    rows, _ = impressions(n)
    history = [[str(i % 40), str((7 * i) % 50)] for i in range(n)]
    code = pd.array(np.arange(n) % 7, dtype="Int64")
    code[::5] = pd.NA
    return rows.assign(history=history, code=code, number=np.where(np.arange(n) % 9 == 0, np.nan, rows["number"]))


def check_same(found, expected):
    for one, other in zip(found.fields, expected.fields, strict=True):
        assert dataclasses.replace(one, mean=0.0, scale=1.0) == dataclasses.replace(other, mean=0.0, scale=1.0)
        # Means of parts are merged in float64.
        np.testing.assert_allclose([one.mean, one.scale], [other.mean, other.scale], rtol=1e-12)


@given(cuts=st.lists(st.integers(0, 300), max_size=5), order=st.randoms(use_true_random=False))
def test_counts_of_parts_add_up_in_any_order(cuts, order):
    whole = table(300)
    ends = [0, *sorted(cuts), 300]
    parts = [whole[a:b] for a, b in itertools.pairwise(ends)]
    order.shuffle(parts)
    total = Counts(whole, KINDS)
    for part in parts:
        counts = Counts(whole, KINDS)
        counts.add(part)
        total.merge(counts)
    check_same(Schema(total.fields(2, 1000, 10)), Schema.fit([whole], kinds=KINDS, max_values=1000, length=10))


@pytest.mark.slow
def test_blocks_of_a_file_are_counted_on_a_cluster(tmp_path):
    ray = pytest.importorskip("ray")
    from workingpapers.methods.recommenders.ray_schema import schema_of_parquet

    whole, path = table(), tmp_path / "log.parquet"
    stored = pa.Table.from_pandas(whole.assign(other=1)).replace_schema_metadata()  # not as pandas writes it
    parquet.write_table(stored, path, row_group_size=400)
    bad = tmp_path / "bad.parquet"
    pd.DataFrame({"a": [1.0, 2.0, np.inf]}).to_parquet(bad)
    with ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR"):
        found = schema_of_parquet(path, columns=list(whole.columns), kinds=KINDS, length=10)
        with pytest.raises(ValueError, match="column 'a' holds infinite numbers"):
            schema_of_parquet(bad)
    check_same(found, Schema.fit([whole], kinds=KINDS, length=10))
