"""The setting of `anomaly`: what is loaded, what entries see, what is scored.

Training shows normal images only, so nothing can be chosen by how well it detects anomalies: entries run with the
options that their authors give, and each sets its threshold at the same nominal rate of false alarms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from workingpapers.tasks.protocol import Budget, Conditions, Context, Entry, Metric, Prepared, Setting, Task

if TYPE_CHECKING:
    from workingpapers.tasks.anomaly.examples import Problem

FALSE_ALARMS = 0.05  # share of normal images that an entry's own threshold is meant to flag


def _prepare(conditions: Conditions, entries: list[Entry]) -> Prepared:
    from workingpapers.tasks.anomaly.examples import prepare

    return prepare(conditions, entries)


def _load(conditions: Conditions, entry: Entry, seed: int, prepared: Prepared) -> Problem:
    from workingpapers.tasks.anomaly.examples import load

    return load(conditions, entry, seed, prepared)


def _measure(fit: Callable[[Any], Any], problem: Problem, context: Context) -> dict[str, float]:
    from workingpapers.tasks.anomaly.examples import detection_metrics

    return detection_metrics(problem, fit(problem.train))


task = Task(
    "anomaly",
    title="Which detector of anomalies on frozen features?",
    settings=[
        Setting(
            name="standard",
            title="Detection of images unlike the normal ones, which alone are seen in training",
            metrics=(
                Metric(
                    "image-auroc",
                    True,
                    "%",
                    margin=1.0,
                    about="How often an anomalous image scores higher than a normal one: area under the ROC curve.",
                ),
                Metric(
                    "pixel-auroc",
                    True,
                    "%",
                    margin=1.0,
                    about="The same for pixels of all held-back images; with masks, and entries that localise.",
                    optional=True,
                ),
                Metric(
                    "false-alarm-error",
                    False,
                    "%",
                    margin=1.0,
                    about="Points between the share of held-back normal images flagged and the nominal 5 %.",
                ),
            ),
            baseline="knn",
            data="textures-brick",
            model="efficientnet-lite0",
            # Nothing is trained by gradient and nothing chosen: one epoch, one trial.
            budgets={
                "quick": Budget("quick", train=250, test=500, epochs=1, trials=1),
                "full": Budget("full", train=5_000, test=5_000, epochs=1, trials=1),
            },
            prepare=_prepare,
            load=_load,
            measure=_measure,
        )
    ],
)
