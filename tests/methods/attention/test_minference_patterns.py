"""What the patterns find: planted lines, sums by their definition, and what is always kept."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workingpapers.methods.attention import minference_patterns
from workingpapers.methods.attention.minference_patterns import (
    AShape,
    BlockSparse,
    VerticalSlash,
    heads_at_once,
    naive_mask,
)

PATTERNS = st.one_of(
    st.builds(AShape, st.integers(0, 60), st.integers(1, 60)),
    st.builds(VerticalSlash, st.integers(0, 90), st.integers(1, 90), last_q=st.sampled_from([1, 5, 64])),
    st.builds(BlockSparse, st.integers(1, 9)),
)


def planted(T, columns, offsets, strength=40.0):
    """Return queries and keys whose weights all lie on some columns and diagonals, by one-hot positions."""
    i = torch.arange(T)
    q = torch.zeros(T, T, dtype=torch.float64)
    for o in offsets:
        q[i[o:], i[o:] - o] = strength
    q[:, columns] = strength
    return q.tril(), torch.eye(T, dtype=torch.float64)


def test_a_planted_head_is_recovered():
    columns, offsets = [3, 17, 40, 71, 99], [0, 7, 55]
    q, k = planted(160, columns, offsets)
    [found] = VerticalSlash(5, 3, n_first=0, n_near=1).find(q[None], k[None], block_size=1, scale=1.0)
    assert found.columns.tolist() == columns
    assert found.offsets.tolist() == offsets
    # A prompt that goes on with a cache shows the same lines to its last 80 queries.
    [late] = VerticalSlash(5, 3, n_first=0, n_near=1).find(q[None, 80:], k[None], block_size=1, scale=1.0)
    assert (late.columns.tolist(), late.offsets.tolist()) == (columns, offsets)


def test_first_columns_and_nearest_diagonals_are_always_kept():
    q, k = planted(160, [70], [50])
    [found] = VerticalSlash(10, 12).find(q[None], k[None], block_size=1, scale=1.0)
    assert found.columns[:5].tolist() == [0, 1, 2, 3, 4]
    assert found.offsets[:6].tolist() == [0, 1, 2, 3, 4, 5]
    assert 70 in found.columns
    assert 50 in found.offsets
    assert (len(found.columns), len(found.offsets)) == (10, 12)
    assert (VerticalSlash(1000, 6096).n_first, VerticalSlash(1000, 6096).n_near) == (30, 100)  # as published


def test_of_equal_sums_the_first_are_kept():
    for count, forced, kept in (
        (2, 0, [1, 2]),
        (4, 0, [0, 1, 2, 3]),
        (3, 1, [0, 1, 2]),
        (1, 2, [0]),
        (0, 1, []),
        (9, 0, range(6)),
    ):
        sums = torch.tensor([1.0, 3.0, 3.0, 3.0, 0.0, 1.0])
        [found] = minference_patterns._largest(sums[None], (count, forced))
        assert found.tolist() == list(kept)
    both = minference_patterns._largest(torch.stack([sums, -sums]), (2, 0), (3, 1))
    assert [x.tolist() for x in both] == [[1, 2], [0, 4, 5]]


def test_blocks_are_those_with_similar_means():
    k = torch.eye(8, dtype=torch.float64).repeat_interleave(4, dim=0)  # block m points along axis m
    q = k.roll(8, dims=0)  # and looks for block m - 2
    [found] = BlockSparse(2).find(q[None], k[None], block_size=4, scale=1.0)
    assert found.rows.tolist()[2:] == [[m - 2, m] for m in range(2, 8)]


@given(
    T=st.integers(1, 50),
    c=st.sampled_from([1, 4, 16]),
    pattern=PATTERNS,
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_every_row_sees_itself_and_no_future(T, c, pattern, seed):
    generator = torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, T, 4, generator=generator, dtype=torch.float64)
    mask = naive_mask(pattern, q, k, block_size=c, scale=0.5)
    assert mask.diagonal().all()
    assert not mask.triu(1).any()
    [found] = pattern.find(q[None], k[None], block_size=c, scale=0.5)
    assert found.entries(T, c) == mask.sum()


@given(
    T=st.integers(1, 90),
    T_q=st.integers(1, 90),
    c=st.sampled_from([1, 4, 16]),
    G=st.sampled_from([1, 2, 4]),
    pattern=PATTERNS,
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_heads_are_estimated_at_once_as_one_by_one(T, T_q, c, G, pattern, seed):
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(n, T, 4, generator=generator, dtype=torch.float64) for n in (4, G))
    q = q[:, -T_q:]
    together = pattern.find(q, k, block_size=c, scale=0.5)
    for h, found in enumerate(together):
        [alone] = pattern.find(q[h : h + 1], k[h * G // 4 : h * G // 4 + 1], block_size=c, scale=0.5)
        assert all(torch.equal(x, getattr(alone, name)) for name, x in vars(found).items())
        type(found)(**vars(found))  # passes its checks
    assert len(together) == 4


def test_a_gpu_estimates_as_many_heads_at_once_as_there_is_room_for():
    q, k = torch.empty(32, 2**17, 128, device="meta"), torch.empty(8, 2**17, 128, device="meta")
    chosen = AShape(), VerticalSlash(500, 700), BlockSparse()
    assert [heads_at_once(p, q, k, 64) >= 32 for p in chosen] == [True, False, False]
    assert heads_at_once(chosen[1], q, k, 64) * 128 * 2**17 * 4 <= 2**28  # keys in float32
    assert heads_at_once(chosen[2], q, k, 64) * 2048**2 * 4 <= 2**28  # scores of means
    assert heads_at_once(chosen[1], q[:, :, :1], torch.empty(1, 2**24, 1, device="meta"), 64) == 1
    assert heads_at_once(chosen[1], torch.zeros(32, 1, 4), torch.zeros(32, 1, 4), 64) == 1  # side by side on a CPU


@given(small=st.tuples(*[st.integers(1, 30)] * 2), more=st.tuples(*[st.integers(0, 10)] * 2), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_larger_budgets_keep_what_smaller_ones_keep(small, more, seed):
    """So the recovered attention can only grow, whatever the head."""
    q, k = torch.randn(2, 60, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    few, many = (
        VerticalSlash(*sizes).find(q[None], k[None], block_size=4, scale=1.0)[0]
        for sizes in (small, (small[0] + more[0], small[1] + more[1]))
    )
    assert torch.isin(few.columns, many.columns).all()
    assert torch.isin(few.offsets, many.offsets).all()
    few, many = (
        BlockSparse(n).find(q[None], k[None], block_size=4, scale=1.0)[0].rows for n in (small[0], small[0] + more[0])
    )
    assert all(set(a) - {-1} <= set(b) for a, b in zip(few.tolist(), many.tolist(), strict=True))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AShape(-1, 5), "n_init of AShape must be an integer, 0 or more; got -1"),
        (lambda: AShape(1, 0), "n_local of AShape"),
        (lambda: VerticalSlash(-1, 5), "n_vertical of VerticalSlash"),
        (lambda: VerticalSlash(5, 0), "n_slash of VerticalSlash"),
        (lambda: VerticalSlash(5, 5, n_near=0), "n_near of VerticalSlash"),
        (lambda: VerticalSlash(5, 2.5), "n_slash of VerticalSlash must be an integer, 1 or more; got 2.5"),
        (lambda: VerticalSlash(5, 5, last_q=0), "last_q of VerticalSlash"),
        (lambda: BlockSparse(0), "n_blocks of BlockSparse"),
    ],
)
def test_sizes_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()
