"""Long sequences for ring attention: packed of examples, spread over processes, and the processes on one machine.

The sequence of T tokens is cut into pieces of equal size. In the "contiguous" layout there are P pieces and process p
holds piece p; in the "zigzag" layout there are 2 P and it holds pieces p and 2 P - 1 - p, an early one and a late one,
so that in causal attention all processes have the same work.
"""

from __future__ import annotations

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
    """Return (length / size,) the positions in the whole sequence of the tokens that a process holds, ascending.

    Rotary embeddings need them as `position_ids`.

    Raises:
        ValueError: a length that cannot be split over `size` processes, or an unknown layout.
    """
    piece = piece_length(length, size, layout)
    return torch.cat([torch.arange(n * piece, (n + 1) * piece) for n in held_pieces(rank, size, layout)])


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
    """
    _, size = place(group)
    if size == 1:
        return x.detach()
    shares = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(size)]
    dist.all_gather(shares, x.detach().contiguous(), group=group)
    order = [positions(x.shape[dim] * size, rank=rank, size=size, layout=layout) for rank in range(size)]
    return torch.cat(shares, dim=dim).index_select(dim, torch.cat(order).argsort().to(x.device))


def score_entries(length: int, *, rank: int, size: int, layout: Layout = "zigzag", causal: bool = True) -> int:
    """Return how many pairs of query and key a process computes per head; the diagonal pieces count whole.

    Raises:
        ValueError: see `positions`.
    """
    piece = piece_length(length, size, layout)
    mine, all_of_them = held_pieces(rank, size, layout), range(length // piece if piece else 0)
    return piece**2 * sum(not causal or theirs <= own for own in mine for theirs in all_of_them)


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


def held_pieces(rank: int, size: int, layout: Layout) -> list[int]:
    """Return the numbers of the pieces that a process holds, ascending."""
    return [rank, 2 * size - 1 - rank] if layout == "zigzag" else [rank]


def piece_length(length: int, size: int, layout: Layout) -> int:
    """Return the number of tokens in a piece.

    Raises:
        ValueError: a length that does not divide into pieces, or an unknown layout.
    """
    if layout not in ("zigzag", "contiguous"):
        raise ValueError(f"layout is {layout!r}; allowed: 'zigzag', 'contiguous'")
    count = 2 * size if layout == "zigzag" else size
    if length % count:
        raise ValueError(
            f"a sequence of {length} tokens cannot be split over {size} processes in the layout {layout!r}: "
            f"the length must be a multiple of {count}; pad it, with segment_ids of their own for the padding"
        )
    return length // count


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
        ValueError: no example, one of fewer than two tokens, or more tokens than `length`.
    """
    tokens = [torch.as_tensor(e, dtype=torch.long) for e in examples]
    if not tokens or any(t.ndim != 1 or len(t) < 2 for t in tokens):
        raise ValueError(f"examples must be lists of two tokens or more; got {[tuple(t.shape) for t in tokens]}")
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
