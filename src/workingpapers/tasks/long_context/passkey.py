"""Setting `passkey`: a number hidden at some depth of held-back text, which the model is asked for at its end."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workingpapers.data.texts import load_text
from workingpapers.errors import UserError
from workingpapers.tasks.long_context.material import Given, Reader, encoded, fitting, parts, rotary
from workingpapers.tasks.protocol import Conditions, Context

if TYPE_CHECKING:
    from torch import Tensor

DEPTHS = (0.1, 0.3, 0.5, 0.7, 0.9)
NEEDLE = "\n\nThe pass key is {key}. Remember it. {key} is the pass key.\n\n"
QUESTION = "\n\nWhat is the pass key? The pass key is"
ANSWER = 12  # tokens that the model may answer with


@dataclass(frozen=True)
class Prompt:
    """A text with a number hidden in it.

    Attributes:
        tokens: (T,) the text, the question at its end.
        key: the number, five digits.
        depth: 0 to 1, where it stands.
    """

    tokens: Tensor
    key: str
    depth: float


@dataclass(frozen=True)
class Hidden:
    """What an entry gets, what its model is asked, and how answers become text."""

    given: Given
    prompts: list[Prompt]
    decode: Callable[[list[int]], str]


def load(conditions: Conditions, seed: int, length: int, count: int, share: float) -> Hidden:
    """Hide a seed's numbers in different pieces of held-back text, at five depths in turn.

    Args:
        conditions: which text and model.
        seed: of the numbers and the cut between training and held-back text.
        length: T of the whole prompt; at most what the model was trained on.
        count: how many prompts.
        share: of the scores of causal attention.

    Raises:
        UserError: a text that is too short, or a model that was trained on fewer tokens than the question takes.
    """
    import numpy as np
    import torch

    found, text = rotary(conditions.model), load_text(conditions.data)
    limit = found.model.config.max_position_embeddings
    length = fitting(length, limit - ANSWER, conditions.model)
    train, held = parts(text.whole, seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rng = np.random.default_rng([seed, 6])

    def hide(piece: Tensor, depth: float) -> Prompt:
        key = str(rng.integers(10_000, 100_000))
        needle, question = (torch.tensor(found.encode(s.format(key=key))) for s in (NEEDLE, QUESTION))
        room = length - len(needle) - len(question)
        if room < 0:
            raise UserError(
                f"Model {conditions.model!r} reads {limit} tokens at most; the hidden number, the question and the "
                f"answer take {limit - room} already."
            )
        hay = piece[:room]
        place = round(depth * len(hay))
        return Prompt(torch.cat([hay[:place], needle, hay[place:], question]).to(device), key, depth)

    pieces = encoded(found, held, count * length, f"The held-back part of {text.name}").view(count, length)
    prompts = [hide(piece, DEPTHS[i % len(DEPTHS)]) for i, piece in enumerate(pieces)]
    # What entries may look at before is of the same kind: MInference was published with a search on such a prompt.
    seen = hide(encoded(found, train, length, f"The training part of {text.name}"), 0.5)
    given = Given(found.model.to(device), seen.tokens, length, limit, share, seed)
    return Hidden(given, prompts, lambda ids: str(found.tokenizer.decode(ids)))


def measure(fit: Callable[[Given], Reader], problem: Hidden, context: Context) -> dict[str, float]:
    """Let the model answer greedily; the first number that it says must be the hidden one."""
    reader, right = fit(problem.given), {depth: [0, 0] for depth in DEPTHS}
    for prompt in problem.prompts:
        answer = re.search(r"\d+", problem.decode(answered(reader.model, prompt.tokens[None])))
        right[prompt.depth][0] += answer is not None and answer[0] == prompt.key
        right[prompt.depth][1] += 1
    for depth, (hits, asked) in right.items():
        if asked:
            context.log("accuracy by depth", depth, 100 * hits / asked)
    return {"accuracy": 100 * sum(hits for hits, _ in right.values()) / len(problem.prompts)}


def answered(model: Any, tokens: Tensor) -> list[int]:
    """Return the likeliest tokens after a prompt (1, T), at most 12, up to the end of the text.

    Not by `generate`, which follows the model's own settings: a penalty on repetition, say, forbids the very answer.
    """
    import torch

    end, found = model.generation_config.eos_token_id, list[int]()
    with torch.no_grad():
        out = model(tokens, use_cache=True, logits_to_keep=1)
        while len(found) < ANSWER:
            token = out.logits[:, -1:].argmax(dim=-1)
            if int(token) in (end if isinstance(end, list) else [end]):
                break
            found.append(int(token))
            out = model(token, cache=out.cache, use_cache=True)
    return found
