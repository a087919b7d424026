"""Softplus attention against its definition, its invariances and limits, and inside models."""

import math

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from workingpapers.methods.attention import softplus
from workingpapers.methods.attention.common import restore
from workingpapers.methods.attention.softplus import (
    apply_softplus_attention,
    naive_softplus_attention,
    softplus_attention,
)


def tensors(batch=1, heads=2, groups=1, length=9, keys=None, width=4, seed=0, dtype=torch.float64, grad=False):
    generator = torch.Generator().manual_seed(seed)
    shapes = (batch, heads, length, width), *[(batch, groups, keys or length, width)] * 2
    return [torch.randn(s, generator=generator, dtype=dtype).requires_grad_(grad) for s in shapes]


def weights(q, k, **options):
    """The rows of weights, (B, H, T, S): what attending to unit vectors gives."""
    identity = torch.eye(k.shape[2], dtype=k.dtype).expand(*k.shape[:2], -1, -1)
    return softplus_attention(q, k, identity, **options)


@given(
    length=st.integers(1, 9),
    past=st.integers(0, 4),
    batch=st.integers(1, 2),
    groups=st.sampled_from([1, 2, 4]),
    power=st.sampled_from([None, 1.0, 3.0, 15.0]),
    qk_norm=st.booleans(),
    causal=st.booleans(),
    padded=st.booleans(),
    slab=st.sampled_from([1, 64, 2**23]),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_equals_the_definition(length, past, batch, groups, power, qk_norm, causal, padded, slab, seed):
    q, k, v = tensors(batch, 4, groups, length, length + past, seed=seed, grad=True)
    mask = torch.rand(batch, length + past, generator=torch.Generator().manual_seed(seed)) < 0.7 if padded else None
    options = {"power": power, "qk_norm": qk_norm, "causal": causal, "key_mask": mask}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(softplus, "SLAB", slab)
        found = softplus_attention(q, k, v, **options)
    expected = naive_softplus_attention(q, k, v, **options)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)
    if expected.requires_grad:  # not where every row is empty
        gradients = [torch.autograd.grad((out**2).sum(), (q, k, v)) for out in (found, expected)]
        # A row near the threshold has steep gradients, up to 15 / 1e-4.
        torch.testing.assert_close(*gradients, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("power", [None, 3.0, 15.0])
def test_gradcheck(power):
    q, k, v = tensors(1, 2, 1, 6, width=3, grad=True)
    assert torch.autograd.gradcheck(lambda *x: softplus_attention(*x, power=power), (q, k, v))


@pytest.mark.parametrize("power", [None, 3.0, 15.0, 500.0])
def test_rows_sum_to_one_and_see_no_future(power):
    w = weights(*tensors(2, 4, 2, 30)[:2], power=power)
    torch.testing.assert_close(w.sum(dim=-1), torch.ones_like(w[..., 0]))
    assert (w >= 0).all()
    assert (w.triu(1) == 0).all()


def test_with_exp_for_softplus_it_is_softmax(monkeypatch):
    q, k, v = tensors(2, 4, 2, 30)
    rows = torch.arange(1, 31, dtype=torch.float64)[:, None].log().clamp(min=0.1)  # undo log N; row 1 sees one key
    monkeypatch.setattr(softplus.F, "softplus", torch.exp)
    found = softplus_attention(q / rows, k, v, power=None, qk_norm=False, scale=0.5)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


def test_the_length_of_queries_and_keys_does_not_matter():
    q, k, v = tensors(1, 2, 2, 20)
    sizes = torch.linspace(0.1, 30, 20, dtype=torch.float64)[:, None]
    for power in (None, 15.0):
        scaled = softplus_attention(q * sizes, 7 * k, v, power=power)
        torch.testing.assert_close(scaled, softplus_attention(q, k, v, power=power), atol=1e-10, rtol=1e-10)


def test_rotation_may_come_before_or_after_the_norm():
    q, k, v = tensors(1, 1, 1, 12)
    angle = torch.arange(12, dtype=torch.float64)[:, None] * torch.tensor([1.0, 0.1], dtype=torch.float64)

    def rotate(x):
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], dim=-1)

    before = softplus_attention(rotate(q), rotate(k), v)
    after = softplus_attention(rotate(F.normalize(q, dim=-1)), rotate(F.normalize(k, dim=-1)), v)
    torch.testing.assert_close(before, after, atol=1e-10, rtol=1e-10)


