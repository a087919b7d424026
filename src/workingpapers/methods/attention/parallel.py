"""Independent parts of an attention side by side on the processors, each by one thread.

torch splits every operation over its threads and waits for all of them each time. Where an attention is many small
operations on pieces that are independent (heads, ranges of queries), it is faster to give each thread pieces of its
own. The results are those of one thread.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

Item = TypeVar("Item")
Result = TypeVar("Result")


def each(function: Callable[[Item], Result], items: Iterable[Item], *tensors: Tensor) -> list[Result]:
    """Return what a function returns for each item, in their order.

    As many threads as torch has work side by side, with the caller's grad mode, inference mode and autocast; in them,
    and so within `function`, torch has one thread. Without use of it, one item after the other is done here: one item,
    one thread of torch, tensors on another device or whose gradients are wanted, modes that watch the operations.

    Args:
        function: what to do; it may write to parts of tensors that no other item touches.
        items: for instance heads, or ranges of queries; each a millisecond's work at least, to be worth it.
        tensors: what the function computes with.
    """
    items, count = list(items), torch.get_num_threads()
    watched = is_in_torch_dispatch_mode() or torch.compiler.is_compiling()
    trains = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    if count == 1 or len(items) < 2 or watched or trains or any(x.device.type != "cpu" for x in tensors):
        return [function(item) for item in items]
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    dtype, autocast = torch.get_autocast_dtype("cpu"), torch.is_autocast_enabled("cpu")

    def work(item: Item) -> Result:
        with (
            torch.inference_mode(inference),
            torch.set_grad_enabled(grad),
            torch.autocast("cpu", dtype=dtype, enabled=autocast),
        ):
            return function(item)

    return list(_workers(count).map(work, items))


@cache
def _workers(count: int) -> ThreadPoolExecutor:
    """Return threads that stay, in which torch has one thread: calls of `each` within them work in place."""
    workers = ThreadPoolExecutor(count, "attention", _start)
    started = threading.Barrier(count)
    list(workers.map(lambda _: started.wait(60), range(count)))
    torch.set_num_threads(count)  # threads to come start with the number that any thread has set last
    return workers


def _start() -> None:
    torch.get_num_threads()  # a thread's first look takes over what is set elsewhere, and would undo what comes next
    torch.set_num_threads(1)


os.register_at_fork(after_in_child=_workers.cache_clear)  # threads do not survive a fork
