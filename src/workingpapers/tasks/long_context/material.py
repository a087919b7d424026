"""What the entries of `long-context` get, what they return, and the text that both are tried on."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workingpapers.data.texts import Text, load_text
from workingpapers.errors import UserError, UserRemark
from workingpapers.tasks.protocol import Conditions, Prepared

if TYPE_CHECKING:
    from torch import Tensor

    from workingpapers.data.language_models import LanguageModel

HELD_BACK = 5  # one part in five of the text
CHARACTERS = 12  # of text, at most, that make a token on average


@dataclass(frozen=True)
class Given:
    """What an entry gets: a model of its own to change, and text that it may choose by. It returns a `Reader`.

    Attributes:
        model: a rotary decoder of transformers in evaluation mode.
        tokens: (N,) training text, of which nothing is held back.
        length: T, how many tokens the model will read at a time.
        trained: how many tokens it read at a time in training.
        share: of the T (T + 1) / 2 scores of causal attention, what an entry may compute; None where the model reads
            beyond its training length and the window is that length.
        steps: of training, for entries that train the model themselves; 0 elsewhere.
        seed: of everything random.
    """

    model: Any
    tokens: Tensor
    length: int
    trained: int
    share: float | None
    seed: int
    steps: int = 0

    @property
    def scores(self) -> float:
        """How many scores a head may compute for T tokens."""
        return causal_scores(self.length) * (1.0 if self.share is None else self.share)

    def window(self, sinks: int = 0) -> int:
        """Return how many of the last tokens a query may see beside the first `sinks` ones.

        With a share, the most that fit into it; else the training length.

        Raises:
            UserError: not even a window of one token fits.
        """
        if self.share is None:
            return self.trained
        from workingpapers.methods.attention.lm_infinite import score_entries

        return largest(lambda window: score_entries(self.length, window, sinks), self)


def causal_scores(length: int) -> float:
    """Return how many pairs causal attention scores, T (T + 1) / 2."""
    return length * (length + 1) / 2


def largest(scores: Callable[[int], float], given: Given) -> int:
    """Return the largest size from 1 to T whose scores fit into the share of a setting.

    Args:
        scores: size in, number of scores out; may not fall as the size grows.
        given: whose share and length count.

    Raises:
        UserError: size 1 needs more already.
    """
    low, high = 0, given.length
    while low < high:
        middle = (low + high + 1) // 2
        if scores(middle) <= given.scores:
            low = middle
        else:
            high = middle - 1
    if low == 0:
        raise UserError(f"{given.length} tokens are too short to be read with {given.share:.0%} of the scores.")
    return low


@dataclass
class Reader:
    """What an entry returns: the model as it reads now.

    Attributes:
        model: to be called with token ids (B, T).
        entries: how many scores a head computes for T tokens, as the method counts them.
        logits: token ids (B, T) in, scores of the next token (B, T, V) out; None calls the model.
    """

    model: Any
    entries: Callable[[int], float] = causal_scores
    logits: Callable[[Tensor], Tensor] | None = None

    def predict(self, tokens: Tensor) -> Tensor:
        """Return the scores of every next token, (B, T, V)."""
        return self.model(tokens, use_cache=False).logits if self.logits is None else self.logits(tokens)


@dataclass(frozen=True)
class Problem:
    """What an entry gets, and the held-back text, (n, T + some more) tokens."""

    given: Given
    windows: Tensor


def parts(text: str, seed: int) -> tuple[str, str]:
    """Cut a text, closed to a ring, at two places that the seed chooses: training text, and a fifth held back."""
    import numpy as np

    start = int(np.random.default_rng([seed, 5]).integers(len(text)))
    ring = text[start:] + text[:start]
    held = len(ring) // HELD_BACK
    return ring[held:], ring[:held]


def prepare(conditions: Conditions) -> Prepared:
    """Find the text and, where the setting uses one, the model.

    Raises:
        UserError: either cannot be used.
    """
    text = load_text(conditions.data)
    if not conditions.model:
        return Prepared(text.fingerprint, "")
    model = rotary(conditions.model)
    return Prepared(text.fingerprint, model.fingerprint)


def rotary(name: str) -> LanguageModel:
    """Return a language model into which attention functions can be put.

    Raises:
        UserError: no such model, or none with rotary positions.
    """
    from workingpapers.data.language_models import load_language_model
    from workingpapers.methods.attention.common import check_model

    found = load_language_model(name)
    try:
        check_model(found.model)
    except ValueError as error:
        raise UserError(f"Model {name!r} cannot be used: {error}.") from error
    return found


def encoded(model: LanguageModel, text: str, count: int, name: str) -> Tensor:
    """Return the first `count` tokens of a text.

    Raises:
        UserError: it has fewer.
    """
    import torch

    for excerpt in (text[: CHARACTERS * count], text):
        tokens = model.encode(excerpt)
        if len(tokens) >= count:
            return torch.tensor(tokens[:count])
    raise UserError(f"{name} is too short: {len(tokens)} tokens where {count} are needed.")


def fitting(window: int, most: int, model: str) -> int:
    """Return how many tokens of a window a model reads; a remark tells where these are fewer.

    Args:
        window: tokens that the budget has.
        most: that the model leaves room for.
        model: its name.
    """
    if window > most:
        remark = f"Windows have {most:,} tokens, not {window:,}: more do not fit into {model}."
        warnings.warn(remark, UserRemark, stacklevel=2)
    return min(window, most)


def load(conditions: Conditions, seed: int, length: int, windows: int, share: float, extra: int = 0) -> Problem:
    """Draw a seed's windows of held-back text for a pre-trained model, and as much training text for choices.

    Args:
        conditions: which text and model.
        seed: of the cut between training and held-back text.
        length: T; at most the model's own training length.
        windows: how many.
        share: of the scores of causal attention.
        extra: further tokens of each window, to be decoded.
    """
    import torch

    found, text = rotary(conditions.model), load_text(conditions.data)
    limit = found.model.config.max_position_embeddings
    length = fitting(length, limit - extra, conditions.model)
    train, held = parts(text.whole, seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokens = encoded(found, train, length, f"The training part of {text.name}")
    rows = encoded(found, held, windows * (length + extra), f"The held-back part of {text.name}")
    given = Given(found.model.to(device), tokens.to(device), length, limit, share, seed)
    return Problem(given, rows.view(windows, length + extra).to(device))


def text_bytes(text: Text, seed: int) -> tuple[Tensor, Tensor]:
    """Return training and held-back text as bytes, (N,) and (M,) int64."""
    import torch

    def tensor(part: str) -> Tensor:
        return torch.frombuffer(bytearray(part.encode("utf-8", "replace")), dtype=torch.uint8).long()

    train, held = parts(text.whole, seed)
    return tensor(train), tensor(held)
