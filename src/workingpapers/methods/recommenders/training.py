"""The training loop of click models: Adam on the log loss, stopped early by the validation AUC; over processes too."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from threading import RLock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.errors import first_line
from workingpapers.methods.recommenders.metrics import auc
from workingpapers.methods.recommenders.schema import Rows
from workingpapers.methods.tables.common import Table
from workingpapers.progress import counted, watched

_DRAWING = RLock()
BLOCK, MIXED = 65_536, 1_048_576  # rows that are read together, and that are shuffled together


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a click model is trained.

    Attributes:
        learning_rate: of Adam (1e-3).
        weight_decay: L2 added to the gradients of dense parameters, as Adam does (0).
        batch_size: rows of a step, over all processes (1,024, as in AutoInt).
        max_epochs: most passes over the data (20).
        patience: epochs without a better validation AUC after which training stops (2); the best epoch is kept, of
            equal ones that with the smaller loss.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    batch_size: int = 1024
    max_epochs: int = 20
    patience: int = 2

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < math.inf or not 0 <= self.weight_decay < math.inf:
            raise ValueError(
                f"learning_rate is {self.learning_rate} and weight_decay {self.weight_decay}; they must be finite, the "
                "first above 0 and the second 0 or more"
            )
        for name in ("batch_size", "max_epochs", "patience"):
            value = getattr(self, name)
            if not isinstance(value, (int, np.integer)) or value < 1:
                raise ValueError(f"{name} is {value!r}; it must be a whole number, 1 or more")


@dataclass(frozen=True)
class History:
    """What happened: mean training loss (nats) and validation AUC of each epoch, and the epoch that was kept."""

    loss: list[float]
    auc: list[float]
    best: int


def chosen_device(name: str | torch.device | None) -> torch.device:
    """Return the device of a name; None takes the GPU where there is one.

    Raises:
        ValueError: torch has no such device here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {str(name)!r} cannot be used here: {first_line(error)}") from error


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let torch draw numbers by a seed, and leave its generators as they were.

    All threads share these, so that one thread draws at a time. Tensors are made on the CPU unless code says where,
    whatever the default device is, and can be trained, whether gradients are switched off or not.
    """
    default = torch.get_default_device()
    place = nullcontext() if default.type == "cpu" else torch.device("cpu")
    with _DRAWING, torch.random.fork_rng(), place, torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(seed)
        yield


def optimizers(model: nn.Module, plan: Plan) -> list[torch.optim.Optimizer]:
    """Return Adam for dense parameters, with the groups that tables ask for, and lazy Adam for sparse gradients."""
    own = [group for m in model.modules() if isinstance(m, Table) for group in m.groups()]
    sparse = [m.weight for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag)) and m.sparse]
    held = {id(p) for p in (*sparse, *(p for group in own for p in group["params"]))}
    dense = [p for p in model.parameters() if id(p) not in held and p.requires_grad]
    made: list[torch.optim.Optimizer] = []
    if dense or own:
        groups = [*([{"params": dense}] if dense else []), *own]
        # Fused, a step over a table of a million ids takes a sixth of the time.
        made.append(torch.optim.Adam(groups, lr=plan.learning_rate, weight_decay=plan.weight_decay, fused=True))
    if sparse:
        made.append(torch.optim.SparseAdam(sparse, lr=plan.learning_rate))
    return made


def shuffled(rows: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield the numbers of all rows in random order, by batch; the last may be smaller.

    Of more than MIXED rows, blocks of BLOCK rows are put into random order, and as many at a time as make MIXED rows
    are shuffled. So a batch of memory-mapped rows is read from few places. A file sorted by time or label is mixed
    only as far as these blocks go.
    """
    if rows <= MIXED:
        yield from torch.split(torch.randperm(rows, generator=generator), batch_size)
        return
    left = torch.zeros(0, dtype=torch.long)
    for blocks in torch.split(torch.randperm(-(-rows // BLOCK), generator=generator), MIXED // BLOCK):
        index = (blocks[:, None] * BLOCK + torch.arange(BLOCK)).flatten()
        index = index[index < rows]
        index = torch.cat([left, index[torch.randperm(len(index), generator=generator)]])
        whole = len(index) // batch_size * batch_size
        yield from torch.split(index[:whole], batch_size) if whole else ()
        left = index[whole:]
    if len(left):
        yield left


@contextmanager
def training_progress(epochs: int, rows: int) -> Iterator[Callable[[int, Iterable[Tensor]], Iterator[Tensor]]]:
    """Yield a function of an epoch and its batches, which yields the batches and shows how far training is.

    Args:
        epochs: at most.
        rows: that the batches of an epoch hold.
    """
    with counted(watched(), epochs * rows, f"training, {epochs} epochs at most", "rows") as report:

        def told(epoch: int, batches: Iterable[Tensor]) -> Iterator[Tensor]:
            done = epoch * rows
            for batch in batches:
                yield batch
                done += len(batch)
                report(done)

        yield told


def train(
    model: nn.Module,
    rows: Rows,
    labels: Tensor,
    plan: Plan,
    *,
    valid: tuple[Rows, Tensor] | None = None,
    seed: int = 0,
    before_epoch: Callable[[int], None] | None = None,
) -> History:
    """Train a model in place.

    Under `accelerate launch` (or torchrun) each process takes its share of every batch, and gradients are averaged;
    every process must get the same rows and seed.

    Args:
        model: rows in, logits (B,) out; its `penalty()`, where it has one, is added to each step's loss.
        rows: N rows; labels: (N,) 0 or 1.
        plan: how.
        valid: held-out rows and labels of both classes; without them all epochs run and the last is kept.
        seed: of the order of the rows.
        before_epoch: is called with the number of each epoch, from 0, before its first step: for schedules.

    Raises:
        ValueError: no rows, or a loss, or logits of held-out rows, that are not finite.
    """
    if not len(rows):
        raise ValueError("there are no rows to train on")
    steps, targets = _Steps(model, plan), labels.float()
    generator = torch.Generator().manual_seed(seed)
    history, best = History([], [], 0), (-np.inf, -np.inf)
    kept: dict[str, Any] | None = None
    with training_progress(plan.max_epochs, len(rows)) as told:
        for epoch in range(plan.max_epochs):
            if before_epoch is not None:
                before_epoch(epoch)
            batches = shuffled(len(rows), int(plan.batch_size), generator)
            mean = steps.epoch(rows, targets, told(epoch, batches))
            if not np.isfinite(mean):
                raise ValueError(f"the loss of epoch {epoch + 1} is {mean}; try a smaller learning_rate")
            history.loss.append(mean)
            if valid is None:
                history = History(history.loss, history.auc, epoch)
                continue
            reached = _reached(model, *valid)
            history.auc.append(reached[0])
            if reached > best:
                best, kept = reached, copy.deepcopy(model.state_dict())
                history = History(history.loss, history.auc, epoch)
            elif epoch - history.best >= plan.patience:
                break
    if kept is not None:
        model.load_state_dict(kept)
    model.eval()
    return history


class _Steps:
    """A model and its optimisers, in all processes there are."""

    def __init__(self, model: nn.Module, plan: Plan) -> None:
        from accelerate import Accelerator

        # Without CUDA, Accelerate takes a process of torchrun for one that is alone, unless it is told to stay here.
        self._processes = Accelerator(cpu="LOCAL_RANK" in os.environ and not torch.cuda.is_available())
        # Alone, a process trains where the model is; several take a device each.
        several = self._processes.num_processes > 1
        self._device = self._processes.device if several else next(model.parameters()).device
        parts = [model, *optimizers(model, plan)]
        self._model, *self._optimizers = self._processes.prepare(*parts, device_placement=[several] * len(parts))
        self._penalty: Callable[[], Tensor | float] = getattr(model, "penalty", lambda: 0.0)
        self._tables = [module for module in model.modules() if isinstance(module, Table)]

    def epoch(self, rows: Rows, targets: Tensor, batches: Iterator[Tensor]) -> float:
        """Train on batches, given as numbers of rows, and return the mean loss."""
        self._model.train()
        device, count = self._device, self._processes.num_processes
        total = torch.zeros((), device=device)
        for index in batches:
            share = index[self._processes.process_index :: count]
            if not len(share):  # the last batch may be smaller than the number of processes
                share = index[:1]
            total += self._step(rows[share].to(device), targets[share].to(device)) * len(index)
        if count > 1:  # each has running averages of its own rows; all must stop, and answer, by the same ones
            for average in filter(torch.is_floating_point, self._model.buffers()):
                torch.distributed.broadcast(average, 0)
        return float(total) / len(rows)

    def _step(self, rows: Rows, targets: Tensor) -> Tensor:
        """Return the loss of a batch, without penalties, before its step."""
        loss = F.binary_cross_entropy_with_logits(self._model(rows), targets)
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
        self._processes.backward(loss + self._penalty())
        for optimizer in self._optimizers:
            optimizer.step()
        for table in self._tables:
            table.after_step()
        return loss.detach()


def _reached(model: nn.Module, rows: Rows, labels: Tensor) -> tuple[float, float]:
    """Return the AUC and the negative loss, by which of equal AUCs that with the smaller loss is the better."""
    logits = predict(model, rows)
    if not np.isfinite(logits).all():
        raise ValueError(
            "rows held out to stop by have no finite logits; try a smaller learning_rate, or leave out numbers far "
            "from all others"
        )
    loss = F.binary_cross_entropy_with_logits(torch.from_numpy(logits), labels.float())
    return auc(labels.numpy(), logits), -float(loss)


@torch.inference_mode()
def predict(model: nn.Module, rows: Rows, *, batch_size: int = 8192) -> NDArray[np.float32]:
    """Return the logits (N,) of rows; the model is put into eval mode."""
    model.eval()
    device = next(model.parameters()).device
    parts = [model(rows[slice(i, i + batch_size)].to(device)).float().cpu() for i in range(0, len(rows), batch_size)]
    return torch.cat(parts).numpy() if parts else np.zeros(0, np.float32)
