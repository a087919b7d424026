"""Giraffe's bases against transformers' own rope types, direct counts and the models that get them."""

import math

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tinymodels import FAMILIES, tiny, tokens

from workingpapers.methods.attention import common
from workingpapers.methods.attention.common import rotate
from workingpapers.methods.attention.rope_scaling import (
    Basis,
    apply,
    choose,
    load,
    random_positions,
    register,
    restore,
    save,
)

PLAIN = 1e4 ** -(torch.arange(0, 128, 2) / 128)
BASES = [Basis(), Basis(factor=4), Basis(power=0.5), Basis(truncate=2048), Basis(factor=2, power=0.3, truncate=512)]


def frequencies(model):
    rotary = common.rotary_embedding(model)
    return rotary.inv_freq if hasattr(rotary, "inv_freq") else rotary.full_attention_inv_freq


def test_no_change_is_no_change():
    assert torch.equal(Basis().frequencies(PLAIN), PLAIN)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_without_a_change_models_compute_what_they_did(family):
    model, ids = tiny(family), tokens(2, 20)
    config, before, name = model.config.to_dict(), model(ids).logits, model.config._attn_implementation
    assert torch.equal(apply(model, Basis())(ids).logits, before)
    apply(model, Basis(factor=8, power=0.5))
    assert (model(ids).logits - before).abs().max() > 1e-3
    restore(model)
    assert torch.equal(model(ids).logits, before)
    assert model.config.to_dict() == config
    assert model.config._attn_implementation == name
    assert not any("workingpapers" in attribute for attribute in vars(model))


@torch.no_grad()
def test_linear_equals_the_rope_type_of_transformers():
    theirs = tiny(rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4})
    ours, ids = apply(tiny(), Basis(factor=4)), tokens(1, 20)
    torch.testing.assert_close(frequencies(ours), frequencies(theirs))
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits)


@torch.no_grad()
def test_positions_times_the_factor_are_positions_without_it():
    ids, model = tokens(1, 20), tiny()
    before = model(ids, position_ids=torch.arange(20)[None]).logits
    apply(model, Basis(factor=4))
    # Without a cache transformers would take steps of 4 for several packed sequences; with one it does not look.
    spread = model(ids, position_ids=4 * torch.arange(20)[None], use_cache=True).logits
    torch.testing.assert_close(spread, before, atol=1e-5, rtol=1e-4)


def test_truncated_counts():
    """d 128, T 2,048: pairs kept, slow, and without position, counted one by one in exact arithmetic."""
    kept = slow = 0
    for i in range(64):
        frequency = 1e4 ** (-2 * i / 128)
        turns = frequency * 2048 / (2 * math.pi)  # within the context
        kept += turns >= 1
        slow += 1 / 8 <= turns < 1
    changed = Basis(truncate=2048).frequencies(PLAIN)
    assert (kept, slow, 64 - kept - slow) == (41, 14, 9)
    assert torch.equal(changed[:kept], PLAIN[:kept])
    torch.testing.assert_close(changed[kept : kept + slow], torch.full((slow,), 2 * math.pi / (16 * 2048)))
    assert (changed[kept + slow :] == 0).all()


def test_truncation_judges_scaled_frequencies():
    linear, both = Basis(factor=4), Basis(factor=4, truncate=2048)
    assert torch.equal(both.frequencies(PLAIN), Basis(truncate=2048).frequencies(linear.frequencies(PLAIN)))
    assert not torch.equal(both.frequencies(PLAIN), linear.frequencies(Basis(truncate=2048).frequencies(PLAIN)))


