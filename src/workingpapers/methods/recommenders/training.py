"""The training loop of click models: Adam on the log loss, stopped early by the validation AUC; over processes too."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.methods.recommenders.metrics import auc
from workingpapers.methods.recommenders.schema import Rows
from workingpapers.methods.tables.common import Table

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
        if not self.learning_rate > 0 or self.weight_decay < 0:
            raise ValueError(
                f"learning_rate is {self.learning_rate} and weight_decay {self.weight_decay}; need > 0, >= 0"
            )
        if min(self.batch_size, self.max_epochs, self.patience) < 1:
            raise ValueError("batch_size, max_epochs and patience must be 1 or more")


@dataclass(frozen=True)
class History:
    """What happened: mean training loss (nats) and validation AUC of each epoch, and the epoch that was kept."""

    loss: list[float]
    auc: list[float]
    best: int


def chosen_device(name: str | None) -> torch.device:
    """Return the device of a name; None takes the GPU where there is one."""
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


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
        ValueError: no rows, or a loss that is not finite.
    """
    from accelerate import Accelerator

    if not len(rows):
        raise ValueError("there are no rows to train on")
    accelerator = Accelerator()
    made = optimizers(model, plan)
    prepared, *made = accelerator.prepare(model, *made)
    generator = torch.Generator().manual_seed(seed)
    history, best = History([], [], 0), (-np.inf, -np.inf)
    kept: dict[str, Any] | None = None
    targets = labels.float()
    penalty: Callable[[], Tensor | float] = getattr(model, "penalty", lambda: 0.0)
    tables = [module for module in model.modules() if isinstance(module, Table)]
    for epoch in range(plan.max_epochs):
        if before_epoch is not None:
            before_epoch(epoch)
        prepared.train()
        total = torch.zeros((), device=accelerator.device)
        for index in shuffled(len(rows), plan.batch_size, generator):
            share = index[accelerator.process_index :: accelerator.num_processes]
            if not len(share):  # the last batch may be smaller than the number of processes
                share = index[:1]
            loss = F.binary_cross_entropy_with_logits(
                prepared(rows[share].to(accelerator.device)), targets[share].to(accelerator.device)
            )
            total += loss.detach() * len(index)
            loss = loss + penalty()
            for optimizer in made:
                optimizer.zero_grad(set_to_none=True)
            accelerator.backward(loss)
            for optimizer in made:
                optimizer.step()
            for table in tables:
                table.after_step()
        mean = float(total) / len(rows)
        if not np.isfinite(mean):
            raise ValueError(f"the loss of epoch {epoch + 1} is {mean}; try a smaller learning_rate")
        history.loss.append(mean)
        if valid is None:
            continue
        logits = predict(model, valid[0])
        history.auc.append(auc(valid[1].numpy(), logits))
        reached = (
            history.auc[-1],
            -float(F.binary_cross_entropy_with_logits(torch.from_numpy(logits), valid[1].float())),
        )
        if reached > best:  # of equal AUCs the smaller loss
            best, kept = reached, copy.deepcopy(model.state_dict())
            history = History(history.loss, history.auc, epoch)
        elif epoch - history.best >= plan.patience:
            break
    if kept is not None:
        model.load_state_dict(kept)
    else:
        history = History(history.loss, history.auc, len(history.loss) - 1)
    model.eval()
    return history


@torch.inference_mode()
def predict(model: nn.Module, rows: Rows, *, batch_size: int = 8192) -> NDArray[np.float32]:
    """Return the logits (N,) of rows; the model is put into eval mode."""
    model.eval()
    device = next(model.parameters()).device
    parts = [model(rows[slice(i, i + batch_size)].to(device)).float().cpu() for i in range(0, len(rows), batch_size)]
    return torch.cat(parts).numpy() if parts else np.zeros(0, np.float32)
