"""Parts of a cut sequence against dense attention under the mask that says the same, pair by pair."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workingpapers.methods.attention import sparse_blocks
from workingpapers.methods.attention.common import dense_attention
from workingpapers.methods.attention.sparse_blocks import Blocks, Lines


def sample(T, T_q=None, d=4, d_v=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (T_q or T, d), (T, d), (T, d_v)
    return [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]


def dense(q, k, v, mask, scale):
    tensors = (x[None, None] for x in (q, k, v))
    return [x[0, 0] for x in dense_attention(*tensors, scale=scale, mask=mask[None, None], return_lse=True)]


def lines_mask(lines, T, T_q, c):
    i, j = torch.arange(T - T_q, T)[:, None], torch.arange(T)
    mask = torch.isin(j, lines.columns).expand(T_q, T).clone()
    for o in lines.offsets.tolist():
        first = i // c * c - o
        mask |= (first <= j) & (j < first + c)
    return mask & (j <= i)


def blocks_mask(blocks, T, T_q, c):
    i, j = torch.arange(T - T_q, T)[:, None], torch.arange(T)
    mask = i // c == j // c
    for kept in blocks.rows[(torch.arange(T - T_q, T) // c)].T:
        mask |= kept[:, None] == j // c
    return mask & (j <= i)


lines = st.builds(
    lambda columns, offsets: Lines(
        torch.tensor(sorted(columns), dtype=torch.long), torch.tensor([0, *sorted(offsets)])
    ),
    st.sets(st.integers(0, 60), max_size=8),
    st.sets(st.integers(1, 60), max_size=12),
)


@given(
    lines=lines,
    T=st.integers(1, 60),
    T_q=st.integers(1, 60),
    c=st.sampled_from([1, 2, 5, 8, 64]),
    rows=st.sampled_from([1, 16, 2048]),
    gathered=st.sampled_from([1, 30, 4096]),
    seed=st.integers(0, 99),
)
@settings(max_examples=80, deadline=None)
def test_lines_equal_their_mask(lines, T, T_q, c, rows, gathered, seed):
    T_q = min(T_q, T)
    q, k, v = sample(T, T_q, d_v=4 + seed % 2, seed=seed)
    mask = lines_mask(lines, T, T_q, c)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse_blocks, "ROWS", rows)  # as long sequences are: a few rows at a time
        patch.setattr(sparse_blocks, "GATHERED", gathered)
        found = lines.attend(q, k, v, block_size=c, scale=0.6)
    for a, b in zip(found, dense(q, k, v, mask, 0.6), strict=True):
        torch.testing.assert_close(a, b)
    if T_q == T:
        assert lines.entries(T, c) == mask.sum()


@given(
    T=st.integers(1, 60),
    T_q=st.integers(1, 60),
    c=st.sampled_from([1, 2, 5, 8, 64]),
    n=st.integers(1, 5),
    gathered=st.sampled_from([1, 30, 4096]),
    seed=st.integers(0, 99),
)
@settings(max_examples=80, deadline=None)
def test_blocks_equal_their_mask(T, T_q, c, n, gathered, seed):
    T_q = min(T_q, T)
    q, k, v = sample(T, T_q, d_v=4 + seed % 2, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    rows = [[*torch.randperm(m + 1, generator=generator)[:n].tolist(), *[-1] * n][:n] for m in range(-(-T // c))]
    blocks = Blocks(torch.tensor(rows))
    mask = blocks_mask(blocks, T, T_q, c)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse_blocks, "GATHERED", gathered)
        patch.setattr(sparse_blocks, "ROWS", 16)
        found = blocks.attend(q, k, v, block_size=c, scale=0.6)
    for a, b in zip(found, dense(q, k, v, mask, 0.6), strict=True):
        torch.testing.assert_close(a, b)
    if T_q == T:
        assert blocks.entries(T, c) == mask.sum()


def test_lists_hold_what_a_block_sees_and_nothing_else(monkeypatch):
    sizes, attend = [], sparse_blocks.trainable_attention

    def count(q, k, v, scale, *, bias):
        sizes.append(k.shape[2])
        assert bias is None
        return attend(q, k, v, scale, bias=bias)

    monkeypatch.setattr(sparse_blocks, "trainable_attention", count)
    monkeypatch.setattr(sparse_blocks, "GATHERED", 1)  # a block at a time
    q, k, v = sample(64)
    Lines(torch.tensor([1, 2, 20]), torch.tensor([0, 40])).attend(q, k, v, block_size=8, scale=1.0)
    # The first block sees nothing and attends to anything, those at 8 and 16 see two columns, and later ones three. By
    # the diagonal, those at 40, 48 and 56 see keys 0 to 7, 8 to 15 and 16 to 23, of which 1, 2 and 20 are columns.
    assert sizes == [1, 2, 2, 3, 3, 3 + 6, 3 + 8, 3 + 7]


def test_scores_reach_far_and_overflow_nothing():
    q, k, v = sample(300)
    chosen = Lines(torch.tensor([3, 250]), torch.tensor([0, 40, 41, 200]))
    expected = dense(q, 300 * k, v, lines_mask(chosen, 300, 300, 16), 1.0)
    for a, b in zip(chosen.attend(q, 300 * k, v, block_size=16, scale=1.0), expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    q, k, v = (x.to(dtype) for x in sample(200, d=8, d_v=8))
    mask = lines_mask(chosen := Lines(torch.tensor([3, 90]), torch.tensor([0, 40, 100])), 200, 200, 16)
    out, lse = chosen.attend(q, k, v, block_size=16, scale=0.3)
    assert (out.dtype, lse.dtype) == (dtype, torch.float32)
    exact, exact_lse = dense(q.float(), k.float(), v.float(), mask, 0.3)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(out.float(), exact, atol=4 * eps, rtol=4 * eps)  # weights and outputs are rounded
    torch.testing.assert_close(lse, exact_lse, atol=4 * eps, rtol=0)


def test_gradients_are_those_of_the_mask():
    inputs = [x.requires_grad_() for x in sample(40)]
    chosen = Lines(torch.tensor([3, 20]), torch.tensor([0, 9, 25]))
    fast = torch.autograd.grad(chosen.attend(*inputs, block_size=4, scale=0.6)[0].square().sum(), inputs)
    slow = torch.autograd.grad(dense(*inputs, lines_mask(chosen, 40, 40, 4), 0.6)[0].square().sum(), inputs)
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("columns", "offsets", "message"),
    [
        ([1], [1], "offsets must start with 0"),
        ([1], [], "offsets must start with 0"),
        ([2, 1], [0], "columns must be whole numbers"),
        ([1, 1], [0], "columns must be whole numbers"),
        ([-1], [0], "columns must be whole numbers"),
        ([0.5], [0], "columns must be whole numbers"),
        ([0], [[0]], "offsets must be whole numbers"),
    ],
)
def test_lines_are_checked(columns, offsets, message):
    with pytest.raises(ValueError, match=message):
        Lines(torch.tensor(columns), torch.tensor(offsets))


def test_blocks_are_checked():
    for rows, message in (([0], "rows must be"), ([[1]], "in row m up to m"), ([[0, -1], [0, 0]], "once")):
        with pytest.raises(ValueError, match=message):
            Blocks(torch.tensor(rows))
    q, k, _ = sample(9)
    with pytest.raises(ValueError, match="at most 8 tokens cannot serve 9"):
        Blocks(torch.tensor([[0], [0]])).find(q[None], k[None], block_size=4, scale=1.0)
