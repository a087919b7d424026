"""MInference against its definition, its limits, planted heads, and inside models."""

import copy
import itertools
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tinymodels import FAMILIES, left_padded, tiny, tokens

from workingpapers.methods.attention import common, listed, minference, minference_patterns
from workingpapers.methods.attention.choices import save_choice
from workingpapers.methods.attention.common import dense_attention
from workingpapers.methods.attention.minference import (
    MInference,
    apply,
    everywhere,
    freeze,
    measure,
    minference_attention,
    naive_minference_attention,
    recovered_mass,
    search,
)
from workingpapers.methods.attention.minference_patterns import AShape, BlockSparse, VerticalSlash, find_all
from workingpapers.methods.attention.sparse_blocks import Blocks, Lines


def sample(T, T_q=None, B=2, H=4, H_kv=2, d=8, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shapes = (B, H, T if T_q is None else T_q, d), (B, H_kv, T, d), (B, H_kv, T, d)
    return [torch.randn(s, generator=generator, dtype=dtype) for s in shapes]


def close(found, expected, tolerance=1e-9):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


PATTERNS = st.one_of(
    st.builds(AShape, st.integers(0, 9), st.integers(1, 20)),
    st.builds(VerticalSlash, st.integers(0, 9), st.integers(1, 20), last_q=st.sampled_from([1, 5, 64])),
    st.builds(BlockSparse, st.integers(1, 4)),
    st.just(Lines(torch.tensor([2, 30]), torch.tensor([0, 5, 20]))),
    st.just(Blocks((torch.arange(70) // 2)[:, None])),
)


@given(
    patterns=st.lists(PATTERNS, min_size=4, max_size=4),
    T=st.integers(0, 60),
    T_q=st.integers(0, 60),
    block_size=st.sampled_from([1, 4, 7, 64]),
    H_kv=st.sampled_from([1, 2, 4]),
    scale=st.sampled_from([None, 0.9]),
    pad=st.booleans(),
    seed=st.integers(0, 999),
)
@settings(max_examples=60, deadline=None)
def test_equals_the_definition(patterns, T, T_q, block_size, H_kv, scale, pad, seed):
    """Patterns that differ by head, queries that come late, padding anywhere, rows of nothing but padding."""
    q, k, v = sample(T, min(T, T_q), H_kv=H_kv, seed=seed)
    mask = None
    if pad:
        mask = torch.rand(2, T, generator=torch.Generator().manual_seed(seed)) < torch.tensor([[0.8], [seed % 3 / 2]])
    options = {"block_size": block_size, "scale": scale, "key_mask": mask}
    out, lse = minference_attention(q, k, v, patterns, **options)
    close((out, lse), naive_minference_attention(q, k, v, patterns, **options))
    if pad:
        hidden = ~mask[:, None, T - min(T, T_q) :].expand(lse.shape)
        assert (out[hidden] == 0).all()
        assert (lse[hidden] == -torch.inf).all()


@pytest.mark.parametrize(
    "pattern",
    [VerticalSlash(50, 1), VerticalSlash(0, 50), VerticalSlash(1000, 6096), AShape(50, 1), AShape(), BlockSparse()],
)
@pytest.mark.parametrize("block_size", [1, 8, 64])
def test_patterns_that_cover_everything_are_dense(pattern, block_size):
    for T_q in (50, 30, 1):
        q, k, v = sample(50, T_q)
        found = minference_attention(q, k, v, pattern, block_size=block_size)
        close(found, dense_attention(q, k, v, return_lse=True))


@pytest.mark.parametrize("pattern", [AShape(3, 9), VerticalSlash(6, 8), BlockSparse(3)])
def test_values_of_the_future_are_hidden(pattern):
    q, k, v = sample(50)
    before = minference_attention(q, k, v, pattern, block_size=4)[0]
    changed = v.clone()
    changed[:, :, 30:] += 1
    after = minference_attention(q, k, changed, pattern, block_size=4)[0]
    assert after[:, :, :30].equal(before[:, :, :30])
    assert (after[:, :, 30:] != before[:, :, 30:]).any(dim=-1).all()  # each row sees itself


def planted_lines(T, columns, offsets):
    i = torch.arange(T)
    q = torch.zeros(T, T, dtype=torch.float64)
    for o in offsets:
        q[i[o:], i[o:] - o] = 20.0
    q[:, columns] = 20.0
    return q.tril()[None, None], torch.eye(T, dtype=torch.float64)[None, None]


def test_the_right_shape_recovers_most():
    T = 200
    candidates = [AShape(8, 32), VerticalSlash(16, 24), BlockSparse(5)]  # about 40 keys in each row
    blocks = torch.eye(25, dtype=torch.float64).repeat_interleave(8, dim=0)[None, None] * 5  # 8 tokens look alike
    partner = blocks.unflatten(2, (25, 8))[:, :, torch.arange(25) // 3].flatten(2, 3)
    heads = {
        0: planted_lines(T, [0, 1, 2], range(25)),
        1: planted_lines(T, [60, 90, 120], [0, 70, 100]),
        2: (partner, blocks),
    }
    for right, (q, k) in heads.items():
        mass = [
            recovered_mass(q, k, c, block_size=8 if right == 2 else 1, scale=1.0)[..., 20:].mean() for c in candidates
        ]
        assert max(range(3), key=mass.__getitem__) == right, mass
        assert mass[right] > 0.95


@given(sizes=st.lists(st.integers(1, 40), min_size=2, max_size=6), seed=st.integers(0, 99))
@settings(max_examples=12, deadline=None)
def test_recovered_attention_grows_with_the_budget(sizes, seed):
    q, k, _ = sample(60, seed=seed)
    for make in (lambda n: VerticalSlash(n, 10), lambda n: VerticalSlash(10, n), BlockSparse):
        mass = [recovered_mass(q, k, make(n), block_size=4) for n in sorted(sizes)]
        assert all((b - a > -1e-12).all() for a, b in itertools.pairwise(mass))
        assert mass[-1].max() < 1 + 1e-12


def test_lines_of_another_prompt_recover_less():
    (q1, k1), (q2, k2) = (planted_lines(200, columns, [0]) for columns in ([60, 90], [75, 130]))
    pattern = VerticalSlash(4, 4)
    [frozen] = pattern.find(q1[0], k1[0], block_size=4, scale=1.0)
    own, other = (recovered_mass(q2, k2, p, block_size=4, scale=1.0)[..., 140:].mean() for p in (pattern, frozen))
    assert own > 0.99
    assert other < 0.5
    assert recovered_mass(q1, k1, frozen, block_size=4, scale=1.0)[..., 140:].mean() > 0.99


def test_memory_is_linear_in_length():
    q, k, v = sample(8192, B=1, H=1, H_kv=1, dtype=torch.float32)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        minference_attention(q, k, v, [VerticalSlash(40, 60)])
    # The 64 rows of the estimate take 2 MB, and so do the keys seen at a time; T^2 / 2 scores would take 134 MB.
    assert max(event.self_cpu_memory_usage for event in profile.key_averages()) < 20e6


MIXED = (
    *(AShape(3, 20), VerticalSlash(8, 5, last_q=8), BlockSparse(2), VerticalSlash(8, 5, last_q=8)),
    *(Lines(torch.tensor([2, 50]), torch.tensor([0, 30])), VerticalSlash(6, 9), BlockSparse(2), AShape(3, 20)),
)


@pytest.mark.parametrize("at_once", [2, 100])
@pytest.mark.parametrize("H_kv", [2, 8])
def test_heads_at_once_as_on_a_gpu(at_once, H_kv, monkeypatch):
    """Heads of one pattern are looked at together, those that share keys and those that do not, neighbours or not."""
    q, k, v = sample(90, 61, H=8, H_kv=H_kv, dtype=torch.float32)
    alone = [find_all(q[0], k[0], heads, 16, 0.4) for heads in (MIXED, MIXED[::-1], (MIXED[1],) * 8)]
    masks = None, torch.arange(90) >= torch.tensor([[17], [0]])
    monkeypatch.setattr(minference_patterns, "heads_at_once", lambda *_: at_once)
    together = [find_all(q[0], k[0], heads, 16, 0.4) for heads in (MIXED, MIXED[::-1], (MIXED[1],) * 8)]
    for one, other in zip(itertools.chain(*alone), itertools.chain(*together), strict=True):
        assert type(one) is type(other)
        assert all(torch.equal(x, getattr(other, name)) for name, x in vars(one).items())
    for mask in masks:
        options = {"block_size": 16, "scale": 0.4, "key_mask": mask}
        found = minference_attention(q, k, v, MIXED, **options)
        close(found, naive_minference_attention(q, k, v, MIXED, **options), 1e-5)


def test_no_gpu_is_waited_for():
    """Tensors without data refuse every operation that would have to look at some, which is what a GPU waits for."""
    q, k = torch.empty(8, 60, 16, device="meta"), torch.empty(2, 90, 16, device="meta")
    seen = listed.of_patterns(find_all(q, k, MIXED, 16, 0.4), 60, 90, 16)
    assert seen.listed.shape == (1, 8, 5, 2)
    assert seen.columns.shape == (1, 8, 8)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu(dtype):
    for T_q, H_kv in ((500, 8), (333, 2), (1, 4)):
        q, k, v = (x.to(dtype) for x in sample(500, T_q, H=8, H_kv=H_kv, d=64, dtype=torch.float32))
        there = minference_attention(q.cuda(), k.cuda(), v.cuda(), MIXED, block_size=16)
        expected = naive_minference_attention(q.float(), k.float(), v.float(), MIXED, block_size=16)
        # Estimates are made in float32 of the same rounded inputs; weights and outputs are rounded.
        close([x.cpu().float() for x in there], expected, 4 * max(torch.finfo(dtype).eps, 1e-5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    q, k, v = (x.to(dtype) for x in sample(150, d=16))
    patterns = [AShape(4, 20), VerticalSlash(10, 20), BlockSparse(3), VerticalSlash(200, 200)]
    out, lse = minference_attention(q, k, v, patterns, block_size=16)
    exact, exact_lse = minference_attention(q.float(), k.float(), v.float(), patterns, block_size=16)
    assert (out.dtype, lse.dtype) == (dtype, torch.float32)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(out.float(), exact, atol=4 * eps, rtol=4 * eps)  # weights and outputs are rounded
    torch.testing.assert_close(lse, exact_lse, atol=4 * eps, rtol=0)


def test_bad_input_is_named():
    q, k, v = sample(20)
    with pytest.raises(ValueError, match="3 patterns for 4 heads"):
        minference_attention(q, k, v, [AShape()] * 3)
    with pytest.raises(ValueError, match="block_size must be 1 or more; got 0"):
        minference_attention(q, k, v, AShape(), block_size=0)
    with pytest.raises(ValueError, match="at most as many queries as keys; got 20, 9"):
        minference_attention(q, k[:, :, :9], v[:, :, :9], AShape())
    with pytest.raises(ValueError, match="must be a multiple"):
        minference_attention(q[:, :3], k, v, AShape())
    for mask in (torch.ones(2, 19, dtype=torch.bool), torch.ones(2, 20)):
        with pytest.raises(ValueError, match=r"key_mask must be boolean \(B, S\) = \(2, 20\)"):
            minference_attention(q, k, v, AShape(), key_mask=mask)
    k[1, 0, 3, 2] = torch.nan
    with pytest.raises(ValueError, match="k holds NaN"):
        minference_attention(q, k, v, AShape())
    mask = torch.arange(20) > torch.tensor([[-1], [3]])
    assert minference_attention(q, k, v, AShape(), key_mask=mask)[0].isfinite().all()  # it was padding


SPARSE = (AShape(2, 6), VerticalSlash(4, 4), BlockSparse(2), VerticalSlash(2, 6))


def mixed(model, block_size=4):
    layers, heads = len(common.attention_layers(model)), model.config.num_attention_heads
    return MInference((SPARSE[:heads],) * layers, block_size)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_models_decode_as_they_prefill_where_all_is_covered(family):
    model, ids = tiny(family), tokens(2, 40)
    plain = model(ids).logits
    apply(model, everywhere(model, VerticalSlash(40, 40)))
    # One softmax in two implementations; scores are large in these models.
    torch.testing.assert_close(model(ids).logits, plain, atol=1e-4, rtol=1e-4)
    output = model(ids[:, :20])
    logits = [output.logits]
    for i in range(20, 40):
        output = model(ids[:, i : i + 1], cache=output.cache)
        logits.append(output.logits)
    torch.testing.assert_close(torch.cat(logits, 1), plain, atol=1e-4, rtol=1e-4)
    assert torch.equal(common.restore(model)(ids).logits, plain)
    sparse = apply(model, mixed(model))(ids).logits
    assert (sparse - plain).abs().amax() > 1e-3
    assert torch.equal(common.restore(model)(ids).logits, plain)


@torch.no_grad()
def test_decoding_is_dense():
    model, ids = tiny(), tokens(2, 31)
    mask = left_padded(2, 31, 4)
    apply(model, mixed(model))
    cache = model(ids[:, :30], attention_mask=mask[:, :30]).cache
    again = copy.deepcopy(cache)
    sparse = model(ids[:, 30:], attention_mask=mask, cache=cache).logits
    dense = common.restore(model)(ids[:, 30:], attention_mask=mask, cache=again).logits
    torch.testing.assert_close(sparse, dense, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("beams", [1, 2])
@torch.no_grad()
def test_generates_alike_with_padding_and_without(beams):
    model = tiny()
    apply(model, mixed(model))
    ids, mask = tokens(2, 30), left_padded(2, 30, 9)
    options = {"max_new_tokens": 8, "do_sample": False, "num_beams": beams}
    batch = model.generate(ids, attention_mask=mask, **options)
    assert torch.equal(batch[0, 30:], model.generate(ids[:1, 9:], **options)[0, 21:])
    assert torch.equal(batch[1, 30:], model.generate(ids[1:], **options)[0, 30:])


@torch.no_grad()
def test_a_prompt_of_one_token():
    model, ids = tiny(), tokens(1, 1)
    plain = model(ids).logits
    torch.testing.assert_close(apply(model, mixed(model))(ids).logits, plain, atol=1e-5, rtol=1e-5)


def test_measures_what_is_recovered_and_computed():
    model, ids = tiny().train(), tokens(2, 48)
    state = model.training, model.config._attn_implementation
    mass, share = measure(model, ids, [everywhere(model, AShape(0, 48)), mixed(model)])
    assert mass.shape == share.shape == (2, 2, 4)
    torch.testing.assert_close(mass[0], torch.ones(2, 4))
    torch.testing.assert_close(share[0], torch.ones(2, 4))
    assert ((mass[1] > 0) & (mass[1] < 1) & (share[1] > 0) & (share[1] < 1)).all()
    window = sum(min(i + 1, i % 4 + 6) for i in range(48))  # 5 keys before the block, then those up to the query
    sinks = sum(2 for i in range(48) if i // 4 * 4 - 5 >= 2) + sum(1 for i in range(48) if i // 4 * 4 - 5 == 1)
    assert share[1, 0, 0] == pytest.approx((window + sinks) / (48 * 49 / 2))
    assert (model.training, model.config._attn_implementation) == state


def test_search_takes_the_best_for_each_head():
    model, ids = tiny(), tokens(1, 64)
    candidates = [AShape(2, 6), VerticalSlash(6, 3), BlockSparse(2)]
    choice, mass, share = search(model, ids, candidates, block_size=4)
    assert choice.block_size == 4
    for layer in range(2):
        for head in range(4):
            assert choice.heads[layer][head] == candidates[int(mass[:, layer, head].argmax())]
    found, computed = measure(model, ids, [choice])
    torch.testing.assert_close(found[0], mass.amax(dim=0))
    assert (computed[0] <= share.amax(dim=0)).all()
    assert (found[0] >= mass[0]).all()  # no head is worse than with an A-shape everywhere


@torch.no_grad()
def test_frozen_lines_are_those_of_their_prompt():
    model, first, second = tiny(), tokens(1, 48), tokens(1, 48, seed=1)
    choice = mixed(model)
    frozen = freeze(model, first, choice)
    assert {type(p) for layer in frozen.heads for p in layer} == {Lines, Blocks}
    for ids, same in ((first, True), (second, False)):
        mass, share = measure(model, ids, [choice, frozen])
        assert torch.equal(mass[0], mass[1]) == same
        assert torch.equal(share[0], share[1]) == same
    apply(model, frozen)
    assert model(second[:, :30]).logits.isfinite().all()  # shorter prompts keep what they reach
    with pytest.raises(ValueError, match="at most 48 tokens cannot serve 50"):
        model(tokens(1, 50))


def test_saved_choices_are_loaded_for_their_model(tmp_path):
    model, file = tiny(), tmp_path / "heads.json"
    choice = mixed(model)
    minference.save(file, model, choice)
    assert minference.load(file, tiny()) == choice
    frozen = freeze(model, tokens(1, 30), choice)
    minference.save(file, model, frozen)
    loaded = minference.load(file, model)
    ids = tokens(1, 30, seed=2)
    for a, b in zip(measure(model, ids, [frozen]), measure(model, ids, [loaded]), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match="made for another model"):
        minference.load(file, tiny(seed=1))
    with pytest.raises(FileNotFoundError):
        minference.load(tmp_path / "nothing.json", model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("heads"), "heads"),
        (lambda c: c.update(block_size=0), "block_size of MInference must be an integer, 1 or more; got 0"),
        (lambda c: c["heads"].pop(), r"2 layers of 4 heads; the choice has 1 of 4"),
        (lambda c: c["heads"][0].pop(), r"2 layers of 4 heads; the choice has 2 of 3 or 4"),
        (
            lambda c: c["heads"][0][0].update(kind="a-shape"),
            "unknown kind of pattern 'a-shape'. Did you mean 'a_shape'",
        ),
        (lambda c: c["heads"][0][0].update(n_local=0), "n_local of AShape"),
        (lambda c: c["heads"][0][0].update(n_slash=1), "n_slash"),
        (lambda c: c["heads"][0][0].pop("kind"), "kind"),
        (lambda c: c.update(heads=3), "holds no patterns"),
        (lambda c: c["heads"][0].__setitem__(0, {"kind": "lines", "columns": [1, 0], "offsets": [0]}), "columns"),
        (lambda c: c["heads"][0].__setitem__(0, {"kind": "lines", "columns": ["x"], "offsets": [0]}), "no patterns"),
        (lambda c: c["heads"][0].__setitem__(0, {"kind": "lines", "columns": [], "offsets": 0}), "offsets"),
        (lambda c: c["heads"][0].__setitem__(0, {"kind": "blocks", "rows": 1}), "rows"),
        (lambda c: c["heads"][0].__setitem__(0, {"kind": "blocks", "rows": [[1]]}), "rows"),
    ],
)
def test_malformed_files_are_refused(change, message, tmp_path):
    model, file = tiny(), tmp_path / "heads.json"
    minference.save(file, model, mixed(model))
    content = json.loads(file.read_text())["choice"]
    change(content)
    save_choice(file, "minference", model, content)
    with pytest.raises(ValueError, match=message):
        minference.load(file, model)


def test_refuses_models_and_prompts_that_do_not_fit():
    model = tiny()
    for wrong in (MInference((SPARSE,)), MInference((SPARSE[:3],) * 2)):
        with pytest.raises(ValueError, match="2 layers of 4 heads; the choice has"):
            apply(model, wrong)
    with pytest.raises(ValueError, match="search needs candidates"):
        search(model, tokens(1, 8), [])
    with pytest.raises(ValueError, match="from one prompt; got 2"):
        freeze(model, tokens(2, 8), mixed(model))
    for ids in (tokens(1, 0), tokens(1, 8)[0]):
        with pytest.raises(ValueError, match="input_ids must be"):
            measure(model, ids, [mixed(model)])
    apply(model, mixed(model))
    for again in (lambda: apply(model, mixed(model)), lambda: search(model, tokens(1, 8), SPARSE)):
        with pytest.raises(ValueError, match=r"already runs 'minference'; call restore"):
            again()
    with pytest.raises(ValueError, match="GPT2"):
        everywhere(tiny("GPT2", n_embd=32, n_layer=1, n_head=4), AShape())
    assert isinstance(common.restore(model)(tokens(1, 8)).logits, torch.Tensor)
