"""Grassmann class representation: every class is a subspace, trained by Riemannian SGD.

A linear head gives each class one vector. Here a class is a k-dimensional subspace of the feature space, and its logit
is the length of the feature's projection onto it: features may vary inside their subspace at no cost in the loss.

    x_hat = x / |x|  (B, n);   S_c (n, k) with S_c^T S_c = I;   logit_c = gamma |S_c^T x_hat|  in [0, gamma]

The logits depend on the span of S_c alone, a point of the Grassmann manifold, and the bases are trained there. A step
of size eta with Euclidean gradient D and momentum buffer V (ambient, never transported) follows the geodesic:

    V <- mu V + D;   G = V - S S^T V;   G = U diag(s) R^T
    S <- S R diag(cos eta s) R^T - U diag(sin eta s) R^T;   every few steps S <- QR(S).Q

`geodesic_step` needs no SVD: since U sin(eta s) R^T = G R (sin(eta s) / s) R^T, the eigenvectors R and eigenvalues s^2
of the k x k matrix G^T G suffice. Both cos(eta s) and sin(eta s) / s are smooth functions of s^2 with bounded
derivatives, so small singular values, whose vectors an eigendecomposition gets wrong, cost no accuracy.

Source: Wang, Li and Zhang, "Get the Best of Both Worlds: Improving Accuracy and Transferability by Grassmann Class
Representation", ICCV 2023, arXiv 2308.01547, and the authors' code (github.com/innerlee/GCR: head, optimiser and
training settings). Unlike that code, the step counter belongs to each parameter, and the QR keeps the signs of the
basis, so that the momentum buffer stays aligned with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.preprocessing import normalize
from sklearn.utils import Tags
from sklearn.utils.validation import check_X_y
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.optimizer import ParamsT

from workingpapers.methods.heads.common import HeadClassifier, unit_length

CHUNK = 2**19  # numbers per chunk of classes on the CPU: a few arrays of 2 MB stay in its cache


class GrassmannLinear(nn.Module):
    """Class subspaces in place of `nn.Linear`: features (..., n) to logits (..., K) between 0 and `scale`.

    Train the weight with `RiemannianSGD` only: plain optimisers, weight decay, clipping by the global norm and weight
    averaging all leave the manifold (`retract_` returns to it).

    Args:
        in_features: n.
        num_classes: K.
        subspace_dim: k, at most n; 8 did best on ImageNet with n = 2048. k = 1 gives scale * |cosine|.
        scale: gamma, the largest possible logit (25, as published).

    Attributes:
        weight: (K, k, n), the orthonormal basis vectors of each class as rows. The published checkpoints hold the same
            numbers as (K * k, n).

    Raises:
        ValueError: a size below 1, subspace_dim above in_features, or a scale that is not positive.
    """

    def __init__(self, in_features: int, num_classes: int, subspace_dim: int = 8, scale: float = 25.0) -> None:
        super().__init__()
        if min(in_features, num_classes, subspace_dim) < 1:
            raise ValueError(f"sizes must be 1 or more; got {in_features=}, {num_classes=}, {subspace_dim=}")
        if subspace_dim > in_features:
            raise ValueError(f"subspace_dim is {subspace_dim}; at most in_features={in_features} dimensions fit")
        if not 0 < scale < float("inf"):
            raise ValueError(f"scale is {scale!r}; it must be positive and finite")
        self.in_features, self.num_classes, self.subspace_dim = in_features, num_classes, subspace_dim
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(num_classes, subspace_dim, in_features))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw every subspace uniformly from the Grassmann manifold: the QR factor of a Gaussian matrix."""
        self.weight.normal_()
        self.retract_()

    @torch.no_grad()
    def retract_(self) -> None:
        """Replace the weight by orthonormal bases of its row spaces, for example after averaging weights."""
        self.weight.copy_(orthonormalise(self.weight))

    @property
    def bases(self) -> Tensor:
        """The bases as columns, (K, n, k); a view of the weight."""
        return self.weight.mT

    @torch.no_grad()
    def orthonormality_error(self) -> float:
        """Return the largest absolute entry of S_c^T S_c - I over all classes."""
        return _orthonormality_error(self.weight)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits; computed in the weight's precision, also under autocast."""
        if features.shape[-1] != self.in_features:
            raise ValueError(f"features have shape {tuple(features.shape)}; the last axis must be {self.in_features}")
        with torch.autocast(features.device.type, enabled=False):
            unit = unit_length(features.to(self.weight.dtype))
            projections = F.linear(unit, self.weight.flatten(0, 1))
            projections = projections.reshape(*features.shape[:-1], self.num_classes, self.subspace_dim)
            return self.scale * torch.linalg.vector_norm(projections, dim=-1)  # its gradient at 0 is 0

    def extra_repr(self) -> str:
        """Return the sizes for `repr`."""
        sizes = f"in_features={self.in_features}, num_classes={self.num_classes}"
        return f"{sizes}, subspace_dim={self.subspace_dim}, scale={self.scale}"


