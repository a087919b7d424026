"""CIFAR-10: 60,000 photographs of ten classes, from Parquet files at hand or from the public original.

The Parquet files `cifar10-train.parquet` and `cifar10-test.parquet` (columns `image`, encoded bytes, and `label`; class
names under "classes" in the schema's metadata) are looked for in the folder that the environment variable
`WORKINGPAPERS_DATA` names. They may hold JPEG, whose pixels differ slightly from the original's. Without them the
original is downloaded once. Either is decoded once, into the cache.

Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workingpapers.data.cache import cache_dir, cached_array
from workingpapers.data.download import download, downloaded
from workingpapers.data.images import Pixels, digest, read_image
from workingpapers.data.types import LabelledData
from workingpapers.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

VARIABLE = "WORKINGPAPERS_DATA"
URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
ARCHIVE = "cifar-10-python.tar.gz"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIZES = {"train": 50_000, "test": 10_000}
WIDTH = 1 + 32 * 32 * 3  # of a row: the label, then the pixels


def cifar10() -> LabelledData:
    """Return CIFAR-10, (32, 32, 3), with its official parts: 50,000 to train and 10,000 to test.

    Raises:
        UserError: no Parquet files and no connection, or files that hold something else.
    """
    import numpy as np

    files = parquet_files()
    if files:
        stats = [(file.stat().st_size, file.stat().st_mtime_ns) for file in files.values()]
        key, compute = digest(*files.values(), *stats)[:32], lambda: _parquet_rows(files)
    else:
        key, compute = SHA256[:32], lambda: _original_rows(download(URL, SHA256, ARCHIVE))
    table = cached_array(
        key,
        "cifar10",
        shape=(sum(SIZES.values()), WIDTH),
        dtype=np.uint8,
        compute=compute,
        about={"what": "label, then 32 x 32 x 3 pixels; train before test", "from": list(files.values()) or URL},
        progress=True,
        title="decoding CIFAR-10",
    )
    labels, images = table[:, 0].astype(np.int64), table[:, 1:].reshape(-1, 32, 32, 3)
    return LabelledData(
        name="cifar10",
        fingerprint=digest(table),
        labels=labels,
        class_names=CLASSES,
        images=Pixels(images),
        part=np.repeat(np.array(list(SIZES)), list(SIZES.values())),
    )


def here() -> bool:
    """Tell whether CIFAR-10 loads without the network."""
    decoded = cache_dir() / "cifar10" / f"{SHA256[:32]}.npy"
    return bool(parquet_files()) or decoded.exists() or downloaded(ARCHIVE).exists()


def parquet_files() -> dict[str, Path]:
    """Return the Parquet file of each part, or nothing if one of them is missing."""
    folder = os.environ.get(VARIABLE)
    files = {part: Path(folder) / f"cifar10-{part}.parquet" for part in SIZES} if folder else {}
    return files if all(file.is_file() for file in files.values()) else {}


def _parquet_rows(files: dict[str, Path]) -> Iterator[NDArray[np.uint8]]:
    import numpy as np
    import pyarrow.parquet as pq

    for part, path in files.items():
        try:
            with pq.ParquetFile(path) as file:
                names = (file.schema_arrow.metadata or {}).get(b"classes", b"").decode()
                rows = file.metadata.num_rows
                if names != ",".join(CLASSES) or rows != SIZES[part]:
                    raise UserError(f"{path} is not CIFAR-10's {part} part: {rows} rows, classes {names!r}.")
                for batch in file.iter_batches(1000, columns=["image", "label"]):
                    images = [read_image(data) for data in batch["image"].to_pylist()]
                    labels = np.asarray(batch["label"].to_pylist(), dtype=np.uint8)
                    yield np.column_stack([labels, np.stack(images).reshape(len(images), -1)])
        except (OSError, ValueError, KeyError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path} cannot be read: {error}") from error


def _original_rows(archive: Path) -> Iterator[NDArray[np.uint8]]:
    import numpy as np

    names = [f"cifar-10-batches-py/data_batch_{i}" for i in range(1, 6)] + ["cifar-10-batches-py/test_batch"]
    with tarfile.open(archive) as tar:
        for name in names:
            member = tar.extractfile(name)
            if member is None:
                raise UserError(f"{archive} holds no file {name}.")
            batch = ArraysOnly(io.BytesIO(member.read()), encoding="bytes").load()
            pixels = np.asarray(batch[b"data"], dtype=np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            labels = np.asarray(batch[b"labels"], dtype=np.uint8)
            yield np.column_stack([labels, pixels.reshape(len(pixels), -1)])


class ArraysOnly(pickle.Unpickler):
    """Unpickles numbers, texts, lists, dictionaries and arrays, and refuses everything else: pickles can run code."""

    def find_class(self, module: str, name: str) -> Any:
        """Return one of the three names that a pickled array needs."""
        import numpy as np
        from numpy._core.multiarray import _reconstruct

        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _reconstruct
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"the pickle asks for {module}.{name}, which is not allowed")
