"""LM-Infinite against its definition, its mask, its cache and the models that it enters."""

import copy

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tinymodels import FAMILIES, left_padded, tiny, tokens

from workingpapers.methods.attention import common, rope_scaling
from workingpapers.methods.attention.common import dense_attention, rotate
from workingpapers.methods.attention.lambda_cache import LambdaCache, LambdaLayer
from workingpapers.methods.attention.lm_infinite import (
    apply,
    lambda_attention,
    lambda_mask,
    naive_lambda_attention,
    score_entries,
)
from workingpapers.methods.attention.windows import window_attention

INV_FREQ = 1e4 ** -(torch.arange(0, 8, 2) / 8)


def sample(T, B=2, H=4, H_kv=2, d=8, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(B, h, T, d, generator=generator, dtype=dtype) for h in (H, H_kv, H_kv)]


def rotated(x, shift=0):
    return rotate(x, (torch.arange(x.shape[2]) + shift)[:, None].double() * INV_FREQ)


def paper(q, k, v, shift=0, **options):
    """`lambda_attention` on queries and keys that are not rotated yet."""
    q, k = (rotated(x, shift) for x in (q, k))
    return lambda_attention(q, k, v, inv_freq=INV_FREQ, **options)


def contiguous_mask(batch, length, seed):
    """Padding of random length left and right of each row; rows may be padding altogether."""
    generator = torch.Generator().manual_seed(seed)
    ends = torch.randint(length + 1, (2, batch, 1), generator=generator).sort(dim=0).values
    columns = torch.arange(length)
    return (columns >= ends[0]) & (columns < ends[1])


def test_equals_dense_attention_up_to_the_window():
    q, k, v = sample(12)
    torch.testing.assert_close(paper(q, k, v, n_local=12, n_global=3), dense_attention(rotated(q), rotated(k), v))


def test_equals_dense_attention_with_limited_distances():
    """T = 3.5 n_l, every logit built by hand from d(t) = min(t, L)."""
    q, k, v = sample(28, B=1)
    t = torch.arange(28)[:, None] - torch.arange(28)
    scores = torch.empty(1, 4, 28, 28, dtype=q.dtype)
    for i in range(28):
        for j in range(i + 1):
            turned = rotate(q[:, :, i], min(i - j, 8) * INV_FREQ.double())
            scores[:, :, i, j] = (turned * k.repeat_interleave(2, 1)[:, :, j]).sum(-1) / 8**0.5
    visible = (t >= 0) & ((t < 8) | (torch.arange(28) < 3))
    expected = scores.masked_fill(~visible, -torch.inf).softmax(-1) @ v.repeat_interleave(2, 1)
    # Angles pass through float32, as in models: 1e-5.
    torch.testing.assert_close(paper(q, k, v, n_local=8, n_global=3), expected, atol=1e-5, rtol=0)


@given(
    T=st.integers(0, 90),
    n_local=st.integers(1, 40),
    n_global=st.integers(0, 12),
    further=st.integers(0, 9),
    H_kv=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 1000),
    pad=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_equals_the_definition(T, n_local, n_global, further, H_kv, seed, pad):
    q, k, v = sample(T, H_kv=H_kv, seed=seed)
    options = {
        "n_local": n_local,
        "n_global": n_global,
        "distance_limit": n_local + further,
        "scale": 0.7,
        "key_mask": contiguous_mask(2, T, seed) if pad else None,
    }
    expected = naive_lambda_attention(q, k, v, inv_freq=INV_FREQ, **options)
    torch.testing.assert_close(paper(q, k, v, **options), expected, atol=1e-5, rtol=0)


@given(
    T_q=st.integers(0, 90),
    past=st.integers(0, 30),
    window=st.integers(1, 40),
    seed=st.integers(0, 1000),
    pad=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_the_window_equals_a_masked_dense_attention(T_q, past, window, seed, pad):
    q, k, v = sample(T_q + past, seed=seed)
    mask = contiguous_mask(2, T_q + past, seed) if pad else torch.ones(2, T_q + past, dtype=torch.bool)
    seen = lambda_mask(T_q + past, window, 0)[past:] & mask[:, None]
    expected = dense_attention(q[:, :, past:], k, v, causal=False, mask=seen[:, None], return_lse=True)
    got = window_attention(q[:, :, past:], k, v, window=window, key_mask=mask if pad else None)
    real = mask[:, None, past:].expand(2, 4, T_q)  # rows of padding may see the tokens before them, or nothing
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a[real], b[real])


