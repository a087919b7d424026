"""The baselines of `ctr` that are models: the tuned network that all others are compared with, and the usual ones."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from workingpapers.errors import UserError
from workingpapers.tasks.ctr.settings import task
from workingpapers.tasks.protocol import Context

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from workingpapers.tasks.ctr.examples import Clicker, Examples

RATES = (0.1, 0.05, 0.2, 0.025, 0.3, 0.01)  # of boosting, in the order in which trials take them
TREES, ROUNDS = 1000, 30  # at most; without a better validation AUC until boosting stops


def _tuned(train: Examples, context: Context, kind: str, **options: Any) -> Clicker:
    from workingpapers.methods.recommenders import baselines
    from workingpapers.tasks.ctr.examples import tuned

    found: Clicker = tuned(train, context, getattr(baselines, kind), **options)
    return found


@task.entry("standard")
def mlp(train: Examples, context: Context) -> Clicker:
    """A network of 128 and 64 units on the embedded fields: public re-runs find that it matches most later models."""
    return _tuned(train, context, "MLPClickClassifier")


@task.entry("standard")
def lr(train: Examples, context: Context) -> Clicker:
    """Logistic regression on one-hot values."""
    return _tuned(train, context, "LinearClassifier")


@task.entry("standard")
def fm(train: Examples, context: Context) -> Clicker:
    """A factorisation machine: products of all pairs of fields."""
    return _tuned(train, context, "FMClassifier")


@task.entry("standard")
def deepfm(train: Examples, context: Context) -> Clicker:
    """A factorisation machine and the network, on one embedding."""
    return _tuned(train, context, "DeepFMClassifier")


@task.entry("standard")
def dcn_v2(train: Examples, context: Context) -> Clicker:
    """Two cross layers beside the network."""
    return _tuned(train, context, "DCNClassifier")


@task.entry("standard")
def ipnn(train: Examples, context: Context) -> Clicker:
    """The network on the fields and the inner products of all pairs."""
    return _tuned(train, context, "IPNNClassifier")


@task.entry("standard")
def lightgbm(train: Examples, context: Context) -> Clicker:
    """Boosted trees, which split on sets of values (needs the package lightgbm)."""
    if find_spec("lightgbm") is None:
        raise UserError("needs the package lightgbm: pip install 'workingpapers[lightgbm]'")
    models = [Boosted(train, context.seed, rate) for rate in RATES[: context.budget.trials]]
    return max(models, key=lambda model: model.validation_auc)


class Boosted:
    """LightGBM on the ids, numbers and sets of values that click models see.

    Args:
        train: the training part.
        seed: of the split and of the trees.
        rate: the learning rate.

    Attributes:
        validation_auc: on the tenth of the rows by which boosting stops.
    """

    def __init__(self, train: Examples, seed: int, rate: float) -> None:
        import torch
        from lightgbm import Dataset, early_stopping
        from lightgbm import train as boost
        from sklearn.model_selection import train_test_split

        from workingpapers.methods.recommenders.schema import Schema
        from workingpapers.tasks.ctr.examples import VALIDATION

        self.schema = Schema.fit([train.table], kinds=train.kinds)
        inner, outer, y, z = train_test_split(
            self._inputs(train.table), train.clicks, test_size=VALIDATION, stratify=train.clicks, random_state=seed
        )
        options = {"objective": "binary", "metric": "auc", "learning_rate": rate, "seed": seed, "verbose": -1}
        exact = {"num_threads": torch.get_num_threads(), "deterministic": True, "force_row_wise": True}
        data = Dataset(inner, y, categorical_feature=list(range(len(self.schema.of_kind("categorical")))))
        self.model = boost(
            options | exact,
            data,
            num_boost_round=TREES,
            valid_sets=[Dataset(outer, z, reference=data)],
            callbacks=[early_stopping(ROUNDS, verbose=False)],
        )
        self.validation_auc: float = self.model.best_score["valid_0"]["auc"]

    def _inputs(self, table: Any) -> NDArray[Any]:
        """Return ids, numbers and a column for every value of a multi-valued field, (n, ...)."""
        import numpy as np

        rows = self.schema.encode(table)
        sets = []
        for field in self.schema.of_kind("multi"):
            has = np.zeros((len(rows), field.size), np.float32)
            np.put_along_axis(has, rows.lists[field.name].numpy().astype(np.int64), 1.0, axis=1)
            sets.append(has)
        return np.concatenate([rows.ids.numpy(), rows.numbers.numpy(), *sets], axis=1)

    def predict_proba(self, table: Any) -> NDArray[Any]:
        """Return the probabilities of no click and of a click, (m, 2)."""
        import numpy as np

        p = np.asarray(self.model.predict(self._inputs(table)))
        return np.stack([1 - p, p], axis=1)
