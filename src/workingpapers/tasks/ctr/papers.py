"""The models of papers in `ctr`, and the ablations that their claims are about."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workingpapers.tasks.ctr.settings import task
from workingpapers.tasks.protocol import Context

if TYPE_CHECKING:
    from workingpapers.tasks.ctr.examples import Clicker, Examples

DEEP = (128, 64)  # the network that AutoInt+ adds: that of the baselines
BLOCKS = {"channels": (6, 8), "kernel": 3, "new_maps": 2}  # of FGCNN, for tables of about ten fields
REGULARISATION = 0.01  # lambda of DIN, as in the paper


def _autoint(train: Examples, context: Context, **options: Any) -> Clicker:
    from workingpapers.methods.recommenders.autoint import AutoIntClassifier
    from workingpapers.tasks.ctr.examples import tuned

    found: Clicker = tuned(train, context, AutoIntClassifier, **options)
    return found


@task.entry("standard", paper="autoint")
def autoint(train: Examples, context: Context) -> Clicker:
    """Three layers of attention between fields."""
    return _autoint(train, context)


@task.entry("standard", paper="autoint")
def autoint_plus(train: Examples, context: Context) -> Clicker:
    """The same with a network of 128 and 64 units beside it (AutoInt+)."""
    return _autoint(train, context, hidden_units=DEEP)


@task.entry("standard", paper="autoint")
def autoint_no_attention(train: Examples, context: Context) -> Clicker:
    """AutoInt without a layer: logistic regression on the embedded fields."""
    return _autoint(train, context, layers=0)


@task.entry("standard", paper="autoint")
def autoint_no_residual(train: Examples, context: Context) -> Clicker:
    """AutoInt without its residual paths."""
    return _autoint(train, context, residual=False)


def _fgcnn(train: Examples, context: Context, **options: Any) -> Clicker:
    from workingpapers.methods.recommenders.fgcnn import FGCNNClassifier
    from workingpapers.tasks.ctr.examples import tuned

    found: Clicker = tuned(train, context, FGCNNClassifier, **BLOCKS, **options)
    return found


@task.entry("standard", paper="fgcnn")
def fgcnn(train: Examples, context: Context) -> Clicker:
    """Features made by convolution over the fields, beside the fields in an inner-product network."""
    return _fgcnn(train, context)


@task.entry("standard", paper="fgcnn")
def fgcnn_fm(train: Examples, context: Context) -> Clicker:
    """The same features in a factorisation machine."""
    return _fgcnn(train, context, head="fm")


@task.entry("standard", paper="fgcnn")
def fgcnn_shared(train: Examples, context: Context) -> Clicker:
    """FGCNN with one embedding table for both."""
    return _fgcnn(train, context, shared_table=True)


@task.entry("standard", paper="fgcnn")
def fgcnn_dense_generator(train: Examples, context: Context) -> Clicker:
    """FGCNN with features made by a dense network of as many weights."""
    return _fgcnn(train, context, dense_generator=True)


def _din(train: Examples, context: Context, **options: Any) -> Clicker:
    from workingpapers.methods.recommenders.din import DINClassifier
    from workingpapers.tasks.ctr.examples import tuned

    found: Clicker = tuned(train, context, DINClassifier, **{"activation": "prelu"} | options)
    return found


@task.entry("history")
def sum_pooling(train: Examples, context: Context) -> Clicker:
    """The network on the fields and the sum of the history's vectors."""
    return _din(train, context, pooling="sum")


@task.entry("history")
def no_history(train: Examples, context: Context) -> Clicker:
    """The network on the fields alone."""
    from workingpapers.methods.recommenders.baselines import MLPClickClassifier
    from workingpapers.tasks.ctr.examples import tuned

    columns = [c for c in train.table.columns if not train.kinds.get(c, "").startswith("sequence")]
    found: Clicker = tuned(train.only(columns), context, MLPClickClassifier)
    return found


@task.entry("history", paper="din")
def din(train: Examples, context: Context) -> Clicker:
    """The history's vectors weighted by the candidate, PReLU."""
    return _din(train, context)


@task.entry("history", paper="din")
def din_softmax(train: Examples, context: Context) -> Clicker:
    """The same with weights that sum to one, as in the authors' demo."""
    return _din(train, context, pooling="softmax")


@task.entry("history", paper="din")
def din_dice(train: Examples, context: Context) -> Clicker:
    """DIN with Dice in place of PReLU."""
    return _din(train, context, activation="dice")


@task.entry("history", paper="din")
def din_regularised(train: Examples, context: Context) -> Clicker:
    """DIN with batch-aware regularisation."""
    return _din(train, context, regularisation=REGULARISATION)
