"""Item vectors against one plain call of the model for each text; causality; the loss against its definition."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tinymodels import tiny
from torch.nn import functional as F
from transformers import BertConfig, BertModel, BloomConfig, BloomModel, GPT2Config, GPT2Model, T5Config, T5Model

from workingpapers.methods.recommenders.hllm_encoders import ItemEncoder, UserEncoder, from_scratch, sampled_info_nce

TEXTS = [[3, 4, 5], [6], [7, 8, 9, 10, 11, 12], [13, 14], [3, 4, 5, 6, 7]]


def gpt2():
    torch.manual_seed(0)
    return GPT2Model(GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=4)).eval()


def bert():
    torch.manual_seed(0)
    options = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    return BertModel(BertConfig(vocab_size=64, hidden_size=32, max_position_embeddings=32, **options)).eval()


MODELS = {"Llama": tiny, "Qwen3": lambda: tiny("Qwen3"), "Gemma2": lambda: tiny("Gemma2"), "GPT2": gpt2, "Bert": bert}


@torch.no_grad()
def one_by_one(encoder, tokens, length):
    """Item vectors by the definition: each text through the model alone, [ITEM] at position `length`."""
    found = []
    for ids in tokens:
        x = encoder.body.get_input_embeddings()(torch.tensor([ids]))
        start = 0
        if encoder.slot is not None:
            x, start = torch.cat([x, encoder.slot[None, None]], dim=1), length - len(ids)
        positions = torch.arange(start, start + x.shape[1])[None]
        states = encoder.body(inputs_embeds=x, position_ids=positions, use_cache=False).last_hidden_state[0]
        found.append(states.mean(dim=0) if encoder.slot is None else states[-1])
    return torch.stack(found)


@pytest.mark.parametrize("pooling", ["token", "mean"])
@pytest.mark.parametrize("name", MODELS)
def test_packed_and_padded_vectors_are_those_of_each_text_alone(name, pooling):
    for packed in (True, False):
        encoder = ItemEncoder(MODELS[name](), pooling=pooling, max_length=12, packed=packed).eval()
        expected = one_by_one(encoder, TEXTS, 12)
        assert expected.std(dim=0).max() > 1e-3  # the texts do differ
        # float32 through two layers, sums in another order.
        torch.testing.assert_close(encoder(TEXTS), expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(encoder.encode(TEXTS, batch_size=2), expected, atol=1e-5, rtol=1e-4)


@given(others=st.lists(st.lists(st.integers(0, 63), max_size=12), max_size=6))
@settings(max_examples=20, deadline=None)
def test_a_vector_does_not_depend_on_the_rest_of_the_batch(others):
    encoder = ItemEncoder(tiny(), max_length=12).eval()
    with torch.no_grad():
        torch.testing.assert_close(encoder([[5, 6, 7], *others])[0], encoder([[5, 6, 7]])[0], atol=1e-5, rtol=1e-4)


def test_encoding_a_catalogue_shows_how_far_it_is_where_it_takes_long(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich draws bars on terminals only
    encoder = ItemEncoder(tiny(), max_length=12)
    encoder.encode(TEXTS)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr("workingpapers.progress.PATIENCE", -1.0)
    encoder.encode(TEXTS, batch_size=2)
    assert "5/5" in capsys.readouterr().err


def test_long_texts_lose_their_end_but_not_the_slot():
    encoder = ItemEncoder(tiny(), max_length=4)
    assert encoder.tokens([list(range(10))]) == [[0, 1, 2, 3]]
    vectors = encoder(encoder.tokens([list(range(10)), [0, 1, 2, 3, 60]]))
    torch.testing.assert_close(vectors[0], vectors[1])
    vectors[0].square().sum().backward()
    assert encoder.slot.grad.abs().max() > 0


def test_gradients_of_a_text_encoded_twice_add_up_to_those_of_once():
    model = tiny()
    encoder = ItemEncoder(model, max_length=12)
    weight = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    (encoder([[5, 6], [7], [5, 6]]) * weight).sum().backward()
    twice = {n: p.grad.clone() for n, p in encoder.named_parameters() if p.grad is not None}
    encoder.zero_grad()
    (encoder([[5, 6], [7]])[torch.tensor([0, 1, 0])] * weight).sum().backward()
    for name, p in encoder.named_parameters():
        if name in twice:
            torch.testing.assert_close(p.grad, twice[name], atol=1e-5, rtol=1e-4)


def test_low_precision_models_give_vectors_in_float32():
    vectors = ItemEncoder(tiny().bfloat16(), max_length=12)(TEXTS)
    assert vectors.dtype == torch.float32
    expected = ItemEncoder(tiny(), max_length=12)(TEXTS)  # another random slot
    assert vectors.shape == expected.shape


@pytest.mark.parametrize("name", ["Llama", "GPT2"])
def test_a_user_state_does_not_see_later_items(name):
    encoder = UserEncoder(MODELS[name](), 10)
    x = torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(0))
    y = x.clone()
    y[:, 4:] *= -1
    with torch.no_grad():
        before, after = encoder(x), encoder(y)
    torch.testing.assert_close(after[:, :4], before[:, :4])
    assert (after[:, 4:] - before[:, 4:]).abs().max() > 0.1


def naive_sampled_info_nce(p, t, n, scale, threshold):
    """The loss in float64, one prediction and one negative at a time."""

    def cosine(a, b):
        return (a @ b) / (a.norm() * b.norm())

    losses, kept = [], 0
    for i in range(len(p)):
        own = scale * cosine(p[i], t[i])
        others = [scale * cosine(p[i], k) for k in n if cosine(t[i], k) <= threshold]
        kept += len(others)
        losses.append(torch.logsumexp(torch.stack([own, *others]), 0) - own)
    return torch.stack(losses).mean(), kept / len(p)


@given(seed=st.integers(0, 1000), count=st.integers(1, 4), negatives=st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_loss_and_gradients_equal_the_definition(seed, count, negatives):
    torch.manual_seed(seed)
    p, t, n = torch.randn(count, 3), torch.randn(count, 3), torch.randn(negatives, 3)
    n = torch.cat([n, 2 * t[:1]])  # one negative is the first target itself
    wide = [x.double().requires_grad_() for x in (p, t, n)]
    p, t, n = (x.requires_grad_() for x in (p, t, n))
    found, kept = sampled_info_nce(p, t, n, 5.0, 0.9)
    expected, expected_kept = naive_sampled_info_nce(*wide, 5.0, 0.9)
    assert float(kept) == pytest.approx(expected_kept)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    found.backward()
    expected.backward()
    for x, y in zip((p, t, n), wide, strict=True):
        expected = torch.zeros_like(y) if y.grad is None else y.grad  # the only negative may have been left out
        torch.testing.assert_close(x.grad.double(), expected, atol=1e-4, rtol=1e-4)


def test_limits_of_the_loss():
    torch.manual_seed(0)
    p, t, n = torch.randn(64, 512), torch.randn(64, 512), torch.randn(100, 512)
    assert sampled_info_nce(p, t, n[:0], 1.0)[0] == 0
    assert sampled_info_nce(p[:0], t[:0], n, 1.0)[0] == 0
    # At scale 1 random cosines, of size 1/sqrt(512), hardly tell items apart: 0.01 is three standard errors.
    assert float(sampled_info_nce(p, t, n, 1.0)[0]) == pytest.approx(math.log(101), abs=0.02)
    once = sampled_info_nce(p[:1], t[:1], n, 10.0)
    again = sampled_info_nce(p[:1], t[:1], torch.cat([n, t[:1], 3 * t[:1]]), 10.0)
    torch.testing.assert_close(again, once)


def test_a_model_from_scratch_has_the_shape_but_not_the_weights():
    model = tiny(seed=5)
    state = torch.random.get_rng_state()
    first, again, other = from_scratch(model), from_scratch(model), from_scratch(model, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    name = "model.layers.0.mlp.up_proj.weight"
    a, b, c, old = (m.state_dict()[name] for m in (first, again, other, model))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert not torch.equal(a, old)
    assert first.config.to_dict() == model.config.to_dict()
    F.cross_entropy(first(torch.tensor([[1, 2]])).logits[0], torch.tensor([2, 3])).backward()


def test_models_that_cannot_serve_are_refused():
    with pytest.raises(ValueError, match="must be a model of transformers; got Linear"):
        ItemEncoder(torch.nn.Linear(2, 2))
    t5 = T5Model(T5Config(vocab_size=64, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2))
    with pytest.raises(ValueError, match="encoder-decoder"):
        ItemEncoder(t5)
    with pytest.raises(ValueError, match="32 positions, but 257 are needed"):
        ItemEncoder(bert())
    with pytest.raises(ValueError, match="BertModel, not causal"):
        UserEncoder(bert(), 10)
    bloom = BloomModel(BloomConfig(vocab_size=64, hidden_size=16, n_layer=1, n_head=2))
    with pytest.raises(ValueError, match=r"no position_ids.*packed=False"):
        ItemEncoder(bloom)
    with pytest.raises(ValueError, match="window of 8 tokens"):
        ItemEncoder(tiny("Mistral", sliding_window=8), max_length=12)


def test_texts_beside_padding_work_without_position_ids():
    torch.manual_seed(0)
    model = BloomModel(BloomConfig(vocab_size=64, hidden_size=16, n_layer=1, n_head=2)).eval()
    encoder = ItemEncoder(model, max_length=12, packed=False)
    torch.testing.assert_close(encoder(TEXTS)[1], encoder([TEXTS[1]])[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "one item or more"),
        ("text", "list of texts"),
        (["text"], "give the tokenizer"),
        ([[1], [64]], r"item 1 has token ids outside 0 \.\. 63"),
        ([[1], "text"], "item 1 is 'text'"),
        ([[1], None], "item 1 is None"),
        ([[1], [2.5]], r"item 1 is \[2.5\]"),
    ],
)
def test_bad_items_are_named(items, message):
    with pytest.raises(ValueError, match=message):
        ItemEncoder(tiny(), max_length=12).tokens(items)


def test_bad_options_are_named():
    with pytest.raises(ValueError, match="pooling is 'cls'"):
        ItemEncoder(tiny(), pooling="cls", max_length=12)
    with pytest.raises(ValueError, match="max_length 0"):
        ItemEncoder(tiny(), max_length=0)
    with pytest.raises(ValueError, match="item 1 has no tokens"):
        ItemEncoder(tiny(), pooling="mean", max_length=12).tokens([[1], []])
