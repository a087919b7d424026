"""The fused kernels against the dense reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workingpapers.methods.attention.common import dense_attention
from workingpapers.methods.attention.fused import fused_attention, trainable_attention


def sample(seed, B=2, H=4, H_kv=2, T_q=5, T_k=7, d=8, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    shapes = (B, H, T_q, d), (B, H_kv, T_k, d), (B, H_kv, T_k, d)
    return [torch.randn(shape, generator=generator).to(device) for shape in shapes]


def same(got, expected, **tolerance):
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


@given(
    st.integers(0, 1000),
    st.integers(0, 9),
    st.integers(0, 9),
    st.sampled_from([1, 2, 4]),
    st.booleans(),
    st.sampled_from([None, "boolean", "added"]),
)
@settings(max_examples=60, deadline=None)
def test_equals_dense_attention(seed, T_q, T_k, H_kv, causal, kind):
    q, k, v = sample(seed, H_kv=H_kv, T_q=T_q, T_k=T_k)
    mask = None
    if kind is not None:
        mask = torch.rand(2, 1, T_q, T_k, generator=torch.Generator().manual_seed(seed)) > 0.6
    if kind == "added":
        mask = torch.randn(mask.shape).masked_fill(~mask, -torch.inf)
    got = fused_attention(q, k, v, causal=causal, scale=0.4, mask=mask)
    same(got, dense_attention(q, k, v, causal=causal, scale=0.4, mask=mask, return_lse=True))


def test_strided_views_and_gradients():
    q, k, v = sample(0, H=2, T_q=3, T_k=12)
    blocks = [x.unfold(2, 6, 3).mT.flatten(0, 1) for x in (k, v)]  # (B H, 3 blocks, 6, d), overlapping
    queries = q.flatten(0, 1)[:, None].repeat(1, 3, 1, 1)
    same(
        fused_attention(queries, *blocks),
        dense_attention(queries, *(x.contiguous() for x in blocks), causal=False, return_lse=True),
    )
    q, k, v = (x.double().requires_grad_() for x in sample(1, B=1, H=2, H_kv=1, T_q=3, T_k=4, d=2))
    assert torch.autograd.gradcheck(lambda *x: fused_attention(*x, causal=True), (q, k, v))


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("grad", [False, True])
def test_a_last_axis_that_is_not_dense(which, grad):
    tensors = [x.requires_grad_(grad) for x in sample(3, H_kv=4, T_q=40, T_k=40)]
    tensors[which] = tensors[which].mT.contiguous().mT
    expected = dense_attention(*tensors, causal=False, scale=1.0, return_lse=True)
    same(fused_attention(*tensors, scale=1.0), expected)
    same(trainable_attention(*tensors, 1.0), expected)


def test_a_nan_in_a_key_is_not_hidden():
    q, k, v = sample(2)
    k[0, 0, 3] = torch.nan
    out, lse = fused_attention(q, k, v)
    assert out[0, :2].isnan().all()
    assert lse[0, :2].isnan().all()
    assert out[0, 2:].isfinite().all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cuda_kernel_equals_dense_attention(dtype):
    for T_q, T_k, causal in ((5, 7, False), (40, 40, True), (33, 70, True)):
        q, k, v = (x.to(dtype) for x in sample(3, T_q=T_q, T_k=T_k, d=32, device="cuda"))
        mask = torch.rand(2, 1, T_q, T_k, device="cuda") > 0.6
        mask[:, :, 1] = False
        for m in (None, mask):
            got = fused_attention(q, k, v, causal=causal, mask=m)
            # bfloat16 weights lose 8 bits, float32 products run in TF32 at worst
            same(got, dense_attention(q, k, v, causal=causal, mask=m, return_lse=True), atol=2e-2, rtol=2e-2)
