"""The kernel that serves this CPU against its definition, and the patterns against those of the methods.

`test_triton_blocks` and `test_native_blocks` run what is marked `kernel` again, with other kernels.
"""

import os

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from listedpatterns import agree, pattern, sample

from workingpapers.errors import UserRemark
from workingpapers.methods.attention import listed, minference, native_blocks, triton_blocks
from workingpapers.methods.attention.common import dense_attention
from workingpapers.methods.attention.hip import HiPAttention
from workingpapers.methods.attention.listed import (
    Listed,
    available,
    listed_attention,
    naive_listed_attention,
    of_patterns,
    of_tree,
    of_window,
)
from workingpapers.methods.attention.lm_infinite import lambda_attention, lambda_mask
from workingpapers.methods.attention.minference_patterns import AShape, BlockSparse, VerticalSlash
from workingpapers.methods.attention.naive_hip import naive_hip_attention
from workingpapers.methods.attention.sparse_blocks import Blocks, Lines
from workingpapers.methods.attention.windows import window_attention

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # slow, so few and small examples
LONGEST = 200 if INTERPRETED else 500


@pytest.fixture(scope="module")
def kernel():
    """The module of the kernel that serves this CPU, with tiles of few keys where they can be chosen."""
    found = listed._kernel(*sample(16))
    if found is None:
        pytest.skip("no kernel serves this CPU: it takes a C++ compiler and AVX2, or Triton's interpreter")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_blocks, "TILE", 16)
        yield found


cases = given(
    T=st.integers(1, LONGEST),
    T_q=st.integers(1, LONGEST // 4),
    B=st.integers(1, 2),
    heads=st.sampled_from([(1, 1), (2, 1), (2, 2), (3, 1)]),
    block_q=st.sampled_from([5, 16, 40, 70]),
    block_k=st.sampled_from([1, 2, 7, 16]),
    widths=st.sampled_from([(16, 16), (8, 24), (20, 5)]),
    dtype=st.sampled_from([torch.float32, torch.float16] + [torch.bfloat16] * (not INTERPRETED)),
    lines=st.booleans(),
    seed=st.integers(0, 999),
)


@cases
@settings(max_examples=25 if INTERPRETED else 100, deadline=None, derandomize=True, phases=[Phase.generate])
def test_kernel_equals_the_definition(kernel, T, T_q, B, heads, block_q, block_k, widths, dtype, lines, seed):
    T_q = min(T_q, T)
    q, k, v = sample(T, T_q, B, *heads, *widths, seed=seed, dtype=dtype)
    agree(q, k, v, pattern(T, T_q, B, heads[0], block_q, block_k, lines, seed), scale=0.4)


def test_kernel_with_blocks_larger_than_a_tile_and_large_scores(kernel):
    q, k, v = sample(150, 140, d=16)
    agree(q, 100 * k, v, pattern(150, 140, 1, 2, 130, 16, True, 3))


def test_kernel_at_the_edges_of_windows(kernel):
    q, k, v = sample(130, 30, H=1)
    near = torch.tensor([[[30, 46]]])  # 70 keys before each block: some masked, some whole tiles
    for window in (1, 24, 40, 57, 90):
        agree(q, k, v, Listed(near, 16, sinks=35, window=window))


def test_kernel_with_strided_heads_and_nothing(kernel):
    q, k, v = sample(40, H=4, G=2)
    views = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k)]  # (B, T, H, d) in memory
    seen = pattern(40, 40, 1, 4, 16, 4, False, 5)
    agree(*views, v.mT.contiguous().mT, seen)
    out, lse = listed_attention(q, k, v, Listed(torch.full((1, 1, 3), 40), 16))
    assert (out == 0).all()
    assert (lse == -torch.inf).all()
    out, lse = listed_attention(q[:, :, :0], k, v, Listed(torch.zeros(1, 1, 0).long(), 16))
    assert (out.shape, lse.shape) == ((1, 4, 0, 8), (1, 4, 0))


