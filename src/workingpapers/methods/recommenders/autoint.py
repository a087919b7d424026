"""AutoInt: self-attention between the fields of a row decides which of them combine.

M fields, d the width of the embedding, H heads, d' the width of a layer over all its heads, L layers.

    a_h[m, k] = softmax over k of <Q_h e_m, K_h e_k>             (B, H, M, M); k = m included, no scale
    c_m       = all heads of sum_k a_h[m, k] V_h e_k, joined     (B, M, d')
    e'_m      = ReLU(c_m + R e_m)                                (B, M, d'); R (d', d) keeps the lower orders
    logit     = <w, all e'_m joined> + b                         (B,)

Each layer raises the order of the combinations. AutoInt+ adds the logit of an MLP on the embedded fields. Fields are
told apart by their vectors alone: a layer knows no positions.

Source: Song et al., "AutoInt: Automatic Feature Interaction Learning via Self-Attentive Neural Networks", CIKM 2019,
arXiv 1810.11921. The authors' code departs from the paper in three ways, which `official` switches on together. The
paper does not say how weights start; here they start as in that code, but for the vectors of a full table: theirs have
a deviation of 0.01, ours of 0.001, which is as good or better on films, flights and made-up clicks
(benchmarks/README.md).
Re-runs with tuned baselines (BARS) find that a plain MLP matches or beats attention alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.methods.recommenders.estimator import SMALL, ClickClassifier
from workingpapers.methods.recommenders.fields import ClickModel, mlp
from workingpapers.methods.recommenders.interacting import interact

SHORT = 16
"""Keys below which torch's softmax along them takes several times as long, on a CPU, as along another axis."""


class InteractingLayer(nn.Module):
    """One layer of attention between fields.

    Args:
        in_dim: d, the width that comes in.
        out_dim: d', over all heads (32, as in the paper's text; its count of parameters implies 64).
        heads: H (2, as in the paper).
        residual: whether R e_m is added.
        scale: whether scores are divided by sqrt(d' / H); the paper does not, the authors' code does.
        rectify: whether queries, keys, values and residual get a bias and a ReLU, as in the authors' code.
        layer_norm: whether the output is normalised, as in the authors' code.
        dropout: share of the attention weights that is dropped in training.

    Raises:
        ValueError: heads that do not divide the width, or a dropout outside [0, 1).
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int = 32,
        *,
        heads: int = 2,
        residual: bool = True,
        scale: bool = False,
        rectify: bool = False,
        layer_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if heads < 1 or out_dim < 1 or out_dim % heads:
            raise ValueError(f"the width {out_dim} must be a positive multiple of the number of heads, {heads}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout}; it must be 0 or more and below 1")
        self.heads, self.rectify, self.dropout = heads, rectify, dropout
        self.scale = (out_dim // heads) ** -0.5 if scale else 1.0
        self.query, self.key, self.value = (nn.Linear(in_dim, out_dim, bias=rectify) for _ in range(3))
        self.residual = nn.Linear(in_dim, out_dim, bias=rectify) if residual else None
        self.norm = nn.LayerNorm(out_dim, eps=1e-8) if layer_norm else None
        _started(self.query, self.key, self.value, *([] if self.residual is None else [self.residual]))
        # Products of vectors narrower than 16 take no less time than those of 16.
        self.unprojected = not rectify and in_dim <= max(16, out_dim // heads)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, M, d') of fields (B, M, d)."""
        out = None
        if not self.rectify and not (self.dropout and self.training):
            weights = (self.query.weight, self.key.weight, self.value.weight)
            out = interact(x, self.heads, self.scale, *weights, None if self.residual is None else self.residual.weight)
        if out is None:
            out = self._by_torch(x)
        return out if self.norm is None else self.norm(out)

    def _by_torch(self, x: Tensor) -> Tensor:
        # Fields are few: forward and back, plain products take half the time of PyTorch's blocked attention.
        out = self._mixed_unprojected(x) if self.unprojected else self._mixed(x)
        if self.residual is not None:
            out = out + self._project(self.residual, x)
        return out.relu()

    def attention(self, x: Tensor) -> Tensor:
        """Return how much each field takes from each, (B, H, M, M); the last axis sums to 1."""
        return _shares(self.scale * self._split(self.query, x), self._split(self.key, x))

    def _mixed(self, x: Tensor) -> Tensor:
        """Return c (B, M, d') by its definition."""
        shares = F.dropout(self.attention(x), self.dropout, self.training)
        return (shares @ self._split(self.value, x)).transpose(1, 2).flatten(2)

    def _mixed_unprojected(self, x: Tensor) -> Tensor:
        """Return the same from <Q e, K e'> = <K'Q e, e'>, K' being K turned round, and V of mixed e for mixed V e.

        Where the vectors are not wider than a head's, this is less work: no keys and values, and no copies of them.
        """
        b, m, d = x.shape
        query, key, value = (layer.weight.view(self.heads, -1, d) for layer in (self.query, self.key, self.value))
        asking = (self.scale * query.mT @ key).transpose(0, 1).flatten(1)  # (d, H d)
        shares = F.dropout(_shares((x @ asking).view(b, m * self.heads, d), x), self.dropout, self.training)
        joined: Tensor = torch.block_diag(*value)  # type: ignore[no-untyped-call]  # (d', H d)
        return (shares @ x).view(b, m, self.heads * d) @ joined.mT

    def _project(self, layer: nn.Linear, x: Tensor) -> Tensor:
        out: Tensor = layer(x)
        return out.relu() if self.rectify else out

    def _split(self, layer: nn.Linear, x: Tensor) -> Tensor:
        return torch.unflatten(self._project(layer, x), 2, (self.heads, -1)).transpose(1, 2)


