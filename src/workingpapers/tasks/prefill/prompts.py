"""The prompts of `prefill`, what entries get and return, and how a first pass is judged.

Prompts are excerpts of the text, their lengths log-normal around 32 tokens, at most 256: most are short, a few long, as
requests are. They come in batches of 8; an entry that waits for all of them may form other batches of 8.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workingpapers.errors import UserError
from workingpapers.tasks.protocol import Conditions, Prepared, load_task

if TYPE_CHECKING:
    from torch import Tensor

BATCH = 8
MEDIAN, SPREAD, LONGEST = 32, 0.9, 256  # tokens; the spread is that of the logarithm
CLOSE = 1e-3  # by how much the score of another next token may miss the best one: rounding decides between such two


@dataclass(frozen=True)
class Given:
    """What an entry gets: a model of its own to change, a batch of other prompts, the seed. It returns `Passes`."""

    model: Any
    examples: list[Tensor]
    seed: int


@dataclass
class Passes:
    """What an entry returns.

    Attributes:
        batches: all prompts in, the prompts that go through the model together out, as numbers of prompts.
        run: the prompts of a batch in; the scores of the next token of each (k, V) out, and the number of tokens that
            the model processed. It must leave a cache behind for decoding.
    """

    batches: Callable[[list[Tensor]], list[list[int]]]
    run: Callable[[list[Tensor]], tuple[Tensor, int]]


@dataclass(frozen=True)
class Problem:
    """What an entry gets, the prompts (l_i,), and how often they are processed."""

    given: Given
    prompts: list[Tensor]
    repetitions: int


def prepare(conditions: Conditions) -> Prepared:
    """Find text and model.

    Raises:
        UserError: either cannot be used.
    """
    from workingpapers.tasks.long_context.material import prepare as find

    return find(conditions)


def load(conditions: Conditions, seed: int) -> Problem:
    """Cut a seed's prompts out of the text.

    Raises:
        UserError: the text is too short.
    """
    import numpy as np
    import torch

    from workingpapers.data.texts import load_text
    from workingpapers.tasks.long_context.material import encoded, parts, rotary

    found, text = rotary(conditions.model), load_text(conditions.data)
    budget = load_task(conditions.task).setting(conditions.setting).budgets[conditions.budget]
    rng = np.random.default_rng([seed, 8])
    longest = min(LONGEST, found.model.config.max_position_embeddings)
    lengths = np.exp(rng.normal(np.log(MEDIAN), SPREAD, budget.test + BATCH)).round().clip(2, longest).astype(int)
    _, held = parts(text.whole, seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokens = encoded(found, held, int(lengths.sum()), text.name).to(device)
    prompts = list(torch.split(tokens, lengths.tolist()))
    given = Given(found.model.to(device), prompts[budget.test :], seed)
    return Problem(given, prompts[: budget.test], budget.trials)


def measure(fit: Callable[[Given], Passes], problem: Problem) -> dict[str, float]:
    """Process all prompts once for the memory, and then as often as the budget says for the time, in turn with padding.

    Whatever else the machine does slows both alike, so their ratio says more than seconds of different runs do.
    Two tokens go first: they touch all weights, and leave no memory behind that a larger pass would find free.

    Raises:
        UserError: a prompt was left out or came twice, or another next token came out than from the prompt alone.
    """
    import torch

    from workingpapers.tasks.long_context.meter import peak_growth
    from workingpapers.tasks.prefill.entries import padded_as_they_come

    passes, prompts, pairs = fit(problem.given), problem.prompts, []
    usual = padded_as_they_come(problem.given.model)
    with torch.inference_mode():
        passes.run([problem.given.examples[0][:2]])
        (found, tokens, _), memory = peak_growth(lambda: once(passes, prompts), prompts[0].device.type)
        for repetition in range(problem.repetitions):
            order = (passes, usual) if repetition % 2 else (usual, passes)
            seconds = {id(one): once(one, prompts)[2] for one in order}
            pairs.append((seconds[id(passes)], seconds[id(usual)]))
        check(problem.given.model, prompts, found)
    return {
        "relative-seconds": statistics.median(own / other for own, other in pairs),
        "seconds": statistics.median(own for own, _ in pairs),
        "peak-memory": memory,
        "tokens": float(tokens),
    }


def once(passes: Passes, prompts: list[Tensor]) -> tuple[list[Tensor], int, float]:
    """Return the scores of each prompt's next token, the tokens processed, and the seconds that it took."""
    import torch

    found: dict[int, Tensor] = {}
    start, tokens = time.perf_counter(), 0
    batches = passes.batches(prompts)
    if sorted(i for batch in batches for i in batch) != list(range(len(prompts))):
        raise UserError("The batches must hold every prompt once.")
    for batch in batches:
        scores, count = passes.run([prompts[i] for i in batch])
        found.update(zip(batch, scores, strict=True))
        tokens += count
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return [found[i] for i in range(len(prompts))], tokens, time.perf_counter() - start


def check(model: Any, prompts: list[Tensor], found: list[Tensor]) -> None:
    """Compare next tokens with those of each prompt processed alone, in the model as it came.

    Raises:
        UserError: they differ by more than rounding.
    """
    for number, (prompt, scores) in enumerate(zip(prompts, found, strict=True)):
        alone = model(prompt[None], use_cache=False, logits_to_keep=1).logits[0, -1]
        if not float(alone[scores.argmax()]) >= float(alone.max()) - CLOSE:
            raise UserError(
                f"Prompt {number} of {len(prompt)} tokens goes on with token {int(scores.argmax())}; processed alone, "
                f"with {int(alone.argmax())}."
            )
