"""HyperAttention against its definition, its exact limits, the unbiasedness of its row sums, and inside models."""

import math

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from workingpapers.methods.attention import hyper
from workingpapers.methods.attention.common import dense_attention, merge, restore
from workingpapers.methods.attention.hyper import (
    HyperAttention,
    apply_hyper_attention,
    block_sample_attention,
    sort_lsh,
)
from workingpapers.methods.attention.naive_hyper import naive_block_sample_weights, naive_hyper_attention

SMALL = HyperAttention(lsh_num_projs=3, block_size=4, sample_size=3, min_seq_len=4)


def tensors(batch=1, heads=2, groups=1, length=16, keys=None, width=4, seed=0, dtype=torch.float64, grad=False):
    generator = torch.Generator().manual_seed(seed)
    shapes = (batch, heads, length, width), *[(batch, groups, keys or length, width)] * 2
    return [torch.randn(s, generator=generator, dtype=dtype).requires_grad_(grad) for s in shapes]


def close(found, expected, tolerance=1e-12):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def sdpa(q, k, v, causal):
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)


@given(
    length=st.integers(1, 40),
    block_size=st.integers(0, 6),
    sample_size=st.integers(0, 5),
    min_seq_len=st.integers(1, 12),
    groups=st.sampled_from([1, 2, 4]),
    batch=st.integers(1, 2),
    causal=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_equals_the_definition(length, block_size, sample_size, min_seq_len, groups, batch, causal, seed):
    if block_size + sample_size == 0:
        sample_size = 1
    hyper = HyperAttention(
        lsh_num_projs=3, block_size=block_size, sample_size=sample_size, min_seq_len=min_seq_len, seed=seed
    )
    q, k, v = tensors(batch, 4, groups, length, seed=seed)
    # The definition's weights are float32.
    close(hyper(q, k, v, causal=causal), naive_hyper_attention(hyper, q, k, v, causal=causal), 1e-6)


@pytest.mark.parametrize("room", [0, 100, 400, 2**20])  # a group of heads at a time, two, all of a piece, everything
def test_several_groups_at_a_time_are_as_one(room, monkeypatch):
    q, k, v = tensors(batch=2, heads=6, groups=3, length=32)
    expected = SMALL(q, k, v)
    sizes = []
    monkeypatch.setattr(hyper, "_room", lambda _: room)
    monkeypatch.setattr(hyper, "sort_lsh", lambda x, d: sizes.append(x.numel()) or sort_lsh(x, d))
    close(SMALL(q, k, v), expected, 0)
    assert sum(sizes) == 2 * (q.numel() + k.numel()) // 2  # two levels, of halves
    assert max(sizes) <= max(room, q[0, :2, :16].numel())


@given(queries=st.integers(1, 20), keys=st.integers(9, 40), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_cross_attention_equals_the_definition(queries, keys, seed):
    hyper = HyperAttention(lsh_num_projs=2, block_size=4, sample_size=3, min_seq_len=1, seed=seed)
    q, k, v = tensors(1, 2, 1, queries, keys, seed=seed)
    close(hyper(q, k, v, causal=False), naive_hyper_attention(hyper, q, k, v, causal=False), 1e-6)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    "hyper",
    [
        HyperAttention(min_seq_len=38),
        HyperAttention(min_seq_len=20),  # halves of 19 queries are exact: so is the whole
        HyperAttention(block_size=37, sample_size=0, min_seq_len=1),
        HyperAttention(block_size=0, sample_size=37, min_seq_len=1),
    ],
)
def test_exact_limits(hyper, causal):
    q, k, v = tensors(2, 4, 2, 37 if causal else 19)  # without a mask nothing is halved
    out, lse = hyper(q, k, v, causal=causal)
    torch.testing.assert_close(out, sdpa(q, k, v, causal), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(lse, dense_attention(q, k, v, causal=causal, return_lse=True)[1])


def test_one_block_leaves_nothing_to_sample():
    q, k, v = tensors(1, 2, 2, 20)
    samples = torch.randint(20, (1, 2, 7))
    out, _ = block_sample_attention(q, k, v, torch.randn(4, 3), samples, block_size=20, scale=0.5)
    torch.testing.assert_close(out, sdpa(q, k, v, False), atol=1e-12, rtol=1e-12)


def test_every_key_sampled_as_often_is_exact():
    q, k, v = tensors(1, 2, 2, 20)
    samples = torch.arange(20).repeat(2).expand(1, 2, -1)
    for block_size in (0, 6):
        found = block_sample_attention(q, k, v, torch.randn(4, 3), samples, block_size=block_size, scale=0.5)
        close(found, dense_attention(q, k, v, causal=False, scale=0.5, return_lse=True))


def test_exact_halves_merge_to_the_whole():
    q, k, v = tensors(1, 2, 1, 24)
    exact = HyperAttention()
    halves = [exact(q, x, y, causal=False) for x, y in zip(k.split(10, 2), v.split(10, 2), strict=True)]
    whole = halves[0]
    for half in halves[1:]:
        whole = merge(*whole, *half)
    torch.testing.assert_close(whole[0], sdpa(q, k, v, False), atol=1e-12, rtol=1e-12)


def test_row_sums_are_unbiased():
    inputs = tensors(1, 1, 1, 40, width=4)
    many = [x.expand(2000, -1, -1, -1) for x in inputs]  # each sequence of a batch has samples of its own
    for causal, late in ((True, 0), (False, 0), (True, 25)):
        draws = SMALL(many[0][:, :, late:], *many[1:], causal=causal)[1].exp()
        true = dense_attention(*inputs, causal=causal, return_lse=True)[1].exp()[0, :, late:]
        # Within five standard errors in each row, and within 2 % over all rows.
        error = (draws.mean(0) - true).abs()
        assert (error <= 5 * draws.std(0) / math.sqrt(2000) + 1e-9).all()
        assert abs(draws.mean(0).sum() / true.sum() - 1) < 0.02


@pytest.mark.parametrize("projections", [1, 4, 7])
def test_neighbouring_buckets_differ_in_one_sign(projections):
    codes = torch.arange(2**projections)
    signs = (codes[:, None] >> torch.arange(projections)) % 2 * 2.0 - 1
    buckets = sort_lsh(signs, torch.eye(projections))
    assert sorted(buckets.tolist()) == codes.tolist()
    ordered = signs[buckets.argsort()]
    assert ((ordered[1:] != ordered[:-1]).sum(dim=1) == 1).all()


@pytest.mark.parametrize("projections", [1, 2, 7, 32])
def test_the_bits_of_a_bucket_are_parities_of_signs(projections):
    x, directions = torch.randn(100, 8), torch.randn(8, projections)
    for row, bucket in zip((x @ directions > 0).tolist(), sort_lsh(x, directions).tolist(), strict=True):
        assert bucket == int("".join(str(sum(row[: k + 1]) % 2) for k in range(projections)), 2)


def test_a_bucket_depends_on_direction_alone():
    x, directions = torch.randn(50, 8), torch.randn(8, 7)
    assert sort_lsh(x, directions).equal(sort_lsh(3 * x, directions))
    assert not sort_lsh(x, directions).equal(sort_lsh(-x, directions))


@given(length=st.integers(1, 30), batch=st.integers(1, 3), groups=st.sampled_from([1, 2]), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_padding_changes_nothing(length, batch, groups, seed):
    q, k, v = tensors(batch, 2, groups, length, seed=seed)
    mask = torch.rand(batch, length, generator=torch.Generator().manual_seed(seed)) < 0.7
    for b in range(batch):
        alone = torch.zeros(batch, length, dtype=torch.bool)
        alone[b] = mask[b]
        out, lse = SMALL(q, k, v, key_mask=alone)
        rows = mask[b]
        close((out[b : b + 1, :, rows], lse[b : b + 1, :, rows]), SMALL(*(x[b : b + 1, :, rows] for x in (q, k, v))))
        assert (out[~alone[:, None].expand(-1, 2, -1)] == 0).all()
        assert (lse[~alone[:, None].expand(-1, 2, -1)] == -torch.inf).all()


def test_padded_keys_without_a_causal_mask():
    q, k, v = tensors(2, 2, 1, 12, 30)
    mask = torch.ones(2, 30, dtype=torch.bool)
    mask[0, 20:], mask[1] = False, False
    out, lse = SMALL(q, k, v, causal=False, key_mask=mask)
    close((out[:1], lse[:1]), SMALL(q[:1], k[:1, :, :20], v[:1, :, :20], causal=False))
    assert (out[1] == 0).all()
    assert (lse[1] == -torch.inf).all()


def test_later_part_of_a_prompt():
    q, k, v = tensors(1, 2, 1, 40)
    exact = HyperAttention()
    close([exact(q[:, :, 25:], k, v)[0]], [sdpa(q, k, v, True)[:, :, 25:]])


def test_the_future_is_hidden():
    q, k, v = tensors(1, 2, 1, 37)
    before = SMALL(q, k, v)[0]
    # Only values change: hashes depend on keys, whose order within earlier blocks stays.
    k2, v2 = k.clone(), v.clone()
    k2[:, :, 30:], v2[:, :, 30:] = 5.0, 7.0
    after = SMALL(q, k2, v2)[0]
    assert after[:, :, :30].equal(before[:, :, :30])
    assert not after[:, :, 30:].equal(before[:, :, 30:])


@pytest.mark.parametrize("causal", [True, False])
def test_gradients(causal):
    q, k, v = tensors(1, 2, 1, 11, width=3, grad=True)
    # The hash is a step function: no input sits within 1e-6 of a step for this seed.
    assert torch.autograd.gradcheck(lambda *x: SMALL(*x, causal=causal), (q, k, v))


def test_gradients_equal_those_of_the_definition():
    q, k, v = tensors(2, 4, 2, 30, grad=True)
    generator = torch.Generator().manual_seed(1)
    found = []
    for out, lse in (SMALL(q, k, v), naive_hyper_attention(SMALL, q, k, v)):
        generator.manual_seed(1)
        loss = (out * torch.randn(out.shape, generator=generator, dtype=out.dtype)).sum() + lse.sin().sum()
        found.append(torch.autograd.grad(loss, (q, k, v)))
    close(*found, 1e-6)


def test_score_entries_are_those_of_the_recursion():
    hyper = HyperAttention(block_size=64, sample_size=64, min_seq_len=512)
    assert hyper.score_entries(8192, causal=False) == 8192 * 128
    assert hyper.score_entries(512, causal=False) == 512 * 128
    assert hyper.score_entries(511, causal=False) == 511**2
    assert hyper.score_entries(512) == 512 * 513 // 2
    for n in (1024, 2048, 65536):
        assert hyper.score_entries(n) == 2 * hyper.score_entries(n // 2) + n // 2 * 128


@pytest.mark.parametrize("causal", [True, False])
def test_score_entries_are_those_computed(causal, monkeypatch):
    from workingpapers.methods.attention import hyper as module

    entries, attend = [], module.trainable_attention

    def count(q, k, v, scale, *, causal=False, bias=None):
        n = q.shape[2]
        entries.append(q.shape[0] * q.shape[1] * (n * (n + 1) // 2 if causal else n * k.shape[2]))
        return attend(q, k, v, scale, causal=causal, bias=bias)

    monkeypatch.setattr(module, "trainable_attention", count)
    for length in (1, 7, 16, 64):  # no padding here: what pads a block or a half is not counted
        SMALL(*tensors(1, 1, 1, length), causal=causal)
        assert sum(entries) == SMALL.score_entries(length, causal=causal)
        entries.clear()


@pytest.mark.parametrize("causal", [True, False])
def test_memory_is_linear_in_length(causal):
    q, k, v = tensors(length=4096, heads=1, dtype=torch.float32)
    hyper = HyperAttention(block_size=64, sample_size=64, min_seq_len=256)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        hyper(q, k, v, causal=causal)
    # 4096^2 scores would take 64 MB.
    assert max(event.self_cpu_memory_usage for event in profile.key_averages()) < 16e6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    hyper = HyperAttention(block_size=16, sample_size=16, min_seq_len=32)
    q, k, v = tensors(1, 2, 1, 256, width=8, dtype=dtype)
    for causal in (True, False):
        out, lse = hyper(q, k, v, causal=causal)
        exact, exact_lse = hyper(q.float(), k.float(), v.float(), causal=causal)
        assert out.dtype == dtype
        assert lse.dtype == torch.float32
        torch.testing.assert_close(out.float(), exact, atol=0.02, rtol=0.02)  # a few units of bfloat16
        # log(256 / 16) is no bfloat16 number; rounding it would shift the mean by up to 8e-3.
        assert abs((lse - exact_lse).mean()) < 2e-3


def test_empty_and_single():
    for length in (0, 1):
        q, k, v = tensors(2, 2, 1, length)
        if length == 0:
            k, v = k[:, :, :0], v[:, :, :0]
        for causal in (True, False):
            out, lse = SMALL(q, k, v, causal=causal)
            assert out.shape == q.shape
            assert lse.shape == q.shape[:3]
            torch.testing.assert_close(out, v.expand_as(out))


def test_nan_is_an_error_where_estimated_and_passed_on_where_exact():
    q, k, v = tensors(1, 1, 1, 40)
    k[0, 0, 5, 1] = torch.nan
    with pytest.raises(ValueError, match="k holds NaN"):
        SMALL(q, k, v)
    out, _ = HyperAttention()(q, k, v)
    assert out[0, 0, 5:].isnan().all()
    assert out[0, 0, :5].isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_size": 0, "sample_size": 0}, "block_size 0 and sample_size 0"),
        ({"block_size": -1}, "block_size -1"),
        ({"lsh_num_projs": 0}, "lsh_num_projs is 0; allowed: 1 to 32"),
        ({"min_seq_len": 0}, "min_seq_len is 0"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        HyperAttention(**options)


def test_bad_tensors_are_named():
    q, k, v = tensors(1, 2, 1, 8)
    with pytest.raises(ValueError, match="must be a multiple"):
        SMALL(q, *[x.repeat(1, 3, 1, 1) for x in (k, v)])
    with pytest.raises(ValueError, match="at most as many queries as keys; got 8, 5"):
        SMALL(q, k[:, :, :5], v[:, :, :5])
    for mask in (torch.ones(1, 7, dtype=torch.bool), torch.ones(1, 8)):
        with pytest.raises(ValueError, match=r"key_mask must be boolean \(B, S\) = \(1, 8\)"):
            SMALL(q, k, v, key_mask=mask)


def test_hashed_blocks_help_where_queries_resemble_keys():
    generator = torch.Generator().manual_seed(0)
    centres = 1.5 * torch.randn(128, 16, generator=generator)  # more clusters than a sample can meet
    points = centres[torch.randint(128, (1024,), generator=generator)]
    q, k = (points + 0.3 * torch.randn(1, 1, 1024, 16, generator=generator) for _ in range(2))
    true = sdpa(q, k, k, False)

    def error(block_size, sample_size, seed):
        hyper = HyperAttention(block_size=block_size, sample_size=sample_size, min_seq_len=1, seed=seed)
        return (hyper(q, k, k, causal=False)[0] - true).norm() / true.norm()

    for seed in range(3):  # the same number of scores: about 0.25 against 0.45
        assert error(64, 64, seed) < 0.8 * error(0, 128, seed)


FAMILIES = ["Llama", "Mistral", "Qwen2", "Qwen3", "SmolLM3", "Phi", "Phi3", "Gemma"]


def build(family="Llama"):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3, "vocab_size": 50, "head_dim": 8}
    others = {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": None, "pad_token_id": 0}
    config = getattr(transformers, f"{family}Config")(**sizes, **others)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_in_a_model(family):
    model = build(family)
    ids = torch.randint(50, (1, 40))
    dense = model(ids).logits
    apply_hyper_attention(model, HyperAttention())
    torch.testing.assert_close(model(ids).logits, dense, atol=1e-5, rtol=1e-5)  # too short for an estimate
    restore(model)
    assert model(ids).logits.equal(dense)
    apply_hyper_attention(model, SMALL, layers=[-1])
    last = model(ids).logits
    assert last.equal(model(ids).logits), "the same prompt gives the same logits"
    assert not torch.allclose(last, dense, atol=1e-4)
    restore(model)
    apply_hyper_attention(model, SMALL)
    assert not torch.allclose(model(ids).logits, last, atol=1e-4)
    restore(model)
    assert model(ids).logits.equal(dense)


@torch.no_grad()
def test_left_padding_and_generation():
    model = build()
    ids = torch.randint(1, 50, (2, 24))
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    apply_hyper_attention(model, SMALL, layers=range(-2, 0))
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    both = model.generate(ids, attention_mask=mask, **options)[:, 24:]
    for row in range(2):
        alone = ids[row : row + 1, mask[row].bool()]
        assert model.generate(alone, attention_mask=torch.ones_like(alone), **options)[0, -4:].equal(both[row])
    restore(model)


@torch.no_grad()
def test_decoding_is_exact():
    model = build()
    ids = torch.randint(1, 50, (1, 21))
    dense = model(ids).logits
    apply_hyper_attention(model, HyperAttention(min_seq_len=11))
    cache = model(ids[:, :20]).past_key_values  # 20 tokens: fewer than twice 11
    torch.testing.assert_close(model(ids[:, 20:], past_key_values=cache).logits[:, 0], dense[:, 20])


def test_layers_that_do_not_exist_are_named():
    with pytest.raises(ValueError, match=r"layers holds \[3, -4\]; LlamaForCausalLM has layers 0 to 2"):
        apply_hyper_attention(build(), layers=[0, 3, -4])


def test_weights_count_each_draw():
    q, k, _ = tensors(1, 1, 1, 6, 12)
    weights = naive_block_sample_weights(q, k, torch.randn(4, 2), torch.tensor([[[3, 3, 9]]]), 4)
    assert set(weights.unique().tolist()) <= {0.0, 1.0, 4.0, 8.0}
    assert ((weights == 1).sum(dim=-1) == 4).all()
