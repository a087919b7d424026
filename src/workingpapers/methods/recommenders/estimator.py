"""Click models as scikit-learn classifiers on tables: `fit(df, y)`, `predict_proba(df)`, `save`, `load`, `export`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from workingpapers.errors import first_line
from workingpapers.methods.recommenders.columns import from_arrow, labels_of
from workingpapers.methods.recommenders.fields import ClickModel, FieldEmbedding
from workingpapers.methods.recommenders.options import MergedOptions, as_json, check_options
from workingpapers.methods.recommenders.schema import Rows, Schema
from workingpapers.methods.recommenders.streaming import Labels, labelled, parquet_batches, store
from workingpapers.methods.recommenders.training import History, Plan, chosen_device, predict, seeded, train
from workingpapers.methods.tables.common import Table, served_model, tables_of

FORMAT = "workingpapers click model 2"
SMALL = 1e-3  # standard deviation of first vectors, for models that are better for small ones


class ClickClassifier(MergedOptions, ClassifierMixin, BaseEstimator):
    """Predicts a binary label from the columns of a table.

    Subclasses define `_body` (a network on embedded fields), or `_build` where a model needs more than that.

    X is a pandas or Arrow table; a 2-D array, whose columns are then numerical; or the path of a Parquet file or of a
    folder of them, which may be larger than memory. Missing values are allowed everywhere, infinite numbers nowhere.
    Columns that were not there in `fit` are ignored in `predict_proba`.

    Args:
        kinds: column to kind, see `Schema.fit`; None infers them.
        dim: d, the width of the embedding (16).
        table: a name of `methods.tables.common.TABLES`.
        table_options: of that table.
        min_count: values seen less often count as unknown (2).
        learning_rate, weight_decay, batch_size, max_epochs, patience: see `training.Plan`.
        validation: share of the rows held out to stop early (0.1, stratified); 0 runs all epochs.
        random_state: seed of the initialisation, the split and the order.
        device: torch device; None takes CUDA where there is one and the CPU elsewhere.

    Attributes:
        classes_: (2,) the labels; the second is the one whose probability is modelled.
        schema_: how columns become numbers.
        model_: the trained network, rows in, logits (B,) out, in eval mode.
        history_: loss and validation AUC of each epoch.
    """

    def __init__(
        self,
        *,
        kinds: Mapping[str, str] | None = None,
        dim: int = 16,
        table: str = "full",
        table_options: Mapping[str, Any] | None = None,
        min_count: int = 2,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        batch_size: int = 1024,
        max_epochs: int = 20,
        patience: int = 2,
        validation: float = 0.1,
        random_state: int | np.random.RandomState | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        self.kinds = kinds
        self.dim = dim
        self.table = table
        self.table_options = table_options
        self.min_count = min_count
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.patience = patience
        self.validation = validation
        self.random_state = random_state
        self.device = device

    linear = False  # whether the model has a first-order term
    init_scale = 0.01  # standard deviation of the first vectors of a full table, as in the papers of this package

    def _body(self, fields: int, dim: int) -> nn.Module:
        """Return the network (B, fields, dim) -> logits (B,)."""
        raise TypeError(f"{type(self).__name__} does not define _body")

    def _build(self, schema: Schema) -> nn.Module:
        """Return the model: rows in, logits (B,) out."""
        embedding = self._embedding(schema)
        return ClickModel(embedding, self._body(embedding.num_fields, self.dim), linear=self.linear)

    def _embedding(self, schema: Schema) -> FieldEmbedding:
        """Return a new embedding of the fields, on the table that was chosen."""
        own = {"init_scale": self.init_scale} if self.table == "full" else {}
        options = own | dict(self.table_options or {})
        return FieldEmbedding(schema, self.dim, table=self.table, table_options=options)

    def fit(self, X: Any, y: ArrayLike | str) -> Self:
        """Train on the rows of a table and their labels y (N,), of two kinds.

        Where X is a path, y is the name of its column of labels. The file is read twice, and the encoded rows (four
        bytes a value) lie in a temporary folder while training runs; rows to stop early by are drawn regardless of
        their labels. On a terminal a bar shows how far it is, from two seconds on.

        Raises:
            ValueError: options of a wrong type or out of their range; labels that are missing, not of two kinds, or
                neither text, whole numbers nor booleans; lengths that differ; columns that cannot be read; a file that
                is cut off.
        """
        try:
            return self._fit(X, y)
        except BaseException:  # Ctrl-C too; half a training, or the network of another schema, would answer as a whole
            self.__dict__.pop("model_", None)
            raise

    def _fit(self, X: Any, y: Any) -> Self:
        check_options(self)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        if isinstance(X, (str, Path)):
            with TemporaryDirectory(prefix="workingpapers-") as folder:
                return self._fit_rows(*self._stored(X, y, Path(folder), seed), seed)
        if isinstance(y, str):
            raise ValueError(f"y is {y!r}, which names a column only where X is a path; give the labels themselves")
        table = self._table(X, y, reset=True)
        labels = labels_of(y)
        check_classification_targets(labels)
        self.classes_, targets = np.unique(labels, return_inverse=True)
        self._check_classes()
        self.schema_ = Schema.fit([table], kinds=self.kinds, min_count=self.min_count)
        rows, y01 = self.schema_.encode(table), torch.from_numpy(targets)
        kept, held = _split(targets, self.validation, seed)
        return self._fit_rows((rows[kept], y01[kept]), (rows[held], y01[held]), seed)

    def _stored(
        self, path: str | Path, label: Any, folder: Path, seed: int
    ) -> tuple[tuple[Rows, Tensor], tuple[Rows, Tensor]]:
        """Build the schema from a Parquet file, and encode it into a folder: rows to train on, and to stop by."""
        if not isinstance(label, str):
            raise ValueError(f"where X is a path, y is the name of the column of labels; got {type(label).__name__}")
        _check_share(self.validation)
        labels = Labels()
        features = labels.passing(labelled(parquet_batches(path), label))
        self.schema_ = Schema.fit(features, kinds=self.kinds, min_count=self.min_count)
        self.classes_ = labels.classes()
        check_classification_targets(self.classes_)
        self._check_classes()
        self._name_features(named=True)
        return store(path, label, folder, self.schema_, self.classes_, self.validation, seed)

    def _name_features(self, named: bool) -> None:
        """Set what scikit-learn knows of the columns, by the schema; those of an array have no names."""
        self.n_features_in_ = len(self.schema_.fields)
        if named:
            self.feature_names_in_ = np.array([field.name for field in self.schema_.fields], dtype=object)

    def _check_classes(self) -> None:
        if len(self.classes_) != 2:
            kinds = f"{len(self.classes_)} class{'' if len(self.classes_) == 1 else 'es'}: {self.classes_[:5]}"
            raise ValueError(
                f"Only binary classification is supported. {type(self).__name__} needs two classes; got {kinds}"
            )

    def _fit_rows(self, kept: tuple[Rows, Tensor], held: tuple[Rows, Tensor], seed: int) -> Self:
        """Train on encoded rows, and stop early by others where those are of both classes."""
        plan = Plan(
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            batch_size=self.batch_size,
            max_epochs=self.max_epochs,
            patience=self.patience,
        )
        with seeded(seed):
            self.model_ = self._build(self.schema_).to(chosen_device(self.device))
            valid = held if len(np.unique(held[1].numpy())) == 2 else None
            self.history_ = self._train(*kept, plan, valid, seed)
        return self

    def _train(self, rows: Rows, labels: Tensor, plan: Plan, valid: tuple[Rows, Tensor] | None, seed: int) -> Any:
        """Train `model_`, once its tables have searched; methods with phases of their own replace this."""
        for table in {type(table): table for table in tables_of(self.model_, Table)}.values():
            table.search(self.model_, rows, labels, plan, valid=valid, seed=seed)
        return train(self.model_, rows, labels, plan, valid=valid, seed=seed)

    def decision_function(self, X: Any) -> NDArray[np.float32]:
        """Return the logits (N,) of the second class.

        Raises:
            ValueError: columns that cannot be read, or numbers so far from those of training that none comes out.
        """
        check_is_fitted(self)
        tables = parquet_batches(X) if isinstance(X, (str, Path)) else [self._table(X, None, reset=False)]
        parts, first = [], 0
        for table in tables:
            parts.append(predict(self.model_, self.schema_.encode(table, first)))
            first += len(table)
        logits = np.concatenate(parts)
        undefined = np.isnan(logits)
        if undefined.any():
            raise ValueError(
                f"row {int(undefined.argmax())} has no probability: a number in it is too far from those of training"
            )
        return logits

    def predict_proba(self, X: Any) -> NDArray[np.float32]:
        """Return the probabilities of both classes, (N, 2)."""
        second = torch.sigmoid(torch.from_numpy(self.decision_function(X))).numpy()
        return np.stack([1 - second, second], axis=1)

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the more probable label of each row, (N,)."""
        chosen = (self.decision_function(X) > 0).astype(int)
        return self.classes_[chosen]

    def _table(self, X: Any, y: Any, *, reset: bool) -> pd.DataFrame:
        if isinstance(X, (str, Path)):
            raise ValueError(f"X is the path {str(X)!r}; here rows are needed, such as pandas.read_parquet reads")
        rowlike = X[0] if isinstance(X, list) and X else X
        named = isinstance(rowlike, Mapping) and not hasattr(rowlike, "shape")  # some sparse arrays are dicts
        if named or hasattr(X, "collect"):
            kind = type(X).__name__
            raise ValueError(
                f"X is a {kind}, no table; make one of it: pandas.DataFrame(X), or X.collect() if it is lazy"
            )
        if hasattr(X, "to_arrow"):  # a polars table
            X = X.to_arrow()
        if hasattr(X, "to_pandas"):
            X = from_arrow(X)
        if isinstance(X, pd.DataFrame) and not any(isinstance(name, str) for name in X.columns):
            X = X.to_numpy()  # an array in a frame
        if isinstance(X, pd.DataFrame) and not reset:
            return X  # the schema says what is missing
        if isinstance(X, pd.DataFrame):
            if not hasattr(y, "__len__") or not np.ndim(y):
                raise ValueError(f"y is {y!r}; it must hold a label for each row of X")
            if not len(X):
                raise ValueError("X holds no rows")
            if len(X) != len(y):
                raise ValueError(f"X has {len(X)} rows and y {len(y)}; they must agree")
            self.n_features_in_ = X.shape[1]
            self.feature_names_in_ = np.asarray(X.columns, dtype=object)
            return X
        if not reset and hasattr(self, "feature_names_in_"):
            raise ValueError(f"X is no table, but the model goes by its columns: {self.feature_names_in_.tolist()}")
        if isinstance(X, np.ma.MaskedArray):  # scikit-learn would take what lies behind the mask
            X = np.ma.filled(X.astype(np.float64), np.nan)
        options = {"dtype": np.float64, "ensure_all_finite": "allow-nan", "reset": reset}
        try:
            array = validate_data(self, X, y, **options)[0] if reset else validate_data(self, X, **options)
        except ValueError as error:
            if "could not convert" not in str(error):
                raise
            text = "columns without names must be numbers; of text make a table whose columns are named by text"
            raise ValueError(f"{error}: {text}") from error
        return pd.DataFrame(array, columns=[f"x{i}" for i in range(array.shape[1])])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.classifier_tags.multi_class = False
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "model_")

    def save(self, folder: str | Path) -> None:
        """Write weights (safetensors), schema, labels and options into a folder, made if it isn't there.

        Raises:
            ValueError: an option that is no plain value, such as a random generator.
        """
        from safetensors.torch import save_model

        check_is_fitted(self)
        held = {
            "format": FORMAT,
            "kind": type(self).__name__,
            "options": self.get_params(),
            "classes": self.classes_.tolist(),
            "schema": self.schema_.to_json(),
            "named": hasattr(self, "feature_names_in_"),
            "history": dataclasses.asdict(self.history_),
        }
        text = as_json(held)
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        save_model(self.model_, str(place / "model.safetensors"))
        (place / "model.json").write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Return the classifier that `save` wrote.

        Raises:
            ValueError: not such a folder, or that of another kind of model.
            FileNotFoundError: no folder.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_model

        text = (Path(folder) / "model.json").read_bytes()
        try:
            held = json.loads(text)
            found = held["format"], held["kind"]
            if found != (FORMAT, cls.__name__):
                raise ValueError(f"{folder} holds {found[0]!r}, {found[1]}; expected {FORMAT!r}, {cls.__name__}")
            self = cls(**held["options"])
            check_options(self)
            self.classes_, self.schema_ = np.array(held["classes"]), Schema.from_json(held["schema"])
            self._name_features(held["named"])
            self.history_ = History(**held["history"])
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{folder} holds no click model: {error!r}") from error
        with seeded(0):
            self.model_ = self._build(self.schema_).to(chosen_device(self.device))
        weights = Path(folder) / "model.safetensors"
        try:
            load_model(self.model_, str(weights))
        except (SafetensorError, RuntimeError) as error:
            raise ValueError(f"{weights} is damaged, or of another model: {first_line(error)}") from error
        self.model_.eval()
        return self

    def export(self, X: Any) -> torch.export.ExportedProgram:
        """Return the served model as a `torch.export` program for batches of any size.

        Its inputs are the tensors of `Rows` for some rows X: ids, numbers, then the lists in the schema's order.
        """
        check_is_fitted(self)
        rows = self.schema_.encode(self._table(X, None, reset=False))
        if len(rows) < 2:
            raise ValueError(f"an export needs two or more example rows; got {len(rows)}")
        model = served_model(self.model_).cpu()
        for parameter in model.parameters():  # in the usual order of memory, or torch warns when the program is saved
            parameter.data = parameter.data.contiguous()
        served = _Served(model, tuple(rows.lists))
        inputs = (rows.ids, rows.numbers, *rows.lists.values())
        shapes = tuple({0: torch.export.Dim("rows")} for _ in inputs)
        return torch.export.export(served, inputs, dynamic_shapes={"tensors": shapes})


class _Served(nn.Module):
    """A model whose inputs are tensors, and whose outputs are probabilities."""

    def __init__(self, model: nn.Module, lists: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.lists = model, lists

    def forward(self, *tensors: Tensor) -> Tensor:
        ids, numbers, *lists = tensors
        return torch.sigmoid(self.model(Rows(ids, numbers, dict(zip(self.lists, lists, strict=True)))))


def _split(targets: NDArray[np.int64], share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return row numbers to train on and to stop by: none of the latter where a class is too small to be split."""
    _check_share(share)
    everything = np.arange(len(targets))
    if share == 0 or np.bincount(targets).min() * share < 1:
        return torch.from_numpy(everything), torch.from_numpy(everything[:0])
    if len(targets) * (1 - share) < 2:
        raise ValueError(f"validation is {share}; of {len(targets)} rows it leaves none of a class to train on")
    kept, held = train_test_split(everything, test_size=float(share), stratify=targets, random_state=seed)
    return torch.from_numpy(kept), torch.from_numpy(held)


def _check_share(share: float) -> None:
    if not 0 <= share < 1:
        raise ValueError(f"validation is {share}; it must be 0 or more and below 1")
