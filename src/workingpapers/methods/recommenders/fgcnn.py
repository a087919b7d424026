"""FGCNN: a convolution over the fields makes new features, which join the old ones in any click model.

F fields, d the width of the embedding, blocks l = 1 .. L. The generator has an embedding of its own, for its gradients
conflict with the classifier's. C_0 (B, 1, F, d) is that second embedding; h_0 = F.

    convolve    tanh(norm(conv(C_{l-1})))       (B, c_l, h_{l-1}, d); kernel (K, 1): coordinates of d never mix here
    pool        C_l = maximum over p fields     (B, c_l, h_l, d); h_l = ceil(h_{l-1} / p)
    recombine   tanh(W_l vec(C_l) + b_l)        (B, h_l r, d): h_l r new features that see all fields

The F + sum_l h_l r features go to the model on top, IPNN in the paper. Recombination holds most of the weights,
sum_l (c_l h_l d)(h_l r d). The order of the fields matters to the convolution, and the recombination is there to make
up for it.

Source: Liu et al., "Feature Generation by Convolutional Neural Network for Click-Through Rate Prediction", WWW 2019,
arXiv 1904.04447. No code of the authors is known; normalisation within the blocks follows FuxiCTR. Re-runs with tuned
baselines (BARS) find no gain over IPNN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.methods.recommenders.baselines import FM, IPNN, MLP, DeepClassifier
from workingpapers.methods.recommenders.fields import ClickModel, FieldEmbedding
from workingpapers.methods.recommenders.pooling import pool
from workingpapers.methods.recommenders.schema import Rows, Schema

G = TypeVar("G", bound=nn.Module)
ORDINARY = 1024  # rows of a batch


class FeatureGenerator(nn.Module):
    """Makes features from embedded fields by convolution, pooling and recombination.

    Args:
        fields: F; dim: d.
        channels: c_l of each block (14, 16, 18, 20, as for Avazu in the re-runs).
        kernel: K, how many neighbouring fields a convolution sees; odd (7, as for Avazu). Fields beyond the ends are 0.
        pool: p (2, as in the paper).
        new_maps: r (3, as for Avazu and Criteo).
        batch_norm: whether convolutions are normalised before tanh.

    Attributes:
        num_generated: how many features come out, sum_l h_l r.

    Raises:
        ValueError: no block, an even kernel, or a size below 1.
    """

    def __init__(
        self,
        fields: int,
        dim: int,
        channels: Sequence[int] = (14, 16, 18, 20),
        *,
        kernel: int = 7,
        pool: int = 2,
        new_maps: int = 3,
        batch_norm: bool = True,
    ) -> None:
        super().__init__()
        if not len(channels) or min(fields, dim, *channels, pool, new_maps) < 1:
            raise ValueError(
                f"fields {fields}, dim {dim}, pool {pool} and new_maps {new_maps} must be 1 or more, and channels "
                f"{tuple(channels)} hold one such number or more"
            )
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"kernel is {kernel}; it must be odd, so that a convolution keeps the number of fields")
        self.dim, self.size = dim, pool
        self.convolutions, self.recombinations = nn.ModuleList(), nn.ModuleList()
        height, before, self.num_generated = fields, 1, 0
        for maps in channels:
            layers: list[nn.Module] = [nn.Conv2d(before, maps, (kernel, 1), padding=(kernel // 2, 0))]
            layers += [nn.BatchNorm2d(maps)] if batch_norm else []
            # ceil_mode keeps the last fields of an uneven height; what it pads never wins a maximum. The maximum of
            # tanh is tanh of the maximum, which has fewer values.
            layers += [nn.MaxPool2d((pool, 1), ceil_mode=True), nn.Tanh()]
            # With channels last, convolution and maximum take two thirds of the time on a CPU.
            self.convolutions.append(nn.Sequential(*layers).to(memory_format=torch.channels_last))  # type: ignore[call-overload]
            height, before = -(-height // pool), maps
            self.recombinations.append(nn.Linear(maps * height * dim, height * new_maps * dim))
            self.num_generated += height * new_maps

    def forward(self, e: Tensor) -> Tensor:
        """Return new features (B, num_generated, d) of embedded fields (B, F, d)."""
        x, made = e[:, None], []
        for convolution, recombination in zip(self.convolutions, self.recombinations, strict=True):
            x = _convolved(convolution, x, self.size)
            made.append(torch.unflatten(_recombined(recombination, x).tanh(), 1, (-1, self.dim)))
        return torch.cat(made, dim=1)


def _convolved(block: nn.Module, x: Tensor, size: int) -> Tensor:
    """Return what a block's layers make of maps (B, c, h, d)."""
    convolution, *between, maximum, tangent = cast(nn.Sequential, block)
    y: Tensor = convolution(x)
    out = pool(y, cast(nn.BatchNorm2d, between[0]) if between else None, size)
    if out is not None:
        return out
    for layer in (*between, maximum, tangent):
        y = layer(y)
    return y


def _recombined(layer: nn.Module, x: Tensor) -> Tensor:
    """Return what a layer makes of flat maps (B, c, h, d), which lie in another order than its weights.

    Weights are put into the order of the maps where they are fewer than the maps of an ordinary batch.
    """
    linear = cast(nn.Linear, layer)
    if linear.out_features > ORDINARY:
        return F.linear(x.flatten(1), linear.weight, linear.bias)
    weight = linear.weight.view(-1, *x.shape[1:]).permute(0, 2, 3, 1).flatten(1)
    return F.linear(x.permute(0, 2, 3, 1).flatten(1), weight, linear.bias)