def _started(*layers: nn.Linear) -> None:
    """Draw weights by Glorot and Bengio, as the authors' code does: uniform, of variance 2 / (in + out); biases 0."""
    for layer in layers:
        nn.init.xavier_uniform_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _shares(query: Tensor, key: Tensor) -> Tensor:
    """Return the softmax over keys (..., n, d) of their products with queries (..., m, d), as (..., m, n)."""
    if key.shape[-2] < SHORT:
        return (key @ query.mT).softmax(dim=-2).mT
    return (query @ key.mT).softmax(dim=-1)


class AutoInt(nn.Module):
    """Interacting layers, a linear output, and with `hidden_units` the MLP of AutoInt+.

    Args:
        fields: M; dim: d.
        layers: L (3, as in the paper); 0 is a logistic regression on the embedded fields.
        width: d' of every layer (32).
        heads: H (2).
        residual: see `InteractingLayer`.
        hidden_units: widths of the MLP of AutoInt+ (400, 400 in the authors' commands); None adds no MLP.
        dropout: of the attention weights and of the MLP.
        official: scaled scores, rectified projections and layer norms, as in the authors' code.

    Raises:
        ValueError: a negative number of layers, or what `InteractingLayer` refuses.
    """

    def __init__(
        self,
        fields: int,
        dim: int,
        *,
        layers: int = 3,
        width: int = 32,
        heads: int = 2,
        residual: bool = True,
        hidden_units: Sequence[int] | None = None,
        dropout: float = 0.0,
        official: bool = False,
    ) -> None:
        super().__init__()
        if layers < 0:
            raise ValueError(f"layers is {layers}; it must be 0 or more")
        style = {"scale": official, "rectify": official, "layer_norm": official}
        self.layers = nn.ModuleList(
            InteractingLayer(width if i else dim, width, heads=heads, residual=residual, dropout=dropout, **style)
            for i in range(layers)
        )
        self.out = nn.Linear(fields * (width if layers else dim), 1)
        self.deep = None if hidden_units is None else mlp(fields * dim, tuple(hidden_units), dropout=dropout)
        _started(self.out, *(layer for layer in self.deep or () if isinstance(layer, nn.Linear)))

    def forward(self, e: Tensor) -> Tensor:
        """Return logits (B,) of embedded fields (B, M, d)."""
        x = e
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.out(x.flatten(1))
        if self.deep is not None:
            logits = logits + self.deep(e.flatten(1))
        return logits.squeeze(1)

    def attention(self, e: Tensor) -> Tensor:
        """Return the attention of every layer, (B, L, H, M, M).

        Raises:
            ValueError: there are no layers.
        """
        if not len(self.layers):
            raise ValueError("a model of 0 layers has no attention")
        maps, x = [], e
        for layer in self.layers:
            maps.append(cast(InteractingLayer, layer).attention(x))
            x = layer(x)
        return torch.stack(maps, dim=1)


class AutoIntClassifier(ClickClassifier):
    """AutoInt on the columns of a table, or with `hidden_units` AutoInt+.

    Args:
        layers, width, heads, residual, hidden_units, dropout, official: see `AutoInt`.
        options: see `ClickClassifier`.
    """

    init_scale = SMALL

    def __init__(
        self,
        *,
        layers: int = 3,
        width: int = 32,
        heads: int = 2,
        residual: bool = True,
        hidden_units: Sequence[int] | None = None,
        dropout: float = 0.0,
        official: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.layers = layers
        self.width = width
        self.heads = heads
        self.residual = residual
        self.hidden_units = hidden_units
        self.dropout = dropout
        self.official = official

    def _body(self, fields: int, dim: int) -> nn.Module:
        return AutoInt(
            fields,
            dim,
            layers=self.layers,
            width=self.width,
            heads=self.heads,
            residual=self.residual,
            hidden_units=self.hidden_units,
            dropout=self.dropout,
            official=self.official,
        )

    @property
    def fields_(self) -> list[str]:
        """The M fields in the order of `explain`: categorical, multi-valued, then numerical."""
        check_is_fitted(self)
        return self._model().embedding.names

    @torch.inference_mode()
    def explain(self, X: Any) -> NDArray[np.float32]:
        """Return the attention between fields for each row, (N, L, H, M, M).

        Entry [n, l, h, i, j] is the share that field i takes from field j; shares over j sum to 1. Only in the first
        layer is a field still itself; a mean over rows and heads of that layer shows which pairs matter in general.

        Raises:
            ValueError: the model has no layers, or columns that cannot be read.
        """
        check_is_fitted(self)
        model = self._model()
        rows = self.schema_.encode(self._table(X, None, reset=False)).to(model.bias.device)
        maps: NDArray[np.float32] = cast(AutoInt, model.body).attention(model.embedding(rows)).cpu().numpy()
        return maps

    def _model(self) -> ClickModel:
        return cast(ClickModel, self.model_)