def test_a_large_power_takes_the_best_key():
    k = torch.eye(8, dtype=torch.float64)[None, None]
    q = torch.tensor([0.1, 0.9, -0.3, 0.2, 0.5, -0.8, 0.7, 0.0], dtype=torch.float64)[None, None, None]
    assert weights(q, k, power=500.0)[0, 0, 0, 1] > 0.999


def test_only_keys_above_average_survive():
    q, k, _ = tensors(1, 2, 1, 40)
    first, second = weights(q, k, power=None), weights(q, k, power=3.0)
    count = torch.arange(1, 41)[:, None]
    expected = (first * count > 1) & (count > 3) | (first > 0) & (count <= 3)
    assert (second > 0).equal(expected)


def test_scaled_scores_by_hand():
    q = torch.tensor([[[[1.0, 0.0]]]], dtype=torch.float64)
    k = torch.tensor([[[[2.0, 0.0], [0.0, 3.0]]]], dtype=torch.float64)
    a = [math.log1p(math.exp(math.log(2) * math.log(2) * cosine)) for cosine in (1.0, 0.0)]
    expected = torch.tensor([[[[a[0] / sum(a), a[1] / sum(a)]]]], dtype=torch.float64)
    torch.testing.assert_close(weights(q, k, power=None), expected)
    a = [math.log1p(math.exp(math.log(2) / math.sqrt(2) * math.log(2) * product)) for product in (2.0, 0.0)]
    expected = torch.tensor([[[[a[0] / sum(a), a[1] / sum(a)]]]], dtype=torch.float64)
    torch.testing.assert_close(weights(q, k, power=None, qk_norm=False), expected)


def test_uniform_rows_give_zero_and_finite_gradients():
    q, k, v = tensors(1, 1, 1, 50, dtype=torch.float32)
    k = torch.ones_like(k)
    inputs = [x.clone().requires_grad_() for x in (q, k, v)]
    out = softplus_attention(*inputs)
    assert (out[:, :, 3:] == 0).all()
    torch.testing.assert_close(
        out[0, 0, :3], (v[0, 0].cumsum(0) / torch.arange(1, 51)[:, None])[:3]
    )  # warm rows: means
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), inputs))


def test_padding_counts_only_real_tokens():
    q, k, v = tensors(1, 2, 1, 12)
    mask = torch.arange(12)[None] >= 5
    found = softplus_attention(q, k, v, key_mask=mask)
    torch.testing.assert_close(found[:, :, 5:], softplus_attention(*(x[:, :, 5:] for x in (q, k, v))))
    assert (found[:, :, :5] == 0).all()


def test_decoding_equals_prefill():
    q, k, v = tensors(2, 4, 2, 20)
    whole = softplus_attention(q, k, v)
    steps = [softplus_attention(q[:, :, i : i + 1], k[:, :, : i + 1], v[:, :, : i + 1]) for i in range(20)]
    torch.testing.assert_close(torch.cat(steps, dim=2), whole)
    torch.testing.assert_close(softplus_attention(q[:, :, 13:], k, v), whole[:, :, 13:])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    q, k, v = tensors(1, 2, 1, 200, width=16, dtype=dtype)
    found = softplus_attention(q, k, v)
    assert found.dtype == dtype
    exact = softplus_attention(q.float(), k.float(), v.float())
    torch.testing.assert_close(found, exact.to(dtype))  # only the output is rounded


