"""Long sequences for ring attention: packed of examples, spread over processes, and the processes on one machine.

The sequence of T tokens is cut into pieces of equal size, or of sizes that differ by one where T doesn't divide. In the
"contiguous" layout there are P pieces and process p holds piece p; in the "zigzag" layout there are 2 P and it holds
pieces p and 2 P - 1 - p, an early one and a late one, so that in causal attention all processes have the same work.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing

Group = dist.ProcessGroup | None
Layout = Literal["zigzag", "contiguous"]


def positions(length: int, *, rank: int, size: int, layout: Layout = "zigzag") -> Tensor:
    """Return the positions in the whole sequence of the tokens that a process holds, ascending.

    Rotary embeddings need them as `position_ids`.

    Raises:
        ValueError: an unknown layout.
    """
    pieces = held_pieces(length, rank=rank, size=size, layout=layout)
    return torch.cat([torch.arange(piece.start, piece.stop) for piece in pieces])


def shard(x: Tensor, *, dim: int, group: Group = None, layout: Layout = "zigzag") -> Tensor:
    """Return this process's share of a tensor along `dim`, which holds the whole sequence.

    Raises:
        ValueError: see `positions`.
    """
    rank, size = place(group)
    return x.index_select(dim, positions(x.shape[dim], rank=rank, size=size, layout=layout).to(x.device))


def gather(x: Tensor, *, dim: int, group: Group = None, layout: Layout = "zigzag") -> Tensor:
    """Return the whole tensor, of which every process gives its share along `dim`; the inverse of `shard`.

    Gradients do not pass.

    Raises:
        ValueError: shares of other lengths than `shard` gives, or an unknown layout.
    """
    _, size = place(group)
    if size == 1:
        return x.detach()
    rows = x.detach().movedim(dim, 0)
    lengths = [held for (held,) in exchanged([len(rows)], x.device, group)]
    length = whole_length(lengths, layout)
    order = [positions(length, rank=rank, size=size, layout=layout) for rank in range(size)]
    padded = rows.new_zeros(max(lengths), *rows.shape[1:])  # what all processes give must be of one shape
    padded[: len(rows)] = rows
    shares = [torch.empty_like(padded) for _ in range(size)]
    dist.all_gather(shares, padded, group=group)
    whole = torch.cat([share[:held] for share, held in zip(shares, lengths, strict=True)])
    return whole.index_select(0, torch.cat(order).argsort().to(x.device)).movedim(0, dim).contiguous()


def score_entries(length: int, *, rank: int, size: int, layout: Layout = "zigzag", causal: bool = True) -> int:
    """Return how many pairs of query and key a process computes per head; the diagonal pieces count whole.

    Raises:
        ValueError: see `positions`.
    """
    held = [held_pieces(length, rank=r, size=size, layout=layout) for r in range(size)]
    return sum(
        len(own) * len(theirs)
        for own in held[rank]
        for theirs in itertools.chain(*held)
        if not causal or theirs.start <= own.start
    )


def place(group: Group) -> tuple[int, int]:
    """Return (rank, number of processes); (0, 1) where no group was started.

    Raises:
        ValueError: the group does not hold this process.
    """
    if not dist.is_available() or not dist.is_initialized():
        return 0, 1
    rank = dist.get_rank(group)
    if rank < 0:
        raise ValueError("this process does not belong to the group")
    return rank, dist.get_world_size(group)


def held_pieces(length: int, *, rank: int, size: int, layout: Layout) -> list[range]:
    """Return the positions of the pieces that a process holds, ascending; pieces of a short sequence may be empty.

    Raises:
        ValueError: an unknown layout.
    """
    if layout not in ("zigzag", "contiguous"):
        raise ValueError(f"layout is {layout!r}; allowed: 'zigzag', 'contiguous'")
    numbers, count = ([rank, 2 * size - 1 - rank], 2 * size) if layout == "zigzag" else ([rank], size)
    return [range(n * length // count, (n + 1) * length // count) for n in numbers]


def exchanged(numbers: Sequence[int], device: torch.device, group: Group) -> list[list[int]]:
    """Return the whole numbers that each process gives, as many from each, in rank order."""
    _, size = place(group)
    if size == 1:
        return [list(numbers)]
    mine = torch.tensor(numbers, device=device)
    given = [torch.empty_like(mine) for _ in range(size)]
    dist.all_gather(given, mine, group=group)
    return [x.tolist() for x in given]


def whole_length(shares: Sequence[int], layout: Layout) -> int:
    """Return the length of a sequence of which processes hold so many tokens each, in rank order.

    Raises:
        ValueError: shares of other lengths than `shard` gives, or an unknown layout.
    """
    length, size = sum(shares), len(shares)
    held = [sum(map(len, held_pieces(length, rank=rank, size=size, layout=layout))) for rank in range(size)]
    if held != list(shares):
        raise ValueError(
            f"the processes hold {list(shares)} tokens; in the layout {layout!r} they must hold {held} of {length}, "
            "which `shard` gives them"
        )
    return length


@dataclass(frozen=True)
class Packed:
    """Examples packed into one sequence of T tokens; all tensors (1, T), so that they shard along dim 1.

    The loss is (loss_weights * cross_entropy(logits, labels)).sum(), summed over processes.

    Attributes:
        input_ids: the tokens of one example after the other, then padding.
        labels: the token that follows each within its example; -100 (torch's ignore_index) where none does.
        position_ids: 0, 1, .. from the start of every example.
        segment_ids: the number of the example; -1 for padding.
        loss_weights: 1 / (examples x labels of the example), so that an example of few labels counts as one of many.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    segment_ids: Tensor
    loss_weights: Tensor


def pack_examples(examples: Sequence[Sequence[int] | Tensor], length: int, *, pad_token_id: int = 0) -> Packed:
    """Pack examples into one sequence in which each is alone: masked, with positions and weights of its own.

    Args:
        examples: token ids, two or more of each, so that it has a label.
        length: T, the length of the sequence.
        pad_token_id: the token that fills it up (0).

    Raises:
        ValueError: no example, one of fewer than two tokens, tokens that are no whole numbers, or more tokens than
            `length`.
    """
    tokens = [torch.as_tensor(e) for e in examples]
    if not tokens or any(t.ndim != 1 or len(t) < 2 for t in tokens):
        raise ValueError(f"examples must be lists of two tokens or more; got {[tuple(t.shape) for t in tokens]}")
    kinds = {t.dtype for t in tokens if t.is_floating_point() or t.dtype == torch.bool}
    if kinds:
        raise ValueError(f"token ids must be whole numbers; got {', '.join(map(str, kinds))}")
    if sum(map(len, tokens)) > length:
        raise ValueError(f"the examples hold {sum(map(len, tokens))} tokens; at most {length} fit")
    packed = Packed(
        torch.full((1, length), pad_token_id),
        torch.full((1, length), -100),
        torch.zeros(1, length, dtype=torch.long),
        torch.full((1, length), -1),
        torch.zeros(1, length),
    )
    start = 0
    for number, t in enumerate(tokens):
        end = start + len(t)
        packed.input_ids[0, start:end] = t
        packed.labels[0, start : end - 1] = t[1:]
        packed.position_ids[0, start:end] = torch.arange(len(t))
        packed.segment_ids[0, start:end] = number
        packed.loss_weights[0, start : end - 1] = 1 / (len(tokens) * (len(t) - 1))
        start = end
    return packed


def run_processes(work: Callable[..., Any], processes: int, *arguments: Any) -> list[Any]:
    """Run a function in a gloo process group on this machine and return what each process returned, in rank order.

    Scripts call it under `if __name__ == "__main__":`, for the processes import the script.

    Args:
        work: called with the arguments in every process; a function that can be imported.
        processes: how many; each computes with one thread.
        arguments: what `torch.save` can write.

    Raises:
        ValueError: fewer than one process.
        torch.multiprocessing.ProcessRaisedException: a process failed; holds its traceback.
    """
    if processes < 1:
        raise ValueError(f"processes is {processes}; it must be 1 or more")
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_process, (processes, folder, work, arguments), nprocs=processes)  # type: ignore
        return [torch.load(Path(folder, str(rank)), weights_only=False) for rank in range(processes)]


def _process(rank: int, size: int, folder: str, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
    torch.save(work(*arguments), Path(folder, str(rank)))
    dist.destroy_process_group()
