"""The dense reference, merging, and the door into transformers' decoders."""

import copy

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tinymodels import FAMILIES, left_padded, tiny, tokens
from torch.nn import functional as F
from transformers.models.phi3.modeling_phi3 import apply_rotary_pos_emb

from workingpapers.methods.attention import common
from workingpapers.methods.attention.common import dense_attention, merge


def sample(B=2, H=4, H_kv=2, T_q=5, T_k=7, d=8, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shapes = (B, H, T_q, d), (B, H_kv, T_k, d), (B, H_kv, T_k, d)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def dense(q, k, v, *, scale, key_mask, module, **kwargs):
    """Dense attention as `apply` takes it."""
    return dense_attention(q, k, v, scale=scale, mask=None if key_mask is None else key_mask[:, None, None])


@pytest.mark.parametrize("causal", [True, False])
def test_dense_equals_torch(causal):
    q, k, v = sample(T_q=7)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True, scale=0.3)
    torch.testing.assert_close(dense_attention(q, k, v, causal=causal, scale=0.3), expected)


def test_queries_are_the_last_of_the_keys():
    q, k, v = sample(T_q=7)
    whole = dense_attention(q, k, v)
    torch.testing.assert_close(dense_attention(q[:, :, 4:], k, v), whole[:, :, 4:])


def test_masks_boolean_and_added():
    q, k, v = sample()
    seen = torch.rand(2, 1, 5, 7, generator=torch.Generator().manual_seed(1)) > 0.3
    added = torch.zeros(seen.shape, dtype=q.dtype).masked_fill(~seen, -torch.inf)
    torch.testing.assert_close(dense_attention(q, k, v, mask=seen), dense_attention(q, k, v, mask=added))
    bias = torch.randn(1, 4, 5, 7, dtype=q.dtype)
    out, lse = dense_attention(q, k, v, causal=False, mask=bias, return_lse=True)
    scores = q @ k.repeat_interleave(2, 1).mT / 8**0.5 + bias
    torch.testing.assert_close(lse, scores.logsumexp(-1))
    torch.testing.assert_close(out, scores.softmax(-1) @ v.repeat_interleave(2, 1))


def test_rows_that_see_nothing_are_zero_with_a_gradient_of_zero():
    q, k, v = sample()
    q.requires_grad_()
    mask = torch.ones(1, 1, 5, 7, dtype=torch.bool)
    mask[..., 2, :] = False
    out, lse = dense_attention(q, k, v, mask=mask, return_lse=True)
    assert (out[:, :, 2] == 0).all()
    assert (lse[:, :, 2] == -torch.inf).all()
    (gradient,) = torch.autograd.grad(out.square().sum(), q)
    assert (gradient[:, :, 2] == 0).all()
    assert gradient.isfinite().all()
    assert (gradient[:, :, 3] != 0).any()


def test_weights_sum_to_one_however_large_the_scores():
    q, k, v = sample(dtype=torch.float32)
    out = dense_attention(1e3 * q, 1e3 * k, torch.ones_like(v))
    torch.testing.assert_close(out, torch.ones_like(out))
    mask = torch.zeros(1, 1, 5, 7)
    mask[..., 2, :] = -1e9  # what some models add to hide keys, here all of them
    out = dense_attention(q, k, v, causal=False, mask=mask)
    torch.testing.assert_close(out[:, :, 2], v.mean(dim=2).repeat_interleave(2, 1))


def test_a_nan_in_a_key_comes_out_where_it_is_seen_and_only_there():
    q, k, v = sample()
    k[0, 1, 4] = torch.nan  # seen by query heads 2 and 3 from query 2 on (7 keys, 5 queries)
    wrong = dense_attention(q, k, v).isnan().any(-1)
    expected = torch.zeros(2, 4, 5, dtype=torch.bool)
    expected[0, 2:, 2:] = True
    assert torch.equal(wrong, expected)