def test_empty_single_and_odd_shapes():
    q, k, v = tensors(2, 4, 2, 1)
    torch.testing.assert_close(softplus_attention(q, k, v), v.repeat_interleave(2, dim=1))
    assert softplus_attention(q[:, :, :0], k[:, :, :0], v[:, :, :0]).shape == (2, 4, 0, 4)
    assert softplus_attention(q[:, :, :0], k, v).shape == (2, 4, 0, 4)
    assert (softplus_attention(q, k[:, :, :0], v[:, :, :0], causal=False) == 0).all()
    assert softplus_attention(q, k, v[..., :3]).shape == (2, 4, 1, 3)


def test_nan_reaches_the_rows_that_see_it():
    q, k, v = tensors(1, 1, 1, 10)
    k[0, 0, 4, 1] = torch.nan
    for power in (None, 15.0):
        out = softplus_attention(q, k, v, power=power)
        assert out[0, 0, 4:].isnan().all()
        assert out[0, 0, :4].isfinite().all()
    assert softplus_attention(q, k, v, key_mask=(torch.arange(10) != 4)[None]).isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"power": 0.0}, "power is 0.0; it must be positive"),
        ({"power": math.nan}, "power is nan"),
        ({"key_mask": torch.ones(1, 8, dtype=torch.bool)}, r"key_mask must be boolean \(B, S\) = \(1, 9\)"),
        ({"key_mask": torch.ones(1, 9)}, "key_mask must be boolean"),
        ({"k": torch.ones(1, 3, 9, 4, dtype=torch.float64)}, "must agree|multiple"),
        ({"q": torch.ones(1, 2, 10, 4, dtype=torch.float64)}, "at most as many queries as keys; got 10, 9"),
    ],
)
def test_bad_input_is_named(change, message):
    inputs = dict(zip("qkv", tensors(), strict=True))
    with pytest.raises(ValueError, match=message):
        softplus_attention(**(inputs | change))


FAMILIES = ["Llama", "Mistral", "Qwen2", "Qwen3", "SmolLM3", "Phi", "Phi3", "Gemma"]


def build(family="Llama"):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 50, "head_dim": 8}
    others = {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": None, "pad_token_id": 0}
    config = getattr(transformers, f"{family}Config")(**sizes, **others)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_in_a_model(family):
    model = build(family)
    ids = torch.randint(1, 50, (2, 12))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    dense = model(ids).logits
    apply_softplus_attention(model)
    whole = model(ids).logits
    assert not torch.allclose(whole, dense, atol=1e-4)
    cache = model(ids[:, :7]).past_key_values
    torch.testing.assert_close(model(ids[:, 7:], past_key_values=cache).logits, whole[:, 7:], atol=1e-5, rtol=1e-5)
    padded = model(ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
    torch.testing.assert_close(padded[0, 4:], model(ids[:1, 4:]).logits[0], atol=1e-5, rtol=1e-5)
    options = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    both = model.generate(ids, attention_mask=mask, **options)[:, 12:]
    alone = model.generate(ids[:1, 4:], attention_mask=mask[:1, 4:], **options)[0, 8:]
    assert both[0].equal(alone)
    restore(model)
    assert model(ids).logits.equal(dense)


def test_re_weighting_in_training_or_afterwards():
    ids = torch.randint(1, 50, (1, 16))
    outputs = {}
    for power, when in ((None, "train"), (15.0, "train"), (15.0, "eval")):
        model = apply_softplus_attention(build(), power=power, reweight_at=when)
        outputs[power, when] = model.train()(ids).logits, model.eval()(ids).logits
    assert outputs[15.0, "eval"][0].equal(outputs[None, "train"][0])
    assert outputs[15.0, "eval"][1].equal(outputs[15.0, "train"][1])
    assert outputs[15.0, "train"][0].equal(outputs[15.0, "train"][1])
    with pytest.raises(ValueError, match="reweight_at is 'never'; allowed: 'train', 'eval'"):
        apply_softplus_attention(build(), reweight_at="never")


def test_a_model_trains_with_it():
    model = apply_softplus_attention(build()).train()
    ids = torch.randint(1, 50, (4, 1)).repeat(1, 12) + torch.arange(12) % 2  # alternating pairs, one pair a row
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