class RiemannianSGD(torch.optim.Optimizer):
    """SGD with momentum on Grassmann manifolds, batched over the classes of each parameter; no weight decay.

    Learning-rate schedules and `state_dict` work as for any torch optimiser. Give everything that is not a subspace to
    another optimiser (`split_param_groups`).

    Args:
        params: (K, k, n) float32 or float64 tensors whose (k, n) slices have orthonormal rows, or groups of them.
        lr: step size eta; 0.1 as published for ResNets (0.1 to 0.3 beside AdamW and LAMB).
        momentum: mu, 0.9 as published.
        reorth_every: updates between two orthonormalisations; 5 as published with SGD, 1 beside AdamW or LAMB.

    Raises:
        ValueError: an option out of range, or a parameter that is not a stack of orthonormal bases, float32 or float64.
    """

    def __init__(self, params: ParamsT, lr: float = 0.1, momentum: float = 0.9, reorth_every: int = 5) -> None:
        if not 0 <= lr < float("inf"):
            raise ValueError(f"lr is {lr!r}; it must be 0 or more and finite")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum!r}; it must lie in [0, 1)")
        if reorth_every < 1:
            raise ValueError(f"reorth_every is {reorth_every!r}; it must be 1 or more")
        super().__init__(params, {"lr": lr, "momentum": momentum, "reorth_every": reorth_every})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters after checking that they lie on the manifold."""
        super().add_param_group(param_group)
        try:
            for parameter in self.param_groups[-1]["params"]:
                _check_on_manifold(parameter.detach())
        except ValueError:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step; `closure`, if given, recomputes the loss and its gradients first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"], state["momentum_buffer"] = 0, torch.zeros_like(parameter)
        state["step"] += 1
        reorthonormalise = state["step"] % group["reorth_every"] == 0
        classes = len(parameter) if parameter.is_cuda else max(1, CHUNK // parameter[0].numel())
        tensors = (parameter, gradient, state["momentum_buffer"])
        for basis, slope, buffer in zip(*(torch.split(t, classes) for t in tensors), strict=True):
            buffer.mul_(group["momentum"]).add_(slope)
            moved = geodesic_step(basis, buffer, group["lr"])
            basis.copy_(orthonormalise(moved) if reorthonormalise else moved)


def geodesic_step(basis: Tensor, direction: Tensor, lr: float) -> Tensor:
    """Return the bases moved along the geodesic against `direction`: the exponential map at -lr times its tangent part.

    The k x k eigenproblem is solved in float64, so that float32 steps are as accurate as an SVD's at any length.

    Args:
        basis: (K, k, n) orthonormal rows.
        direction: (K, k, n) Euclidean gradient or momentum.
        lr: step size; below (pi / 2) / s_max the geodesic is the shortest path to its end.
    """
    tangent = torch.baddbmm(direction, direction @ basis.mT, basis, alpha=-1)
    wide = tangent.double()
    squares, axes = torch.linalg.eigh(wide @ wide.mT)
    angles = lr * squares.clamp(min=0).sqrt()[:, None]  # (K, 1, k)
    turn = (axes * angles.cos()) @ axes.mT
    slide = (axes * (lr * torch.sinc(angles / torch.pi))) @ axes.mT  # lr sin(angle) / angle = sin(lr s) / s
    return torch.baddbmm(turn.to(basis.dtype) @ basis, slide.to(basis.dtype), tangent, alpha=-1)


def naive_geodesic_step(basis: Tensor, direction: Tensor, lr: float) -> Tensor:
    """Return the same as `geodesic_step` by the definition: a loop over classes with a full SVD each."""
    moved = torch.empty_like(basis)
    for c in range(len(basis)):
        S, V = basis[c].T, direction[c].T  # (n, k)
        U, s, Rt = torch.linalg.svd(V - S @ (S.T @ V), full_matrices=True)
        U = U[:, : len(s)]
        moved[c] = ((S @ Rt.T @ torch.diag(torch.cos(-lr * s)) + U @ torch.diag(torch.sin(-lr * s))) @ Rt).T
    return moved


def orthonormalise(basis: Tensor) -> Tensor:
    """Return orthonormal rows with the same spans, (K, k, n), by a QR whose R has a positive diagonal.

    The signs make the result unique and close to `basis` where its rows are nearly orthonormal already.
    """
    Q, R = torch.linalg.qr(basis.mT)
    signs = torch.where(R.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(Q.dtype)
    return (Q * signs[:, None]).mT


def _check_on_manifold(parameter: Tensor) -> None:
    if parameter.ndim != 3 or parameter.shape[1] > parameter.shape[2]:
        raise ValueError(f"a parameter has shape {tuple(parameter.shape)}; it must be (K, k, n) with k <= n")
    if parameter.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"a parameter is {parameter.dtype}; the manifold needs float32 or float64")
    error = _orthonormality_error(parameter)
    if not error < 1e-2:  # far above the drift between two orthonormalisations
        raise ValueError(f"a parameter's rows are not orthonormal: off by {error:.2g}; call retract_() first")


def _orthonormality_error(basis: Tensor) -> float:
    identity = torch.eye(basis.shape[-2], dtype=basis.dtype, device=basis.device)
    return float((basis @ basis.mT - identity).abs().max())


def split_param_groups(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the trainable parameters for `RiemannianSGD` and those for an ordinary optimiser.

    The first list holds the weight of every `GrassmannLinear` in the model, the second everything else.
    """
    subspaces = {id(m.weight) for m in model.modules() if isinstance(m, GrassmannLinear)}
    trainable = [p for p in model.parameters() if p.requires_grad]
    return [p for p in trainable if id(p) in subspaces], [p for p in trainable if id(p) not in subspaces]