@pytest.mark.parametrize(("T_q", "T_k"), [(0, 0), (0, 3), (3, 0), (1, 1), (4, 2)])
def test_lengths_at_the_edge(T_q, T_k):
    q, k, v = sample(T_q=T_q, T_k=T_k)
    out, lse = dense_attention(q, k, v, return_lse=True)
    assert out.shape == (2, 4, T_q, 8)
    blind = max(0, T_q - T_k)  # causal queries before the first key
    assert (out[:, :, :blind] == 0).all()
    assert torch.equal(lse.isfinite(), (torch.arange(T_q) >= blind).expand(2, 4, T_q))
    if T_k == 1:
        torch.testing.assert_close(out, v.repeat_interleave(2, 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_only_inputs_and_output(dtype):
    q, k, v = (x.to(dtype) for x in sample())
    out, lse = dense_attention(q, k, v, return_lse=True)
    exact, exact_lse = dense_attention(q.double(), k.double(), v.double(), return_lse=True)
    assert out.dtype == dtype
    assert lse.dtype == torch.float32
    torch.testing.assert_close(out, exact.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)
    torch.testing.assert_close(lse, exact_lse.float(), rtol=1e-5, atol=1e-5)


@given(st.integers(0, 7), st.integers(0, 1000), st.booleans())
@settings(max_examples=30, deadline=None)
def test_parts_merge_to_the_whole(cut, seed, causal):
    q, k, v = sample(seed=seed)
    seen = torch.rand(2, 1, 5, 7, generator=torch.Generator().manual_seed(seed)) > 0.6  # some rows see nothing
    if causal:
        seen &= common.causal_mask(5, 7)
    parts = [
        dense_attention(q, k[:, :, s], v[:, :, s], causal=False, mask=seen[..., s], return_lse=True)
        for s in (slice(cut), slice(cut, None))
    ]
    expected = dense_attention(q, k, v, causal=False, mask=seen, return_lse=True)
    for got, want in zip(merge(*parts[0], *parts[1]), expected, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v: (q[0], k, v), "4-D"),
        (lambda q, k, v: (q.float(), k, v), "one floating dtype"),
        (lambda q, k, v: (q.long(), k.long(), v.long()), "one floating dtype"),
        (lambda q, k, v: (q[:1], k, v), "agree in B"),
        (lambda q, k, v: (q, k[:, :, 1:], v), "agree in B"),
        (lambda q, k, v: (q, k[..., 1:], v), "agree in B"),
        (lambda q, k, v: (q[..., :0], k[..., :0], v), "1 or more wide"),
        (lambda q, k, v: (q, k, v[..., :0]), "1 or more wide"),
        (lambda q, k, v: (q[:, :3], k, v), "3 query heads must be a multiple of the 2"),
        (lambda q, k, v: (q, k[:, :0], v[:, :0]), "multiple of the 0"),
    ],
)
def test_refuses_tensors_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        dense_attention(*change(*sample()))


def test_refuses_masks_that_do_not_fit_and_values_that_are_not_finite():
    q, k, v = sample()
    with pytest.raises(ValueError, match="must broadcast"):
        dense_attention(q, k, v, mask=torch.ones(5, 7, dtype=torch.bool))
    with pytest.raises(ValueError, match="must broadcast"):
        dense_attention(q, k, v, mask=torch.ones(2, 1, 5, 6, dtype=torch.bool))
    with pytest.raises(ValueError, match="boolean"):
        dense_attention(q, k, v, mask=torch.ones(2, 1, 5, 7, dtype=torch.long))
    k[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="k holds NaN"):
        common.check_inputs(q, k, v, finite=True)
    with pytest.raises(ValueError, match="merge takes"):
        merge(q, q[..., 0], q, q[..., :1])