@pytest.mark.parametrize("padding", [None, 0, 5, 22])
@pytest.mark.parametrize("n_local", [4, 6, 11])
@pytest.mark.parametrize("chunks", [[1] * 40, [25] + [1] * 15, [7, 13, 1, 1, 18], [40]])
def test_decoding_with_the_cache_equals_prefill(chunks, n_local, padding):
    q, k, v = sample(40)
    q, k = rotated(q), rotated(k)
    mask = None if padding is None else left_padded(2, 40, padding).bool()
    options = {"inv_freq": INV_FREQ, "n_local": n_local, "n_global": 4}
    whole = lambda_attention(q, k, v, key_mask=mask, **options)
    cache, layer, done, parts = LambdaCache(1, n_local, 4), None, 0, []
    layer = cache.layers[0]
    layer.start = None if padding is None else torch.tensor([padding, 0])
    for size in chunks:
        part = slice(done, done + size)
        keys, values = cache.update(k[:, :, part], v[:, :, part], 0)
        done += size
        seen = None if mask is None else mask[:, :done]
        parts.append(lambda_attention(q[:, :, part], keys, values, key_mask=seen, length=done, **options))
        assert layer.keys.shape[2] <= 4 + n_local - 1
        assert (layer.get_seq_length(), layer.get_mask_sizes(2)) == (done, (done + 2, 0))
    torch.testing.assert_close(torch.cat(parts, 2), whole, atol=1e-6, rtol=0)


