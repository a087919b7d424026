"""fMRLRec: a recommender whose channels are nested, so that one training gives models of several sizes.

Sizes m_1 < ... < m_S = D, m_0 = 0. Channels of block s, m_{s-1} to m_s, are computed from the first m_s channels alone:

    nested linear   y[m_{s-1}:m_s] = W_s x[:m_s] + b_s            W_s (m_s - m_{s-1}, m_s)
    nested norm     a layer norm of its own for every block
    items           e_v = P f_v + c                               f_v frozen features, P (D, D_in); m rows are a model
    block           h = x + LRU(LN(x));  out = h + W_2(Dropout(W_1 n) * SiLU(W_g n)), n = LN(h)
    LRU             u_k = gamma * (W_in x_k);  h_k = lambda * h_{k-1} + u_k;  y_k = Re(W_out h_k)
                    lambda = exp(-exp(nu) + i exp(theta)), one for each channel; W_in, W_out complex and nested
    scores, loss    r_s = z[:m_s] . e_v[:m_s] over all items; the cross-entropy, averaged over sizes and positions

Cutting every weight to its first m rows and columns leaves a complete model, which is what `extract` does. Nothing that
mixes channels across blocks may stand in between: a norm over all of D would end the nesting.

The recurrence has constant coefficients, so that doubling computes it in log2 L steps: h <- h + lambda^w (h shifted by
w), for w = 1, 2, 4, ...

Source: Wang, Yue, Zeng, Wang and McAuley, "Train Once, Deploy Anywhere: Matryoshka Representation Learning for
Multimodal Recommendation", Findings of EMNLP 2024, arXiv 2409.16627; Orvieto et al., "Resurrecting Recurrent Neural
Networks for Long Sequences", ICML 2023, arXiv 2303.06349 (the unit and its initialisation).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self, cast

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.methods.recommenders.neural import NeuralRecommender
from workingpapers.methods.recommenders.sequences import Log, item_vectors, last_of

FEWEST = 4  # channels of a block: the norm of one channel is its bias, that of two hardly more than a sign


def check_sizes(sizes: Sequence[int]) -> tuple[int, ...]:
    """Return nested sizes as a tuple.

    Raises:
        ValueError: none, or blocks with fewer than four channels.
    """
    found = tuple(sizes)
    if not found or min(m - n for m, n in zip(found, (0, *found), strict=False)) < FEWEST:
        raise ValueError(f"sizes are {found}; each must be {FEWEST} or more above the one before, the first {FEWEST}")
    return found


def blocks_of(sizes: Sequence[int], size: int) -> int:
    """Return how many blocks a model of `size` has.

    Raises:
        ValueError: no such size.
    """
    if size not in sizes:
        raise ValueError(f"size is {size}; allowed: {', '.join(map(str, sizes))}")
    return list(sizes).index(size) + 1


class NestedLinear(nn.Module):
    """A square layer whose first m outputs need the first m inputs alone, for every m in `sizes`.

    Each block is initialised as a linear layer of its own fan-in.

    Args:
        sizes: nested sizes; the last is D.
        bias: whether it has one.
        dtype: of the weights; a complex one starts with imaginary parts of 0.
    """

    def __init__(self, sizes: Sequence[int], *, bias: bool = True, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.sizes = check_sizes(sizes)
        made = [nn.Linear(m, m - n, bias=bias) for m, n in zip(self.sizes, (0, *self.sizes), strict=False)]
        for layer in made:  # a module's own `to` warns of complex types
            for name, value in layer.named_parameters():
                setattr(layer, name, nn.Parameter(value.detach().to(dtype)))
        self.blocks = nn.ModuleList(made)

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., m) of inputs (..., m), for m any of the sizes."""
        count = blocks_of(self.sizes, x.shape[-1])
        parts = zip(self.sizes[:count], self.blocks, strict=False)
        return torch.cat([block(x[..., :m]) for m, block in parts], dim=-1)

    def dense(self) -> Tensor:
        """Return the same weights as one matrix (D, D), zero where an input is beyond the output's block."""
        weights = [cast(nn.Linear, block).weight for block in self.blocks]
        return torch.cat([F.pad(weight, (0, self.sizes[-1] - weight.shape[1])) for weight in weights])


