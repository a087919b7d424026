"""The models of papers in `recommend`, and the ablations that their claims are about."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from workingpapers.tasks.protocol import Context
from workingpapers.tasks.recommend.settings import SIZES, task

if TYPE_CHECKING:
    from workingpapers.methods.recommenders.fmrlrec import FMRLRecRecommender
    from workingpapers.methods.recommenders.sequences import SequenceRecommender
    from workingpapers.tasks.recommend.examples import Examples

RECENT = 10  # items of a history that the query tower reads
TOWERS = {"max_len": RECENT, "batch_size": 256, "dim": 32}


def _fmrlrec(train: Examples, context: Context, **options: Any) -> FMRLRecRecommender:
    from workingpapers.methods.recommenders.fmrlrec import FMRLRecRecommender
    from workingpapers.tasks.recommend.examples import tuned

    usual = {"item_features": train.content(context.seed), "sizes": SIZES}
    found = tuned(train, context, FMRLRecRecommender, **usual | options)
    assert isinstance(found, FMRLRecRecommender)
    return found


@task.entry("standard", "scarce", "sizes", paper="fmrlrec")
def fmrlrec(train: Examples, context: Context) -> FMRLRecRecommender:
    """Nested recurrent model on frozen features of the items, trained once at the sizes 8, 16, 32 and 64."""
    return _fmrlrec(train, context)


@task.entry("sizes")
def fmrlrec_alone(train: Examples, context: Context) -> dict[int, FMRLRecRecommender]:
    """The same model without nesting, trained once for each size."""
    alone = replace(context, curves={})  # four trainings would share a curve
    return {size: _fmrlrec(train, alone, sizes=(size,)) for size in SIZES}


@task.entry("standard", "sizes", paper="fmrlrec")
def fmrlrec_ids(train: Examples, context: Context) -> FMRLRecRecommender:
    """The nested model on a table of ids in place of features."""
    return _fmrlrec(train, context, item_features=None)


def _towers(train: Examples, context: Context, **options: Any) -> SequenceRecommender:
    from workingpapers.methods.recommenders.ssl_items import TwoTowerRecommender
    from workingpapers.tasks.recommend.examples import tuned

    return tuned(train, context, TwoTowerRecommender, kinds=train.kinds, **TOWERS | options)


@task.entry("two-tower", "scarce", "cold")
def two_tower(train: Examples, context: Context) -> SequenceRecommender:
    """A tower for the history and one for the items' features, with the correction for popular items."""
    return _towers(train, context, alpha=0.0)


@task.entry("two-tower", "scarce", paper="ssl-items")
def ssl_items(train: Examples, context: Context) -> SequenceRecommender:
    """The same with the contrastive task: correlated features hidden together, items drawn evenly."""
    return _towers(train, context)


@task.entry("two-tower", paper="ssl-items")
def ssl_items_random_masks(train: Examples, context: Context) -> SequenceRecommender:
    """The contrastive task with random halves of the features hidden."""
    return _towers(train, context, masking="rfm")


@task.entry("two-tower", paper="ssl-items")
def ssl_items_log_sampled(train: Examples, context: Context) -> SequenceRecommender:
    """The contrastive task on items drawn from the log."""
    return _towers(train, context, ssl_items="log")


@task.entry("two-tower")
def spread_out(train: Examples, context: Context) -> SequenceRecommender:
    """The contrastive task with nothing hidden: it only drives items apart."""
    return _towers(train, context, masking="none")
