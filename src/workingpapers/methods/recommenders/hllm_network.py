"""The network of `hllm`: two encoders, what joins them, and the losses of the three heads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.errors import nearest
from workingpapers.methods.recommenders.hllm_encoders import PROMPT, ItemEncoder, UserEncoder, sampled_info_nce
from workingpapers.methods.recommenders.options import check_types

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HEADS = ("generative", "early", "late")
MAX_LOG_SCALE = math.log(100)
# What a network is made with beside models and tokenizer, and saved with.
OPTIONS = (
    *("head", "pooling", "prompt", "max_length", "packed", "max_history", "num_negatives", "dup_threshold"),
    *("temperature", "generative_weight", "adapter", "freeze_item", "freeze_user"),
)


class HLLMNetwork(nn.Module):
    """Item texts and histories in, a loss out.

    The models that are passed are trained in place. Gradient checkpointing, attention and precision are theirs to set;
    cosines and losses are float32.

    Args:
        item_lm: any language model of transformers, with or without a head; the smaller ones of sentences serve too.
        user_lm: a causal one, another object. For random weights see `hllm_encoders.from_scratch`.
        tokenizer: of the item model; needed for items that are texts.
        head: "generative", "early" or "late", see `hllm`.
        pooling, prompt, max_length, packed: see `ItemEncoder`.
        max_history: the most items that the user model reads (50, as published for books; 10 for videos).
        num_negatives: N, drawn for each batch (512, as published); None takes the batch's own items, which costs no
            further texts, but holds down what is popular.
        dup_threshold: see `sampled_info_nce`.
        temperature: e^-g at the start (0.07, as published), from 0.01 to 1.
        generative_weight: lambda of the heads that rank (1; the published value is not known).
        adapter: whether a linear layer maps item vectors to the user model's; None adds it where the widths differ.
        freeze_item, freeze_user: whether a model stays as it is. A frozen item model encodes each item once; give it
            an adapter and mean pooling, for [ITEM] stays random.

    Attributes:
        item: the `ItemEncoder`; user: the `UserEncoder`.
        adapter: maps what `item` gives, (*, d_item), to item vectors (*, d); the identity where none is needed.
        log_scale: g.
        index: (N, d) the cached vectors of a catalogue, a buffer; empty at first.
        options: all of the above but the models and the tokenizer.

    Raises:
        ValueError: models that cannot be used so, or an option outside its range.
    """

    index: Tensor

    def __init__(
        self,
        item_lm: PreTrainedModel,
        user_lm: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        head: str = "generative",
        pooling: str = "token",
        prompt: str = PROMPT,
        max_length: int = 256,
        packed: bool = True,
        max_history: int = 50,
        num_negatives: int | None = 512,
        dup_threshold: float = 0.99,
        temperature: float = 0.07,
        generative_weight: float = 1.0,
        adapter: bool | None = None,
        freeze_item: bool = False,
        freeze_user: bool = False,
    ) -> None:
        super().__init__()
        given = locals()
        self.options: dict[str, Any] = {name: given[name] for name in OPTIONS}
        self._check_options()
        if item_lm is user_lm or getattr(item_lm, "base_model", 0) is getattr(user_lm, "base_model", 1):
            raise ValueError("item_lm and user_lm are one object; give copy.deepcopy of it for the second")
        self.head, self.max_history, self.num_negatives = head, max_history, num_negatives
        self.dup_threshold, self.generative_weight = dup_threshold, generative_weight
        self.item = ItemEncoder(
            item_lm, tokenizer, pooling=pooling, prompt=prompt, max_length=max_length, packed=packed
        )
        self.user = UserEncoder(user_lm, max_history)
        self.adapter = self._adapter(adapter)
        self.register_buffer("index", torch.zeros(0, self.user.width))
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))
        self._add_head(self.user.width)
        if freeze_item:
            self.freeze_items()
        if freeze_user:
            self.user.requires_grad_(False)

    def _check_options(self) -> None:
        o = self.options
        check_types(HLLMNetwork.__init__, o)
        if o["head"] not in HEADS:
            raise ValueError(f"head is {o['head']!r}. {nearest(str(o['head']), HEADS)}")
        least = {"max_history": 1, "num_negatives": 1, "generative_weight": 0}
        for name, low in least.items():
            if o[name] is not None and not o[name] >= low:
                raise ValueError(f"{name} is {o[name]!r}; it must be {low} or more")
        if not 0 < o["dup_threshold"] < 1 or not 0.01 <= o["temperature"] <= 1:
            raise ValueError(
                f"dup_threshold is {o['dup_threshold']!r} and temperature {o['temperature']!r}; "
                "they must lie between 0 and 1, and from 0.01 to 1"
            )

    def _adapter(self, wanted: bool | None) -> nn.Module:
        narrow, wide = self.item.width, self.user.width
        if wanted is False and narrow != wide:
            raise ValueError(f"item vectors have {narrow} numbers and user_lm takes {wide}: an adapter is needed")
        return nn.Linear(narrow, wide) if wanted or narrow != wide else nn.Identity()

    def _add_head(self, width: int) -> None:
        if self.head == "early":
            self.out: nn.Module = nn.Linear(width, 1)
        elif self.head == "late":
            self.user_slot = nn.Parameter(torch.randn(width) * 0.02)
            self.out = nn.Sequential(nn.Linear(3 * width, width), nn.ReLU(), nn.Linear(width, 1))

    def freeze_items(self) -> None:
        """Keep the item model as it is from now on, so that a longer `fit` of the user model encodes each item once."""
        self.item.requires_grad_(False)
        self.options["freeze_item"] = True

    def train(self, mode: bool = True) -> Self:
        """Set training mode; frozen models stay in evaluation mode."""
        super().train(mode)
        for module, name in ((self.item, "freeze_item"), (self.user, "freeze_user")):
            if self.options[name]:
                module.eval()
        return self

    def forward(
        self,
        tokens: Sequence[Sequence[int]],
        sequences: Tensor,
        negatives: Tensor,
        candidates: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch, and what there is to log; for training loops of one's own.

        Args:
            tokens: of U distinct items, from `item.tokens`.
            sequences: (B, n) rows of histories, as numbers 0 .. U-1, padded with -1 at their ends.
            negatives: (N,) items.
            candidates, labels: (B,) items to rank and 0/1, for the heads that rank.
        """
        return self.loss(self.adapter(self.item(tokens)), sequences, negatives, candidates, labels)

    def loss(
        self,
        vectors: Tensor,
        sequences: Tensor,
        negatives: Tensor,
        candidates: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch from the vectors (U, d) of its items; arguments as in `forward`.

        Raises:
            ValueError: a head that ranks gets nothing to rank.
        """
        with torch.no_grad():
            self.log_scale.clamp_(0, MAX_LOG_SCALE)
        real = sequences >= 0
        e = vectors[torch.where(real, sequences, sequences[:, :1])]  # the first item of a row is never padding
        if self.head == "generative":
            return self._generative(self.user(e[:, :-1]), e, real, vectors[negatives])
        if candidates is None or labels is None:
            raise ValueError(f"head {self.head!r} needs candidates and labels")
        states, logits = self._ranked(e, real, vectors[candidates])
        found, logs = self._generative(states[:, : e.shape[1] - 1], e, real, vectors[negatives])
        clicks = F.binary_cross_entropy_with_logits(logits, labels.float())
        return clicks + self.generative_weight * found, logs | {"clicks": clicks.detach()}

    def _generative(
        self, states: Tensor, e: Tensor, real: Tensor, negatives: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of states (B, n-1, d), each of which predicts the next of the vectors e (B, n, d)."""
        valid = real[:, 1:]
        found, kept = sampled_info_nce(
            states[valid], e[:, 1:][valid], negatives, self.log_scale.exp(), self.dup_threshold
        )
        return found, {"generative": found.detach(), "negatives": kept}

    def _ranked(self, e: Tensor, real: Tensor, candidate: Tensor) -> tuple[Tensor, Tensor]:
        """Return the states (B, n+1, d) and the logits (B,) of candidates (B, d) after histories e (B, n, d)."""
        ends = real.sum(dim=1)
        extra = candidate if self.head == "early" else self.user_slot.expand_as(candidate)
        here = torch.arange(e.shape[1] + 1, device=e.device) == ends[:, None]
        states = self.user(torch.where(here[..., None], extra[:, None], F.pad(e, (0, 0, 0, 1))))
        u = states[here]
        features = u if self.head == "early" else torch.cat([u, candidate, u * candidate], dim=1)
        logits: Tensor = self.out(features).squeeze(1)
        return states, logits
