"""A small language model of bytes, trained in the task on short windows and read far beyond them.

Two layers, 64 wide, two heads, rotary positions, about 140,000 parameters: the least that shows what happens beyond
the training length, trained on a laptop in half a minute. Its training length is 64 bytes, and it is read 16 times as
far. It is trained once per seed and text, and kept in the cache, since most entries start from it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from workingpapers.data.texts import load_text
from workingpapers.errors import UserError, UserRemark, first_line
from workingpapers.tasks.long_context.material import Given, Problem, Reader, text_bytes
from workingpapers.tasks.long_context.settings import READ, TRAINED
from workingpapers.tasks.protocol import Conditions, Context, Entry, load_task

if TYPE_CHECKING:
    from torch import Tensor

BATCH = 32  # windows a step
RATE = 2e-3  # of AdamW, falling to zero along a half cosine
TUNED = 256  # bytes at which `longer-finetuning` goes on
TUNED_PART = 6  # it takes one step for so many of the training before


def load(conditions: Conditions, entry: Entry, seed: int, *, tuning: bool = False) -> Problem:
    """Return a seed's byte model and windows of held-back text.

    Args:
        conditions: which text, which budget.
        entry: one that needs "trained" gets the trained model, any other the same model untrained.
        seed: of the model, its training, and the cut between training and held-back text.
        tuning: whether entries train on: then they get the steps of that.

    Raises:
        UserError: a text too short for that, or an entry that needs something else.
    """
    import torch

    others = [need for need in entry.needs if need != "trained"]
    if others:  # it would be measured on the untrained model without a word
        raise UserError(f"Entry {entry.name!r} needs {others[0]!r}; allowed: 'trained', or nothing.")
    text = load_text(conditions.data)
    budget = load_task(conditions.task).setting(conditions.setting).budgets[conditions.budget]
    train, held = text_bytes(text, seed)
    if len(held) < 2 * READ:
        raise UserError(
            f"{text.name} is too short: a fifth of it is held back, and {2 * READ} bytes of that are needed."
        )
    steps = budget.epochs * -(-budget.train // BATCH)
    model = trained(text.fingerprint, train, steps, seed) if "trained" in entry.needs else make(seed)
    given = Given(model, train, READ, TRAINED, None, seed, -(-steps // TUNED_PART) if tuning else steps)
    starts = torch.linspace(0, len(held) - READ - 1, min(budget.test, len(held) // READ)).long()
    return Problem(given, torch.stack([held[s : s + READ + 1] for s in starts]))


def make(seed: int, **rope: Any) -> Any:
    """Return the untrained model: a seed's weights are the same whatever is done with it.

    Args:
        seed: of the weights.
        rope: RoPE parameters of transformers that differ from the usual ones.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TRAINED,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0} | rope,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config).eval()


def with_rope(model: Any, **rope: Any) -> Any:
    """Return a byte model with the weights of another and other RoPE parameters."""
    if rope.get("rope_type") == "yarn":
        rope["original_max_position_embeddings"] = TRAINED
    made = make(0, **rope)
    made.load_state_dict(model.state_dict())
    return made.eval()


def trained(fingerprint: str, train: Tensor, steps: int, seed: int) -> Any:
    """Return the model trained by ordinary attention, from the cache or now.

    Args:
        fingerprint: of the text.
        train: (N,) its training part.
        steps: of training.
        seed: of weights and batches.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load as unpack
    from safetensors.torch import save as pack

    from workingpapers.data.cache import cache_dir, explained, sync, temporary
    from workingpapers.data.images import digest

    model = make(seed)
    key = digest(fingerprint, steps, seed, BATCH, RATE, model.config.to_json_string(), torch.__version__)
    path = cache_dir() / "byte-models" / f"{key[:32]}.safetensors"
    if path.exists():
        try:
            model.load_state_dict(unpack(path.read_bytes()))
            return model
        except (OSError, RuntimeError, SafetensorError) as error:
            reason = f"The cache entry {path} is damaged ({first_line(error)}); the model is trained again."
            warnings.warn(reason, UserRemark, stacklevel=2)
            model = make(seed)
    fit(model, train, steps, seed)
    with temporary(path) as (file, part), explained(path.parent):
        file.write(pack(model.state_dict()))
        sync(file)
        part.replace(path)
    return model


def fit(
    model: Any,
    train: Tensor,
    steps: int,
    seed: int,
    *,
    length: int = TRAINED,
    log: Callable[[str, float, float], None] | None = None,
) -> Any:
    """Train a model on random windows of text to predict each next byte.

    Args:
        model: changed in place.
        train: (N,) bytes.
        steps: number of batches of 32 windows of 64 bytes, or of as many bytes in longer windows.
        seed: of the batches.
        length: of a window.
        log: called with the name of a curve, the step and the loss, now and then.

    Returns:
        The model, in evaluation mode.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    batch = max(1, BATCH * TRAINED // length)
    offsets = torch.arange(length + 1)

    def loss() -> Tensor:
        starts = torch.randint(len(train) - length, (batch,), generator=generator)
        rows = train[starts[:, None] + offsets]
        logits = model(rows[:, :-1], use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())

    return descend(model, loss, steps, log)


def descend(
    model: Any, loss: Callable[[], Tensor], steps: int, log: Callable[[str, float, float], None] | None = None
) -> Any:
    """Take steps of AdamW down a loss; return the model in evaluation mode."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    model.train()
    for step in range(steps):
        value = loss()
        optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if log is not None and step % 20 == 0:
            log("training loss by step", step, value.item())
    return model.eval()


def measure(
    fit: Callable[[Any], Reader], problem: Problem, context: Context, *, near: tuple[int, int], far: tuple[int, int]
) -> dict[str, float]:
    """Return the loss in nats at positions near and far, [first, last), and log it by position.

    A position counts the tokens before the predicted one.
    """
    import torch

    from workingpapers.tasks.long_context.scoring import losses_by_position

    reader = fit(problem.given)
    with torch.no_grad():
        found = losses_by_position(reader, problem.windows, context)
    return {"nll-far": float(found[far[0] : far[1]].mean()), "nll-near": float(found[near[0] : near[1]].mean())}
