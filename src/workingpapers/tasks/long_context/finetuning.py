"""Entries of `longer-finetuning`: the trained byte model goes on at four times its length, with each change of RoPE.

All take the same steps on the same windows; what differs is the rotation, in training or in reading.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workingpapers.tasks.long_context.material import Given, Reader
from workingpapers.tasks.long_context.settings import TRAINED, task
from workingpapers.tasks.protocol import Context

if TYPE_CHECKING:
    from workingpapers.methods.attention.rope_scaling import Basis


def _tune(model: Any, given: Given, context: Context) -> Any:
    from workingpapers.tasks.long_context.byte_model import TUNED, fit

    return fit(model, given.tokens, given.steps, given.seed, length=TUNED, log=context.log)


def _giraffe(
    given: Given, context: Context, tuned: Basis, read: Basis | None = None, randomize: bool = False
) -> Reader:
    from workingpapers.methods.attention.rope_scaling import apply

    _tune(apply(given.model, tuned, randomize=randomize), given, context)
    return Reader(given.model if read is None else apply(given.model, read).eval())


@task.entry("longer-finetuning", needs=["trained"])
def finetuned_unchanged(given: Given, context: Context) -> Reader:
    """Fine-tuned with the rotations that it was trained with."""
    return Reader(_tune(given.model, given, context))


@task.entry("longer-finetuning", needs=["trained"])
def not_finetuned(given: Given, context: Context) -> Reader:
    """Read as it was trained, on 64 bytes."""
    return Reader(given.model)


@task.entry("longer-finetuning", needs=["trained"])
def finetuned_yarn(given: Given, context: Context) -> Reader:
    """Fine-tuned with YaRN of transformers, factor 4."""
    from workingpapers.tasks.long_context.byte_model import TUNED, with_rope

    return Reader(_tune(with_rope(given.model, rope_type="yarn", factor=TUNED / TRAINED), given, context))


@task.entry("longer-finetuning", paper="giraffe", needs=["trained"])
def giraffe_linear(given: Given, context: Context) -> Reader:
    """Fine-tuned and read with positions divided by 4."""
    from workingpapers.methods.attention.rope_scaling import Basis

    return _giraffe(given, context, Basis(factor=4))


@task.entry("longer-finetuning", paper="giraffe", needs=["trained"])
def giraffe_linear_longer(given: Given, context: Context) -> Reader:
    """Fine-tuned with positions divided by 4, read with positions divided by 8."""
    from workingpapers.methods.attention.rope_scaling import Basis

    return _giraffe(given, context, Basis(factor=4), Basis(factor=8))


@task.entry("longer-finetuning", paper="giraffe", needs=["trained"])
def giraffe_power(given: Given, context: Context) -> Reader:
    """Fine-tuned with slow rotations bent by the power 0.5."""
    from workingpapers.methods.attention.rope_scaling import Basis

    return _giraffe(given, context, Basis(power=0.5))


@task.entry("longer-finetuning", paper="giraffe", needs=["trained"])
def giraffe_truncated(given: Given, context: Context) -> Reader:
    """Fine-tuned without the rotations that need more than 256 bytes for a turn."""
    from workingpapers.methods.attention.rope_scaling import Basis
    from workingpapers.tasks.long_context.byte_model import TUNED

    return _giraffe(given, context, Basis(truncate=TUNED))


@task.entry("longer-finetuning", paper="giraffe", needs=["trained"])
def giraffe_random(given: Given, context: Context) -> Reader:
    """Fine-tuned with random rising positions, read with ordinary ones."""
    from workingpapers.methods.attention.rope_scaling import Basis

    return _giraffe(given, context, Basis(), randomize=True)
