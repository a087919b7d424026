"""The user's own data: arrays in a file or at hand, or a function that returns them."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workingpapers.data.cache import cache_dir, explained, sync, temporary
from workingpapers.data.checks import checked, encode
from workingpapers.data.images import Pixels
from workingpapers.data.types import LabelledData
from workingpapers.errors import UserError, first_line, import_object, unreadable

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

ARRAYS = ("features", "X", "labels", "y", "class_names", "part")  # that an .npz may hold; others are not read


def from_npz(path: Path, name: str) -> LabelledData:
    """Read an `.npz` with `features` (or `X`) and `labels` (or `y`), and perhaps `class_names` and `part`.

    With `class_names` the labels are indices into them; without, they may be any numbers or texts.

    Raises:
        UserError: no such arrays, Python objects in them, or contents that `LabelledData` does not allow.
    """
    import numpy as np

    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise ValueError("it is the .npy of a single array")
        with file:
            arrays = {key: file[key] for key in file.files if key in ARRAYS}
    except (OSError, ValueError, EOFError, AttributeError) as error:
        objects = ValueError("it holds Python objects; texts are saved as np.savez(..., labels=y.astype(str))")
        reason = objects if "Object arrays" in str(error) else error
        raise unreadable(path, reason, " as an .npz of plain arrays") from error
    except Exception as error:  # zipfile and zlib have errors of their own for damaged archives
        raise UserError(f"{path} is damaged: {error}") from error
    features, labels = (_one_of(arrays, names, path, file.files) for names in (ARRAYS[:2], ARRAYS[2:4]))
    if labels.ndim != 1:
        raise UserError(f"{name}: labels have shape {labels.shape}; they must be (N,).")
    missing = int(np.isnan(labels).sum()) if labels.dtype.kind == "f" else 0
    if missing:
        raise UserError(f"{name}: {missing} of {len(labels)} labels are missing (NaN).")
    class_names = tuple(str(n) for n in arrays["class_names"].ravel()) if "class_names" in arrays else None
    if class_names is None:
        labels, class_names = encode(labels.tolist())
    return checked(
        LabelledData(
            name=name,
            fingerprint="",
            labels=labels,
            class_names=class_names,
            features=features,
            part=arrays["part"].astype(np.str_) if "part" in arrays else None,
        )
    )


def keep(features: ArrayLike, labels: ArrayLike) -> str:
    """Write arrays into the cache, where the processes of runs find them, and return the path that `data` takes.

    For notebooks: `try_("probe", data=keep(X, y))`.

    Args:
        features: (N, D) vectors or (N, L, D) tokens, finite floats.
        labels: (N,) numbers or texts; row by row those of the features, whatever an index says.

    Raises:
        UserError: arrays that `from_npz` does not allow, images, labels in another order by their index than the
            features, or a cache that cannot be written to.
    """
    import numpy as np

    _check_order("The given data", features, labels)
    arrays = {}
    for what, values, kind in (("features", features, float), ("labels", labels, str)):
        try:
            arrays[what] = _plain(values, kind)
        except UserError as error:
            raise UserError(f"The {what} cannot be kept as an array: {error}.") from error
    if arrays["features"].ndim > 2 and arrays["features"].dtype == np.uint8:
        raise UserError(
            f"The features are uint8 {arrays['features'].shape}, which are images: `keep` takes numbers that were "
            "computed of them. A folder of images, or package.module:function that returns them, can be used as data."
        )
    digest = hashlib.sha256(repr([(name, a.shape, a.dtype) for name, a in arrays.items()]).encode())
    for array in arrays.values():
        digest.update(np.ascontiguousarray(array).tobytes())
    path = cache_dir() / "own" / f"{digest.hexdigest()[:32]}.npz"
    if not path.exists():
        with temporary(path) as (file, part), explained(path.parent):
            np.savez(file, allow_pickle=False, **arrays)
            sync(file)
            from_npz(part, "the given data")
            os.replace(part, path)
    return str(path)


def _plain(values: Any, kind: type) -> NDArray[Any]:
    """Return an array; Python objects in it, as columns of pandas have them, become numbers or texts.

    Raises:
        UserError: the reason why not, without a full stop: an object that is none, which names its column, a value that
            is missing or masked, rows of different lengths, a sparse matrix, a generator.
    """
    import numpy as np
    import pandas as pd

    if hasattr(values, "toarray"):
        raise UserError("it is sparse; .toarray() makes it a plain one")
    try:
        if isinstance(values, pd.DataFrame) and not all(getattr(t, "kind", "") in "fiub" for t in values.dtypes):
            return np.stack([_column(values.iloc[:, i], kind) for i in range(values.shape[1])], axis=1)
        array = np.asarray(values)
        if array.ndim == 0:
            raise UserError(f"it is a {type(values).__name__}")
        missing = int(np.ma.getmaskarray(values).sum()) if isinstance(values, np.ma.MaskedArray) else 0
        if array.dtype.kind in "OT":
            missing += int(np.sum(pd.isna(array)))
        if missing:
            raise UserError(f"{missing} of {array.size} values are missing")
        return array.astype(object).astype(kind) if array.dtype.kind in "OT" else array
    except (TypeError, ValueError, RuntimeError) as error:  # tensors with a gradient are a RuntimeError
        raise UserError(first_line(error).rstrip(".")) from error


def _column(column: Any, kind: type) -> NDArray[Any]:
    """Return a column of a table as an array.

    Raises:
        UserError: names the column.
    """
    try:
        found = _plain(column, kind)
        if kind is float and found.dtype.kind not in "fiub":
            raise UserError(f"it is of type {found.dtype}")
        return found
    except UserError as error:
        raise UserError(f"in column {column.name!r} {error}") from error


def _check_order(name: str, features: Any, labels: Any) -> None:
    """Refuse labels whose index has the rows of the features in another order: they would be mixed up.

    Raises:
        UserError: says how they are brought into one order.
    """
    import pandas as pd

    if not isinstance(features, pd.DataFrame) or not isinstance(labels, pd.Series):
        return
    ours, theirs = features.index, labels.index
    if len(ours) == len(theirs) and not ours.equals(theirs) and set(ours) == set(theirs):
        raise UserError(
            f"{name}: the labels' index has the rows in another order than the features' index. If the index counts, "
            "give labels.loc[features.index]; if the rows stand in one order already, labels.to_numpy()."
        )


def _one_of(arrays: dict[str, NDArray[Any]], names: Sequence[str], path: Path, held: list[str]) -> NDArray[Any]:
    for name in names:
        if name in arrays:
            return arrays[name]
    raise UserError(f"{path} holds no array {names[0]!r} (or {names[1]!r}); it holds: {', '.join(held) or 'none'}.")


def from_function(name: str) -> LabelledData:
    """Call `package.module:function`, which returns LabelledData, or images or features with labels.

    Images are uint8 (N, H, W), (N, H, W, 3) or a sequence of (H, W, 3); features are floats (N, D) or (N, L, D). The
    current folder is searched for the module, too.

    Raises:
        UserError: no such module or function, an exception in it, or another result.
    """
    function = import_object("data set", name)
    if not callable(function):
        raise UserError(f"{name} is a {type(function).__name__}; it must be a function without arguments.")
    try:
        result = function()
    except (Exception, SystemExit) as error:
        raise UserError(f"{name} raised {type(error).__name__}: {error}") from error
    if isinstance(result, LabelledData):
        return checked(dataclasses.replace(result, name=name))
    if not (isinstance(result, tuple) and len(result) == 2):
        raise UserError(
            f"{name} returned {type(result).__name__}; allowed: LabelledData, or a pair (images or features, labels)."
        )
    return _from_pair(name, *result)


def _from_pair(name: str, examples: Any, labels: Any) -> LabelledData:
    import numpy as np
    import pandas as pd

    _check_order(name, examples, labels)
    images: Any = None
    features = None
    if isinstance(examples, list | tuple) and len(examples) and np.ndim(examples[0]) == 3:
        images = [np.asarray(image) for image in examples]  # sizes may differ
    else:
        try:
            array = _plain(examples, float)
        except UserError as error:
            raise UserError(f"{name} returned what is no array: {error}.") from error
        if array.ndim not in (2, 3, 4) or (array.ndim == 4 and array.dtype != np.uint8):
            raise UserError(
                f"{name} returned {array.dtype} {array.shape}; allowed: images, uint8 (N, H, W) or (N, H, W, 3), or "
                "features, numbers (N, D) or (N, L, D)."
            )
        if array.dtype == np.uint8 and array.ndim > 2:
            images = Pixels(array)
        else:
            features = array
    try:
        classes = _plain(labels, str) if np.ndim(labels) else np.asarray(labels)
    except ValueError as error:  # rows of different lengths, or what `_plain` refuses
        raise UserError(f"{name} returned labels that are no array: {first_line(error).rstrip('.')}.") from error
    if classes.ndim != 1:
        raise UserError(f"{name} returned labels of shape {classes.shape}; they must be (N,).")
    missing = int(np.sum(pd.isna(classes)))
    if missing:
        raise UserError(f"{name} returned {len(classes)} labels of which {missing} are missing.")
    codes, class_names = encode(classes.tolist())
    return checked(
        LabelledData(name=name, fingerprint="", labels=codes, class_names=class_names, images=images, features=features)
    )
