"""Tiny random decoders of every family of transformers that the attention room supports."""

import warnings

import torch
import transformers

LLAMA = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8, "layer_types": ["full_attention"] * 2}
FAMILIES = {
    "Llama": {},
    "Mistral": {"sliding_window": None},
    "Qwen2": {},
    "Qwen3": {"head_dim": 8},
    "SmolLM3": {"no_rope_layers": [1, 0]},
    "Phi": {},
    "Phi3": {},
    "Gemma": {"head_dim": 8},
    "Gemma2": {**GEMMA, "attn_logit_softcapping": None},
    "Gemma3Text": GEMMA,
}


def tiny(family="Llama", seed=0, **options):
    """Return a random model in evaluation mode whose attention is far from uniform."""
    config = getattr(transformers, f"{family}Config")(**{**LLAMA, **FAMILIES.get(family, {}), **options})
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():  # the usual initialisation (0.02) makes all scores alike
        for name, parameter in model.named_parameters():
            if "attn" in name and parameter.ndim == 2:
                parameter.mul_(8)
    return model


def tokens(batch, length, seed=0):
    """Return (batch, length) token ids, none of which is padding."""
    return torch.randint(2, 64, (batch, length), generator=torch.Generator().manual_seed(seed))


def left_padded(batch, length, padding):
    """Return an attention mask (batch, length) whose first row starts with so many zeros."""
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[0, :padding] = 0
    return mask
