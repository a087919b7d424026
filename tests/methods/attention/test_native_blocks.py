"""The kernels in C++, with the widest vectors of this processor and with those of AVX2."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from listedpatterns import sample
from torch.utils.flop_counter import FlopCounterMode

from workingpapers.methods.attention import native_blocks
from workingpapers.methods.attention.lm_infinite import window_attention

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
    m=st.integers(1, 4),
    s=st.integers(1, 40),
    n=st.integers(1, 70),
    run=st.sampled_from([1, 2, 8, 100]),
    step=st.integers(1, 3),
    d=st.sampled_from([1, 7, 64]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_best_scores_of_the_kernel(m, s, n, run, step, d, seed):
    generator = torch.Generator().manual_seed(seed)
    q, rows = torch.randn(m, s, d, generator=generator), torch.randn(400, d, generator=generator)
    places = torch.randint(0, 400 - (run - 1) * step, (m, n), generator=generator)
    got = native_blocks.best_scores(q, rows, places, run, step)
    keys = rows[places[..., None] + step * torch.arange(run)]  # (m, n, run, d)
    expected = torch.einsum("msd,mnrd->msnr", q.double(), keys.double()).amax(dim=(1, 3))
    # Sums of d products, in float32 and in another order.
    torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=1e-5)


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
