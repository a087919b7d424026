"""Setting `packing`: a byte model trained on short lines that are packed into long sequences.

A line is a paragraph of the text, cut to 16 to 192 bytes and led by byte 0. All entries train the same model on the
same sequences in the same order; they differ in what a line may see and in how much it counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workingpapers.data.texts import load_text
from workingpapers.errors import UserError
from workingpapers.tasks.long_context.material import parts
from workingpapers.tasks.long_context.settings import task
from workingpapers.tasks.protocol import Conditions, Context, load_task

if TYPE_CHECKING:
    from torch import Tensor

SHORTEST, LONGEST = 16, 192  # bytes of a line
LENGTH = 512  # of a sequence
FEWEST = 50  # lines, on either side


@dataclass(frozen=True)
class Given:
    """What an entry gets: lines (n_i,) to train on, sequences of the numbers of lines that fit, the seed."""

    lines: list[Tensor]
    sequences: list[list[int]]
    seed: int


@dataclass(frozen=True)
class Lines:
    """What an entry gets, and the lines held back."""

    given: Given
    held: list[Tensor]


def load(conditions: Conditions, seed: int) -> Lines:
    """Cut a seed's text into lines and fill as many sequences as the budget allows steps.

    Raises:
        UserError: too few lines.
    """
    import numpy as np

    text = load_text(conditions.data)
    budget = load_task(conditions.task).setting(conditions.setting).budgets[conditions.budget]
    train, held = (lines(part) for part in parts(text.whole, seed))
    known = {bytes(line.tolist()) for line in train}
    fresh = [line for line in held if bytes(line.tolist()) not in known]  # licences and the like repeat
    if min(len(train), len(fresh)) < FEWEST:
        raise UserError(
            f"{text.name} has {len(train)} paragraphs of {SHORTEST} bytes or more to train on and {len(fresh)} others "
            f"held back; {FEWEST} of each are needed. Paragraphs are set apart by empty lines."
        )
    rng = np.random.default_rng([seed, 7])
    sequences: list[list[int]] = []
    order: list[int] = []
    while len(sequences) < budget.train * budget.epochs:
        chosen, room = [], LENGTH
        while True:
            order = order or rng.permutation(len(train)).tolist()
            if len(train[order[-1]]) > room:
                break
            room -= len(train[order[-1]])
            chosen.append(order.pop())
        sequences.append(chosen)
    kept = rng.permutation(len(fresh))[: budget.test]
    return Lines(Given(train, sequences, seed), [fresh[i] for i in kept])


def lines(text: str) -> list[Tensor]:
    """Return the paragraphs of a text, those of at least 16 bytes, each cut at 192 and led by byte 0."""
    import torch

    found = []
    for paragraph in text.split("\n\n"):
        data = paragraph.strip().encode("utf-8", "replace").replace(b"\0", b" ")[:LONGEST]
        if len(data) >= SHORTEST:
            found.append(torch.tensor([0, *data]))
    return found


def measure(fit: Callable[[Given], Any], problem: Lines) -> dict[str, float]:
    """Return the loss in nats per byte of held-back lines, each read alone: averaged over lines, and over bytes."""
    import torch

    model = fit(problem.given)
    order = sorted(problem.held, key=len)
    means, total, count = [], 0.0, 0
    with torch.no_grad():
        for first in range(0, len(order), 64):
            some = order[first : first + 64]
            rows = torch.nn.utils.rnn.pad_sequence(some, batch_first=True)
            logits = model(rows[:, :-1], use_cache=False).logits  # padding comes last, where nothing looks at it
            found = torch.nn.functional.cross_entropy(logits.mT, rows[:, 1:], reduction="none")
            for line, row in zip(some, found, strict=True):
                own = row[: len(line) - 1]
                means.append(float(own.mean()))
                total, count = total + float(own.sum()), count + len(own)
    return {"nll-short": sum(means) / len(means), "nll-bytes": total / count}


def _train(given: Given, context: Context, loss: Callable[[Any, list[Tensor]], Tensor], *, alone: bool) -> Any:
    """Train the byte model on the sequences, with lines that see only themselves if `alone`."""
    from workingpapers.methods.attention.ring import apply, restore
    from workingpapers.tasks.long_context.byte_model import descend, make

    model = make(given.seed)
    if alone:
        apply(model)
    following = iter(given.sequences)
    descend(model, lambda: loss(model, [given.lines[i] for i in next(following)]), len(given.sequences), context.log)
    return restore(model) if alone else model


def _masked(model: Any, lines: list[Tensor], weigh: bool) -> Tensor:
    from torch.nn import functional as F

    from workingpapers.methods.attention.sequences import pack_examples

    packed = pack_examples(lines, LENGTH)
    logits = model(
        packed.input_ids, position_ids=packed.position_ids, segment_ids=packed.segment_ids, use_cache=False
    ).logits
    if not weigh:
        return F.cross_entropy(logits.flatten(0, 1), packed.labels.flatten())
    each = F.cross_entropy(logits.flatten(0, 1), packed.labels.flatten(), reduction="none")
    return (each * packed.loss_weights.flatten()).sum()


@task.entry("packing")
def naive_packing(given: Given, context: Context) -> Any:
    """Lines one after the other: each sees those before it, and every byte counts the same."""
    import torch
    from torch.nn import functional as F

    def loss(model: Any, lines: list[Tensor]) -> Tensor:
        row = torch.cat(lines)[None]
        return F.cross_entropy(model(row[:, :-1], use_cache=False).logits.flatten(0, 1), row[0, 1:])

    return _train(given, context, loss, alone=False)


@task.entry("packing")
def masked_packing(given: Given, context: Context) -> Any:
    """Each line sees itself alone; every byte counts the same."""
    return _train(given, context, lambda model, lines: _masked(model, lines, weigh=False), alone=True)


@task.entry("packing", paper="ring-attention")
def ring_attention_packing(given: Given, context: Context) -> Any:
    """Each line sees itself alone, and every line counts the same, however long."""
    return _train(given, context, lambda model, lines: _masked(model, lines, weigh=True), alone=True)
