"""The setting of `prefill`: what is loaded, what entries see, what is measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from workingpapers.errors import refuse_label
from workingpapers.tasks.protocol import Budget, Conditions, Context, Entry, Metric, Prepared, Setting, Task

if TYPE_CHECKING:
    from workingpapers.tasks.prefill.prompts import Problem


def _check(conditions: Conditions) -> None:
    refuse_label(f"{conditions.data}, read as text,", conditions.label)


def _prepare(conditions: Conditions, entries: list[Entry]) -> Prepared:
    from workingpapers.tasks.prefill.prompts import load, prepare

    found = prepare(conditions)
    load(conditions, 0)  # a text that is too short is refused once, not by every run
    return found


def _load(conditions: Conditions, entry: Entry, seed: int, prepared: Prepared) -> Problem:
    from workingpapers.tasks.prefill.prompts import load

    return load(conditions, seed)


def _measure(fit: Callable[[Any], Any], problem: Problem, context: Context) -> dict[str, float]:
    from workingpapers.tasks.prefill.prompts import measure

    return measure(fit, problem)


task = Task(
    "prefill",
    title="How to batch prompts of unequal length?",
    settings=[
        Setting(
            name="standard",
            title="The first pass over prompts that come in batches of 8, with the same next tokens",
            metrics=(
                Metric("relative-seconds", False, "", 0.02, "For all prompts, of what padding takes in turn with it."),
                Metric("seconds", False, "s", 0.0, "For all prompts; median of the repetitions."),
                Metric("peak-memory", False, "MB", 1.0, "Held at most during that beyond what was held before."),
                Metric("tokens", False, "", 0.0, "That the model processes, padding included."),
            ),
            baseline="padding",
            data="python-docs",
            model="smollm2-135m",
            # `test` is the number of prompts, `trials` that of repetitions.
            budgets={
                "quick": Budget("quick", train=1, test=16, epochs=1, trials=3),
                "full": Budget("full", train=1, test=64, epochs=1, trials=5),
            },
            prepare=_prepare,
            load=_load,
            measure=_measure,
            check=_check,
        )
    ],
)
