"""MInference's shapes at the size of a setting: its proportions, as large as the share of the scores allows.

What the shapes cost depends on where their lines fall. They are sized for lines that lie evenly, and what they then
really cost is measured on training text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from workingpapers.tasks.long_context.material import Given, causal_scores, largest

if TYPE_CHECKING:
    from torch import Tensor

    from workingpapers.methods.attention.minference import MInference
    from workingpapers.methods.attention.minference_patterns import Pattern, VerticalSlash

BLOCKS = 64  # blocks of a text: published as 64 tokens a block, for texts of tens of thousands
LOOKS = 64  # the part of the queries, the last ones, by which lines are found: published as 64 queries of such texts
LINES = ((30, 800), (100, 750), (500, 700), (3500, 100))  # columns and diagonals, as published
FIRST_AND_LAST = (100, 800)
RUN_AS = {
    "AShape": (100, 800),
    "BlockSparse": (1000, 6096),
}  # columns and diagonals that the authors' code runs instead


def block_size(given: Given) -> int:
    """Return how many tokens in a row see the same earlier ones."""
    return max(1, given.length // BLOCKS)


def candidates(given: Given) -> list[Pattern]:
    """Return the shapes to choose from, the A-shape first; each costs about the share of the setting."""
    from workingpapers.methods.attention.minference_patterns import AShape, BlockSparse

    size = block_size(given)
    a_shape = largest(lambda n: a_shape_cost(AShape(*_part(n, FIRST_AND_LAST)), given.length, size), given)
    blocks = largest(lambda n: _blocks_cost(min(n, BLOCKS + 1), given.length, size), given)
    return [
        AShape(*_part(a_shape, FIRST_AND_LAST)),
        *(vertical_slash(given, numbers) for numbers in LINES),
        BlockSparse(min(blocks, BLOCKS + 1)),
    ]


def vertical_slash(given: Given, numbers: tuple[int, int]) -> VerticalSlash:
    """Return columns and diagonals in the proportion of two numbers; together they cost about the share."""
    from workingpapers.methods.attention.minference_patterns import VerticalSlash

    looks = max(1, given.length // LOOKS)

    def sized(size: int) -> VerticalSlash:
        return VerticalSlash(*_part(size, numbers), last_q=looks)

    return sized(largest(lambda n: _lines_cost(sized(n), given.length, block_size(given)), given))


def _part(size: int, numbers: tuple[int, int]) -> tuple[int, int]:
    """Scale the larger of two numbers to `size` and the other with it."""
    first, second = (max(1, round(size * n / max(numbers))) for n in numbers)
    return first, second


def _lines_cost(pattern: VerticalSlash, length: int, size: int) -> float:
    """Return how many scores evenly placed lines take, with those that find them."""
    import torch

    from workingpapers.methods.attention.sparse_blocks import Lines

    def evenly(count: int, first: int = 0) -> Tensor:
        room = length - 1 - first
        return torch.tensor(sorted({first + i * room // max(1, count - 1) for i in range(count)}), dtype=torch.long)

    near = min(pattern.n_near or 1, length - 1)
    offsets = torch.cat([torch.arange(near), evenly(pattern.n_slash - near, near)])
    return Lines(evenly(pattern.n_vertical), offsets).entries(length, size) + pattern.last_q * length


def _blocks_cost(kept: int, length: int, size: int) -> float:
    """Return how many scores the last `kept` blocks take, with those of the blocks' means."""
    import torch

    from workingpapers.methods.attention.sparse_blocks import Blocks

    count = -(-length // size)
    rows = [[j if j <= i else -1 for j in range(i, i - kept, -1)] for i in range(count)]
    return Blocks(torch.tensor(rows).clamp(min=-1)).entries(length, size) + count**2


def a_shape_cost(pattern: Any, length: int, size: int) -> float:
    """Return how many of T tokens' scores an A-shape computes in blocks of `size`."""
    import torch

    from workingpapers.methods.attention.sparse_blocks import Lines

    every = torch.arange(length)
    return Lines(every[: pattern.n_init], every[: pattern.n_local]).entries(length, size)


def searched(given: Given, *, as_run: bool = False) -> tuple[MInference, Callable[[int], float]]:
    """Choose the best candidate for every head, by the attention mass that it recovers on training text.

    Args:
        given: what an entry sees.
        as_run: run heads of the other shapes with columns and diagonals too, as the authors' code does.

    Returns:
        The choice, and what it costs for T tokens, estimates included, in the proportions of the training text.
    """
    from workingpapers.methods.attention.minference import measure, search
    from workingpapers.methods.attention.minference_patterns import VerticalSlash

    tokens = given.tokens[None]
    choice, mass, shares = search(given.model, tokens, candidates(given), block_size=block_size(given))
    kept = float(shares.gather(0, mass.argmax(dim=0, keepdim=True)).mean())
    if as_run:
        instead = {name: vertical_slash(given, numbers) for name, numbers in RUN_AS.items()}
        heads = tuple(tuple(instead.get(type(p).__name__, p) for p in layer) for layer in choice.heads)
        choice = replace(choice, heads=heads)
        kept = float(measure(given.model, tokens, [choice])[1].mean())
    every = [pattern for layer in choice.heads for pattern in layer]
    estimated = sum(isinstance(pattern, VerticalSlash) for pattern in every) / len(every)
    return choice, lambda length: kept * causal_scores(length) + estimated * length**2 / LOOKS
