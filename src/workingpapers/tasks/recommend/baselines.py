"""The baselines of `recommend`: the networks that others are compared with, and what needs none."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from workingpapers.errors import UserError
from workingpapers.tasks.protocol import Context
from workingpapers.tasks.recommend.settings import task

if TYPE_CHECKING:
    from workingpapers.methods.recommenders.sequences import SequenceRecommender
    from workingpapers.tasks.recommend.examples import Examples


@task.entry("standard", "scarce")
def sasrec(train: Examples, context: Context) -> SequenceRecommender:
    """Self-attention over the history, trained by the softmax over the whole catalogue (SASRec)."""
    from workingpapers.methods.recommenders.sequential import SASRecRecommender
    from workingpapers.tasks.recommend.examples import tuned

    return tuned(train, context, SASRecRecommender)


@task.entry("standard")
def gru4rec(train: Examples, context: Context) -> SequenceRecommender:
    """A gated recurrent unit over the history, trained alike (GRU4Rec)."""
    from workingpapers.methods.recommenders.sequential import GRU4RecRecommender
    from workingpapers.tasks.recommend.examples import tuned

    return tuned(train, context, GRU4RecRecommender)


@task.entry("standard", "two-tower", "scarce", "cold")
def popularity(train: Examples, context: Context) -> SequenceRecommender:
    """What was taken most, for everybody."""
    from workingpapers.methods.recommenders.sequential import PopularityRecommender

    return PopularityRecommender().fit(train.log)


@task.entry("standard", "two-tower", "scarce")
def item_knn(train: Examples, context: Context) -> SequenceRecommender:
    """What people took who took the items of the history, by shrunk cosine."""
    from workingpapers.methods.recommenders.sequential import ItemKNNRecommender

    return ItemKNNRecommender().fit(train.log)


@task.entry("scarce", "cold")
def content_knn(train: Examples, context: Context) -> SequenceRecommender:
    """What is like the items of the history, by the words and features of the items (TF-IDF)."""
    from workingpapers.methods.recommenders.sequential import ContentRecommender

    features = train.content(context.seed)
    if features is None:
        raise UserError("content-knn needs columns that say what the items are by other things than numbers")
    return ContentRecommender(item_features=features).fit(train.log)


@task.entry("standard")
def als(train: Examples, context: Context) -> SequenceRecommender:
    """Matrix factorisation by alternating least squares (needs the package implicit)."""
    from workingpapers.methods.recommenders.sequential import ALSRecommender

    if find_spec("implicit") is None:
        raise UserError("needs the package implicit: pip install 'workingpapers[implicit]'")
    return ALSRecommender(random_state=context.seed).fit(train.log)
