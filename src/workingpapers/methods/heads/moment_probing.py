"""Moment probing: a linear probe on the first and the second moment of a backbone's tokens.

A linear probe sees the class token or the mean of the tokens. What it misses first of their distribution, by the series
E exp(i t.x) = 1 + i t.E[x] - 1/2 t.E[x x^T] t + ..., is the second moment, too large for a classifier. So it is taken
between heads only, and convolutions shrink it. From tokens X (B, L, C), D = `hidden_dim`, h = `num_heads`, d = D / h:

    H_1 .. H_h = LayerNorm(split(X W + b))            h times (B, L, d), one LayerNorm for all heads, then centred
    R_jk = H_j^T H_k / L                              (B, d, d), for the P pairs of heads that `pairing` names
    R_jk = R_jk / its length along the first axis     every column has unit length
    v = flatten(conv(GELU(conv(stack(R)))))           3x3, stride 2, no padding, no bias, P to P channels: d -> s -> t
    logits = (linear_1(x) + linear_2(v)) / 2          x the class token or the mean token (B, C), v (B, P t t)

MP+ also recalibrates the frozen backbone: with x the tokens after a block's attention and u = relu(A x) in R^16,

    x <- x + MLP(norm(x)) * (1 + B_1 u) + B_2 u

Source: Gao et al., "Tuning Pre-trained Model via Moment Probing", ICCV 2023, arXiv 2307.11342, section 3, and the
authors' code (github.com/mingzeG/Moment-Probing). Facts that only the code shows: what is subtracted is one number per
sample and head, the mean over tokens and channels, so that R is nearly an uncentred moment (`center="global"`; proper
covariances are "channel"); linear layers start from a normal distribution of standard deviation 0.02 with biases 0,
convolutions from PyTorch's default; weight decay spares biases and LayerNorms.

Deviations: that code fixes three convolution channels and 2883 features, which fits `pairing="near"` with 4 heads of
128 alone, and skips the unit columns of "all"; here sizes follow from the options and all columns have unit length. For
feature maps it interleaves the heads' channels: the same model with the projection's outputs in another order. Its
LayerNorm before linear_1 and its adapter behind the MLP, both for ConvNeXt, are left out.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from workingpapers.methods.heads.common import HeadClassifier

Pairing = Literal["near", "half", "all"]
Center = Literal["global", "channel"] | None
FirstMoment = Literal["mean", "cls"]

# What transformer blocks call the norm in front of their MLP: timm and DINOv2; transformers' ViT; CLIP and SigLIP.
NORMS = ("norm2", "layernorm_after", "layer_norm2")


def cross_covariance(
    heads: Tensor, *, pairing: Pairing = "near", center: Center = "global", normalize: bool = True
) -> Tensor:
    """Return the second moments (B, P, d, d) between paired heads, by one batched matrix product.

    Args:
        heads: (h, B, L, d), contiguous for speed.
        pairing: "near" pairs neighbours (P = h - 1, the published choice), "half" pairs j with j + h/2 (P = h/2, h
            even), "all" every two heads (P = h (h - 1) / 2).
        center: what is subtracted from a head: "global" its mean over tokens and channels, one number per sample;
            "channel" each channel's mean over tokens, which gives covariances; None nothing.
        normalize: divide every column by its length (then gradients of gradients are not available).

    Raises:
        ValueError: fewer than 2 heads, an odd number of them for "half", or an unknown option.
    """
    pairs = _pairs(len(heads), pairing, center)
    if center is not None:
        heads = heads - heads.mean(dim=(-2, -1) if center == "global" else -2, keepdim=True)
    if pairing == "all":
        left, right = (heads[list(index)] for index in zip(*pairs, strict=True))
    else:
        left, right = heads[: len(pairs)], heads[-len(pairs) :]
    if normalize:
        return _UnitColumns.apply(left, right).transpose(0, 1)  # type: ignore[no-untyped-call]
    return (left.mT @ right / heads.shape[2]).transpose(0, 1)


def naive_cross_covariance(heads: Tensor, *, pairing: Pairing = "near", center: Center = "global") -> Tensor:
    """Return `cross_covariance` with `normalize=False` by the definition: a loop over samples and pairs."""

    def moment(one: Tensor, other: Tensor) -> Tensor:  # of two (L, d)
        if center == "global":
            one, other = one - one.mean(), other - other.mean()
        elif center == "channel":
            one, other = one - one.mean(dim=0), other - other.mean(dim=0)
        return one.T @ other / len(one)

    pairs = _pairs(len(heads), pairing, center)
    return torch.stack([torch.stack([moment(x[j], x[k]) for j, k in pairs]) for x in heads.unbind(1)])


class _UnitColumns(torch.autograd.Function):
    """A^T B with columns of unit length, for A and B (..., L, d); fewer passes over (d, d) than autograd's own."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        unit = a.mT @ b
        smallest = max(1e-12, torch.finfo(unit.dtype).tiny)  # in float16 the first is zero
        length = torch.linalg.vector_norm(unit, dim=-2, keepdim=True).clamp_min(smallest)
        unit /= length
        ctx.save_for_backward(a, b, unit, length)
        return unit

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        a, b, unit, length = ctx.saved_tensors
        along = (grad * unit).sum(dim=-2, keepdim=True)
        across = torch.addcmul(grad, unit, along, value=-1).to(a)  # what is left orthogonal to each column
        return (b / length) @ across.mT, (a @ across) / length