@given(st.floats(0.05, 3), st.sampled_from([4, 8, 64, 128]))
@settings(max_examples=30, deadline=None)
def test_power_keeps_the_fastest_and_slows_the_others_the_more_the_slower_they_are(power, d):
    plain = 1e4 ** -(torch.arange(0, d, 2, dtype=torch.float64) / d)
    ratio = Basis(power=power).frequencies(plain) / plain
    assert ratio[0] == 1
    assert (ratio.diff() < 0).all()
    assert ratio[-1].item() == pytest.approx((2 / d) ** power)


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("shift", [1, 500])
def test_scores_depend_on_differences_of_positions(basis, shift):
    q, k = torch.randn(2, 30, 128, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    angles = torch.arange(30)[:, None] * basis.frequencies(PLAIN.double())
    moved = (torch.arange(30)[:, None] + shift) * basis.frequencies(PLAIN.double())
    scores = rotate(q, angles) @ rotate(k, angles).mT
    torch.testing.assert_close(rotate(q, moved) @ rotate(k, moved).mT, scores)
    if basis != Basis():
        plain = torch.arange(30)[:, None] * PLAIN.double()
        assert not torch.allclose(scores, rotate(q, plain) @ rotate(k, plain).mT)


@given(st.integers(1, 4), st.integers(1, 300), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_random_positions_rise_and_stay_below_the_length(batch, length, seed):
    positions = random_positions(batch, length, torch.Generator().manual_seed(seed))
    assert positions.shape == (batch, length)
    assert (positions >= 0).all()
    assert (positions.diff(dim=1) >= 0).all()
    assert (positions <= length).all()


def test_random_positions_are_shrunk_only_when_they_pass_the_length():
    positions = random_positions(400, 50, torch.Generator().manual_seed(0))
    drawn = torch.rand(400, 50, generator=torch.Generator().manual_seed(0)).mul(2).cumsum(1)
    short = drawn[:, -1] <= 50
    assert 100 < short.sum() < 300  # both cases occur
    assert torch.equal(positions[short], drawn[short])
    torch.testing.assert_close(positions[~short, -1], torch.full(((~short).sum(),), 50.0))


@pytest.mark.parametrize("family", ["Llama", "Phi3", "Gemma3Text"])
@torch.no_grad()
def test_random_positions_in_training_only(family):
    model, ids = tiny(family), tokens(2, 20)
    before = model(ids).logits
    apply(model, Basis(), randomize=True)
    assert torch.equal(model(ids).logits, before)
    model.train()
    torch.manual_seed(0)
    first, second = model(ids).logits, model(ids).logits
    assert (first - before).abs().max() > 1e-3
    assert (first - second).abs().max() > 1e-3
    torch.manual_seed(0)
    assert torch.equal(model(ids).logits, first)
    assert torch.equal(model.eval()(ids).logits, before)


@torch.no_grad()
def test_a_larger_factor_later_and_back():
    model, ids = tiny(), tokens(1, 20)
    before = model(ids).logits
    apply(model, Basis(factor=4))
    apply(model, Basis(factor=8))
    torch.testing.assert_close(frequencies(model), frequencies(tiny()) / 8)
    assert torch.equal(restore(model)(ids).logits, before)


@torch.no_grad()
def test_partial_rotation_and_sliding_layers():
    phi = tiny("Phi", rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5})
    old = frequencies(phi).clone()
    assert len(old) == 2  # 4 of 8 dimensions
    torch.testing.assert_close(frequencies(apply(phi, Basis(factor=4))), old / 4)
    gemma = tiny("Gemma3Text", layer_types=["sliding_attention", "full_attention"])
    local = common.rotary_embedding(gemma).sliding_attention_inv_freq.clone()
    apply(gemma, Basis(factor=4))
    assert torch.equal(common.rotary_embedding(gemma).sliding_attention_inv_freq, local)


@torch.no_grad()
def test_models_are_saved_and_loaded_with_their_basis(tmp_path):
    model, ids = apply(tiny(), Basis(factor=2, power=0.3, truncate=64)), tokens(1, 20)
    model.save_pretrained(tmp_path)
    register()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.rope_parameters["rope_type"] == "giraffe"
    assert torch.equal(loaded(ids).logits, model(ids).logits)


@torch.no_grad()
def test_choose_takes_the_basis_with_the_least_loss():
    model, ids = tiny(), tokens(2, 40)
    before = model(ids).logits
    # The text is what the model itself writes under factor 4, so factor 4 must predict it best.
    apply(model, Basis(factor=4))
    ids = model.generate(ids[:, :4], max_new_tokens=36, do_sample=False)
    restore(model)
    best, losses = choose(model, ids, [Basis(), Basis(factor=4), Basis(power=1)], beyond=3)
    assert best == Basis(factor=4)
    logits = model(ids).logits[:, 3:-1]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 4:].flatten())
    assert losses[Basis()] == pytest.approx(expected.item(), rel=1e-4)
    assert len(losses) == 3
    assert torch.equal(model(tokens(2, 40)).logits, before)


def test_files_are_tied_to_the_model(tmp_path):
    path, model = tmp_path / "basis.json", tiny()
    save(path, model, Basis(factor=4, truncate=64))
    assert load(path, tiny()) == Basis(factor=4, truncate=64)
    assert load(path, tiny().bfloat16()) == Basis(factor=4, truncate=64)
    assert load(path, apply(tiny(), Basis(factor=2))) == Basis(factor=4, truncate=64)
    for other in (tiny(seed=1), tiny(num_hidden_layers=1), tiny("Qwen3")):
        with pytest.raises(ValueError, match="made for another model"):
            load(path, other)
    path.write_text(path.read_text().replace("giraffe", "minference"))
    with pytest.raises(ValueError, match="belongs to 'minference'"):
        load(path, model)
    path.write_text(path.read_text().replace("minference", "giraffe").replace("factor", "divisor"))
    with pytest.raises(ValueError, match="holds no basis"):
        load(path, model)
    for content in ("no json", "[1]", "{}"):
        path.write_text(content)
        with pytest.raises(ValueError, match="not a file of choices"):
            load(path, model)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.json", model)


@pytest.mark.parametrize(
    "options", [{"factor": 0.5}, {"factor": math.nan}, {"power": -1}, {"truncate": -1}, {"truncate": 64.5}]
)
def test_refuses_options_out_of_range(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
        Basis(**options)


def test_refuses_models_and_uses_that_it_would_get_wrong():
    other = tiny(rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4})
    parameters = other.config.rope_parameters
    with pytest.raises(ValueError, match="rope type is 'linear'"):
        apply(other, Basis(factor=2))
    assert other.config.rope_parameters is parameters
    gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=9))
    with pytest.raises(ValueError, match="rotary position embeddings"):
        apply(gpt2, Basis())
    gptj = transformers.GPTJForCausalLM(
        transformers.GPTJConfig(n_layer=1, n_embd=8, n_head=2, rotary_dim=2, vocab_size=9)
    )
    with pytest.raises(ValueError, match="no RoPE parameters in its config"):
        apply(gptj, Basis())
    model, ids = tiny(), tokens(1, 10)
    with pytest.raises(ValueError, match="nothing to restore"):
        restore(model)
    for arguments in ((ids, []), (ids[0], BASES), (ids[:, :1], BASES)):
        with pytest.raises(ValueError, match="need candidates and tokens"):
            choose(model, *arguments)
    with pytest.raises(ValueError, match="need candidates and tokens"):
        choose(model, ids, BASES, beyond=9)
    apply(model, Basis())
    with pytest.raises(ValueError, match="already"):
        choose(model, ids, BASES)
