"""HiP against its definition, exact top-k where the two agree, its counts, and inside models."""

import math

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tinymodels import FAMILIES, left_padded, tiny, tokens
from torch.nn import functional as F

from workingpapers.methods.attention import common, gathering, hip
from workingpapers.methods.attention.common import dense_attention, merge
from workingpapers.methods.attention.hip import HiPAttention, apply
from workingpapers.methods.attention.naive_hip import naive_hip_attention, naive_hip_mask

SMALL = HiPAttention(top_k=6, block_q=4, block_k=2, window=3, sinks=2)
options = st.builds(
    lambda n, block_k, **others: HiPAttention(top_k=n * block_k, block_k=block_k, **others),
    n=st.integers(1, 6),
    block_q=st.integers(1, 9),
    block_k=st.integers(1, 4),
    window=st.integers(1, 12),
    sinks=st.integers(0, 6),
    query_stride=st.integers(1, 3),
    center=st.booleans(),
)


def tensors(length=40, past=0, batch=1, heads=4, groups=2, width=8, seed=0, dtype=torch.float64, d_v=None):
    generator = torch.Generator().manual_seed(seed)
    shapes = (heads, length, width), (groups, length + past, width), (groups, length + past, d_v or width)
    return [torch.randn(batch, *shape, generator=generator, dtype=dtype) for shape in shapes]


def close(found, expected, **tolerance):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


@given(
    options=options,
    length=st.integers(0, 90),
    past=st.integers(0, 40),
    groups=st.sampled_from([1, 2, 4]),
    d_v=st.sampled_from([5, 8]),
    seed=st.integers(0, 999),
)
@settings(max_examples=60, deadline=None)
def test_equals_the_definition(options, length, past, groups, d_v, seed):
    q, k, v = tensors(length, past, batch=2, groups=groups, d_v=d_v, seed=seed)
    close(options(q, k, v, scale=0.7), naive_hip_attention(options, q, k, v, scale=0.7))