class CrossCovariancePool(nn.Module):
    """Multi-head convolutional cross-covariance: tokens (B, L, C) to a short vector of their second moments.

    The order of the tokens does not matter. Fewer than d tokens give matrices of low rank, which is harmless; a single
    token gives rank one and, with `center="channel"`, zeros.

    Args:
        in_dim: C, channels of a token.
        hidden_dim: D, channels after the projection (512, as published), a multiple of `num_heads`.
        num_heads: h (4, as published), 2 or more; d = D / h must be at least 7 for both convolutions to have output.
        pairing, center: which heads meet and what is subtracted, see `cross_covariance`; both as in the authors' code.

    Attributes:
        out_dim: length of the output, P t t (3 * 31 * 31 = 2883 with the defaults).

    Raises:
        ValueError: an option outside its range.
    """

    def __init__(
        self,
        in_dim: int,
        *,
        hidden_dim: int = 512,
        num_heads: int = 4,
        pairing: Pairing = "near",
        center: Center = "global",
    ) -> None:
        super().__init__()
        pairs = len(_pairs(num_heads, pairing, center))
        head_dim, rest = divmod(hidden_dim, num_heads)
        if rest or head_dim < 7:
            raise ValueError(f"hidden_dim is {hidden_dim}, num_heads {num_heads}; the ratio must be an integer >= 7")
        self.num_heads, self.pairing, self.center = num_heads, pairing, center
        self.proj = _linear(in_dim, hidden_dim)
        self.norm = nn.LayerNorm(head_dim)
        first, second = (nn.Conv2d(pairs, pairs, 3, stride=2, bias=False) for _ in range(2))
        self.reduce = nn.Sequential(first, nn.GELU(), second)
        side = ((head_dim - 1) // 2 - 1) // 2  # of what two convolutions leave of (d, d)
        self.out_dim = pairs * side**2

    def moments(self, tokens: Tensor) -> Tensor:
        """Return the matrices (B, P, d, d) before the convolutions; their columns have unit length."""
        heads = self.proj(tokens).unflatten(-1, (self.num_heads, -1)).permute(2, 0, 1, 3)
        return cross_covariance(self.norm(heads), pairing=self.pairing, center=self.center)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, L, C) to (B, out_dim).

        Raises:
            ValueError: tokens of another shape.
        """
        _check_tokens(tokens, self.proj.in_features)
        return self.reduce(self.moments(tokens)).flatten(1)


class MomentProbe(nn.Module):
    """The head: the mean of a linear classifier of the first moment and one of the second moments.

    Train it with one cross-entropy on its output. Mind the weight decay: entries of unit columns are small (0.09 for d
    = 128) and the convolutions shrink them, so that `second` needs large weights, and decay holds exactly those back.

    Args:
        in_dim, num_classes: C, channels of a token, and K.
        first_moment: "mean", the mean of all tokens (as published for feature maps), or "cls": token 0 is a class token
            (as published for ViTs) and the second moments are those of the others.
        options: `hidden_dim`, `num_heads`, `pairing` and `center`, see `CrossCovariancePool`.

    Raises:
        ValueError: an option outside its range.
    """

    def __init__(self, in_dim: int, num_classes: int, *, first_moment: FirstMoment = "mean", **options: Any) -> None:
        super().__init__()
        if first_moment not in ("mean", "cls"):
            raise ValueError(f"first_moment is {first_moment!r}; allowed: 'mean', 'cls'")
        self.first_moment = first_moment
        self.pool = CrossCovariancePool(in_dim, **options)
        self.first = _linear(in_dim, num_classes)
        self.second = _linear(self.pool.out_dim, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, L, C), or vectors (B, C) as one token each, to logits (B, K).

        A feature map (B, C, H, W) becomes tokens by `map.flatten(2).mT`.

        Raises:
            ValueError: features of another shape, or a class token and no other.
        """
        tokens = tokens[:, None] if tokens.ndim == 2 else tokens
        _check_tokens(tokens, self.first.in_features)
        if self.first_moment == "mean":
            first = tokens.mean(dim=1)
        elif tokens.shape[1] > 1:
            first, tokens = tokens[:, 0], tokens[:, 1:]
        else:
            raise ValueError("first_moment is 'cls' and there is no token beside the class token; use 'mean'")
        return (self.first(first) + self.second(self.pool(tokens))) / 2


