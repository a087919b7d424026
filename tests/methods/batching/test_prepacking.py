"""Prepacking against one prompt at a time: packing, logits, cache, continuation, and what is refused."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GenerationConfig,
    GPT2Config,
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3NextConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from workingpapers.methods.batching.prepacking import generate, naive_prefill, pack_lengths, prefill, prepack

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
NAMES = {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": None}
WINDOW = {"sliding_window": 5, "head_dim": 8}
CONFIGS = {
    "llama": LlamaConfig(**SMALL),
    "mistral, window": MistralConfig(**SMALL, sliding_window=5),
    "qwen2": Qwen2Config(**SMALL),
    "qwen2, window in some layers": Qwen2Config(
        **SMALL, use_sliding_window=True, sliding_window=5, max_window_layers=1
    ),
    "phi3": Phi3Config(**SMALL),
    "gemma2, window and soft cap": Gemma2Config(**SMALL, **WINDOW),
    "gemma3, window": Gemma3TextConfig(**SMALL, **WINDOW),
    "gpt2, learned positions": GPT2Config(**NAMES),
}
LENGTHS = (13, 1, 7, 4, 9, 2, 1, 12, 5)


def build(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():  # initial weights are so small that every context gives the same token
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def prompts_of(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 97, (n,), generator=generator).tolist() for n in lengths]


@pytest.fixture(scope="module")
def llama():
    return build(CONFIGS["llama"])


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=40), extra=st.integers(0, 20))
@settings(max_examples=100, deadline=None)
def test_every_prompt_is_packed_once_and_no_bin_overflows(lengths, extra):
    capacity = max(lengths) + extra
    bins = pack_lengths(lengths, capacity)
    assert sorted(itertools.chain(*bins)) == list(range(len(lengths)))
    fill = [sum(lengths[i] for i in members) for members in bins]
    assert max(fill) <= capacity
    assert len(bins) >= math.ceil(sum(lengths) / capacity)
    assert sum(f <= capacity / 2 for f in fill) <= 1  # two half-empty bins would have been one


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=40), extra=st.integers(0, 20))
@settings(max_examples=50, deadline=None)
def test_each_prompt_goes_into_the_fullest_bin_with_room(lengths, extra):
    capacity, room = max(lengths) + extra, []
    for length in sorted(lengths, reverse=True):
        fits = [left for left in room if left >= length]
        left = min(fits, default=capacity)
        if fits:
            room.remove(left)
        room.append(left - length)
    bins = pack_lengths(lengths, capacity)
    assert sorted(capacity - sum(lengths[i] for i in members) for members in bins) == sorted(room)


@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=7))
@settings(max_examples=50, deadline=None)
def test_bins_are_at_most_eleven_ninths_of_the_fewest_possible(lengths):
    def fewest(left, room):
        if not left:
            return len(room)
        options = [fewest(left[1:], [*room, 12 - left[0]])]
        options += [
            fewest(left[1:], [*room[:i], r - left[0], *room[i + 1 :]]) for i, r in enumerate(room) if r >= left[0]
        ]
        return min(options)

    assert len(pack_lengths(lengths, 12)) <= 11 / 9 * fewest(lengths, []) + 2 / 3


def test_rows_hold_the_prompts_with_restarting_positions():
    prompts = prompts_of(LENGTHS)
    rows = prepack(prompts, pad_token_id=2)
    for prompt, row, start in zip(prompts, rows.row, rows.start, strict=True):
        span = slice(start, start + len(prompt))
        assert rows.input_ids[row, span].tolist() == prompt
        assert rows.position_ids[row, span].tolist() == list(range(len(prompt)))
    assert (rows.input_ids == 2).sum() == rows.size - sum(LENGTHS)
    # 13 | 12 + 1 | 9 + 4 | 7 + 5 + 1 | 2: five rows of 13
    assert rows.input_ids.shape == (5, 13)
    assert rows.size == 65
    assert prepack(prompts, capacity=54).input_ids.shape == (1, 54)


def test_prompts_of_equal_length_stay_as_they_are():
    prompts = prompts_of((6, 6, 6))
    rows = prepack(prompts)
    assert sorted(rows.input_ids.tolist()) == sorted(prompts)


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_cache_and_continuation_equal_those_of_each_prompt_alone(name):
    model, prompts = build(CONFIGS[name]), prompts_of(LENGTHS)
    result = prefill(model, prompts)
    windows = result.cache.is_sliding
    for i, (logits, cache) in enumerate(naive_prefill(model, prompts)):
        # Sums over a row of 13 instead of over the prompt are taken in another order: 1e-5 in float32, logits of 1-10.
        torch.testing.assert_close(result.logits[i], logits, atol=1e-5, rtol=1e-5)
        kept = LENGTHS[i] - 1
        for ours, alone, window in zip(result.cache.layers, cache.layers, windows, strict=True):
            if not window:
                for a, b in ((ours.keys, alone.keys), (ours.values, alone.values)):
                    torch.testing.assert_close(a[i, :, 12 - kept :], b[0, :, :kept], atol=1e-5, rtol=1e-5)
                    assert not a[i, :, : 12 - kept].any()
    continued = model.generate(**result.inputs, max_new_tokens=20, do_sample=False)
    for prompt, tokens in zip(prompts, continued, strict=True):
        ids = torch.tensor([prompt])
        alone = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False)
        assert tokens[13:].tolist() == alone[0, len(prompt) :].tolist()
    assert len(set(continued[:, 13:].flatten().tolist())) > 5  # the models do not all say one thing


@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=8), extra=st.integers(0, 30), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_any_lengths_and_capacity_give_the_logits_of_each_prompt_alone(llama, lengths, extra, seed):
    prompts = prompts_of(lengths, seed)
    result = prefill(llama, prompts, capacity=max(lengths) + extra)
    alone = torch.stack([logits for logits, _ in naive_prefill(llama, prompts)])
    torch.testing.assert_close(result.logits, alone, atol=1e-5, rtol=1e-5)


def test_a_prompt_is_blind_to_the_others_in_its_row(llama):
    prompts = prompts_of(LENGTHS)
    changed = [prompts[0], *prompts[1:7], [5] * 12, prompts[8]]  # shares its row with prompt 1 or 6
    before, after = prefill(llama, prompts), prefill(llama, changed)
    same = [i for i in range(9) if i != 7]
    # Same shapes, same kernels, and weights of exactly zero: bitwise.
    assert torch.equal(before.logits[same], after.logits[same])
    for a, b in zip(before.cache.layers, after.cache.layers, strict=True):
        assert torch.equal(a.keys[same], b.keys[same])
        assert torch.equal(a.values[same], b.values[same])
        assert not torch.equal(a.keys[7], b.keys[7])


def test_eager_attention_and_half_precision():
    model, prompts = build(CONFIGS["llama"]), prompts_of(LENGTHS)
    exact = prefill(model, prompts).logits
    model.set_attn_implementation("eager")
    torch.testing.assert_close(prefill(model, prompts).logits, exact, atol=1e-5, rtol=1e-5)
    half = prefill(model.bfloat16(), prompts)
    assert half.logits.dtype == half.cache.layers[0].keys.dtype == torch.bfloat16
    # bfloat16 has 8 bits: errors of 2^-8 per operation on logits of 1-10, a few layers deep.
    torch.testing.assert_close(half.logits.float(), exact, atol=0.3, rtol=0.05)


def test_only_the_last_tokens_reach_the_output_embeddings(llama):
    seen = []
    hook = llama.lm_head.register_forward_hook(lambda module, args, out: seen.append(tuple(out.shape)))
    prefill(llama, prompts_of(LENGTHS))
    hook.remove()
    assert seen == [(1, 9, 97)]
    assert not llama.lm_head._forward_pre_hooks  # the model is left as it was


class Tokenizer:
    """Characters as tokens."""

    pad_token_id = 2

    def __call__(self, texts):
        return {"input_ids": [[3 + ord(c) % 90 for c in text] for text in texts]}


def test_generate_from_texts_equals_padding(llama):
    texts = ["a", "a longer text", "middle"]
    ids = Tokenizer()(texts)["input_ids"]
    padded = torch.tensor([[2] * (13 - len(p)) + p for p in ids])
    mask = torch.tensor([[0] * (13 - len(p)) + [1] * len(p) for p in ids])
    expected = llama.generate(input_ids=padded, attention_mask=mask, max_new_tokens=8, do_sample=False)
    assert generate(llama, texts, Tokenizer(), max_new_tokens=8, do_sample=False).tolist() == expected.tolist()


def test_prompts_that_cannot_be_packed(llama):
    with pytest.raises(ValueError, match="between 1 and the capacity 5; got 7"):
        prepack(prompts_of((7, 2)), capacity=5)
    with pytest.raises(ValueError, match="non-empty"):
        prepack([])
    with pytest.raises(ValueError, match="non-empty"):
        prepack([[1, 2], []])
    with pytest.raises(ValueError, match="one text"):
        prefill(llama, "hello")
    with pytest.raises(ValueError, match="tokenizer"):
        prefill(llama, ["hello"])
    with pytest.raises(ValueError, match="between 0 and 96"):
        prefill(llama, [[5, 97]])


REFUSED = {
    "layers of type \\['linear_attention'\\]": Qwen3NextConfig(**SMALL),
    "BloomForCausalLM .* no position_ids": BloomConfig(vocab_size=97, hidden_size=32, n_layer=1, n_head=4),
    "FalconForCausalLM .* no position_ids": FalconConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, alibi=True
    ),
    "changes beyond 10 tokens; the longest prompt has 13": LlamaConfig(
        **SMALL | {"max_position_embeddings": 10}, rope_parameters={"rope_type": "dynamic", "factor": 2.0}
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_models_that_would_give_wrong_numbers_are_refused_by_name(reason):
    model = AutoModelForCausalLM.from_config(REFUSED[reason]).eval()
    with pytest.raises(ValueError, match=reason):
        prefill(model, prompts_of(LENGTHS))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_return_sequences": 2, "do_sample": True}, "num_return_sequences is 2; .* it must be 1"),
        ({"use_cache": False}, "use_cache is False; .* it must be True"),
        ({"generation_config": GenerationConfig(use_cache=False)}, "use_cache is False"),
        ({"cache_implementation": "static"}, "cache_implementation is static; .* it must be None"),
        ({"prompt_lookup_num_tokens": 2}, "prompt_lookup_num_tokens is 2"),
        ({"assistant_model": "llama"}, "assistant_model is a LlamaForCausalLM"),
    ],
    ids=str,
)
def test_options_under_which_other_tokens_would_come_are_refused(llama, options, message):
    options = {name: llama if value == "llama" else value for name, value in options.items()}
    with pytest.raises(ValueError, match=message):
        generate(llama, prompts_of((5,)), **options)


def test_a_padding_token_that_the_model_does_not_have_is_not_used():
    model = build(CONFIGS["llama"])
    model.config.eos_token_id = model.generation_config.eos_token_id = 50_256
    model.generation_config.pad_token_id = model.config.pad_token_id = None
    rows = prefill(model, prompts_of((5, 3, 3))).rows
    assert int(rows.input_ids.max()) < 97


def test_other_refusals(llama):
    prompts = prompts_of((3, 2))
    with pytest.raises(ValueError, match="num_beams is 2"):
        generate(llama, prompts, num_beams=2)
    for name in ("input_ids", "inputs_embeds", "position_ids", "past_key_values"):
        with pytest.raises(ValueError, match=f"{name} come from the prompts"):
            generate(llama, prompts, **{name: torch.tensor([[1]])})
    assert torch.equal(prefill(llama, iter(prompts)).logits, prefill(llama, prompts).logits)  # nothing is read twice
    with pytest.raises(ValueError, match=r"token ids must be whole numbers; got torch\.float32"):
        prefill(llama, [[3, 4], [1.5, 2.0]])
    for run in (prefill, generate):
        with pytest.raises(ValueError, match="not a wrapper around one; got OptimizedModule"):
            run(torch.compile(llama, backend="eager"), prompts)
    with pytest.raises(ValueError, match="no output embeddings"):
        prefill(LlamaModel(CONFIGS["llama"]).eval(), prompts)
    t5 = T5Config(vocab_size=97, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4)
    with pytest.raises(ValueError, match="encoder-decoder"):
        prefill(T5ForConditionalGeneration(t5).eval(), prompts)
    model = build(CONFIGS["llama"])
    with pytest.raises(ValueError, match="training mode"):
        prefill(model.train(), prompts)
    model.eval().config._attn_implementation = "flash_attention_2"  # ignores masks with four dimensions
    with pytest.raises(ValueError, match="'flash_attention_2'; allowed: 'sdpa', 'eager'"):
        prefill(model, prompts)
