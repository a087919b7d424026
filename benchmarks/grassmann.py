"""Time an update of `RiemannianSGD` against the obvious ways to take it: seconds, and ratios within this run.

    python benchmarks/grassmann.py

Every rival takes the same step (momentum, tangent projection, exponential map, QR every fifth update) in float32 on one
thread: one batched SVD over all classes, as in the authors' code; a loop over classes with one SVD each; and geoopt's
optimiser on the Stiefel manifold with the exact exponential map, where geoopt is installed.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable

import torch
from torch import Tensor

from workingpapers.methods.heads.grassmann import GrassmannLinear, RiemannianSGD

LR, MOMENTUM, REORTH_EVERY, SUBSPACE_DIM = 0.1, 0.9, 5, 8


def batched_svd(basis: Tensor, gradient: Tensor, buffer: Tensor, update: int) -> None:
    """Update bases (K, k, n) in place by one full-precision SVD call over all classes."""
    buffer.mul_(MOMENTUM).add_(gradient)
    S, V = basis.mT, buffer.mT
    U, s, Rt = torch.linalg.svd(V - S @ (S.mT @ V), full_matrices=False)
    moved = (S @ Rt.mT * torch.cos(-LR * s)[:, None] + U * torch.sin(-LR * s)[:, None]) @ Rt
    basis.copy_((torch.linalg.qr(moved).Q if update % REORTH_EVERY == 0 else moved).mT)


def loop_over_classes(basis: Tensor, gradient: Tensor, buffer: Tensor, update: int) -> None:
    """Update bases in place, class by class."""
    for c in range(len(basis)):
        batched_svd(basis[c : c + 1], gradient[c : c + 1], buffer[c : c + 1], update)


def rival(step: Callable[[Tensor, Tensor, Tensor, int], None], basis: Tensor, gradient: Tensor) -> Callable[[], None]:
    basis, buffer, updates = basis.clone(), torch.zeros_like(basis), iter(range(1, 1000))
    return lambda: step(basis, gradient, buffer, next(updates))


def ours(basis: Tensor, gradient: Tensor) -> Callable[[], None]:
    parameter = torch.nn.Parameter(basis.clone())
    parameter.grad = gradient
    optimizer = RiemannianSGD([parameter], lr=LR, momentum=MOMENTUM, reorth_every=REORTH_EVERY)

    def step() -> None:
        optimizer.step()

    return step


def geoopt_step(basis: Tensor, gradient: Tensor) -> Callable[[], None]:
    import geoopt

    parameter = geoopt.ManifoldParameter(basis.mT.contiguous(), manifold=geoopt.EuclideanStiefelExact())
    optimizer = geoopt.optim.RiemannianSGD([parameter], lr=LR, momentum=MOMENTUM, stabilize=REORTH_EVERY)

    def step() -> None:
        parameter.grad = gradient.mT.contiguous()  # its optimiser overwrites the gradient
        optimizer.step()

    return step


def seconds_per_update(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    for _ in range(REORTH_EVERY):  # one of these orthonormalises
        step()
    return (time.perf_counter() - start) / REORTH_EVERY


def main() -> None:
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, 1 thread, k = {SUBSPACE_DIM}, best seconds per update (times RiemannianSGD)")
    for classes, features in ((100, 1280), (100, 2048), (1000, 1280), (1000, 2048)):
        torch.manual_seed(0)
        basis = GrassmannLinear(features, classes, SUBSPACE_DIM).weight.detach()
        gradient = 0.01 * torch.randn_like(basis)
        ways = {
            "RiemannianSGD": ours(basis, gradient),
            "one batched SVD": rival(batched_svd, basis, gradient),
            "SVD per class": rival(loop_over_classes, basis, gradient),
        }
        if importlib.util.find_spec("geoopt"):
            ways["geoopt"] = geoopt_step(basis, gradient)
        print(f"K = {classes}, n = {features}")
        rounds = [{name: seconds_per_update(step) for name, step in ways.items()} for _ in range(4)]
        times = {name: min(r[name] for r in rounds) for name in ways}  # interleaved: other load hits all alike
        for name, seconds in times.items():
            print(f"  {name:16} {seconds:8.4f}  ({seconds / times['RiemannianSGD']:.1f}x)")


if __name__ == "__main__":
    main()