class MomentProbeClassifier(HeadClassifier):
    """Moment probing on cached features, tokens (N, L, D) or vectors (N, D), as a scikit-learn classifier.

    The authors train ImageNet for 30 epochs with AdamW, rate 1e-4 and weight decay 0.05; the training defaults here are
    those of every head, for smaller data. `weight_decay` acts on all weights: keep it small (see `MomentProbe`).

    Args:
        hidden_dim, num_heads, pairing, center: see `CrossCovariancePool`; the defaults are the published ones.
        first_moment: "mean" or "cls", see `MomentProbe`; vectors need "mean".
        max_epochs, batch_size, learning_rate, weight_decay, random_state, device: see `HeadClassifier`.
    """

    def __init__(
        self,
        *,
        hidden_dim: int = 512,
        num_heads: int = 4,
        pairing: Pairing = "near",
        center: Center = "global",
        first_moment: FirstMoment = "mean",
        max_epochs: int = 30,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-4,
        random_state: int | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__(
            max_epochs=max_epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            random_state=random_state,
            device=device,
        )
        self.hidden_dim, self.num_heads = hidden_dim, num_heads
        self.pairing, self.center, self.first_moment = pairing, center, first_moment

    def _build(self, in_features: int, num_classes: int) -> nn.Module:
        options = ("first_moment", "hidden_dim", "num_heads", "pairing", "center")
        return MomentProbe(in_features, num_classes, **{name: getattr(self, name) for name in options})


class ScaleShiftAdapter(nn.Module):
    """The partially shared recalibration of MP+ (PSRP): 3 * dim * reduction weights, no biases.

    As published it starts near the identity, not at it; zero the weights of `scale` and `shift` to start at it.

    Args:
        dim: C, channels of a token.
        reduction: width of the bottleneck that scale and shift share (16, as published), 1 or more.

    Raises:
        ValueError: a reduction below 1.
    """

    def __init__(self, dim: int, reduction: int = 16) -> None:
        super().__init__()
        if reduction < 1:
            raise ValueError(f"reduction is {reduction!r}; it must be 1 or more")
        self.down = _linear(dim, reduction, bias=False)
        self.scale = _linear(reduction, dim, bias=False)
        self.shift = _linear(reduction, dim, bias=False)
        self._tokens: Tensor | None = None
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        """Return branch * (1 + B_1 u) + B_2 u with u = relu(A x), for x and branch (..., dim).

        Raises:
            ValueError: x whose last axis is not `dim`.
        """
        if x.shape[-1] != self.down.in_features:
            raise ValueError(f"x has shape {tuple(x.shape)}; its last axis must be {self.down.in_features}")
        shared = F.relu(self.down(x))
        return torch.addcmul(branch + self.shift(shared), branch, self.scale(shared))

    def _remember(self, norm: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        self._tokens = args[0]  # the tokens after attention, as the MLP's norm gets them

    def _recalibrate(self, mlp: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        tokens, self._tokens = self._tokens, None
        if tokens is None:
            raise ValueError(f"{type(mlp).__name__} ran before its norm; scale-shift needs blocks that norm first")
        return self(tokens, output)


def inject_scale_shift(model: nn.Module, reduction: int = 16) -> list[ScaleShiftAdapter]:
    """Add a `ScaleShiftAdapter` to every transformer block of `model`, in place, and return them in order.

    A block is any module with a norm (one of `NORMS`) before an `mlp`, or before an `intermediate` and `output.dense`.
    The adapter becomes its `scale_shift`, so that it is saved, moved and copied with the model; layer scale, dropout
    and drop path act after it, as published. To train the adapters alone, freeze the model first:

        model.requires_grad_(False)
        adapters = inject_scale_shift(model)

    Args:
        model: the backbone; its `requires_grad` flags are left as they are.
        reduction: bottleneck width of each adapter (16, as published).

    Raises:
        ValueError: no such block (what is missing is named), or adapters already there. A block whose norm comes after
            the MLP raises at its first forward pass.
    """
    if any(isinstance(module, ScaleShiftAdapter) for module in model.modules()):
        raise ValueError(f"{type(model).__name__} already has scale-shift adapters; remove_scale_shift takes them out")
    blocks = [(m, norm, mlp) for m in model.modules() if (norm := _norm(m)) and (mlp := _mlp(m))]
    if not blocks:
        raise ValueError(f"inject_scale_shift found no block to adapt in {type(model).__name__}: {_missing(model)}")
    for block, norm, mlp in blocks:
        weight = norm.get_parameter("weight")
        adapter = ScaleShiftAdapter(len(weight), reduction).to(weight)
        hooks = (norm, adapter._remember), (mlp, adapter._recalibrate)
        adapter._handles = [module.register_forward_hook(hook) for module, hook in hooks]
        block.add_module("scale_shift", adapter)
    return [module for module in model.modules() if isinstance(module, ScaleShiftAdapter)]


def remove_scale_shift(model: nn.Module) -> None:
    """Undo `inject_scale_shift`: the model computes what it did before.

    Raises:
        ValueError: the model has no adapters.
    """
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, ScaleShiftAdapter)]
    if not found:
        raise ValueError(f"{type(model).__name__} has no scale-shift adapters to remove")
    for name, adapter in found:
        for handle in adapter._handles:
            handle.remove()
        block, _, own = name.rpartition(".")
        delattr(model.get_submodule(block), own)


def _norm(block: nn.Module) -> nn.Module | None:
    """Return the norm in front of a block's MLP, or None for a module that has none."""
    found = (getattr(block, name, None) for name in NORMS)
    return next((n for n in found if isinstance(n, nn.Module) and getattr(n, "weight", None) is not None), None)


def _mlp(block: nn.Module) -> nn.Module | None:
    """Return the module whose output is the output of a block's MLP, or None for a module that has none."""
    split = hasattr(block, "intermediate")
    mlp = getattr(getattr(block, "output", None), "dense", None) if split else getattr(block, "mlp", None)
    return mlp if isinstance(mlp, nn.Module) else None


def _missing(model: nn.Module) -> str:
    """Say what the modules that come nearest to a block lack."""
    for module in model.modules():
        if _mlp(module):
            return f"{type(module).__name__} has an MLP but no norm with weights named {', '.join(NORMS)}"
        if _norm(module):
            return f"{type(module).__name__} has a second norm but neither mlp nor intermediate and output.dense"
    return f"no module has an mlp or one of {', '.join(NORMS)}"


def _pairs(num_heads: int, pairing: Pairing, center: Center) -> list[tuple[int, int]]:
    """Return the pairs of heads that `pairing` names, after a check of all three options."""
    if center not in ("global", "channel", None):
        raise ValueError(f"center is {center!r}; allowed: 'global', 'channel', None")
    if num_heads < 2:
        raise ValueError(f"num_heads is {num_heads!r}; a cross-covariance needs 2 or more")
    if pairing == "half" and num_heads % 2:
        raise ValueError(f"num_heads is {num_heads}; pairing 'half' needs an even number")
    if pairing == "all":
        return list(combinations(range(num_heads), 2))
    if pairing in ("near", "half"):
        step = 1 if pairing == "near" else num_heads // 2
        return [(j, j + step) for j in range(num_heads - step)]
    raise ValueError(f"pairing is {pairing!r}; allowed: 'near', 'half', 'all'")


def _linear(in_dim: int, out_dim: int, bias: bool = True) -> nn.Linear:
    """Return a linear layer that starts as the published ones."""
    layer = nn.Linear(in_dim, out_dim, bias=bias)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def _check_tokens(tokens: Tensor, in_dim: int) -> None:
    if tokens.ndim != 3 or tokens.shape[1] == 0 or tokens.shape[2] != in_dim:
        shape = tuple(tokens.shape)
        raise ValueError(f"tokens have shape {shape}; allowed: (B, L, {in_dim}), L > 0 (map.flatten(2).mT for maps)")
