"""A folder of images of the user's own: a folder for each class, with or without folders of parts, or MVTec AD's."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workingpapers.data.checks import checked, encode
from workingpapers.data.images import SUFFIXES, Encoded, Masks, Seen, digest, inspect
from workingpapers.data.types import LabelledData
from workingpapers.errors import UserError, unreadable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LAYOUT = "Allowed: FOLDER/class/*.jpg, FOLDER/{train,test}/class/*.jpg, or MVTec's train/good, test/good, test/defect."

TRUTH = "ground_truth"  # where MVTec AD keeps its masks
# What folders of parts are called, whatever their case.
SPLIT = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
}


def from_folder(root: Path, name: str) -> LabelledData:
    """Read a folder of images.

    The layouts: `class/*.jpg` (files may lie deeper), the same below `train` and `test` (or `Training` and `Testing`),
    which then are the parts, or MVTec AD's `train/good`, `test/good`, `test/<defect>` and
    `ground_truth/<defect>/<stem>_mask.png`. Other folders beside those of parts, such as `val`, are left unused.

    Raises:
        UserError: another layout, a class without images, one class, or more than 5 % unreadable images.
    """
    tops = {folder.name: folder for folder in _folders(root)}
    parts = {SPLIT[name.lower()]: folder for name, folder in tops.items() if name.lower() in SPLIT}
    if "train" not in parts or (len(parts) == 1 and "train" not in tops):  # a class may be called "Training"
        return _classes(root, name, {label: [(None, folder)] for label, folder in tops.items()})
    for part in parts:
        alike = [name for name in tops if SPLIT.get(name.lower()) == part]
        if len(alike) > 1 and part != "val":
            raise UserError(f"{root} has folders {alike}, which are one part twice. Rename or merge them. {LAYOUT}")
    inner: dict[str, list[Path]] = {part: _folders(parts[part]) for part in ("train", "test") if part in parts}
    if not all(inner.get(part) for part in ("train", "test")):
        given = parts["train"].name
        other = f" If {parts['val'].name!r} is what to test on, rename it." if "val" in parts else ""
        raise UserError(
            f"{root} has a folder {given!r} but no folder 'test' with folders of images in it.{other} {LAYOUT}"
        )
    used = {folder.name for part, folder in parts.items() if part in inner}
    if [folder.name for folder in inner["train"]] == ["good"]:
        found = _mvtec(root, name, inner["train"][0], inner["test"])
        used.add(TRUTH)
    else:
        found = _in_parts(root, name, inner)
    return dataclasses.replace(found, unused=tuple(f"{root.name}/{name}" for name in tops if name not in used))


def _in_parts(root: Path, name: str, inner: dict[str, list[Path]]) -> LabelledData:
    """Read the class folders of each part."""
    classes: dict[str, list[tuple[str | None, Path]]] = {}
    for part, folders in inner.items():
        for folder in folders:
            classes.setdefault(folder.name, []).append((part, folder))
    return _classes(root, name, classes)


def _folders(root: Path) -> list[Path]:
    """Return the visible folders in a folder, sorted; those like __MACOSX, which archives leave behind, are none."""
    try:
        return sorted(p for p in root.iterdir() if p.is_dir() and _is_visible(p.name))
    except OSError as error:
        raise unreadable(root, error) from error


def _is_visible(folder: str) -> bool:
    return not folder.startswith((".", "__"))


def _images_in(folder: Path) -> list[Path]:
    """Return the images below a folder, sorted, but for those in hidden folders; a folder without any is an error."""

    def refuse(error: OSError) -> None:
        raise unreadable(folder, error) from error

    files = []
    for place, inner, names in os.walk(folder, onerror=refuse):
        inner[:] = filter(_is_visible, inner)
        files += [Path(place, name) for name in names if not name.startswith(".")]
    files = [p for p in files if p.suffix.lower() in SUFFIXES]
    if not files:
        raise UserError(f"The folder {folder} holds no images ({', '.join(sorted(SUFFIXES))}). {LAYOUT}")
    return sorted(p for p in files if p.is_file())


def _classes(root: Path, name: str, folders: dict[str, list[tuple[str | None, Path]]]) -> LabelledData:
    """Read classes, each with its folders and the part each folder belongs to."""
    rows = [
        (file, label, part) for label, parts in folders.items() for part, folder in parts for file in _images_in(folder)
    ]
    if not rows:
        raise UserError(f"The folder {root} holds no folder of images. {LAYOUT}")
    rows, seen, skipped = _readable(root, rows)
    lost = sorted(set(folders) - {label for _, label, _ in rows})
    if lost:
        raise UserError(f"{root}: no image of class {lost[0]!r} can be read; the first: {skipped[0]}")
    labels, class_names = encode([label for _, label, _ in rows])
    return checked(
        LabelledData(
            name=name,
            fingerprint=_fingerprint(root, rows, seen),
            labels=labels,
            class_names=class_names,
            images=Encoded([file for file, _, _ in rows]),
            part=_parts([part for _, _, part in rows]),
            skipped=tuple(skipped),
        )
    )


def _mvtec(root: Path, name: str, good: Path, tests: list[Path]) -> LabelledData:
    """Read MVTec AD's layout; without a folder `ground_truth` there are no masks."""
    import numpy as np

    rows = [(file, "good", "train") for file in _images_in(good)]
    rows += [(file, folder.name, "test") for folder in tests for file in _images_in(folder)]
    rows, seen, skipped = _readable(root, rows)
    truth = root / TRUTH
    masks = digests = None
    if truth.is_dir():
        files = [None if kind == "good" else truth / kind / f"{file.stem}_mask.png" for file, kind, _ in rows]
        masks, digests = _masks(files, seen)
    return checked(
        LabelledData(
            name=name,
            fingerprint=digest(_fingerprint(root, rows, seen), digests),
            labels=np.array([kind != "good" for _, kind, _ in rows], dtype=np.int64),
            class_names=("normal", "anomalous"),
            images=Encoded([file for file, _, _ in rows]),
            part=_parts([part for _, _, part in rows]),
            masks=masks,
            skipped=tuple(skipped),
        )
    )


