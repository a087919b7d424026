"""The kernels in C++, with the widest vectors of this processor and with those of AVX2."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hipsearches import by_definition
from hypothesis import given, settings
from hypothesis import strategies as st
from listedpatterns import sample
from torch.utils.flop_counter import FlopCounterMode

from workingpapers.methods.attention import native_blocks
from workingpapers.methods.attention.hip import HiPAttention
from workingpapers.methods.attention.windows import window_attention

pytestmark = pytest.mark.skipif(
    not native_blocks.serves(torch.zeros(1)), reason="no C++ compiler, or not x86-64 with AVX2"
)


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() != "AVX512", reason="the processor has nothing beyond AVX2")
def test_with_avx2():
    tests = [str(Path(__file__).with_name(name)) for name in ("test_listed.py", "test_native_blocks.py")]
    command = [sys.executable, "-m", "pytest", "-q", "-k", "kernel", "-p", "no:cacheprovider", *tests]
    narrow = {**os.environ, "ATEN_CPU_CAPABILITY": "avx2"}
    done = subprocess.run(command, env=narrow, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout


@given(
    T=st.integers(1, 400),
    queries=st.integers(1, 80),
    heads=st.sampled_from([(1, 1), (2, 1), (4, 2)]),
    block_q=st.sampled_from([1, 4, 40]),
    block_k=st.sampled_from([1, 2, 5]),
    n=st.integers(1, 12),
    stride=st.integers(1, 3),
    center=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=150, deadline=None)
def test_search_of_the_kernel(T, queries, heads, block_q, block_k, n, stride, center, seed):
    """It finds what the definition says, where rounding can't make a difference."""
    hip = HiPAttention(n * block_k, block_q, block_k, window=5, sinks=3, query_stride=stride, center=center)
    generator = torch.Generator().manual_seed(seed)
    # Multiples of 1/1024 below 1: sums of 7 products fit into the 24 bits of a float32.
    shapes = (1, heads[0], min(queries, T), 7), (1, T, heads[1], 7)
    q, k = (torch.randint(-1023, 1024, s, generator=generator) / 1024 for s in shapes)
    k = k.transpose(1, 2)
    for dtype in (torch.float32, torch.bfloat16):
        rounded = q.to(dtype), k.to(dtype)
        assert hip.search(*rounded).flatten(0, 2).tolist() == by_definition(hip, *rounded)


def test_scores_that_overflow_keep_the_search_of_the_kernel_sound():
    q, k = torch.full((1, 1, 64, 8), 1e30), torch.full((1, 1, 300, 8), -1e30)
    k[..., 100:, :4] = 1e30  # infinity less infinity
    found = HiPAttention(16, 8, 2, window=8, sinks=0).search(q, k)
    assert (found.diff(dim=-1) > 0).all()
    assert (found >= 0).all()
    assert found.max() < 150


def test_several_threads_and_strides():
    q, k, v = sample(900, 700, 2, 4, 2, 24, 20)
    one = window_attention(q, k, v, window=90)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        several = window_attention(*(x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)), window=90)
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(one, several, strict=True):
        assert torch.equal(a, b)


def test_under_modes_that_watch_operations_torch_does_the_work():
    q, k, v = sample(200)
    expected = window_attention(q, k, v, window=64)
    with FlopCounterMode(display=False):
        assert not native_blocks.serves(q, k, v)
        got = window_attention(q, k, v, window=64)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_half_precision_is_rounded_once():
    q, k, v = sample(300, d=32, d_v=32)
    for dtype in (torch.float16, torch.bfloat16):
        halves = [x.to(dtype) for x in (q, k, v)]
        out, lse = window_attention(*halves, window=100)
        exact, exact_lse = window_attention(*(x.float() for x in halves), window=100)
        assert torch.equal(out, exact.to(dtype))
        assert torch.equal(lse, exact_lse)