class GrassmannClassifier(HeadClassifier):
    """Class subspaces on the feature vectors (N, n) of a frozen backbone, trained by Riemannian SGD.

    Args:
        subspace_dim: k, at most n; 8 as published.
        scale: gamma, the largest possible logit (25, as published).
        max_epochs, batch_size, random_state, device: as for `HeadClassifier`.
        learning_rate: the peak step size of `RiemannianSGD` (0.1, as published); its momentum is 0.9.

    Raises:
        ValueError: at fit, a subspace_dim above n or an option out of range.
    """

    _takes_tokens = False

    def __init__(
        self,
        *,
        subspace_dim: int = 8,
        scale: float = 25.0,
        max_epochs: int = 30,
        batch_size: int = 128,
        learning_rate: float = 0.1,
        random_state: int | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__(
            max_epochs=max_epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            random_state=random_state,
            device=device,
        )
        self.subspace_dim = subspace_dim
        self.scale = scale

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        # scikit-learn expects a good score on blobs in a plane; subspaces through the origin can't separate them.
        tags.classifier_tags.poor_score = True
        return tags

    def _build(self, in_features: int, num_classes: int) -> nn.Module:
        return GrassmannLinear(in_features, num_classes, self.subspace_dim, self.scale)

    def _optimizers(self, module: nn.Module) -> list[torch.optim.Optimizer]:
        return [RiemannianSGD(module.parameters(), lr=self.learning_rate)]


def within_class_variance(features: ArrayLike, labels: ArrayLike) -> float:
    """Return how much the directions of features vary inside a class, between 0 and 1: the mean over the classes.

    For unit vectors the variance of a class is 1 - |mean|^2, which is one minus the mean cosine over all its pairs.

    Args:
        features: (N, n) finite, scaled to unit length here.
        labels: (N,) class of each row; every class weighs the same.
    """
    checked, classes = check_X_y(features, labels, dtype=np.float64)
    unit = normalize(checked)
    return float(np.mean([1 - np.square(unit[classes == c].mean(axis=0)).sum() for c in np.unique(classes)]))
