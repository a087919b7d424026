"""The base of all tables: id space, bytes, names."""

import math

import pytest
import torch

from workingpapers.errors import UserError
from workingpapers.methods.tables.common import TABLES, FullTable, make_table


def test_offsets_and_fields():
    table = FullTable([3, 1, 4], 2)
    assert table.offsets.tolist() == [0, 3, 4]
    assert table.num_ids == 8
    assert table.fields_of(torch.arange(8)).tolist() == [0, 0, 0, 1, 2, 2, 2, 2]


def test_a_full_table_is_an_embedding_and_counts_its_bytes():
    table = FullTable([3, 5], 4)
    ids = torch.tensor([[0, 7], [3, 3]])
    assert torch.equal(table(ids), table.table.weight[ids])
    assert table.training_bytes() == table.serving_bytes() == 8 * 4 * 4
    assert table.penalty() == 0


def test_large_tables_have_sparse_gradients_unless_told():
    assert not FullTable([10], 2).table.sparse
    assert FullTable([200_000], 2).table.sparse
    assert not FullTable([200_000], 2, sparse=False).table.sparse


@pytest.mark.parametrize("name", TABLES)
def test_every_named_table_can_be_made_and_asked(name):
    torch.manual_seed(0)
    table = make_table(name, [7, 30, 4], 8)
    ids = torch.tensor([[0, 7, 37], [6, 36, 40]])
    out = table(ids)
    assert out.shape == (2, 3, 8)
    assert torch.isfinite(out).all()
    assert table.training_bytes() > 0
    assert table.serving_bytes() > 0


def test_bad_input_is_named():
    with pytest.raises(UserError, match=r"Unknown table 'ful'. Did you mean 'full'"):
        make_table("ful", [3], 2)
    with pytest.raises(UserError, match=r"Unknown option 'ratoi' of table hash. Did you mean 'ratio'"):
        make_table("hash", [3], 2, ratoi=0.5)
    for option, value in (("strength", math.nan), ("init_scale", math.inf), ("init_scale", -0.1)):
        with pytest.raises(ValueError, match=f"{option} is {value}; it must be"):
            make_table("optfs", [3], 2, **{option: value})
    for sizes, dim in (([], 2), ([3, 0], 2), ([3], 0)):
        with pytest.raises(ValueError, match="a table needs a width of 1 or more, and fields"):
            FullTable(sizes, dim)