class NestedLayerNorm(nn.Module):
    """A layer norm for every block of channels."""

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = check_sizes(sizes)
        self.blocks = nn.ModuleList(nn.LayerNorm(m - n) for m, n in zip(self.sizes, (0, *self.sizes), strict=False))

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., m) of inputs (..., m), for m any of the sizes."""
        count = blocks_of(self.sizes, x.shape[-1])
        parts = zip(self.sizes[:count], (0, *self.sizes), self.blocks, strict=False)
        return torch.cat([block(x[..., n:m]) for m, n, block in parts], dim=-1)


def scan(u: Tensor, decay: Tensor) -> Tensor:
    """Return h_k = decay * h_{k-1} + u_k with h_0 = u_0, by doubling.

    Args:
        u: (B, L, m) inputs.
        decay: (m,) coefficients.
    """
    width = 1
    while width < u.shape[1]:
        u = torch.cat([u[:, :width], u[:, width:] + decay * u[:, :-width]], dim=1)
        decay, width = decay * decay, 2 * width
    return u


class LRU(nn.Module):
    """A linear recurrent unit on nested channels.

    Args:
        sizes: nested sizes.
        r_min, r_max: the ring in which |lambda| starts (0 and 0.1).
        dropout: of the outputs.
    """

    def __init__(self, sizes: Sequence[int], *, r_min: float = 0.0, r_max: float = 0.1, dropout: float = 0.0) -> None:
        super().__init__()
        if not 0 <= r_min < r_max < 1:
            raise ValueError(f"r_min is {r_min}, r_max {r_max}; need 0 <= r_min < r_max < 1")
        self.inner = NestedLinear(sizes, dtype=torch.cfloat)
        self.outer = NestedLinear(sizes, dtype=torch.cfloat)
        width = sizes[-1]
        area = (1 - torch.rand(width)) * (r_max**2 - r_min**2) + r_min**2  # uniform on the ring; never 0
        phase = 2 * math.pi * (1 - torch.rand(width))
        self.nu = nn.Parameter(torch.log(-0.5 * torch.log(area)))
        self.theta = nn.Parameter(torch.log(phase))
        self.gamma = nn.Parameter(0.5 * torch.log1p(-area))
        self.dropout = nn.Dropout(dropout)

    def decay(self, size: int) -> Tensor:
        """Return lambda of the first channels, (size,) complex."""
        return torch.exp(torch.complex(-self.nu[:size].exp(), self.theta[:size].exp()))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, L, m) of inputs (B, L, m), for m any of the sizes."""
        size = x.shape[-1]
        u = self.gamma[:size].exp() * self.inner(x.to(torch.cfloat))
        found: Tensor = self.dropout(self.outer(scan(u, self.decay(size))).real)
        return found


