"""The problems of `recommend`: which users a seed draws, and what of their histories is held back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from workingpapers.errors import UserError
from workingpapers.methods.recommenders.sequences import Log, Split, leave_last_out, leave_new_out, thinned
from workingpapers.tasks.protocol import Conditions, Entry, Prepared, load_task
from workingpapers.tasks.recommend.examples import Examples, Problem
from workingpapers.tasks.recommend.logs import NamedLog, load_log
from workingpapers.tasks.recommend.settings import DESCRIBED, KEPT, LAST, NEW

SHARE = 0.8  # of the users that a seed draws at most, so that seeds differ
FEWEST = 10  # users whose items can be held back


def prepare(conditions: Conditions, entries: Sequence[Entry]) -> Prepared:
    """Look at the log once for all runs, and unpack the language model if an entry reads with it.

    Raises:
        UserError: the log cannot be used, or not in this setting.
    """
    from workingpapers.data.language_models import LANGUAGE_MODELS, load_language_model
    from workingpapers.methods.recommenders.schema import Schema
    from workingpapers.tasks.recommend.language import DECODER

    data = load_log(conditions.data, conditions.label)
    load(conditions, 0, Prepared(data.fingerprint, ""))
    try:
        if data.log.features is not None:
            Schema.fit([data.log.features], kinds=data.kinds, min_count=1).encode(data.log.features)
    except ValueError as error:
        raise UserError(f"{data.name}: {error}.") from error
    if any(DECODER in entry.needs for entry in entries) and LANGUAGE_MODELS[DECODER].here():
        load_language_model(DECODER)
    return Prepared(data.fingerprint, "", data.remarks)


def load(conditions: Conditions, seed: int, prepared: Prepared | None = None) -> Problem:
    """Draw a seed's users and hold back what is to be predicted.

    The budget cuts the training histories to their latest items, equally many for all users that have so many, and the
    users whose items are predicted.

    Args:
        conditions: which log, which budget.
        seed: of what is drawn.
        prepared: tells whether the log is still the one that was prepared; None does not ask.

    Raises:
        UserError: another log than the one that was prepared, fewer than ten users with enough items, or no features
            where the setting needs them.
    """
    data, setting = load_log(conditions.data, conditions.label), conditions.setting
    if prepared:
        prepared.check_data(data.name, data.fingerprint)
    budget = load_task(conditions.task).setting(setting).budgets[conditions.budget]
    if setting in DESCRIBED and not data.kinds:
        raise UserError(
            f"{data.name} says nothing of its items; the setting {setting} needs columns that do, beside user, item "
            "and time."
        )
    rng = np.random.default_rng([seed, 1])
    drawn = np.sort(rng.permutation(len(data.log))[: max(FEWEST, round(SHARE * len(data.log)))])
    new = np.zeros(len(data.log.items), bool)
    if setting in NEW:
        new[rng.permutation(len(new))[: round(NEW[setting] * len(new))]] = True
    split = _split(data, data.log.take(drawn), setting, new, seed)
    asked = rng.permutation(len(split.targets))[: budget.test]
    longest = _longest([len(history) for history in split.train.histories], budget.train)
    train = replace(split.train, histories=[history[-longest:] for history in split.train.histories])
    order = np.argsort(train.counts(), kind="stable")
    rare = np.zeros(len(order), bool)
    rare[order[: len(order) // 2]] = True
    if setting in KEPT:  # the same users, items and tail as with everything
        train = thinned(train, KEPT[setting], rng)
    return Problem(
        Examples(train, data.kinds, data.texts, data.sentences, new),
        [split.histories[i] for i in asked],
        split.targets[asked],
        rare,
    )


def _split(data: NamedLog, log: Log, setting: str, new: NDArray[np.bool_], seed: int) -> Split:
    """Hold back what a setting asks for.

    Raises:
        UserError: fewer than ten users of whom it can be held back.
    """
    last = LAST.get(setting, 1)
    if setting in NEW:
        enough = sum(bool((new[h] & (np.cumsum(~new[h]) >= 2)).any()) for h in log.histories)
        if enough < FEWEST:
            raise UserError(
                f"{data.name} has {enough} users who took one of the items that seed {seed} holds back after two "
                f"others; {FEWEST} are needed."
            )
        return leave_new_out(log, new)
    enough = sum(len(history) >= last + 2 for history in data.log.histories)
    if enough < FEWEST:
        raise UserError(
            f"{data.name} has {enough} users with {last + 2} items or more; {FEWEST} are needed, of each of whom the "
            f"last {last} are held back."
        )
    try:
        return leave_last_out(log, last)
    except ValueError as error:  # of few users those with enough items may not be drawn
        raise UserError(f"{data.name}: {error} among those that seed {seed} draws.") from error


def _longest(lengths: list[int], total: int) -> int:
    """Return the largest length, 3 at least, to which histories can be cut so that they hold `total` items at most."""
    low, high = 3, max(3, *lengths)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if sum(min(n, middle) for n in lengths) <= total else (low, middle - 1)
    return low