def operations(function):
    """How many operations of torch run, views not counted: on a GPU each is a launch."""
    with torch.no_grad(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function()
    views = {"aten::slice", "aten::unsqueeze", "aten::view", "aten::expand", "aten::as_strided", "aten::empty"}
    roots = (event for event in profile.events() if event.cpu_parent is None)
    return sum(event.name not in views for event in roots)


def test_decoding_without_padding_takes_few_operations():
    q, k, v = sample(1, dtype=torch.float32)
    cache = LambdaCache(1, 12, 4)
    cache.update(k.expand(-1, -1, 40, -1), v.expand(-1, -1, 40, -1), 0)

    def step():
        keys, values = cache.update(k, v, 0)
        options = {"inv_freq": INV_FREQ, "n_local": 12, "n_global": 4, "length": cache.get_seq_length()}
        lambda_attention(q, keys, values, **options)

    assert operations(step) < 40


def test_values_reach_the_rows_that_see_them_and_no_others():
    q, k, v = sample(40)
    before = paper(q, k, v, n_local=8, n_global=4)
    for j in (2, 3, 4, 10):
        changed = v.clone()
        changed[:, :, j] += 1
        moved = (paper(q, k, changed, n_local=8, n_global=4) - before).abs().amax((0, 1, 3)) > 1e-9
        i = torch.arange(40)
        assert torch.equal(moved, (i >= j) & ((i - j < 8) | (j < 4))), j


@pytest.mark.parametrize("shift", [1, 1000, 100_000])
def test_only_differences_of_positions_matter(shift):
    q, k, v = sample(40)
    near, far = (paper(q, k, v, shift=s, n_local=8, n_global=4) for s in (0, shift))
    # The test rotates with float64 angles; the method turns back by float32 ones of the column numbers.
    torch.testing.assert_close(far, near, atol=1e-5, rtol=0)


def test_first_tokens_stay_at_the_limit():
    """The same text behind a longer gap: a sink's weight does not depend on how far away it is."""
    q, k, v = sample(60, B=1)
    q[:, :, 20:40], k[:, :, 20:40], v[:, :, 20:40] = (x[:, :, 40:] for x in (q, k, v))
    out = paper(q, k, v, n_local=8, n_global=4)
    torch.testing.assert_close(out[:, :, 27:40], out[:, :, 47:], atol=1e-5, rtol=0)


@given(st.integers(0, 60), st.integers(1, 20), st.integers(0, 20))
@settings(max_examples=50, deadline=None)
def test_scores_are_those_of_the_mask(T, n_local, n_global):
    mask = lambda_mask(T, n_local, n_global)
    assert score_entries(T, n_local, n_global) == mask.sum()
    assert T == 0 or mask.sum(1).max() <= n_local + n_global


def test_cost_is_linear_in_length():
    assert score_entries(80_000, 512, 10) / score_entries(10_000, 512, 10) == pytest.approx(8, rel=0.03)
    q, k, v = sample(4096, B=1, H=1, H_kv=1, dtype=torch.float32)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        paper(q, k, v, n_local=64)
    # Linear memory: the largest operation holds a few copies of the inputs (128 kB each); T^2 scores would take 64 MB.
    assert max(event.self_cpu_memory_usage for event in profile.key_averages()) < 16e6


def test_gradients_equal_those_of_the_definition():
    inputs = [x.requires_grad_() for x in sample(50, B=1, H=2, H_kv=1)]
    options = {"n_local": 9, "n_global": 3}
    fast = torch.autograd.grad(paper(*inputs, **options).square().sum(), inputs)
    naive = naive_lambda_attention(*inputs, inv_freq=INV_FREQ, **options)
    for a, b in zip(fast, torch.autograd.grad(naive.square().sum(), inputs), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_partial_rotation(dtype):
    q, k, v = (x.to(dtype) for x in sample(50))
    angles = torch.arange(50)[:, None] * INV_FREQ[:2]
    options = {"inv_freq": INV_FREQ[:2], "n_local": 9, "n_global": 3}  # 4 of 8 dimensions turn
    out = lambda_attention(rotate(q, angles), rotate(k, angles), v, **options)
    exact = naive_lambda_attention(q.double(), k.double(), v.double(), **options)
    assert out.dtype == dtype
    # Queries and keys are rounded after each of two rotations, scores of about 3 inherit it.
    torch.testing.assert_close(out.double(), exact, atol=30 * torch.finfo(dtype).eps, rtol=0)


def test_a_nan_in_a_key_is_not_hidden():
    q, k, v = sample(40)
    k[0, 0, 2] = torch.nan  # a sink: every later row of query heads 0 and 1 sees it
    wrong = paper(q, k, v, n_local=8, n_global=4).isnan().any(-1)
    assert wrong[0, :2, 2:].all()
    assert not wrong[0, 2:].any()
    assert not wrong[1].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_local": 0}, "n_local >= 1"),
        ({"n_local": 4, "n_global": -1}, "n_global >= 0"),
        ({"n_local": 4, "distance_limit": 3}, "distance_limit"),
        ({"n_local": 8, "length": 100, "n_global": 4}, "cache holds too few or too many"),
        ({"n_local": 15, "length": 30, "n_global": 4, "queries": 3}, "cache holds too few or too many"),
        ({"n_local": 8, "length": 19, "n_global": 4, "queries": 3}, "cache holds too few or too many"),
        ({"n_local": 8, "length": 10}, "cache holds too few or too many"),
        ({"n_local": 8, "key_mask": torch.ones(2, 19, dtype=torch.bool)}, "key_mask must be boolean"),
        ({"n_local": 8, "key_mask": torch.ones(2, 20)}, "key_mask must be boolean"),
        ({"n_local": 8, "key_mask": torch.arange(40).view(2, 20) % 5 > 0}, "padding between real tokens"),
        ({"n_local": 8, "inv_freq": torch.ones(5)}, "5 frequencies; at most 4 turn 8 numbers"),
    ],
)
def test_refuses_bad_input(options, message):
    q, k, v = sample(20)
    with pytest.raises(ValueError, match=message):
        lambda_attention(q[:, :, -options.pop("queries", 20) :], k, v, **{"inv_freq": INV_FREQ, **options})