def test_nan_in_a_kernel_reaches_those_who_see_it(kernel):
    q, k, v = sample(64)
    k[:, :, 16:32], v[:, :, 16:32] = torch.nan, torch.nan
    listed = torch.tensor([[-1], [-1], [0], [1]]).expand(1, 2, 4, 1)
    out, lse = listed_attention(q, k, v, Listed(torch.tensor([[[0, 64, 32, 48]]]), 16, listed=listed, block_k=16))
    assert out[:, :, :48].isfinite().all()
    assert out[:, :, 48:].isnan().all()
    assert lse[:, :, 48:].isnan().all()


def test_what_the_kernel_serves(kernel):
    q, k, v = sample(16)
    assert available(q, k, v)
    assert not available(*(x.double() for x in (q, k, v)))
    assert not available(q.requires_grad_(), k, v)
    with torch.no_grad():
        assert available(q, k, v)


def test_methods_use_the_kernel(kernel, monkeypatch):
    launches, launch = [], kernel.launch
    monkeypatch.setattr(kernel, "launch", lambda *given: (launches.append(1), launch(*given)))
    q, k, v = sample(100, 70, B=2, H=4, G=2, d=16, d_v=16)
    mask = torch.ones(2, 100, dtype=torch.bool)
    mask[0, :37] = False
    each = [
        AShape(3, 20),
        VerticalSlash(8, 5, last_q=8),
        BlockSparse(2),
        Lines(torch.tensor([2, 50]), torch.tensor([0, 30])),
    ]
    hip, inv_freq = HiPAttention(top_k=16, block_q=16, block_k=2, window=16, sinks=4), 100.0 ** (-torch.arange(8) / 8)
    earlier = hip.search(q[:, :, -4:-3], k[:, :, :-3])
    options = {"inv_freq": inv_freq, "n_local": 30, "n_global": 4, "key_mask": mask}
    ways = {
        "minference": lambda: minference.minference_attention(q, k, v, each, block_size=16, key_mask=mask),
        "hip": lambda: hip(q, k, v),
        "hip, a token": lambda: hip(q[:, :, -1:], k, v),
        "hip, an older search": lambda: hip.attend(q[:, :, -1:], k, v, earlier, age=3),
        "window": lambda: window_attention(q, k, v, window=30),
        "lambda": lambda: (lambda_attention(q, k, v, **options),),
    }
    for name, way in ways.items():
        launches.clear()
        found = way()
        assert launches, name
        with monkeypatch.context() as patch:
            patch.setattr(listed, "available", lambda *tensors: False)
            patch.setattr(native_blocks, "serves", lambda *tensors: False)
            for a, b in zip(found, way(), strict=True):
                torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_a_kernel_must_pass_its_own_test(kernel, monkeypatch):
    cpu = torch.device("cpu")
    for widths in ((16, 16), (40, 24)):
        assert listed._proven(kernel, cpu, torch.float32, *widths)
        assert listed._proven(kernel, cpu, torch.float16, *widths)

    def wrong(q, k, v, out, lse, *rest):
        launch(q, k, v, out, lse, *rest)
        out[0, 1, 50, 3] += 0.01

    def broken(*tensors):
        raise RuntimeError("no kernel image")

    launch = kernel.launch
    for way, message in ((wrong, "off by 1.0e-02"), (broken, "no kernel image")):
        listed._proven.cache_clear()
        monkeypatch.setattr(kernel, "launch", way)
        with pytest.warns(UserRemark, match=f"fails its test on cpu with torch.float32 of width 16.*{message}"):
            assert not available(*sample(4, d=16, d_v=16))
    listed._proven.cache_clear()


