"""HiP's search in Triton against the definition, in Triton's interpreter or on a GPU.

Triton decides when it is imported whether it interprets, so the tests of the kernel run in a process of their own.
"""

import os
import subprocess
import sys

import pytest
import torch
from hipsearches import by_definition

from workingpapers.errors import UserRemark
from workingpapers.methods.attention import triton_search
from workingpapers.methods.attention.hip import HiPAttention
from workingpapers.methods.attention.naive_hip import naive_hip_attention

interpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="not in Triton's interpreter")
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
SMALL = HiPAttention(top_k=6, block_q=4, block_k=2, window=3, sinks=2)


def whole(queries, length, d, B=1, H=2, G=1, dtype=torch.float32, device="cpu"):
    """Return queries, and keys that lie as (B, T, G, d), of whole numbers, whose products add up exactly."""
    generator = torch.Generator().manual_seed(length)
    shapes = (B, H, queries, d), (B, length, G, d)
    q, k = (torch.randint(-99, 100, s, generator=generator).to(device, dtype) for s in shapes)
    return q, k.transpose(1, 2)


def agree(hip, q, k):
    """Compare what is found with the definition, by which of equal scores the first are kept."""
    found = hip.search(q, k)
    assert found.dtype == torch.int32, "the kernel did not serve"
    assert found.flatten(0, 2).tolist() == by_definition(hip, q, k)


def test_in_the_interpreter():
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-k", "kernel", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout


@interpreted
@pytest.mark.parametrize(
    ("options", "queries", "length"),
    [
        ({"top_k": 6, "block_q": 4, "block_k": 2, "window": 3, "sinks": 2}, 22, 30),
        ({"top_k": 3, "block_q": 9, "block_k": 1, "window": 1, "sinks": 0, "center": True}, 12, 60),
        ({"top_k": 10, "block_q": 7, "block_k": 5, "window": 5, "sinks": 3, "query_stride": 3}, 10, 150),
        ({"top_k": 3, "block_q": 40, "block_k": 3, "window": 5, "sinks": 1, "query_stride": 1}, 50, 70),
        ({"top_k": 16, "block_q": 32, "block_k": 2, "window": 20, "sinks": 9}, 1, 300),
    ],
)
def test_kernel_equals_the_definition(options, queries, length, monkeypatch):
    monkeypatch.setattr(triton_search, "TILE", 16)
    monkeypatch.setattr(triton_search, "_proven", lambda *given: True)
    for dtype, d, heads in ((torch.float32, 20, (2, 1)), (torch.float16, 16, (1, 1))):
        agree(HiPAttention(**options), *whole(queries, length, d, 1, *heads, dtype=dtype))


@interpreted
def test_kernel_keeps_the_first_of_equal_scores_and_no_block_twice(monkeypatch):
    monkeypatch.setattr(triton_search, "_proven", lambda *given: True)
    for center in (False, True):
        q, k = torch.ones(1, 1, 2, 16), torch.zeros(1, 1, 90, 16)
        hip = HiPAttention(top_k=12, block_q=2, block_k=2, window=3, sinks=2, center=center)
        agree(hip, q, k)
        k[..., 40:, :] = 1.0
        agree(hip, q, k)
        q[..., 0], k[..., 7:50, 0], k[..., 7:50, 1] = 1e30, 1e30, -1e38  # infinity and more
        q[..., 1], k[..., 20:30, 1] = 1e30, -1e30  # infinity less infinity
        leaves = hip.search(q, k)
        assert (leaves.diff(dim=-1) > 0).all()
        assert 0 <= leaves.min() < leaves.max() < 42


@interpreted
def test_kernel_must_pass_its_own_test(monkeypatch):
    q, k = whole(8, 40, 16)
    assert triton_search.available(SMALL, q, k)
    assert triton_search.available(SMALL, q.half(), k.half())
    assert not triton_search.available(SMALL, q.double(), k.double())
    assert not triton_search.available(HiPAttention(top_k=2**14), q, k)
    search = triton_search.search
    for way, message in ((lambda *given: search(*given).roll(1, -1), "other keys"), (None, "not callable")):
        triton_search._proven.cache_clear()
        monkeypatch.setattr(triton_search, "search", way)
        with pytest.warns(UserRemark, match=f"triton_search.*of width 16.*{message}"):
            assert not triton_search.available(SMALL, q, k)
    triton_search._proven.cache_clear()


@pytest.mark.gpu
@CUDA
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("options", "queries", "length", "d"),
    [
        ({"top_k": 64}, 200, 1000, 128),
        ({"top_k": 64, "block_q": 1, "center": True}, 3, 2500, 64),
        ({"top_k": 35, "block_q": 70, "block_k": 5, "query_stride": 1, "window": 9, "sinks": 0}, 300, 300, 40),
        ({"top_k": 512}, 33, 2000, 64),
    ],
)
def test_on_a_gpu(options, queries, length, d, dtype):
    pytest.importorskip("triton")
    hip = HiPAttention(**options)
    q, k = whole(queries, length, d, 2, 4, 2, dtype, "cuda")
    if triton_search.available(hip, q, k):  # not float32 on the smaller GPUs
        agree(hip, q, k)


@pytest.mark.gpu
@CUDA
def test_random_keys_on_a_gpu():
    """Scores in another order of sums differ in their last bits, and so do few of the searches that compare them."""
    pytest.importorskip("triton")
    hip, generator = HiPAttention(top_k=128), torch.Generator("cuda").manual_seed(0)
    shapes = (1, 4, 100, 128), (1, 2, 3000, 128), (1, 2, 3000, 128)
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v = (torch.randn(s, generator=generator, device="cuda").to(dtype) for s in shapes)
        if not triton_search.available(hip, q, k):
            continue
        found = hip.search(q, k)
        assert (found.diff(dim=-1) > 0).all()
        pairs = zip(by_definition(hip, q, k), found.flatten(0, 2).tolist(), strict=True)
        same = sum(len({*a} & {*b}) for a, b in pairs)
        assert same >= 0.995 * found.numel()
        out, exact = hip(q, k, v)[0], naive_hip_attention(hip, *(x.double().cpu() for x in (q, k, v)))[0]
        differs = (out.double().cpu() - exact).abs().amax(dim=-1) > 8 * max(torch.finfo(dtype).eps, 1e-5)
        assert differs.double().mean() < 0.1


@pytest.mark.gpu
@CUDA
def test_other_lengths_are_not_compiled_anew():
    pytest.importorskip("triton")
    from workingpapers.methods.attention.triton_search_kernel import search

    def compiled():
        return sum(len(cache[0]) for cache in search.device_caches.values())

    counts = []
    for queries, length in ((700, 700), (1, 800), (33, 4096), (4097, 5001)):
        hip, (q, k) = HiPAttention(top_k=64), whole(queries, length, 64, dtype=torch.bfloat16, device="cuda")
        if not triton_search.available(hip, q, k):
            pytest.skip("the kernel does not serve")
        triton_search.search(hip, q, k, 1)
        counts.append(compiled())
    assert len(set(counts)) == 1