class DenseGenerator(nn.Module):
    """Makes as many features with a dense network of as many parameters: what the convolution is compared with.

    Args:
        fields: F; dim: d.
        like: the generator to match; parameters agree up to half a hidden unit's.
    """

    def __init__(self, fields: int, dim: int, like: FeatureGenerator) -> None:
        super().__init__()
        self.dim, self.num_generated = dim, like.num_generated
        inputs, outputs = fields * dim, self.num_generated * dim
        budget = sum(p.numel() for p in like.parameters())
        hidden = max(1, round((budget - outputs) / (inputs + 1 + outputs)))
        self.layers = nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs), nn.Tanh())

    def forward(self, e: Tensor) -> Tensor:
        """Return new features (B, num_generated, d) of embedded fields (B, F, d)."""
        return torch.unflatten(self.layers(e.flatten(1)), 1, (-1, self.dim))


class MeanFM(FM):
    """A factorisation machine whose sum over pairs is divided by the number of fields.

    Generated features are as large as tanh allows, a hundred times what embedded fields start with, and nothing weighs
    their products: as a plain sum they make logits of hundreds, and training overfits within an epoch.
    """

    def forward(self, e: Tensor) -> Tensor:
        """Return (B,)."""
        return super().forward(e) / e.shape[1]


def _started_small(generator: G, *layers: nn.Module) -> G:
    """Let features start small as embedded fields do, by the layers that make them."""
    for layer in layers:
        for parameter in layer.parameters():
            parameter.data.mul_(0.05)
    return generator


class FGCNN(ClickModel):
    """A click model on the embedded fields and the features generated from them.

    Args:
        embedding: of the fields, for the model on top.
        generator: of M - F features.
        body: the model on top, (B, M, d) in, logits (B,) out.
        second: the embedding that the generator sees; None shares the first.
        linear: whether each value also adds a weight of its own.
    """

    def __init__(
        self,
        embedding: FieldEmbedding,
        generator: nn.Module,
        body: nn.Module,
        *,
        second: FieldEmbedding | None = None,
        linear: bool = False,
    ) -> None:
        super().__init__(embedding, body, linear=linear)
        self.generator, self.second = generator, second

    def forward(self, rows: Rows) -> Tensor:
        """Return logits (B,)."""
        e = self.embedding(rows)
        made = self.generator(e if self.second is None else self.second(rows))
        logits: Tensor = self.body(torch.cat([e, made], dim=1)) + self.bias
        return logits if self.first_order is None else logits + self.first_order(rows).sum(dim=(1, 2))

    def penalty(self) -> Tensor:
        """Return what the tables add to the loss."""
        return super().penalty() if self.second is None else super().penalty() + self.second.table.penalty()


class FGCNNClassifier(DeepClassifier):
    """FGCNN on the columns of a table.

    Tables of few fields want few blocks and a small kernel, such as `channels=(6, 8), kernel=3`.

    Args:
        channels, kernel, pool, new_maps, batch_norm: see `FeatureGenerator`.
        head: the model on top, "ipnn" as in the paper, "mlp", or "fm" (`MeanFM`), which has a first-order
            term as well.
        shared_table: whether the generator sees the same embedding as the model on top, which halves the tables.
        dense_generator: whether a dense network of the same size makes the features instead.
        options: see `DeepClassifier`.
    """

    def __init__(
        self,
        *,
        channels: Sequence[int] = (14, 16, 18, 20),
        kernel: int = 7,
        pool: int = 2,
        new_maps: int = 3,
        batch_norm: bool = True,
        head: Literal["ipnn", "mlp", "fm"] = "ipnn",
        shared_table: bool = False,
        dense_generator: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.channels = channels
        self.kernel = kernel
        self.pool = pool
        self.new_maps = new_maps
        self.batch_norm = batch_norm
        self.head = head
        self.shared_table = shared_table
        self.dense_generator = dense_generator

    def _build(self, schema: Schema) -> nn.Module:
        embedding = self._embedding(schema)
        second = None if self.shared_table else self._embedding(schema)
        generator = self._generator(embedding.num_fields)
        head = self._head(embedding.num_fields + generator.num_generated)
        return FGCNN(embedding, generator, head, second=second, linear=self.head == "fm")

    def _generator(self, fields: int) -> FeatureGenerator | DenseGenerator:
        made = FeatureGenerator(
            fields,
            self.dim,
            self.channels,
            kernel=self.kernel,
            pool=self.pool,
            new_maps=self.new_maps,
            batch_norm=self.batch_norm,
        )
        if self.dense_generator:
            dense = DenseGenerator(fields, self.dim, made)
            return _started_small(dense, dense.layers[2]) if self.head == "fm" else dense
        return _started_small(made, *made.recombinations) if self.head == "fm" else made

    def _head(self, features: int) -> nn.Module:
        if self.head == "fm":
            return MeanFM()
        kind = {"ipnn": IPNN, "mlp": MLP}[self.head]
        return kind(features, self.dim, tuple(self.hidden), self.dropout)