@pytest.mark.parametrize("dim", [8, 4])
def test_rotation_is_that_of_transformers(dim):
    q, k, _ = sample(T_q=7, dtype=torch.float32)
    k = k.repeat_interleave(2, 1)
    angles = torch.arange(7)[:, None] * 1e4 ** -(torch.arange(0, dim, 2) / dim)
    both = torch.cat([angles, angles], -1)[None]
    expected = apply_rotary_pos_emb(q, k, both.cos(), both.sin())
    torch.testing.assert_close(common.rotate(q, angles), expected[0])
    torch.testing.assert_close(common.rotate(k, angles), expected[1])


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_dense_attention_through_the_door_changes_no_model(family):
    model, ids = tiny(family), tokens(2, 12)
    ids[0, :3] = 0
    mask = left_padded(2, 12, 3)
    real = mask.bool()
    config, name = model.config.to_dict(), model.config._attn_implementation
    plain, padded = model(ids).logits, model(ids, attention_mask=mask).logits
    written = model.generate(ids, attention_mask=mask, max_new_tokens=5, do_sample=False)

    assert common.apply(model, "dense", dense) is model
    assert model.config._attn_implementation != name
    # Two implementations of one softmax, logits of about 1: float32 rounding.
    torch.testing.assert_close(model(ids).logits, plain, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(model(ids, attention_mask=mask).logits[real], padded[real], atol=2e-5, rtol=1e-4)
    assert torch.equal(model.generate(ids, attention_mask=mask, max_new_tokens=5, do_sample=False), written)
    first = model(ids[:, :7], attention_mask=mask[:, :7], use_cache=True)
    second = model(ids[:, 7:], attention_mask=mask, cache=first.cache)
    both = torch.cat([first.logits, second.logits], 1)
    torch.testing.assert_close(both[1], padded[1], atol=2e-5, rtol=1e-4)

    assert common.restore(model) is model
    assert torch.equal(model(ids).logits, plain)
    assert torch.equal(model(ids, attention_mask=mask).logits, padded)
    assert model.config.to_dict() == config
    assert model.config._attn_implementation == name
    assert not any("workingpapers" in attribute for attribute in vars(model))


@torch.no_grad()
def test_the_function_is_what_runs_and_only_in_that_model():
    model, other, ids = tiny(), tiny(seed=1), tokens(1, 6)
    before, expected = other(ids).logits, model(ids).logits
    common.apply(model, "nothing", lambda q, k, v, **kwargs: torch.zeros_like(q))
    assert (model(ids).logits - expected).abs().max() > 0.01
    assert torch.equal(other(ids).logits, before)
    twin = copy.deepcopy(model)
    assert torch.equal(common.restore(model)(ids).logits, expected)
    assert (twin(ids).logits - expected).abs().max() > 0.01
    assert torch.equal(common.restore(twin)(ids).logits, expected)


def test_gradients_flow_through_the_door():
    model, ids = common.apply(tiny(), "dense", dense).train(), tokens(1, 6)
    model(ids, labels=ids).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@torch.no_grad()
def test_prepare_sees_each_forward_pass_and_restore_removes_it():
    model, ids, seen = tiny(), tokens(1, 6), []

    def prepare(base, kwargs):
        seen.append(type(base).__name__)
        return {**kwargs, "extra": len(seen)}

    def attention(q, k, v, *, extra, **kwargs):
        assert extra == len(seen)
        return dense(q, k, v, **kwargs)

    common.apply(model, "dense", attention, prepare=prepare)
    model(ids)
    model.model(ids)
    common.restore(model)(ids)
    assert seen == ["LlamaModel"] * 2


@torch.no_grad()
@pytest.mark.parametrize("family", ["Llama", "GPTNeoX"])
def test_prepare_gets_arguments_by_name_however_they_are_given(family):
    model, ids, seen = tiny(family), tokens(1, 6), []

    def prepare(base, kwargs):
        seen.append(kwargs["input_ids"])
        return kwargs

    expected = model.base_model(ids).last_hidden_state
    common.apply(model, "dense", dense, prepare=prepare)
    # 1e-5: float32 sums in another order than torch's own attention.
    torch.testing.assert_close(model.base_model(ids).last_hidden_state, expected, atol=1e-5, rtol=1e-5)
    model(ids)
    assert all(given is ids for given in seen)
    assert len(seen) == 2


def test_a_compiled_model_takes_a_mask_and_says_so():
    model, ids = common.apply(tiny(), "dense", dense), tokens(1, 6)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        out = compiled(ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        torch.testing.assert_close(out, model(ids, use_cache=False).logits)
        with pytest.raises(ValueError, match="a compiled model needs an attention_mask"):
            compiled(ids, use_cache=False)
    torch.compiler.reset()


def small(kind, **options):
    return transformers.AutoModel.from_config(getattr(transformers, f"{kind}Config")(**options))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: torch.nn.Linear(2, 2), "expected a model of transformers"),
        (lambda: small("GPT2", n_layer=1, n_embd=8, n_head=2, vocab_size=9), "0 rotary position embeddings"),
        (
            lambda: small(
                "Bert", num_hidden_layers=1, hidden_size=8, num_attention_heads=2, intermediate_size=8, vocab_size=9
            ),
            "encoder",
        ),
        (lambda: small("T5", num_layers=1, d_model=8, num_heads=2, d_kv=4, d_ff=8, vocab_size=9), "encoder"),
        (
            lambda: small(
                "ModernBert",
                num_hidden_layers=1,
                hidden_size=8,
                num_attention_heads=2,
                intermediate_size=8,
                vocab_size=9,
                pad_token_id=0,
                eos_token_id=1,
                bos_token_id=1,
                cls_token_id=1,
                sep_token_id=1,
            ),
            "encoder",
        ),
        (lambda: tiny("Gemma2", attn_logit_softcapping=50.0), "caps its scores"),
        (lambda: tiny("Gemma3Text", layer_types=["sliding_attention", "full_attention"]), r"0 \(sliding_attention\)"),
        (lambda: tiny("Mistral", sliding_window=8), "sliding_window=8"),
    ],
    ids=["no transformer", "GPT-2", "BERT", "T5", "ModernBERT", "soft cap", "some windows", "all windows"],
)
def test_refuses_models_by_name(model, message):
    model = model()
    with pytest.raises(ValueError, match=message):
        common.apply(model, "dense", dense)
    assert not hasattr(model, "_workingpapers_attention")


def test_refuses_uses_that_it_would_get_wrong():
    model, ids = tiny(attention_dropout=0.1), tokens(2, 6)
    with pytest.raises(ValueError, match="nothing to restore"):
        common.restore(model)
    common.apply(model, "dense", dense)
    with pytest.raises(ValueError, match="already runs 'dense'"):
        common.apply(model, "again", dense)
    with pytest.raises(ValueError, match="no attention dropout"):
        model.train()(ids)
    model.eval()
    with pytest.raises(ValueError, match="packed sequences"):
        model(ids, position_ids=torch.tensor([[0, 1, 2, 0, 1, 2]]), use_cache=False)
    with pytest.raises(ValueError, match="padding mask"):
        model(ids, attention_mask=torch.ones(2, 1, 6, 6, dtype=torch.bool))
    with pytest.raises(ValueError, match="as there are tokens so far, 6; they hold 5"):
        model(ids, attention_mask=torch.ones(2, 5, dtype=torch.long), use_cache=False)
    with pytest.raises(ValueError, match="Static caches"):
        model(ids, cache=transformers.StaticCache(model.config, max_cache_len=10))
    with pytest.raises(ValueError, match="Static caches"):
        model.generate(ids, max_new_tokens=2, cache_implementation="static", pad_token_id=0)
