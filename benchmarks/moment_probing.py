"""Time the second moments of `CrossCovariancePool` against the obvious ways to take them: ratios within one run.

    python benchmarks/moment_probing.py [PATH]

Forward and backward of LayerNorm, centring, moments and unit columns, from projected tokens (64, L, 512) in float32 on
one thread. Rivals: one einsum for the covariance of all channels, of which the paired blocks are kept; and a loop over
samples and pairs. PATH is the authors' models/representation/MP.py, which is then timed too, its steps and the whole
head, after a check that both heads give the same logits.
"""

from __future__ import annotations

import importlib.util
import itertools
import sys
import time
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.benchmark import Timer

from workingpapers.methods.heads.moment_probing import CrossCovariancePool, MomentProbe, naive_cross_covariance

BATCH, DIM, HEADS, CLASSES, ROUNDS = 64, 512, 4, 100, 5
Step = Callable[[], Any]


def all_covariances(heads: Tensor) -> Tensor:
    """Return the paired blocks (B, h - 1, d, d) of the covariance of all channels, for heads (h, B, L, d)."""
    heads = heads - heads.mean(dim=(-2, -1), keepdim=True)
    x = heads.permute(1, 2, 0, 3)
    moments = torch.einsum("blhd,blke->bhdke", x, x) / x.shape[1]
    return torch.stack([moments[:, j, :, j + 1] for j in range(len(heads) - 1)], dim=1)


def rival(pool: CrossCovariancePool, moments: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return `pool.moments` with other second moments."""

    def steps(tokens: Tensor) -> Tensor:
        heads = pool.norm(tokens.view(len(tokens), -1, HEADS, DIM // HEADS).permute(2, 0, 1, 3))
        return F.normalize(moments(heads), dim=2)

    return steps


def load_official(path: str) -> Any:
    """Import the authors' module; the two timm names that it imports are only needed by parts not used here."""
    for name in ("timm", "timm.models", "timm.models.layers", "timm.models.fx_features"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["timm.models.layers"].SelectAdaptivePool2d = nn.Identity  # type: ignore[attr-defined]
    sys.modules["timm.models.fx_features"].register_notrace_module = lambda c: c  # type: ignore[attr-defined]
    spec = importlib.util.spec_from_file_location("official_moment_probing", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def official_moments(head: Any) -> Callable[[Tensor], Tensor]:
    """Return the authors' way from projected tokens to moments, by the modules of their head."""

    def steps(tokens: Tensor) -> Tensor:
        pairs = itertools.pairwise(tokens.view(len(tokens), -1, HEADS, DIM // HEADS).permute(2, 0, 1, 3))
        matrices = [head._l2norm(head.cov(head.ln(a), head.ln(b)).unsqueeze(1)) for a, b in pairs]
        return torch.cat(matrices, dim=1)

    return steps


def official_head(official: Any, ours: MomentProbe) -> Callable[[Tensor], Tensor]:
    """Return the authors' head with the weights of ours."""
    head = official.Moment_Probing_ViT(in_dim=DIM, num_classes=CLASSES)
    pool = ours.pool
    pairs = (head.proj, pool.proj), (head.ln, pool.norm), (head.downblocks[0], pool.reduce)
    for theirs, own in (*pairs, (head.classifier1, ours.first), (head.classifier2, ours.second)):
        theirs.load_state_dict(own.state_dict())
    return lambda tokens: head(tokens[:, 0], tokens)


def training_step(function: Callable[[Tensor], Tensor], tokens: Tensor) -> Step:
    """Return a step forward and backward."""
    tokens = tokens.clone().requires_grad_()
    gradient = torch.randn_like(function(tokens))
    return lambda: torch.autograd.backward(function(tokens), gradient)


def compare(title: str, ways: dict[str, Callable[[Tensor], Tensor]], tokens: Tensor) -> dict[str, float]:
    """Time every way (the first is ours) and print its CPU milliseconds and their ratio to ours.

    The rounds interleave the ways, so that other load hits all alike; the smallest of their medians counts.
    """
    steps = {name: training_step(f, tokens) for name, f in ways.items()}
    timers = {
        name: Timer("step()", globals={"step": s}, num_threads=1, timer=time.process_time) for name, s in steps.items()
    }
    rounds = [{name: t.blocked_autorange(min_run_time=0.5).median for name, t in timers.items()} for _ in range(ROUNDS)]
    seconds = {name: min(r[name] for r in rounds) for name in ways}
    print(title)
    for name, value in seconds.items():
        print(f"  {name:34} {1e3 * value:8.1f} ms  ({value / next(iter(seconds.values())):.2f}x)")
    return seconds


def run(official_path: str | None = None) -> None:
    """Print the table; with the path of the authors' module, compare with it too."""
    print(f"torch {torch.__version__}, 1 thread, float32, B = {BATCH}, D = {DIM}, h = {HEADS}; CPU time of a step")
    official = load_official(official_path) if official_path else None
    torch.manual_seed(0)
    head = MomentProbe(DIM, CLASSES, first_moment="cls")
    pool = CrossCovariancePool(DIM)
    pool.proj = nn.Identity()  # type: ignore[assignment]
    for length in (16, 196):
        ways = {
            "CrossCovariancePool.moments": pool.moments,
            "einsum over all heads": rival(pool, all_covariances),
            "loop over samples and pairs": rival(pool, naive_cross_covariance),
        }
        tokens = torch.randn(BATCH, length, DIM)
        for way in ways.values():
            torch.testing.assert_close(way(tokens), pool.moments(tokens))
        if official:
            ways["authors' code"] = official_moments(official.Moment_Probing_ViT(in_dim=DIM))
            torch.testing.assert_close(ways["authors' code"](tokens), pool.moments(tokens))
        compare(f"second moments, L = {length}", ways, tokens)
        if official:
            tokens = torch.randn(BATCH, 1 + length, DIM)
            theirs = official_head(official, head)
            torch.testing.assert_close(theirs(tokens), head(tokens))
            compare(f"whole head, L = {length}", {"MomentProbe": head, "authors' code": theirs}, tokens)


if __name__ == "__main__":
    run(*sys.argv[1:2])