def _masks(files: list[Path | None], seen: list[Seen]) -> tuple[Masks, list[str]]:
    """Check that every defective image has a readable mask of its own size."""
    wanted = [(file, size) for file, (_, *size) in zip(files, seen, strict=True) if file is not None]
    missing = [file for file, _ in wanted if not file.is_file()]
    if missing:
        raise UserError(f"{len(missing)} of {len(wanted)} masks are missing; the first: {missing[0]}")
    found, unreadable = inspect([file for file, _ in wanted], [str(file) for file, _ in wanted])
    if unreadable:
        raise UserError(f"{len(unreadable)} of {len(wanted)} masks cannot be read; the first: {unreadable[0]}")
    for (file, size), mask in zip(wanted, found, strict=True):
        if mask is not None and list(mask[1:]) != size:
            raise UserError(f"The mask {file} is {mask[1]} x {mask[2]} pixels, its image {size[0]} x {size[1]}.")
    return Masks(files, [(height, width) for _, height, width in seen]), [mask[0] for mask in found if mask is not None]


def _readable(root: Path, rows: list[Any]) -> tuple[list[Any], list[Seen], list[str]]:
    """Keep the rows (file, ...) whose image can be decoded."""
    names = [str(row[0].relative_to(root)) for row in rows]
    seen, skipped = inspect([row[0] for row in rows], names)
    kept = [(row, image) for row, image in zip(rows, seen, strict=True) if image is not None]
    return [row for row, _ in kept], [image for _, image in kept], skipped


def _fingerprint(root: Path, rows: list[Any], seen: list[Seen]) -> str:
    """Return the digest of the files' names below the root, their bytes, labels and parts."""
    return digest(
        *(
            part
            for (file, *rest), image in zip(rows, seen, strict=True)
            for part in (file.relative_to(root).as_posix(), image[0], *rest)
        )
    )


def _parts(parts: list[Any]) -> NDArray[np.str_] | None:
    import numpy as np

    return None if None in parts else np.array(parts, dtype=np.str_)