class NestedBlock(nn.Module):
    """A linear recurrent unit and a gated network, each with a norm before and a residual path around it."""

    def __init__(self, sizes: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList(NestedLayerNorm(sizes) for _ in range(2))
        self.unit = LRU(sizes, dropout=dropout)
        self.up, self.gate, self.down = (NestedLinear(sizes) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, L, m) of inputs (B, L, m)."""
        h = x + self.unit(self.norms[0](x))
        n = self.norms[1](h)
        found: Tensor = h + self.dropout(self.down(self.dropout(self.up(n)) * F.silu(self.gate(n))))
        return found


class FMRLRec(nn.Module):
    """The nested recommender.

    Args:
        item_features: (V, D_in) frozen features, or V itself for a learnt table of ids in their place.
        sizes: nested sizes (8, 16, ..., 256); a single one makes an ordinary model.
        num_blocks: recurrent blocks (1, as published).
        dropout: of the inputs and within the blocks (0.2).
    """

    features: Tensor | None

    def __init__(
        self,
        item_features: Tensor | int,
        sizes: Sequence[int] = (8, 16, 32, 64, 128, 256),
        *,
        num_blocks: int = 1,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.sizes = check_sizes(sizes)
        if num_blocks < 1:
            raise ValueError(f"num_blocks is {num_blocks}; it must be 1 or more")
        width = self.sizes[-1]
        if isinstance(item_features, int):
            self.register_buffer("features", None)
            self.table = nn.Parameter(torch.empty(item_features, width).normal_(std=0.02))
        else:
            if item_features.ndim != 2 or not torch.isfinite(item_features).all():
                raise ValueError(f"item_features must be finite and (V, D_in); got {tuple(item_features.shape)}")
            self.register_buffer("features", item_features.float())
            self.project = nn.Linear(item_features.shape[1], width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(NestedBlock(self.sizes, dropout) for _ in range(num_blocks))

    def items(self, size: int | None = None) -> Tensor:
        """Return the vectors of all items, (V, size)."""
        size = size or self.sizes[-1]
        blocks_of(self.sizes, size)
        if self.features is None:
            return self.table[:, :size]
        return F.linear(self.features, self.project.weight[:size], self.project.bias[:size])

    def _states(self, items: Tensor, ids: Tensor) -> Tensor:
        x = self.dropout(items[(ids - 1).clamp(min=0)])  # what stands for padding is never looked at
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, ids: Tensor, size: int | None = None) -> Tensor:
        """Return the states (B, L, size) of ids (B, L), padded on the right; None is the largest size."""
        return self._states(self.items(size), ids)

    def loss(self, ids: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy over all items, averaged over sizes and over positions that have a label."""
        items, real = self.items(), labels != 0
        states, targets = self._states(items, ids)[real], labels[real] - 1
        losses = [F.cross_entropy(states[:, :m] @ items[:, :m].T, targets) for m in self.sizes]
        return torch.stack(losses).mean()

    def scores(self, ids: Tensor, size: int | None = None) -> Tensor:
        """Return the scores of all items after each history, (B, V)."""
        items = self.items(size)
        return last_of(self._states(items, ids), ids) @ items.T

    @torch.no_grad()
    def extract(self, size: int) -> FMRLRec:
        """Return the model of a smaller size on its own, with copies of its weights."""
        count = blocks_of(self.sizes, size)
        given = len(self.table) if self.features is None else self.features
        small = FMRLRec(given, self.sizes[:count], num_blocks=len(self.blocks), dropout=self.dropout.p)
        mine = self.state_dict()
        # Blocks of nested layers are the same; what is one tensor over channels is cut.
        cut = {name: mine[name][tuple(slice(n) for n in value.shape)] for name, value in small.state_dict().items()}
        small.load_state_dict(cut)
        return small.to(next(self.parameters()).device).train(self.training)


class FMRLRecRecommender(NeuralRecommender):
    """fMRLRec on a log.

    Args:
        item_features: (V, D_in) frozen features in the order of the log's catalogue, modalities side by side and each
            scaled alike; None learns a table of ids.
        sizes: nested sizes; None takes (D / 8, D / 4, D / 2, D) of `dim` D.
        num_blocks: recurrent blocks (1, as published).
        options: see `NeuralRecommender`.

    Attributes:
        model_: the `FMRLRec`, of the largest size.
    """

    def __init__(
        self,
        *,
        item_features: ArrayLike | None = None,
        sizes: Sequence[int] | None = None,
        num_blocks: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.item_features = item_features
        self.sizes = sizes
        self.num_blocks = num_blocks

    def _build(self, log: Log) -> nn.Module:
        count = len(log.items)
        given = count if self.item_features is None else item_vectors(self.item_features, count)
        sizes = [self.dim // 8, self.dim // 4, self.dim // 2, self.dim] if self.sizes is None else self.sizes
        return FMRLRec(given, sizes, num_blocks=self.num_blocks, dropout=self.dropout)

    def cut(self, size: int) -> Self:
        """Return a fitted recommender of a smaller size.

        Raises:
            ValueError: none of the sizes.
        """
        made = cast(FMRLRec, self.model_).extract(size)
        small = type(self)(**self.get_params(deep=False) | {"sizes": made.sizes})
        small.items_, small.features_, small.history_ = self.items_, self.features_, self.history_
        small.model_ = made
        return small
