"""MInference's shapes at the size of a setting: its proportions, as large as the share of the scores allows.

What the shapes cost depends on where their lines fall. They are sized for lines that lie evenly, and what they then
really cost is measured on training text.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from workingpapers.tasks.long_context.material import Given, causal_scores, largest

if TYPE_CHECKING:
    from torch import Tensor

    from workingpapers.methods.attention.minference import MInference
    from workingpapers.methods.attention.minference_patterns import Pattern

BLOCKS = 64  # blocks of a text: published as 64 tokens a block, for texts of tens of thousands
LOOKS = 64  # the part of the queries, the last ones, by which lines are found: published as 64 queries of such texts
LINES = ((30, 800), (100, 750), (500, 700), (3500, 100))  # columns and diagonals, as published
FIRST_AND_LAST = (100, 800)


def block_size(given: Given) -> int:
    """Return how many tokens in a row see the same earlier ones."""
    return max(1, given.length // BLOCKS)


def candidates(given: Given) -> list[Pattern]:
    """Return the shapes to choose from, the A-shape first; each costs about the share of the setting."""
    import torch

    from workingpapers.methods.attention.minference_patterns import AShape, BlockSparse, VerticalSlash
    from workingpapers.methods.attention.sparse_blocks import Blocks, Lines

    length, size = given.length, block_size(given)
    looks = max(1, length // LOOKS)

    def evenly(count: int, first: int = 0) -> Tensor:
        room = length - 1 - first
        return torch.tensor(sorted({first + i * room // max(1, count - 1) for i in range(count)}), dtype=torch.long)

    def lines(pattern: VerticalSlash) -> float:
        near = min(pattern.n_near or 1, length - 1)
        offsets = torch.cat([torch.arange(near), evenly(pattern.n_slash - near, near)])
        return Lines(evenly(pattern.n_vertical), offsets).entries(length, size) + looks * length

    def blocks(pattern: BlockSparse) -> float:
        count = -(-length // size)
        rows = [[j if j <= i else -1 for j in range(i, i - pattern.n_blocks, -1)] for i in range(count)]
        return Blocks(torch.tensor(rows).clamp(min=-1)).entries(length, size) + count**2

    def part(size: int, numbers: tuple[int, int]) -> list[int]:
        """Scale the larger of two numbers to `size` and the other with it."""
        return [max(1, round(size * n / max(numbers))) for n in numbers]

    def slash(numbers: tuple[int, int], size: int) -> VerticalSlash:
        columns, diagonals = part(size, numbers)
        return VerticalSlash(columns, diagonals, last_q=looks)

    def fitted(make: Callable[[int], Any], cost: Callable[[Any], float]) -> Any:
        return make(largest(lambda s: cost(make(s)), given))

    return [
        fitted(lambda s: AShape(*part(s, FIRST_AND_LAST)), lambda p: a_shape_cost(p, length, size)),
        *(fitted(functools.partial(slash, numbers), lines) for numbers in LINES),
        fitted(lambda s: BlockSparse(min(s, BLOCKS + 1)), blocks),
    ]


def a_shape_cost(pattern: Any, length: int, size: int) -> float:
    """Return how many of T tokens' scores an A-shape computes in blocks of `size`."""
    import torch

    from workingpapers.methods.attention.sparse_blocks import Lines

    every = torch.arange(length)
    return Lines(every[: pattern.n_init], every[: pattern.n_local]).entries(length, size)


def searched(given: Given) -> tuple[MInference, Callable[[int], float]]:
    """Choose the best candidate for every head, by the attention mass that it recovers on training text.

    Returns:
        The choice, and what it costs for T tokens, estimates included, in the proportions of the training text.
    """
    from workingpapers.methods.attention.minference import search
    from workingpapers.methods.attention.minference_patterns import VerticalSlash

    choice, mass, share = search(given.model, given.tokens[None], candidates(given), block_size=block_size(given))
    kept = float(share.gather(0, mass.argmax(dim=0, keepdim=True)).mean())
    heads = [pattern for layer in choice.heads for pattern in layer]
    estimated = sum(isinstance(pattern, VerticalSlash) for pattern in heads) / len(heads)
    return choice, lambda length: kept * causal_scores(length) + estimated * length**2 / LOOKS
