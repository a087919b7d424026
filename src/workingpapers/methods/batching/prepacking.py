"""Prepacking: the first pass over prompts of unequal length without paying for padding.

A batch of k prompts with l_1..l_k tokens is usually padded to C = max l_i: k C tokens go through every layer, of which
only sum l_i mean something. Here the prompts are packed into few rows of at most C tokens, one pass runs over the rows,
and the key-value cache is cut apart again, so that decoding goes on as after padding:

    rows       bins of capacity C, best-fit decreasing: the longest prompt first, into the fullest row that has room
    tokens     (r, S)       the prompts of a row one after the other, S the fullest row, the rest padding
    positions  (r, S)       0, 1, 2, .. from the start of every prompt: rotary keys come out as if it were alone
    mask       (r, S, S)    token a sees token b if both are of one prompt and b <= a (and inside the window, if any)
    cache      (k, H, L, d) per layer, L = C - 1: each prompt's span of the rows, padded on the left

The work falls from k C to r S tokens, which is close to sum l_i: `rows.size / sum(lengths)` says how close. Prompts of
equal length gain nothing. Results are those of each prompt alone, up to the rounding of sums taken in another order.

Keys and values are packed with every token, so that `Prefill.logits` come out of the same pass. The cache leaves the
last token of each prompt out, because `generate()` wants at least one token to process; it repeats that one token.

Works with decoders of transformers that keep keys and values per token, by attention "sdpa" or "eager", with full or
sliding windows, rotary or learned positions. Refused by name: encoder-decoders, models with images, recurrent or
shared layers, ALiBi, other attention implementations (they would not see the mask), rotary scaling that depends on the
length of the batch; beams, assisted decoding, decoding without a cache.

Source: Zhao, Israel, Van den Broeck and Grover, "Prepacking: A Simple Method for Fast Prefilling and Increased
Throughput in Large Language Models", AISTATS 2025, arXiv 2404.09529, and the authors' published code (its
greedy packing). That code takes the last token of every prompt out before packing, which loses prompts of one token;
here they are kept.
"""

from __future__ import annotations

import inspect
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Prompt = str | Sequence[int] | Tensor


@dataclass(frozen=True)
class PackedRows:
    """Prompts packed into rows.

    Attributes:
        input_ids: (r, S) tokens; the ends of rows are filled with the padding token.
        position_ids: (r, S) positions within each prompt; 0 for padding, which makes every padding token a segment.
        row: (k,) the row that holds each prompt.
        start: (k,) the column of its first token.
        lengths: (k,) its number of tokens.
    """

    input_ids: Tensor
    position_ids: Tensor
    row: Tensor
    start: Tensor
    lengths: Tensor

    @property
    def size(self) -> int:
        """The number of tokens that a pass over the rows processes, r S."""
        return self.input_ids.numel()


@dataclass(frozen=True)
class Prefill:
    """What the first pass leaves behind, in the order of the prompts.

    Attributes:
        logits: (k, V) scores of the token that follows each prompt.
        input_ids: (k, L + 1) the prompts, padded on the left.
        attention_mask: (k, L + 1) 1 for tokens, 0 for padding.
        cache: a `DynamicCache` with the keys and values of the first L columns (k, H, L, d), zero where padded.
        rows: the rows that the pass ran over.
    """

    logits: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    cache: Any
    rows: PackedRows

    @property
    def inputs(self) -> dict[str, Any]:
        """Arguments for one call of `model.generate(**inputs)`; generation extends the cache, so use them once."""
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask, "cache": self.cache}


