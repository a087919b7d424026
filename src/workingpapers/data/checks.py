"""What has to hold of labelled data, wherever it comes from, with errors that name what is wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from workingpapers.data.images import Masks, Pixels, digest, large_ones
from workingpapers.data.types import LabelledData
from workingpapers.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LARGEST = 1e18  # beyond about 1e19 the length of a vector is infinite in float32, and a unit vector is zero


def encode(values: Sequence[object] | NDArray[Any]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Turn label values into indices (N,) and class names, sorted as numbers if all are whole numbers, else as text.

    Raises:
        UserError: a value that is a fraction, which is a quantity and no class.
    """
    import numpy as np

    texts = [str(value) for value in values]
    names = sorted(set(texts))
    try:
        numbers = [float(name) for name in names]
    except ValueError:
        numbers = []
    else:
        fractions = [name for name, number in zip(names, numbers, strict=True) if number % 1 != 0]
        if fractions:
            raise UserError(f"The labels hold {fractions[0]}, which is not a whole number: labels are classes.")
        names = [name for _, name in sorted(zip(numbers, names, strict=True))]
    index = {name: i for i, name in enumerate(names)}
    return np.array([index[text] for text in texts], dtype=np.int64), tuple(names)


def finite(features: NDArray[Any], columns: Sequence[str] | None = None) -> NDArray[np.floating]:
    """Return features as floats.

    Args:
        features: (N, D) or (N, L, D) numbers.
        columns: D names; None calls them 0, 1, ...

    Raises:
        UserError: other than numbers, NaN or infinity (with the worst column and the counts), numbers beyond 1e18, no
            column, or another number of axes.
    """
    import numpy as np

    if features.dtype.kind not in "fiub":
        raise UserError(f"The features are of type {features.dtype}; they must be numbers.")
    if features.ndim not in (2, 3) or 0 in features.shape[1:]:
        raise UserError(f"The features have shape {features.shape}; allowed: (N, D) vectors or (N, L, D) tokens.")
    floats = features if features.dtype.kind == "f" else features.astype(np.float64)
    bad = (~np.isfinite(floats)).reshape(-1, floats.shape[-1]).sum(axis=0)
    if bad.any():
        worst = int(bad.argmax())
        column = columns[worst] if columns is not None else worst
        raise UserError(
            f"The features hold NaN or infinity: {bad.sum()} values in {np.count_nonzero(bad)} columns, most of them "
            f"({bad[worst]}) in column {column!r}."
        )
    largest = max(float(floats.max(initial=0)), -float(floats.min(initial=0)))
    if largest > LARGEST:
        raise UserError(
            f"The features hold ±{largest:.3g}; allowed: up to {LARGEST:g}, whose square float32 holds. Does it mark a "
            "value that is missing?"
        )
    return floats


def checked(data: LabelledData) -> LabelledData:
    """Return the data if it keeps what `LabelledData` promises, with a fingerprint if it has none.

    Raises:
        UserError: nothing in it, lengths that differ, labels without a class, one class, features or images of another
            kind, or parts other than "train" and "test".
    """
    import numpy as np

    examples = data.images if data.features is None else data.features
    if (data.images is None) == (data.features is None) or examples is None:
        raise UserError(f"{data.name} must hold images or features, and not both.")
    if data.features is not None and np.ndim(data.features) == 0:
        raise UserError(f"{data.name}: the features are a single value; allowed: (N, D) vectors or (N, L, D) tokens.")
    labels = np.asarray(data.labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise UserError(f"{data.name}: labels are {labels.dtype} {labels.shape}; they must be (N,) whole numbers.")
    if data.part is not None and np.ndim(data.part) != 1:
        raise UserError(f"{data.name}: part has shape {np.shape(data.part)}; it must be (N,), as the labels are.")
    lengths = {"labels": len(labels), "images" if data.features is None else "features": len(examples)}
    lengths |= {n: len(v) for n, v in (("part", data.part), ("masks", data.masks)) if v is not None}
    if len(set(lengths.values())) > 1:
        raise UserError(f"{data.name}: lengths differ: {', '.join(f'{n} {size}' for n, size in lengths.items())}.")
    if len(labels) == 0:
        raise UserError(f"{data.name} is empty.")
    part = None if data.part is None else np.asarray(data.part, dtype=np.str_)
    distances = None if data.label_distances is None else np.asarray(data.label_distances, dtype=np.float64)
    data = dataclasses.replace(data, labels=labels, class_names=tuple(data.class_names), part=part)
    data = dataclasses.replace(data, label_distances=distances)
    _check_classes(data, labels)
    _check_parts(data)
    if data.features is not None:
        data = dataclasses.replace(data, features=finite(np.asarray(data.features)))
    else:
        with large_ones():
            for i in range(len(examples) if isinstance(examples, list) else 1):  # others are alike, or are read late
                _check_image(data.name, examples[i])
    return data if data.fingerprint else dataclasses.replace(data, fingerprint=fingerprint(data))


def _check_classes(data: LabelledData, labels: NDArray[Any]) -> None:
    import numpy as np

    classes = len(data.class_names)
    if labels.min() < 0 or labels.max() >= classes:
        raise UserError(
            f"{data.name}: labels reach from {labels.min()} to {labels.max()}, but {classes} class names were given."
        )
    if len(np.unique(labels)) < 2:
        raise UserError(f"{data.name} has one class only, {data.class_names[labels[0]]!r}; at least two are needed.")
    distances = data.label_distances
    if distances is not None and (distances.shape != (classes, classes) or np.diag(distances).any()):
        raise UserError(f"{data.name}: label_distances must be ({classes}, {classes}) with zeros on the diagonal.")


def _check_parts(data: LabelledData) -> None:
    if data.part is None:
        return
    others = set(data.part.tolist()) - {"train", "test"}
    if others:
        raise UserError(f"{data.name}: part holds {sorted(map(str, others))[0]!r}; allowed: 'train', 'test'.")
    if len(set(data.part.tolist())) < 2:
        raise UserError(
            f"{data.name}: every example is of part {str(data.part[0])!r}; both 'train' and 'test' are needed."
        )


def _check_image(name: str, image: Any) -> None:
    shape, dtype = getattr(image, "shape", None), getattr(image, "dtype", None)
    if shape is None or len(shape) != 3 or shape[2] != 3 or str(dtype) != "uint8":
        raise UserError(f"{name}: an image is {dtype} {shape}; images must be uint8 of shape (H, W, 3).")


def fingerprint(data: LabelledData) -> str:
    """Return the SHA-256 of everything that could change a result: examples, labels, names, parts and masks."""
    import numpy as np

    parts: list[object] = [data.labels, *data.class_names]
    if data.features is not None:
        parts.append(np.asarray(data.features))
    elif isinstance(data.images, Pixels):
        whole = data.images.rows is None
        parts.append(data.images.array if whole else data.images.array[data.images.rows])
    elif data.images is not None:
        parts += [digest(data.images[i]) for i in range(len(data))]
    for array in (data.part, data.label_distances):
        parts.append("none" if array is None else array)
    if data.masks is not None and not isinstance(data.masks, Masks):  # those files are in the fingerprint of the folder
        parts += [digest(np.asarray(data.masks[i])) for i in range(len(data))]
    return digest(*parts)
