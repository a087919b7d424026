"""Low-rank tables against einsum, a tensor-train decomposition of a dense table, and dense tables."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workingpapers.methods.tables.compressed_low_rank import (
    AutoDimTable,
    FieldWidthsTable,
    MixedDimTable,
    TensorTrainTable,
)


def cores(table):
    """The cores as (n_k, R_{k-1}, d_k, R_k)."""
    ranks = 1, table.rank, table.rank, 1
    return [
        core.detach().view(n, ranks[k], w, ranks[k + 1])
        for k, (core, n, w) in enumerate(zip(table.cores, table.rows, table.widths, strict=True))
    ]


@given(ids=st.integers(1, 200), dim=st.sampled_from([1, 4, 6, 7, 16]), rank=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_a_row_is_the_einsum_of_its_cores(ids, dim, rank):
    table = TensorTrainTable([ids], dim, rank=rank)
    n1, n2, n3 = table.rows
    assert n1 * n2 * n3 >= ids
    assert math.prod(table.widths) == dim
    a, b, c = cores(table)
    for x in {0, ids // 2, ids - 1}:
        i, j, k = x % n1, x // n1 % n2, x // n1 // n2
        row = torch.einsum("xar,rbs,scy->abc", a[i], b[j], c[k]).reshape(dim)
        torch.testing.assert_close(table(torch.tensor(x)), row)


def test_many_lookups_take_another_way_to_the_same_rows_and_gradients():
    torch.manual_seed(0)
    table = TensorTrainTable([60], 6, rank=3)
    ids, weight = torch.randint(60, (50,)), torch.randn(50, 6)
    many = table(ids)  # more than four for each of the middle cores
    one_by_one = torch.stack([table(x) for x in ids])
    torch.testing.assert_close(many, one_by_one)
    found, expected = (torch.autograd.grad((out * weight).sum(), list(table.cores)) for out in (many, one_by_one))
    torch.testing.assert_close(found, expected)


def test_full_rank_reproduces_any_dense_table():
    torch.manual_seed(0)
    table = TensorTrainTable([20, 4], 8, rank=36)
    (n1, n2, n3), (d1, d2, d3) = table.rows, table.widths
    dense = torch.randn(n3, n2, n1, d1, d2, d3)  # the first digit is the lowest
    flat = dense.permute(2, 3, 1, 4, 0, 5).reshape(n1 * d1, -1)
    with torch.no_grad():
        # The first unfolding and the last are split off exactly; missing ranks stay zero.
        left = torch.zeros(n1 * d1, 36)
        left[:, : n1 * d1] = torch.eye(n1 * d1)
        right = torch.zeros(36, n3 * d3)
        right[: n3 * d3] = torch.eye(n3 * d3)
        middle = torch.zeros(36, n2, d2, 36)
        middle[: n1 * d1, :, :, : n3 * d3] = flat.view(n1 * d1, n2, d2, n3 * d3)
        table.cores[0].copy_(left.view(n1, d1 * 36))
        table.cores[1].copy_(middle.permute(1, 0, 2, 3).reshape(n2, -1))
        table.cores[2].copy_(right.view(36, n3, d3).permute(1, 0, 2).reshape(n3, -1))
    torch.testing.assert_close(table(torch.arange(24)), dense.reshape(n1 * n2 * n3, 8)[:24])


def test_products_start_with_the_scale_asked_for():
    torch.manual_seed(0)
    rows = TensorTrainTable([100_000], 16, rank=8, init_scale=0.01)(torch.arange(0, 100_000, 10))
    assert rows.std().item() == pytest.approx(0.01, rel=0.05)  # few cores, so the spread itself varies
    assert (rows.abs() < 1e-4).float().mean() < 0.05  # a normal variable is this small in 1 % of cases


def test_mixed_dimensions_follow_the_power_law():
    table = MixedDimTable([16, 64, 1024, 256], 16, alpha=0.5)
    assert table.widths == (16, 8, 2, 4)
    assert table.serving_bytes() == 4 * (16 * 16 + 64 * 8 + 8 * 16 + 1024 * 2 + 2 * 16 + 256 * 4 + 4 * 16)
    dense = MixedDimTable([16, 64, 1024], 16, alpha=0)
    assert dense.widths == (16, 16, 16)
    assert torch.equal(dense(torch.arange(1104)), torch.cat(list(dense.rows)))


def test_a_projection_that_costs_more_than_it_saves_is_not_made():
    assert MixedDimTable([2, 9], 16, alpha=0.4).widths == (16, 16)  # 9 * 8 + 8 * 16 > 9 * 16


def test_each_field_is_projected_by_its_own_matrix():
    table = FieldWidthsTable([3, 5], 4, widths=[4, 2])
    expected = torch.cat([table.rows[0], table.rows[1] @ table.projections[1].weight.T])
    torch.testing.assert_close(table(torch.arange(8)), expected)
    torch.testing.assert_close(table(torch.tensor([[4, 0], [2, 7]])), expected[torch.tensor([[4, 0], [2, 7]])])


def test_autodim_answers_with_the_likeliest_width_and_serves_it():
    torch.manual_seed(0)
    table = AutoDimTable([7, 5], 8)
    assert table.widths == [2, 4, 8]
    for _ in range(3):
        table(torch.randint(12, (40,)))  # statistics of the normalisation
    with torch.no_grad():
        table.preferences.copy_(torch.tensor([[0.0, 3.0, 1.0], [2.0, 0.0, 0.0]]))
    assert table.chosen == [4, 2]
    table.settle()
    table.train()
    once, twice = table(torch.arange(12)), table(torch.arange(12))
    assert torch.equal(once, twice)  # no noise, and no statistics of the batch, once the search is over
    served = table.served()
    assert served.widths == (4, 2)
    torch.testing.assert_close(served(torch.arange(12)), table.eval()(torch.arange(12)))
    # rows, projections and biases of the widths kept
    assert table.serving_bytes() == 4 * (7 * 4 + 5 * 2 + 4 * 8 + 2 * 8 + 2 * 8)
    assert table.training_bytes() > 12 * 14 * 4


def test_a_settled_autodim_waits_for_no_gradient_that_never_comes():
    table = AutoDimTable([7, 5], 8)
    with torch.no_grad():
        table.preferences.copy_(torch.tensor([[1.0, 0, 0], [2.0, 0, 0]]))
    table.train().settle()
    table(torch.arange(12)).square().sum().backward()
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in table.parameters())


def test_autodim_mixes_widths_while_searching_and_cools():
    torch.manual_seed(0)
    table = AutoDimTable([7, 5], 8, anneal=0.4)
    table(torch.arange(12)).square().sum().backward()
    assert (table.preferences.grad != 0).all()
    assert all((rows.grad != 0).any() for rows in table.rows)
    for expected in (0.6, 0.2, 0.01, 0.01):
        table.after_step()
        assert table.temperature == pytest.approx(expected)


def test_bad_options_are_named():
    with pytest.raises(ValueError, match="rank is 0"):
        TensorTrainTable([5], 4, rank=0)
    with pytest.raises(ValueError, match="alpha is -1"):
        MixedDimTable([5, 9], 4, alpha=-1)
    with pytest.raises(ValueError, match="need 2 of 1 to 4"):
        FieldWidthsTable([5, 9], 4, widths=[4])
    with pytest.raises(ValueError, match=r"mixed-dim cannot keep to ratio 0\.5: no ratio saves"):
        MixedDimTable([5, 5], 4)  # fields of one size get one width