@given(
    T=st.integers(1, 90),
    T_q=st.integers(1, 90),
    c=st.sampled_from([1, 5, 16]),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_patterns_of_minference(T, T_q, c, seed):
    T_q, lines = min(T_q, T), Lines(torch.tensor([2, 7, 40]), torch.tensor([0, 9, 33]))
    frozen = Blocks(torch.tensor([[m, m // 2 if m else -1] for m in range(90)]))
    each = [AShape(3, 11), VerticalSlash(6, 4, last_q=5), BlockSparse(2), lines, frozen]
    q, k, v = sample(T, T_q, H=5, G=5, seed=seed, dtype=torch.float64)
    found = [x for h, p in enumerate(each) for x in p.find(q[0, h : h + 1], k[0, h : h + 1], block_size=c, scale=0.4)]
    got = naive_listed_attention(q, k, v, of_patterns(found, T_q, T, c), scale=0.4)
    expected = minference.naive_minference_attention(q, k, v, each, block_size=c, scale=0.4)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


@given(T=st.integers(1, 120), T_q=st.integers(1, 120), sinks=st.integers(0, 5), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_blocks_that_hip_finds(T, T_q, sinks, seed):
    hip = HiPAttention(top_k=8, block_q=8, block_k=2, window=12, sinks=sinks)
    q, k, v = sample(T, min(T_q, T), B=2, seed=seed, dtype=torch.float64)
    found, runs = hip.search(q, k), hip._runs(q.shape[2], T)
    candidates = torch.tensor([n for run in runs for n in run.candidates], dtype=torch.long)
    seen = of_tree(found, candidates, q.shape[2], 8, 2, sinks)
    expected = naive_hip_attention(hip, q, k, v, scale=0.4)
    for a, b in zip(naive_listed_attention(q, k, v, seen, scale=0.4), expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("T", "T_q", "window", "sinks"), [(300, 300, 20, 5), (300, 140, 1, 0), (40, 1, 64, 3)])
def test_windows(T, T_q, window, sinks):
    q, k, v = sample(T, T_q, dtype=torch.float64)
    mask = lambda_mask(T, window, sinks)[T - T_q :][None, None]
    got = naive_listed_attention(q, k, v, of_window(T_q, T, window, sinks=sinks))
    for a, b in zip(got, dense_attention(q, k, v, mask=mask, return_lse=True), strict=True):
        torch.testing.assert_close(a, b)


NEAR = torch.tensor([[[0, 16]]])


@pytest.mark.parametrize(
    ("seen", "message"),
    [
        (lambda: Listed(NEAR, 0), "must be 1 or more"),
        (lambda: Listed(NEAR, 16, lead=16), "lead 0 to block_q - 1"),
        (lambda: Listed(NEAR, 16, window=0), "window must be 1 or more"),
        (lambda: Listed(NEAR, 16, sinks=1, columns=torch.ones(1, 2, 1).long()), "sinks=0"),
        (lambda: Listed(NEAR, 16, lead=3), "no room for lead=3"),
        (lambda: Listed(NEAR[0], 16), "near must be"),
        (lambda: Listed(NEAR[..., :1], 16), "near must be"),
        (lambda: Listed(NEAR - 1, 16), "near must be"),
        (lambda: Listed(NEAR, 16, listed=torch.zeros(1, 2, 1, 1).long()), "listed must be whole numbers"),
        (lambda: Listed(NEAR, 16, listed=torch.zeros(1, 2, 2, 1)), "listed must be whole numbers"),
        (lambda: Listed(NEAR, 16, listed=torch.zeros(1, 2, 2, 2).long()), "name nothing twice"),
        (lambda: Listed(NEAR, 16, columns=torch.tensor([3, -1]).expand(1, 2, 2)), "must rise"),
        (lambda: Listed(NEAR, 16, columns=torch.tensor([-2, 1]).expand(1, 2, 2)), "must rise"),
        (lambda: Listed(NEAR, 16, offsets=torch.zeros(1, 2, 1).long()), "offsets must be 1 or more"),
        (
            lambda: Listed(NEAR, 16, listed=torch.zeros(1, 2, 2, 1).long(), offsets=torch.ones(1, 2, 1).long()),
            "keys would count twice",
        ),
    ],
)
def test_bad_patterns_are_refused(seen, message):
    with pytest.raises(ValueError, match=message):
        naive_listed_attention(*sample(32), seen())


def test_what_no_kernel_serves_is_told():
    tensors = sample(32, dtype=torch.float64)
    assert not available(*tensors)
    with pytest.raises(ValueError, match=r"no kernel serves torch\.float64 of width 8 on cpu"):
        listed_attention(*tensors, Listed(NEAR, 16))