@given(options=options, length=st.integers(1, 60), past=st.integers(0, 20), ends=st.data(), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_padding_changes_nothing(options, length, past, ends, seed):
    q, k, v = tensors(length, past, batch=2, seed=seed)
    mask = torch.zeros(2, length + past, dtype=torch.bool)
    out, lse = torch.zeros_like(q), torch.full(q.shape[:3], -torch.inf, dtype=q.dtype)
    for row in range(2):
        begin, end = sorted(ends.draw(st.tuples(*[st.integers(0, length + past)] * 2)))
        mask[row, begin:end] = True
        if end > max(begin, past):
            queries, keys = slice(max(0, begin - past), end - past), slice(begin, end)
            alone = q[[row], :, queries], k[[row], :, keys], v[[row], :, keys]
            out[[row], :, queries], lse[[row], :, queries] = naive_hip_attention(options, *alone)
    close(options(q, k, v, key_mask=mask), (out, lse))


@pytest.mark.parametrize("block_k", [1, 2, 8])
def test_a_budget_for_all_keys_is_exact(block_k):
    q, k, v = tensors(100, dtype=torch.float32)
    out, _ = HiPAttention(top_k=104, block_q=8, block_k=block_k, window=1, sinks=0)(q, k, v)
    exact = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(out, exact, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rising", [True, False])
def test_finds_the_top_k_where_scores_are_monotone(rising):
    position = torch.arange(70, dtype=torch.float64).view(1, 1, -1, 1)
    k = position if rising else -position
    one = HiPAttention(top_k=5, block_q=1, block_k=1, window=1, sinks=0)
    found = one.search(torch.ones_like(k), k)[0, 0]
    for t, leaves in zip(range(70 - len(found), 70), found, strict=True):
        assert leaves.equal(k[0, 0, :t, 0].topk(5).indices.sort().values)


@given(options=options, length=st.integers(1, 150), past=st.integers(0, 50), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_found_blocks_are_distinct_and_between_sinks_and_window(options, length, past, seed):
    q, k, _ = tensors(length, past, seed=seed)
    found = options.search(q, k)
    blocks = math.ceil(length / options.block_q)
    assert (found.diff(dim=-1) > 0).all()
    assert (found >= 0).all()
    for number in range(found.shape[2]):
        first = past + (blocks - found.shape[2] + number) * options.block_q  # position of the block's first query
        assert (options.sinks + (found[:, :, number] + 1) * options.block_k <= first - options.window + 1).all()


@given(options=options, length=st.integers(0, 150), past=st.integers(0, 50), age=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_how_many_blocks_search(options, length, past, age):
    runs = options._runs(length, length + past, age)
    assert options._searching(length, length + past, age) == sum(len(run.candidates) for run in runs)


def test_is_dense_attention_under_what_it_found():
    q, k, v = tensors(60)
    found, past = SMALL.search(q, k), 60 - 4 * SMALL.search(q, k).shape[2]
    mask = torch.ones(1, 4, 60, 60, dtype=torch.bool)
    for h in range(4):
        for number, leaves in enumerate(found[0, h].tolist()):
            rows = slice(past + 4 * number, past + 4 * number + 4)
            candidates = (rows.start - 3 + 1 - 2) // 2
            for block in set(range(candidates)) - set(leaves):
                mask[0, h, rows, 2 + 2 * block : 4 + 2 * block] = False
    close(SMALL.attend(q, k, v, found), dense_attention(q, k, v, mask=mask, return_lse=True))
    assert mask.tril().equal(naive_hip_mask(SMALL, q, k))


def test_needs_neighbours_that_score_alike():
    one = HiPAttention(top_k=32, block_q=1, block_k=1, window=8, sinks=0)
    generator = torch.Generator().manual_seed(0)
    q, walk = (torch.randn(4, 8, n, 16, generator=generator) for n in (1, 1024))
    walk = walk.cumsum(dim=2)
    shuffled = torch.cat([walk[:, :, torch.randperm(1017, generator=generator)], walk[:, :, 1017:]], dim=2)

    def recall(k):
        best = (q @ k.mT)[:, :, 0, :1017].topk(32).indices
        return float((one.search(q, k)[:, :, 0, :, None] == best[:, :, None]).any(-1).double().mean())

    assert recall(walk) > 0.9
    # Without order one of the best 32 is found if it happens to be scored, as 32 keys at first and in each of 5 rounds.
    assert recall(shuffled) == pytest.approx(32 * 6 / 1017, abs=0.05)  # 4 standard errors of 1024 draws


def counted(monkeypatch, sampled, attention, *arguments, **options):
    """Return how many scores a call computes: visible pairs, and those of `sampled` queries in searches."""
    entries, attend, attend_biased, take = [], hip.fused_attention, hip.trainable_attention, gathering.Runs.take

    def count_attend(q, k, v, *, causal, scale):
        assert causal
        seen = torch.ones(len(q), q.shape[1], q.shape[2], k.shape[2], dtype=torch.bool)
        entries.append(int(seen.tril(k.shape[2] - q.shape[2]).sum()))
        return attend(q, k, v, causal=causal, scale=scale)

    def count_biased(q, k, v, scale, *, bias):
        entries.append(int((bias == 0).expand(len(q), q.shape[1], q.shape[2], k.shape[2]).sum()))
        return attend_biased(q, k, v, scale, bias=bias)

    def count_take(self, places):
        if not torch.is_grad_enabled():  # the search, each of whose keys meets every sampled query
            entries.append(places.numel() * attention.block_k * sampled)
        return take(self, places)

    monkeypatch.setattr(hip, "fused_attention", count_attend)
    monkeypatch.setattr(hip, "trainable_attention", count_biased)
    monkeypatch.setattr(gathering.Runs, "take", count_take)
    attention(*arguments, **options)
    monkeypatch.undo()
    return sum(entries)


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("query_stride", [1, 2, 3])
def test_score_entries_are_those_computed(center, query_stride, monkeypatch):
    some = HiPAttention(top_k=6, block_q=4, block_k=2, window=3, sinks=2, query_stride=query_stride, center=center)
    for length, past in ((0, 0), (1, 0), (12, 0), (64, 0), (256, 0), (40, 31)):
        q, k, v = tensors(length, past, heads=1, groups=1)
        found = counted(monkeypatch, math.ceil(4 / query_stride), some, q, k, v)
        assert found == some.score_entries(length + past, queries=length)
    q, k, v = tensors(1, 90, heads=1, groups=1)
    assert counted(monkeypatch, 1, some, q, k, v) == some.score_entries(91, queries=1)
    found = some.search(q, k)
    q, k, v = tensors(1, 93, heads=1, groups=1)
    assert counted(monkeypatch, 0, some.attend, q, k, v, found, age=3) == some.score_entries(94, queries=1, age=3)
    pairs = int(naive_hip_mask(some, *tensors(64, heads=1, groups=1)[:2]).sum())
    assert pairs < some.score_entries(64)


def test_cost_is_near_linear_in_length():
    default = HiPAttention()
    for length in (2**14, 2**17, 2**20):
        longer = default.score_entries(2 * length)
        assert 2 < longer / default.score_entries(length) < 2.3
        rounds = math.ceil(math.log2(2 * length / 512)) + 1
        per_block = 32 * (16 + 512 + 128 + 32) + 16 * 512 * rounds  # attention, and search over at most 2 n nodes
        assert longer <= 2 * length / 32 * per_block
    assert default.score_entries(600) == 600 * 601 // 2


def test_memory_is_linear_in_length():
    q, k, v = tensors(4096, heads=1, groups=1, dtype=torch.float32)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        HiPAttention(top_k=64, window=32)(q, k, v)
    # 4096^2 scores would take 64 MB.
    assert max(event.self_cpu_memory_usage for event in profile.key_averages()) < 16e6


def test_parts_of_a_prompt_are_as_good_as_the_whole():
    q, k, v = tensors(64)
    whole = SMALL(q, k, v)[0]
    parts = [SMALL(q[:, :, a:b], k[:, :, :b], v[:, :, :b])[0] for a, b in ((0, 24), (24, 28), (28, 64))]
    torch.testing.assert_close(torch.cat(parts, dim=2), whole)


def test_one_query_per_block_decodes_as_it_prefills():
    one = HiPAttention(top_k=6, block_q=1, block_k=2, window=3, sinks=2)
    q, k, v = tensors(64)
    steps = [SMALL(q[:, :, t : t + 1], k[:, :, : t + 1], v[:, :, : t + 1])[0] for t in range(64)]
    torch.testing.assert_close(torch.cat(steps, dim=2), one(q, k, v)[0])


def test_aged_blocks_leave_no_gap():
    """Keys that left the window since the search stay in sight: only candidates of the search can be pruned."""
    q, k, v = tensors(50)
    found = SMALL.search(q[:, :, 43:44], k[:, :, :44])
    seen = naive_hip_mask(SMALL, q[:, :, 43:44], k[:, :, :44])
    seen = F.pad(seen, (0, 6), value=True)
    expected = dense_attention(q[:, :, 49:], k, v, mask=seen, return_lse=True)
    close(SMALL.attend(q[:, :, 49:], k, v, found, age=6), expected)


def test_log_sum_exps_merge():
    q, k, v = tensors(64)
    generator = torch.Generator().manual_seed(1)
    more = [torch.randn(1, 2, 9, 8, generator=generator, dtype=torch.float64) for _ in range(2)]
    joint = merge(*SMALL(q, k, v), *dense_attention(q, *more, causal=False, return_lse=True))
    mask = F.pad(naive_hip_mask(SMALL, q, k), (9, 0), value=True)
    both = [torch.cat(pair, dim=2) for pair in zip(more, (k, v), strict=True)]
    close(joint, dense_attention(q, *both, causal=False, mask=mask, return_lse=True))


def test_views_need_no_copy_and_change_nothing():
    q, k, v = tensors(64)
    expected = SMALL(q, k, v)
    interleaved = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    close(SMALL(*interleaved), expected)
    wide = torch.cat([k, v], dim=3)  # strides that are no multiple of the width of what is taken
    close(SMALL(q, wide[..., :8], wide[..., 8:]), expected)
    odd = F.pad(k, (0, 3))[..., :8]
    close(SMALL(q, odd, v), expected)
    one = k[:, :1].expand(-1, 2, -1, -1)
    close(SMALL(q, one, v), SMALL(q, one.contiguous(), v))


def test_gradients_equal_those_of_the_definition():
    inputs = [x.requires_grad_() for x in tensors(50)]
    found = []
    for out, lse in (SMALL(*inputs), naive_hip_attention(SMALL, *inputs)):
        found.append(torch.autograd.grad(out.square().sum() + lse.sin().sum(), inputs))
    close(*found)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    q, k, v = tensors(200, dtype=dtype)
    out, lse = SMALL(q, k, v)
    exact, exact_lse = naive_hip_attention(SMALL, *(x.double() for x in (q, k, v)))
    assert (out.dtype, lse.dtype) == (dtype, torch.float32)
    # The search is in float32 and finds the same; the weights of attention are rounded to the type.
    torch.testing.assert_close(out.double(), exact, atol=8 * torch.finfo(dtype).eps, rtol=0)
    torch.testing.assert_close(lse.double(), exact_lse, atol=1e-3, rtol=0)


def test_nan_is_refused_where_keys_are_searched_and_passed_on_where_not():
    q, k, v = tensors(40)
    v[0, 0, 5] = torch.nan
    with pytest.raises(ValueError, match="v holds NaN or infinity"):
        SMALL(q, k, v)
    out, _ = SMALL(*(x[:, :, :8] for x in (q, k, v)))
    assert out[0, :2, 5:].isnan().all()
    assert out[0, 2:].isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k is 0; allowed: whole numbers from 1 on"),
        ({"top_k": 511}, "top_k 511 must be a multiple of block_k 2"),
        ({"block_q": 2.0}, "block_q is 2.0"),
        ({"window": 0}, "window is 0"),
        ({"sinks": -1}, "sinks is -1; allowed: whole numbers from 0 on"),
        ({"query_stride": 0}, "query_stride is 0"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        HiPAttention(**options)


def test_bad_tensors_are_named():
    q, k, v = tensors(40)
    with pytest.raises(ValueError, match="must be a multiple"):
        SMALL(q, *[x.repeat(1, 3, 1, 1) for x in (k, v)])
    with pytest.raises(ValueError, match="at most as many queries as keys; got 40, 5"):
        SMALL(q, k[:, :, :5], v[:, :, :5])
    with pytest.raises(ValueError, match="only T may be 0"):
        SMALL(q[:0], k[:0], v[:0])
    for mask in (torch.ones(1, 39, dtype=torch.bool), torch.ones(1, 40)):
        with pytest.raises(ValueError, match=r"key_mask must be boolean \(B, S\) = \(1, 40\)"):
            SMALL(q, k, v, key_mask=mask)
    with pytest.raises(ValueError, match="padding between real tokens"):
        SMALL(q, k, v, key_mask=torch.arange(40)[None] % 7 > 0)
    with pytest.raises(ValueError, match="found must be"):
        SMALL.attend(q, k, v, SMALL.search(q, k)[:, :, 1:])


DECODES = HiPAttention(top_k=6, block_q=1, block_k=2, window=3, sinks=2)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_models_decode_as_they_prefill(family):
    model, ids = tiny(family), tokens(2, 40)
    plain = model(ids).logits
    apply(model, DECODES, dense_layers=0, refresh_interval=1)
    whole = model(ids).logits
    # One softmax in two implementations while nothing is pruned (up to 2 + 6 + 3 + 1 tokens), another function then.
    torch.testing.assert_close(whole[:, :11], plain[:, :11], atol=2e-5, rtol=1e-4)
    assert (whole[:, 20:] - plain[:, 20:]).abs().amax() > 1e-3
    output = model(ids[:, :15])
    logits = [output.logits]
    for i in range(15, 40):
        output = model(ids[:, i : i + 1], cache=output.cache)
        logits.append(output.logits)
    torch.testing.assert_close(torch.cat(logits, 1), whole, atol=2e-5, rtol=1e-4)
    assert torch.equal(common.restore(model)(ids).logits, plain)


@torch.no_grad()
def test_dense_layers_stay_exact():
    model, ids = tiny(num_hidden_layers=3), tokens(1, 40)
    plain = model(ids).logits
    outputs = []
    for dense_layers in range(3):
        apply(model, SMALL, dense_layers=dense_layers)
        outputs.append(model(ids).logits)
        common.restore(model)
    hidden = [out[:, 20:] - plain[:, 20:] for out in outputs]
    assert all((x.abs() > 1e-4).any() for x in [*hidden, outputs[0] - outputs[1], outputs[1] - outputs[2]])
    apply(model, HiPAttention(top_k=40), dense_layers=0)
    torch.testing.assert_close(model(ids).logits, plain, atol=2e-5, rtol=1e-4)


def searches(monkeypatch, call):
    """Return among how many tokens each search was that `call` caused in layers that are not dense."""
    lengths, search = [], HiPAttention.search

    def count(self, q, k):
        lengths.extend([k.shape[2]] if self == SMALL else [])
        return search(self, q, k)

    monkeypatch.setattr(HiPAttention, "search", count)
    call()
    monkeypatch.undo()
    return lengths


@torch.no_grad()
def test_searches_are_refreshed(monkeypatch):
    model = apply(tiny(), SMALL, dense_layers=1, refresh_interval=4)
    ids, options = tokens(1, 30), {"max_new_tokens": 12, "do_sample": False}
    lengths = searches(monkeypatch, lambda: model.generate(ids, **options))
    assert lengths == [30, 31, 35, 39]  # the prompt, then every fourth token up to the 41st, the last that is read
    with torch.autocast("cpu", torch.bfloat16):
        assert searches(monkeypatch, lambda: model.generate(ids, **options)) == lengths
    beams = searches(monkeypatch, lambda: model.generate(ids, num_beams=2, **options))
    assert beams == list(range(30, 42)), "a beam search reorders the cache"


@torch.no_grad()
def test_another_cache_or_a_shorter_one_is_searched_anew(monkeypatch):
    model, ids = apply(tiny(), SMALL, dense_layers=1, refresh_interval=9), tokens(2, 40)
    first, second = (model(ids[row : row + 1, :30]).cache for row in range(2))

    def step(i, row, cache):
        return searches(monkeypatch, lambda: logits.append(model(ids[row : row + 1, i : i + 1], cache=cache).logits))

    logits = []
    assert step(30, 0, first) == [31]
    assert step(31, 0, first) == []
    assert step(30, 1, second) == [31]
    assert step(32, 0, first) == [33]
    second.crop(-1)
    assert step(30, 1, second) == [31]
    assert logits[-1].equal(logits[2])


@torch.no_grad()
def test_aged_decoding_in_a_model():
    """Each step is the layer's attention with what the search of `age` tokens ago found."""
    q, k, v = tensors(48, dtype=torch.float32)
    model = apply(tiny(), SMALL, dense_layers=0, refresh_interval=4)
    attention = transformers.AttentionInterface()[model.config._attn_implementation]
    layer, found, memory = common.attention_layers(model)[0], None, {}
    for t in range(40, 46):
        part = q[:, :, t : t + 1], k[:, :, : t + 1], v[:, :, : t + 1]
        out = attention(layer, *part, None, hip_memory=memory, attention_prepared=True)[0].transpose(1, 2)
        found = found if (t - 40) % 4 else SMALL.search(*part[:2])
        torch.testing.assert_close(out, SMALL.attend(*part, found, age=(t - 40) % 4)[0])
    with pytest.raises(ValueError, match="k holds NaN"):
        attention(
            layer, q[:, :, :1], k[:, :, :30] * torch.nan, v[:, :, :30], None, hip_memory={}, attention_prepared=True
        )


@pytest.mark.parametrize("refresh_interval", [1, 8])
@torch.no_grad()
def test_generates_alike_with_padding_and_without(refresh_interval):
    model = apply(tiny(num_hidden_layers=3), SMALL, dense_layers=1, refresh_interval=refresh_interval)
    ids, mask = tokens(2, 30), left_padded(2, 30, 9)
    options = {"max_new_tokens": 12, "do_sample": False}
    batch = model.generate(ids, attention_mask=mask, **options)
    assert torch.equal(batch[0, 30:], model.generate(ids[:1, 9:], **options)[0, 21:])
    assert torch.equal(batch[1, 30:], model.generate(ids[1:], **options)[0, 30:])


def test_bad_options_of_a_model_are_named():
    with pytest.raises(ValueError, match="dense_layers is 3; allowed: 0 to 1, for LlamaForCausalLM has 2 layers"):
        apply(tiny())
    with pytest.raises(ValueError, match="refresh_interval is 0"):
        apply(tiny(), dense_layers=0, refresh_interval=0)


@torch.no_grad()
def test_short_prompts_in_a_model():
    model, ids = apply(tiny(), dense_layers=0), tokens(1, 3)
    plain = tiny()
    for length in (1, 2, 3):  # shorter than every block
        torch.testing.assert_close(model(ids[:, :length]).logits, plain(ids[:, :length]).logits, atol=2e-5, rtol=1e-4)
