"""The two encoders of `hllm`, around any language models of transformers, and the loss that joins them."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from workingpapers.methods.batching.prepacking import PackedRows, prepack
from workingpapers.progress import counted, watched

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROMPT = "Compress the following sentence into embedding: "
POOLINGS = ("token", "mean")

Items = Sequence[str] | Sequence[Sequence[int]]


class ItemEncoder(nn.Module):
    """A language model that turns texts into vectors.

    Args:
        model: of transformers, causal or bidirectional; its head for tokens, if any, is not used.
        tokenizer: needed for texts.
        pooling: "token" (the state at [ITEM], as published) or "mean" (of all states; positions then start at 0).
        prompt: what is put before every text; the published one by default.
        max_length: L, tokens of prompt and text that are kept (256, as published).
        packed: whether short texts share rows, which needs attention by "sdpa" or "eager"; else each is padded.

    Raises:
        ValueError: a model that cannot be used so, or an option outside its range.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        pooling: str = "token",
        prompt: str = PROMPT,
        max_length: int = 256,
        packed: bool = True,
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS or max_length < 1:
            raise ValueError(f"pooling is {pooling!r} and max_length {max_length}; need one of {POOLINGS}, and >= 1")
        self.body = _body("item_lm", model, max_length + 1)
        self.takes = frozenset(inspect.signature(self.body.forward).parameters)
        if packed:
            _refuse_packing(self.body, self.takes, max_length + 1)
        self.tokenizer, self.pooling, self.prompt = tokenizer, pooling, prompt
        self.max_length, self.packed = max_length, packed
        self.causal, self.width = _probe(self.body)
        inner = self.body.get_input_embeddings().embedding_dim
        self.slot = nn.Parameter(torch.randn(inner) * 0.02) if pooling == "token" else None

    def tokens(self, items: Items) -> list[list[int]]:
        """Return the tokens of items, N texts or N sequences of token ids, each cut to `max_length`.

        Raises:
            ValueError: no items, what is neither text nor token ids, texts without a tokenizer, ids out of range.
        """
        if isinstance(items, str) or not len(items):
            raise ValueError(f"items must be a list of texts or of token ids, with one item or more; got {items!r}")
        if all(isinstance(item, str) for item in items):
            if self.tokenizer is None:
                raise ValueError("items are texts; give the tokenizer too, or token ids")
            texts = [self.prompt + str(item) for item in items]
            found = self.tokenizer(texts, truncation=True, max_length=self.max_length)["input_ids"]
        else:
            found = items
        return [self._checked(i, ids) for i, ids in enumerate(found)]

    def _checked(self, i: int, ids: Any) -> list[int]:
        found = whole_numbers(ids)
        if found is None:
            raise ValueError(f"item {i} is {ids!r}; items must be all texts or all lists of token ids")
        kept: list[int] = found[: self.max_length].tolist()
        size = self.body.get_input_embeddings().num_embeddings
        if kept and not 0 <= min(kept) <= max(kept) < size:
            raise ValueError(f"item {i} has token ids outside 0 .. {size - 1}, the vocabulary of item_lm")
        if not kept and self.pooling == "mean":
            raise ValueError(f"item {i} has no tokens, of which no mean can be taken")
        return kept

    def forward(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """Return the vectors (N, d), float32, of N items by their tokens."""
        slot = 0 if self.slot is None else 1
        held = [[*ids, *[0] * slot] for ids in tokens]
        rows = prepack(held) if self.packed else _padded(held)
        device = self.body.device
        item = torch.repeat_interleave(torch.arange(len(held)), rows.lengths)
        within = torch.arange(len(item)) - (rows.lengths.cumsum(0) - rows.lengths)[item]
        row, column = rows.row[item].to(device), (rows.start[item] + within).to(device)
        segment = torch.full(rows.input_ids.shape, -1, device=device)  # padding is a segment of its own
        segment[row, column] = item.to(device)
        last = rows.row.to(device), (rows.start + rows.lengths - 1).to(device)

        x = self.body.get_input_embeddings()(rows.input_ids.to(device))
        options: dict[str, Any] = {"attention_mask": self._mask(segment, x.dtype)}
        if "position_ids" in self.takes:
            positions = torch.zeros_like(segment)
            shift = self.max_length + slot - rows.lengths[item] if slot else torch.zeros_like(item)
            positions[row, column] = (within + shift).to(device)
            options["position_ids"] = positions
        if self.slot is not None:
            at = torch.zeros_like(segment, dtype=torch.bool)
            at[last] = True
            x = torch.where(at[..., None], self.slot.to(x.dtype), x)
        if "use_cache" in self.takes:
            options["use_cache"] = False
        states = self.body(inputs_embeds=x, **options).last_hidden_state
        if self.slot is not None:
            chosen: Tensor = states[last].float()
            return chosen
        sums = torch.zeros(len(held), self.width, device=device)
        return sums.index_add(0, item.to(device), states[row, column].float()) / rows.lengths.to(device)[:, None]

    def _mask(self, segment: Tensor, dtype: torch.dtype) -> Tensor:
        """Return (r, S) 1 for tokens and 0 for padding; packed, what to add to the scores, (r, 1, S, S)."""
        if not self.packed:
            return (segment >= 0).long()
        seen = segment[:, :, None] == segment[:, None, :]
        if self.causal:
            seen = seen.tril()
        nothing = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        return nothing.masked_fill(~seen, torch.finfo(dtype).min)[:, None]

    @torch.no_grad()
    def encode(self, tokens: Sequence[Sequence[int]], *, batch_size: int = 256) -> Tensor:
        """Return the vectors (N, d) of a catalogue, without dropout or gradients, items of like length together."""
        training = self.training
        self.eval()
        order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
        parts = []
        with counted(watched(), len(order), "encoding the catalogue", "items") as report:
            for start in range(0, len(order), batch_size):
                parts.append(self([tokens[i] for i in order[start : start + batch_size]]))
                report(start + len(parts[-1]))
        self.train(training)
        found = torch.cat(parts)
        return found[torch.tensor(order).argsort().to(found.device)]


class UserEncoder(nn.Module):
    """A causal language model that reads vectors in place of words.

    Args:
        model: of transformers; its word vectors are not used, nor its head.
        max_history: the most vectors that it is to read.

    Raises:
        ValueError: a model that is not causal, or too short.
    """

    def __init__(self, model: PreTrainedModel, max_history: int) -> None:
        super().__init__()
        self.body = _body("user_lm", model, max_history + 1)
        causal, self.width = _probe(self.body)
        inner = self.body.get_input_embeddings().embedding_dim
        if inner != self.width:
            raise ValueError(f"user_lm reads vectors of {inner} numbers but gives {self.width}; they must agree")
        if not causal:
            raise ValueError(f"user_lm is {type(model).__name__}, not causal: it would see the item that it predicts")
        self.body.get_input_embeddings().requires_grad_(False)

    def forward(self, vectors: Tensor) -> Tensor:
        """Return the states (B, n, d), float32, that follow each of the vectors (B, n, d)."""
        caching = {"use_cache": False} if "use_cache" in inspect.signature(self.body.forward).parameters else {}
        states: Tensor = self.body(inputs_embeds=vectors.to(self.body.dtype), **caching).last_hidden_state
        return states.float()


def sampled_info_nce(
    predicted: Tensor, target: Tensor, negatives: Tensor, scale: Tensor | float, dup_threshold: float = 0.99
) -> tuple[Tensor, Tensor]:
    """Return the mean loss of P predictions, and how many negatives each one met on average.

    Args:
        predicted, target: (P, d); none gives a loss of 0.
        negatives: (N, d), shared by all.
        scale: by which cosines are multiplied, e^g.
        dup_threshold: cosine of target and negative above which they are one item (0.99, as published).
    """
    p, t, n = (F.normalize(x.float(), dim=-1) for x in (predicted, target, negatives))
    same = t @ n.mT > dup_threshold
    against = (p @ n.mT * scale).masked_fill(same, -torch.inf)
    logits = torch.cat([(p * t).sum(dim=-1, keepdim=True) * scale, against], dim=1)
    first = torch.zeros(len(p), dtype=torch.long, device=p.device)
    count = max(len(p), 1)
    return F.cross_entropy(logits, first, reduction="sum") / count, (~same).sum() / count


def from_scratch(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """Return a model like another one, with the random weights that its family starts from.

    Args:
        model: of transformers.
        seed: of the weights; the state of torch's generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = type(model)(copy.deepcopy(model.config))
    return made.to(device=model.device, dtype=model.dtype)


def whole_numbers(values: Any) -> NDArray[np.int64] | None:
    """Return a sequence of whole numbers as an array, or None if it is something else."""
    try:
        found = np.asarray(values)
    except (TypeError, ValueError):  # ragged, or on another device
        return None
    if found.ndim != 1 or (len(found) and found.dtype.kind not in "iu"):
        return None
    return found.astype(np.int64)


def _body(name: str, model: Any, length: int) -> Any:
    """Return a language model without its head for tokens."""
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise ValueError(f"{name} must be a model of transformers; got {type(model).__name__}")
    if model.config.is_encoder_decoder:
        raise ValueError(f"{name} is {type(model).__name__}, an encoder-decoder; give one of its halves, or a decoder")
    most = getattr(model.config, "max_position_embeddings", None) or length
    if length > most:
        raise ValueError(
            f"{name} has {most} positions, but {length} are needed; make max_length or max_history smaller"
        )
    return model.base_model


def _probe(body: Any) -> tuple[bool, int]:
    """Return whether no state depends on later inputs, and how wide the states are."""
    training = body.training
    body.eval()
    width = body.get_input_embeddings().embedding_dim
    x = torch.randn(1, 3, width, generator=torch.Generator().manual_seed(0))
    x = x.to(body.device, body.dtype).requires_grad_()
    with torch.enable_grad():
        states = body(inputs_embeds=x).last_hidden_state
        (slope,) = torch.autograd.grad((states[:, :2] * torch.linspace(-1, 2, states.shape[2]).to(states)).sum(), x)
    body.train(training)
    return not bool(slope[:, 2].any()), states.shape[2]


def _refuse_packing(body: Any, takes: frozenset[str], length: int) -> None:
    """Raise ValueError where a mask of our own would give wrong vectors."""
    config = body.config
    layers = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None) or length
    reasons = {
        f"its attention is {config._attn_implementation!r}; allowed: 'sdpa', 'eager'": (
            config._attn_implementation not in ("sdpa", "eager")
        ),
        "its forward takes no position_ids": "position_ids" not in takes or getattr(config, "alibi", False),
        f"it has layers of type {sorted(layers)}": layers - {"full_attention", "sliding_attention"},
        f"its window of {window} tokens is shorter than a text of {length}": window < length,
    }
    for reason, holds in reasons.items():
        if holds:
            raise ValueError(f"item_lm {type(body).__name__} takes no packed texts: {reason}. Use packed=False.")


def _padded(tokens: list[list[int]]) -> PackedRows:
    """Return a row for each text, padded at the end."""
    ids = pad_sequence([torch.tensor(t, dtype=torch.long) for t in tokens], batch_first=True)
    lengths = torch.tensor([len(t) for t in tokens])
    each = torch.arange(len(tokens))
    return PackedRows(ids, torch.arange(ids.shape[1]).expand_as(ids), each, torch.zeros_like(each), lengths)