def test_no_queries_give_no_outputs():
    q, k, v = sample(20)
    assert lambda_attention(q[:, :, :0], k, v, inv_freq=INV_FREQ, n_local=8).shape == (2, 4, 0, 8)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_models_decode_as_they_prefill(family):
    model, ids = tiny(family), tokens(2, 40)
    plain = model(ids).logits
    apply(model, n_local=12, n_global=3)
    long = model(ids).logits
    # One softmax in two implementations up to the window, another function behind it.
    torch.testing.assert_close(long[:, :12], plain[:, :12], atol=2e-5, rtol=1e-4)
    assert (long[:, 13:] - plain[:, 13:]).abs().amax() > 1e-3
    output = model(ids[:, :20])
    logits = [output.logits]
    for i in range(20, 40):
        output = model(ids[:, i : i + 1], cache=output.cache)
        logits.append(output.logits)
    assert type(output.cache) is LambdaCache
    assert output.cache.layers[1].keys.shape[2] == 3 + 12 - 1
    torch.testing.assert_close(torch.cat(logits, 1), long, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(model(ids, use_cache=False).logits, long)
    assert torch.equal(common.restore(model)(ids).logits, plain)


@pytest.mark.parametrize("beams", [1, 2])
@torch.no_grad()
def test_generates_alike_with_padding_and_without(beams):
    model = apply(tiny(), n_local=12, n_global=3)
    ids, mask = tokens(2, 30), left_padded(2, 30, 9)
    options = {"max_new_tokens": 12, "do_sample": False, "num_beams": beams}
    batch = model.generate(ids, attention_mask=mask, **options)
    assert torch.equal(batch[0, 30:], model.generate(ids[:1, 9:], **options)[0, 21:])
    assert torch.equal(batch[1, 30:], model.generate(ids[1:], **options)[0, 30:])
    no_cache = model.generate(ids, attention_mask=mask, use_cache=False, **options)
    assert torch.equal(batch, no_cache)


@torch.no_grad()
def test_short_rows_get_the_sinks_that_they_write_themselves():
    """A row of 2 real tokens has its other sinks among the generated ones."""
    model = apply(tiny(), n_local=8, n_global=6)
    ids, mask = tokens(2, 30), left_padded(2, 30, 28)
    batch = model.generate(ids, attention_mask=mask, max_new_tokens=30, do_sample=False)
    alone = model.generate(ids[:1, 28:], max_new_tokens=30, do_sample=False)
    assert torch.equal(batch[0, 28:], alone[0])


@torch.no_grad()
def test_follows_a_change_of_the_basis():
    ids, basis = tokens(1, 40), rope_scaling.Basis(factor=4)
    first = apply(rope_scaling.apply(tiny(), basis), n_local=12, n_global=3)
    last = rope_scaling.apply(apply(tiny(), n_local=12, n_global=3), basis)
    assert torch.equal(first(ids).logits, last(ids).logits)


def test_the_window_defaults_to_the_training_length():
    model = apply(tiny(max_position_embeddings=16), n_global=2)
    cache = model(tokens(1, 40)).cache
    assert cache.layers[0].keys.shape[2] == 2 + 16 - 1


@torch.no_grad()
def test_caches_of_the_user():
    model, ids = apply(tiny(), n_local=12, n_global=3), tokens(1, 30)
    mine = transformers.DynamicCache()
    model(ids, cache=mine)
    assert isinstance(mine.layers[0], LambdaLayer)  # in place: the user's own loop goes on with it
    named = [model.base_model(ids[:, :1], **{name: copy.deepcopy(mine)})[0] for name in ("cache", "past_key_values")]
    assert torch.equal(*named)  # the former name
    mine.reset()
    assert mine.get_seq_length() == 0
    torch.testing.assert_close(model(ids, cache=mine).logits, model(ids).logits)
    with pytest.raises(ValueError, match="keeps n_local=20 and n_global=3"):
        model(ids, cache=LambdaCache(2, 20, 3))
    with pytest.raises(ValueError, match="cropped"):
        mine.crop(-1)
    with pytest.raises(ValueError, match="Static caches"):
        model(ids, cache=transformers.StaticCache(model.config, max_cache_len=50))
    with pytest.raises(ValueError, match="n_local >= 1"):
        LambdaCache(2, 0, 3)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_refuses_frequencies_that_change(kind):
    parameters = {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0}
    if kind == "longrope":
        parameters |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 64}
    model = tiny(rope_parameters=parameters)
    with pytest.raises(ValueError, match=f"rope type '{kind}' changes"):
        apply(model)
    assert not hasattr(model, "_workingpapers_attention")


def test_refuses_other_layouts_and_options():
    with pytest.raises(ValueError, match="other pairs of dimensions"):
        apply(tiny("Cohere"))
    with pytest.raises(ValueError, match="GPTJAttention rotates other pairs"):
        apply(tiny("GPTJ", n_embd=16, n_head=2, n_layer=1, rotary_dim=4))
    with pytest.raises(ValueError, match="n_local >= 1"):
        apply(tiny(), n_local=0)
    with pytest.raises(ValueError, match="distance_limit"):
        apply(tiny(), n_local=8, distance_limit=4)