def pack_lengths(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Return bins of indices, each of which sums to at most `capacity`, by best-fit decreasing.

    At most 11/9 of the fewest possible bins, plus 2/3, are used (the bound of first-fit decreasing).

    Raises:
        ValueError: a length below 1 or above the capacity.
    """
    wrong = [n for n in lengths if not 1 <= n <= capacity]
    if wrong:
        raise ValueError(f"prompt lengths must lie between 1 and the capacity {capacity}; got {wrong[0]}")
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, bin), sorted: the first with enough is the fullest that fits
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        found = bisect_left(room, (lengths[index], -1))
        if found < len(room):
            left, which = room.pop(found)
        else:
            left, which = capacity, len(bins)
            bins.append([])
        bins[which].append(index)
        insort(room, (left - lengths[index], which))
    return bins


def prepack(
    prompts: Sequence[Sequence[int] | Tensor], *, capacity: int | None = None, pad_token_id: int = 0
) -> PackedRows:
    """Pack prompts into rows.

    Args:
        prompts: k prompts, each a sequence of token ids.
        capacity: the most tokens in a row; None takes the longest prompt, as published.
        pad_token_id: the token at the ends of rows (0); nothing sees it.

    Raises:
        ValueError: no prompt, an empty prompt, one longer than the capacity, or tokens that are no whole numbers.
    """
    tokens = [torch.as_tensor(p, device="cpu") for p in prompts]
    if not tokens or any(t.ndim != 1 or t.numel() == 0 for t in tokens):
        raise ValueError(f"prompts must be non-empty lists of token ids; got {[tuple(t.shape) for t in tokens]}")
    kinds = {t.dtype for t in tokens if t.is_floating_point() or t.dtype == torch.bool}
    if kinds:
        raise ValueError(f"token ids must be whole numbers; got {', '.join(map(str, kinds))}")
    lengths = [len(t) for t in tokens]
    bins = pack_lengths(lengths, max(lengths) if capacity is None else capacity)
    shape = len(bins), max(sum(lengths[i] for i in members) for members in bins)
    input_ids, position_ids = torch.full(shape, pad_token_id), torch.zeros(shape, dtype=torch.long)
    row, start = torch.empty(len(tokens), dtype=torch.long), torch.empty(len(tokens), dtype=torch.long)
    for r, members in enumerate(bins):
        column = 0
        for i in members:
            span = slice(column, column + lengths[i])
            input_ids[r, span], position_ids[r, span] = tokens[i], torch.arange(lengths[i])
            row[i], start[i] = r, column
            column += lengths[i]
    return PackedRows(input_ids, position_ids, row, start, torch.tensor(lengths))


@torch.no_grad()
def prefill(model: Any, prompts: Sequence[Prompt], tokenizer: Any = None, *, capacity: int | None = None) -> Prefill:
    """Run the first pass of a model over prompts, packed into rows.

    Args:
        model: a decoder of transformers with a head for the next token, in evaluation mode.
        prompts: k texts, or k sequences of token ids.
        tokenizer: needed for texts.
        capacity: as in `prepack`.

    Raises:
        ValueError: prompts that cannot be packed, or a model that is refused (see the module).
    """
    _check_kind(model)
    ids = _token_ids(prompts, tokenizer)
    pad = _pad_token_id(model, tokenizer)
    rows = prepack(ids, capacity=capacity, pad_token_id=pad)
    _refuse(model, rows)
    logits, packed = _forward(model, rows)
    source, mask = _left_padded_columns(rows)
    input_ids = rows.input_ids[rows.row[:, None], source].masked_fill(~mask, pad)
    cache = _split(model, packed, rows.row, source[:, :-1], mask[:, :-1])
    return Prefill(logits, input_ids.to(model.device), mask.long().to(model.device), cache, rows)


def generate(model: Any, prompts: Sequence[Prompt], tokenizer: Any = None, **options: Any) -> Any:
    """Generate from prompts as `model.generate` does from a batch padded on the left, after a packed first pass.

    Args:
        model: as in `prefill`.
        prompts: as in `prefill`.
        tokenizer: needed for texts.
        options: arguments of `model.generate`, `max_new_tokens` for example.

    Returns:
        What `model.generate` returns: by default tokens (k, L + 1 + new), the padded prompts first.

    Raises:
        ValueError: as `prefill`; or an option that the cache of a packed first pass does not serve: several beams or
            sequences for a prompt, assisted decoding, a cache of another kind or none.
    """
    _check_kind(model)
    _refuse_options(model, options)
    return model.generate(**prefill(model, prompts, tokenizer).inputs, **options)


def _check_kind(model: Any) -> None:
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise ValueError(f"expected a model of transformers, not a wrapper around one; got {type(model).__name__}")


# What `generate` must be told, if anything: with other values it would give other tokens, or start the cache anew.
_NEEDED = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "use_cache": True,
    "cache_implementation": None,
    "assistant_model": None,
    "assistant_early_exit": None,
    "prompt_lookup_num_tokens": None,
}

# What the prompts make, `cache` also by its former name.
_MADE_HERE = {"inputs", "input_ids", "inputs_embeds", "attention_mask", "position_ids", "cache", "past_key_values"}


def _refuse_options(model: Any, options: dict[str, Any]) -> None:
    config = options.get("generation_config") or model.generation_config
    for name, needed in _NEEDED.items():
        value = options.get(name)
        value = getattr(config, name, None) if value is None else value
        if value not in (None, needed):
            shown = value if isinstance(value, (int, str)) else f"a {type(value).__name__}"
            raise ValueError(f"{name} is {shown}; with a packed first pass it must be {needed}")
    made_here = sorted(_MADE_HERE & set(options))
    if made_here:
        raise ValueError(f"{', '.join(made_here)} come from the prompts; leave them out")


def naive_prefill(model: Any, prompts: Sequence[Prompt], tokenizer: Any = None) -> Iterator[tuple[Tensor, Any]]:
    """Yield the next-token logits (V,) and the cache of each prompt by the definition: one pass for every prompt."""
    for ids in _token_ids(prompts, tokenizer):
        with torch.no_grad():
            out = model(torch.as_tensor(ids, device=model.device)[None], use_cache=True, logits_to_keep=1)
        yield out.logits[0, -1], out.cache


def _token_ids(prompts: Sequence[Prompt], tokenizer: Any) -> list[Any]:
    if isinstance(prompts, str):
        raise ValueError("prompts is one text; give a list of them")
    prompts = list(prompts)
    if not any(isinstance(p, str) for p in prompts):
        return prompts
    if tokenizer is None:
        raise ValueError("prompts are texts; give the tokenizer too, or token ids")
    return list(tokenizer(prompts)["input_ids"])


def _pad_token_id(model: Any, tokenizer: Any) -> int:
    """Return the padding token, else the end of text, else 0; one that the model has, though nothing sees it."""
    known = model.get_input_embeddings().num_embeddings
    for owner in (tokenizer, getattr(model, "generation_config", None), model.config):
        for name in ("pad_token_id", "eos_token_id"):
            value = getattr(owner, name, None)
            value = value[0] if isinstance(value, list) else value
            if value is not None and 0 <= value < known:
                return int(value)
    return 0


def _refuse(model: Any, rows: PackedRows) -> None:
    """Raise ValueError for what would give wrong numbers: the model cannot be packed, or tokens it does not know."""
    config, name = model.config, type(model).__name__
    takes = inspect.signature(model.forward).parameters
    layers = set(getattr(config, "layer_types", None) or ())
    alone = {"full_attention", "sliding_attention"}
    rotary = getattr(config, "rope_parameters", None) or {}
    scaling = {p.get("rope_type") for p in (rotary, *rotary.values()) if isinstance(p, dict)} & {"dynamic", "longrope"}
    trained = rotary.get("original_max_position_embeddings") or getattr(config, "max_position_embeddings", None) or 0
    longest, vocabulary = int(rows.lengths.max()), model.get_input_embeddings().num_embeddings
    attention = config._attn_implementation
    reasons = {
        "it is in training mode; call model.eval()": model.training,
        "it is an encoder-decoder": config.is_encoder_decoder,
        "it takes more than text; load its language model alone": config.get_text_config() is not config,
        "its forward takes no position_ids": "position_ids" not in takes or getattr(config, "alibi", False),
        "it makes attention masks of its own": hasattr(model, "create_masks_for_generate"),
        f"it has layers of type {sorted(layers - alone)}; allowed: {sorted(alone)}": layers - alone,
        "its layers share keys and values": getattr(config, "num_kv_shared_layers", None),
        f"its attention is {attention!r}; allowed: 'sdpa', 'eager'": attention not in ("sdpa", "eager"),
        "it has no output embeddings": model.get_output_embeddings() is None,
        f"its rotary scaling changes beyond {trained} tokens; the longest prompt has {longest}": (
            scaling and longest > trained
        ),
    }
    for reason, holds in reasons.items():
        if holds:
            raise ValueError(f"{name} cannot be prepacked: {reason}")
    if int(rows.input_ids.min()) < 0 or int(rows.input_ids.max()) >= vocabulary:
        raise ValueError(f"token ids must lie between 0 and {vocabulary - 1}, the vocabulary of {name}")


def _forward(model: Any, rows: PackedRows) -> tuple[Tensor, Any]:
    """Return the next-token logits (k, V) and the keys and values of the rows, for every token of every layer."""
    from transformers import DynamicCache
    from transformers.masking_utils import create_masks_for_generate

    ids, positions = rows.input_ids.to(model.device), rows.position_ids.to(model.device)
    row, last = rows.row.to(model.device), (rows.start + rows.lengths - 1).to(model.device)
    # The library reads the prompts off the restarting positions and makes a mask for every type of layer.
    meta = torch.empty(*ids.shape, 0, dtype=model.dtype, device=model.device)
    masks = create_masks_for_generate(model.config, meta, attention_mask=None, cache=None, position_ids=positions)
    cache = DynamicCache()  # no windows: they would keep the ends of rows, not of prompts
    # Only the last token of each prompt goes through the large matrix to the vocabulary.
    pick = model.get_output_embeddings().register_forward_pre_hook(lambda _, args: (args[0][row, last][None],))
    try:
        out = model(ids, attention_mask=masks, position_ids=positions, cache=cache, use_cache=True)
    finally:
        pick.remove()
    return out.logits[0], cache


def _left_padded_columns(rows: PackedRows) -> tuple[Tensor, Tensor]:
    """Return for each prompt, padded on the left, the columns of its row (k, C) and which of them are its tokens."""
    longest = int(rows.lengths.max())
    offset = torch.arange(longest) - (longest - rows.lengths)[:, None]
    return (rows.start[:, None] + offset).clamp(min=0), offset >= 0


def _split(model: Any, packed: Any, row: Tensor, column: Tensor, mask: Tensor) -> Any:
    """Return the model's kind of cache, filled from the packed one, which is emptied on the way.

    Args:
        model: whose configuration says what kind of cache each layer has.
        packed: the cache of the rows.
        row: (k,) the row of each prompt.
        column: (k, L) the column of each of its tokens, padded on the left.
        mask: (k, L) which of them are tokens.
    """
    from transformers import DynamicCache

    prompt, position = mask.nonzero(as_tuple=True)
    source = row[prompt].to(model.device), column[prompt, position].to(model.device)
    target = prompt.to(model.device), position.to(model.device)
    cache = DynamicCache(config=model.config)
    for index, layer in enumerate(packed.layers):
        padded = []
        for x in (layer.keys, layer.values):  # (r, H, S, d)
            y = x.new_zeros(len(row), x.shape[1], mask.shape[1], x.shape[3])
            y[target[0], :, target[1]] = x[source[0], :, source[1]]
            padded.append(y)
        cache.update(*padded, index)
        layer.reset()
    return cache
