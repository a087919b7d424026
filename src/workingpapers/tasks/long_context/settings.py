"""The settings of `long-context`: what is loaded, what entries see, what is scored.

Faster, within the training length of a pre-trained model: `standard` (loss and time), `equal-budget` (what attention
itself loses) and `passkey` (what is still found), each entry within the same share of the scores. Beyond the training
length: `extrapolation` and `longer-finetuning`, on a small model trained in the task. `sharded` and `packing` are about
training on long sequences. No option of an entry is chosen by held-back text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from workingpapers.errors import UserError, refuse_label
from workingpapers.tasks.protocol import Budget, Conditions, Context, Entry, Metric, Prepared, Setting, Task

if TYPE_CHECKING:
    from workingpapers.tasks.long_context.material import Problem
    from workingpapers.tasks.long_context.packing import Lines
    from workingpapers.tasks.long_context.sharded import Sequence

SHARE = 0.25  # of the scores of causal attention, what every sparse entry may compute
TRAINED, READ = 64, 1_024  # bytes that the small model is trained on at a time, and that it reads


@dataclass(frozen=True)
class Windows(Budget):
    """A budget of windows of text, whose length the record of a run tells with all else in it.

    Attributes:
        window: tokens (bytes for the small model) that are read at a time; a pre-trained model that takes fewer reads
            as many as it takes.
    """

    window: int


def _check(conditions: Conditions) -> None:
    refuse_label(f"{conditions.data}, read as text,", conditions.label)


def _prepare(conditions: Conditions, entries: list[Entry]) -> Prepared:
    from workingpapers.tasks.long_context.material import prepare

    found = prepare(conditions)
    for entry in entries[:1]:  # a text that is too short is refused once, not by every run; nothing is trained for that
        task.setting(conditions.setting).load(conditions, replace(entry, needs=()), 0, found)
    return found


def _budget(conditions: Conditions) -> Budget:
    return task.setting(conditions.setting).budgets[conditions.budget]


def _windows(conditions: Conditions) -> Windows:
    return cast(Windows, _budget(conditions))


def _load(conditions: Conditions, entry: Entry, seed: int, prepared: Prepared) -> Problem:
    from workingpapers.tasks.long_context.material import load
    from workingpapers.tasks.long_context.scoring import DECODED

    budget = _windows(conditions)
    extra = DECODED if conditions.setting == "standard" else 0
    return load(conditions, seed, budget.window, budget.test, SHARE, extra)


def _reading(fit: Callable[[Any], Any], problem: Problem, context: Context) -> dict[str, float]:
    from workingpapers.tasks.long_context.scoring import measure_reading

    return measure_reading(fit, problem, context)


def _attention(fit: Callable[[Any], Any], problem: Problem, context: Context) -> dict[str, float]:
    from workingpapers.tasks.long_context.scoring import measure_attention

    return measure_attention(fit, problem, context)


def _load_passkeys(conditions: Conditions, entry: Entry, seed: int, prepared: Prepared) -> Any:
    from workingpapers.tasks.long_context.passkey import load

    budget = _windows(conditions)
    return load(conditions, seed, budget.window, budget.test, SHARE)


def _passkeys(fit: Callable[[Any], Any], problem: Any, context: Context) -> dict[str, float]:
    from workingpapers.tasks.long_context.passkey import measure

    return measure(fit, problem, context)


def _load_bytes(conditions: Conditions, entry: Entry, seed: int, prepared: Prepared) -> Problem:
    from workingpapers.tasks.long_context.byte_model import load

    return load(conditions, entry, seed)


def _load_tuning(conditions: Conditions, entry: Entry, seed: int, prepared: Prepared) -> Problem:
    from workingpapers.tasks.long_context.byte_model import load

    return load(conditions, entry, seed, tuning=True)


def _extrapolation(fit: Callable[[Any], Any], problem: Problem, context: Context) -> dict[str, float]:
    from workingpapers.tasks.long_context.byte_model import measure

    return measure(fit, problem, context, near=(TRAINED // 2, TRAINED), far=(READ // 2, READ))


def _longer(fit: Callable[[Any], Any], problem: Problem, context: Context) -> dict[str, float]:
    from workingpapers.tasks.long_context.byte_model import TUNED, measure

    return measure(fit, problem, context, near=(TUNED // 2, TUNED), far=(READ // 2, READ))


def _load_sequence(conditions: Conditions, entry: Entry, seed: int, prepared: Prepared) -> Sequence:
    from workingpapers.tasks.long_context.sharded import Sequence

    return Sequence(_budget(conditions).test, seed)


def _sharded(fit: Callable[[Any], Any], problem: Sequence, context: Context) -> dict[str, float]:
    from workingpapers.tasks.long_context.sharded import measure

    return measure(fit, problem)


def _check_sharded(conditions: Conditions) -> None:
    refuse_label(conditions.data, conditions.label)
    if conditions.data != "random":
        raise UserError(
            f"data is {conditions.data!r}, but the setting 'sharded' reads no text: its numbers are random."
        )


def _prepare_sharded(conditions: Conditions, entries: list[Entry]) -> Prepared:
    return Prepared("random", "")


def _load_lines(conditions: Conditions, entry: Entry, seed: int, prepared: Prepared) -> Lines:
    from workingpapers.tasks.long_context.packing import load

    return load(conditions, seed)


def _packing(fit: Callable[[Any], Any], problem: Lines, context: Context) -> dict[str, float]:
    from workingpapers.tasks.long_context.packing import measure

    return measure(fit, problem)


def _finished(name: str, title: str, quick: Windows, full: Windows, **changes: Any) -> Setting:
    """Return a setting in which a pre-trained model reads within its training length.

    Nothing is trained: `test` counts windows of held-back text.
    """
    usual: dict[str, Any] = {
        "baseline": "dense",
        "data": "python-docs",
        "model": "smollm2-135m",
        "budgets": {"quick": quick, "full": full},
        "prepare": _prepare,
        "load": _load,
        "measure": _reading,
        "check": _check,
    }
    return Setting(name=name, title=title, **usual | changes)


def _trained(name: str, title: str, **changes: Any) -> Setting:
    """Return a setting in which a small model of bytes is trained; `train` counts windows of 64 bytes."""
    usual: dict[str, Any] = {
        "data": "python-source",
        "model": "",
        "budgets": {
            "quick": Windows("quick", 12_800, 8, 1, 1, window=READ),
            "full": Windows("full", 128_000, 64, 1, 1, window=READ),
        },
        "prepare": _prepare,
        "check": _check,
    }
    return Setting(name=name, title=title, **usual | changes)


def _far(about: str) -> Metric:
    return Metric("nll-far", False, "nats", 0.02, about)


def _near(about: str) -> Metric:
    return Metric("nll-near", False, "nats", 0.02, about)


task = Task(
    "long-context",
    title="Which way to read long text with a language model?",
    settings=[
        _finished(
            "standard",
            "Reading within the training length with a quarter of the scores: loss and time",
            # SmolLM2 reads 2,048 tokens in about ten seconds on one core.
            quick=Windows("quick", 1, 1, 1, 1, window=2_048),
            full=Windows("full", 1, 2, 1, 1, window=8_192),
            metrics=(
                Metric(
                    "nll", False, "nats", 0.02, "Mean loss of the next token on held-back text; exp() is perplexity."
                ),
                Metric("computed-scores", False, "%", 1.0, "Scores computed per head, of those of causal attention."),
                Metric("prefill-seconds", False, "s", 0.0, "Reading one window."),
                Metric("decode-seconds", False, "s", 0.0, "One more token after it."),
            ),
        ),
        _finished(
            "equal-budget",
            "What attention loses with a quarter of the scores, on the queries and keys of a real model",
            quick=Windows("quick", 1, 1, 1, 1, window=1_024),
            full=Windows("full", 1, 2, 1, 1, window=4_096),
            baseline="sliding-window",
            metrics=(
                Metric("output-error", False, "%", 1.0, "Distance of a layer's output from the exact one, relative."),
                Metric("recovered-mass", True, "%", 1.0, "Exact attention weight that falls on the keys looked at."),
                Metric("kept-scores", False, "%", 1.0, "Keys that get any weight, of all that precede a query."),
            ),
            measure=_attention,
        ),
        _finished(
            "passkey",
            "A number hidden in text, to be found with a quarter of the scores",
            quick=Windows("quick", 1, 10, 1, 1, window=768),
            full=Windows("full", 1, 50, 1, 1, window=4_096),
            metrics=(Metric("accuracy", True, "%", 5.0, "Share of hidden numbers that the model repeats exactly."),),
            load=_load_passkeys,
            measure=_passkeys,
        ),
        _trained(
            "extrapolation",
            "A small model trained on 64 bytes at a time reads 1,024",
            baseline="dense",
            metrics=(
                _far("Loss 512 to 1,024 bytes into the text, 8 to 16 times the training length."),
                _near("Loss 32 to 64 bytes into it, within the training length."),
            ),
            load=_load_bytes,
            measure=_extrapolation,
        ),
        _trained(
            "longer-finetuning",
            "A small model trained on 64 bytes at a time, trained a little on 256, reads 1,024",
            baseline="finetuned-unchanged",
            metrics=(
                _far("Loss 512 to 1,024 bytes into the text, 2 to 4 times the length of the fine-tuning."),
                _near("Loss 128 to 256 bytes into it, within that length."),
            ),
            load=_load_tuning,
            measure=_longer,
        ),
        _trained(
            "packing",
            "Short lines packed into long training sequences: the loss on single lines",
            baseline="naive-packing",
            metrics=(
                Metric("nll-short", False, "nats", 0.02, "Loss per byte of a held-back line, averaged over lines."),
                Metric(
                    "nll-bytes", False, "nats", 0.02, "The same averaged over bytes, so that long lines count more."
                ),
            ),
            budgets={"quick": Budget("quick", 600, 1_000, 1, 1), "full": Budget("full", 2_000, 4_000, 1, 1)},
            load=_load_lines,
            measure=_packing,
        ),
        Setting(
            name="sharded",
            title="Attention over one long sequence, forward and backward: memory of a process",
            metrics=(
                Metric("peak-memory", False, "MB", 0.0, "What a process holds at most beyond what it held before."),
                Metric("seconds", False, "s", 0.0, "Until the last process is done, one thread each."),
                Metric("output-error", False, "", 1e-5, "Largest deviation of an output from full attention."),
            ),
            baseline="one-process",
            data="random",
            model="",
            # `test` is the number of tokens.
            budgets={"quick": Budget("quick", 1, 4_096, 1, 1), "full": Budget("full", 1, 32_768, 1, 1)},
            prepare=_prepare_sharded,
            load=_load_sequence,
            measure=_sharded,
            check=_check_sharded,
        ),
    ],
)
