"""Pictures as users have them, read as (H, W, 3) uint8 RGB: what a file holds, and sequences that read when indexed."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import warnings
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from workingpapers.data.cache import cache_dir, explained, sync, temporary
from workingpapers.data.types import Images
from workingpapers.errors import UserError
from workingpapers.progress import counted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
Seen = tuple[str, int, int]  # SHA-256 of an encoded image, its height and width
UNREADABLE = 0.05  # the share of files that may be unreadable; one always may


def digest(*parts: object) -> str:
    """Return the SHA-256 of arrays, bytes and texts, each with its type and shape, as hex digits."""
    import numpy as np

    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            part = part.astype("U") if part.dtype == object else part
            total.update(f"{part.dtype.str}{part.shape}".encode())
            total.update(np.ascontiguousarray(part).data if part.dtype.kind != "U" else part.tobytes())
        else:
            data = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogatepass")  # names of files
            total.update(f"{len(data)}:".encode() + data)
    return total.hexdigest()


def read_image(source: Path | bytes) -> NDArray[np.uint8]:
    """Return an image as (H, W, 3) uint8 RGB.

    It is turned as its EXIF orientation says; transparent pixels lie on white; 16-bit grey becomes 8-bit; of an
    animation the first frame is taken.

    Raises:
        OSError, ValueError or what else Pillow's decoders raise: the image is damaged or no image at all.
    """
    import numpy as np

    return np.asarray(_decoded(source))


def _decoded(source: Path | bytes) -> Image:
    """Return what `read_image` says, without a copy of the pixels that need none."""
    with _opened(source) as image:
        return _rgb(image)


@contextlib.contextmanager
def _opened(source: Path | bytes) -> Iterator[Image]:
    """Yield a picture, read and turned as its EXIF orientation says."""
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        image.load()  # the file is closed when this returns
        ImageOps.exif_transpose(image, in_place=True)
        yield image


def _rgb(image: Image, ground: str = "white") -> Image:
    """Convert any of Pillow's modes to RGB, transparent pixels on a colour."""
    import numpy as np
    from PIL import Image

    if image.mode == "F":
        raise ValueError("floating-point images have no fixed range of brightness")
    if image.mode.startswith("I"):  # 16-bit grey, which convert("RGB") would clip
        image = Image.fromarray((np.clip(np.asarray(image), 0, 65535) / 257).round().astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        opaque = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", opaque.size, ground), opaque).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


@contextlib.contextmanager
def large_ones() -> Iterator[None]:
    """Read images of 90 to 180 megapixels without Pillow's warning; larger ones stay refused.

    Not in each thread that reads, since a change of the filters concerns them all.
    """
    from PIL import Image

    with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
        yield


class Lazy(Sequence[Any]):
    """A sequence whose elements are made when indexed; slices are lists."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def one(self, index: int) -> NDArray[Any]:
        """Return the element at a non-negative index below the length."""

    @overload
    def __getitem__(self, index: int) -> NDArray[Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[NDArray[Any]]: ...
    def __getitem__(self, index: int | slice) -> NDArray[Any] | list[NDArray[Any]]:
        if isinstance(index, slice):
            return [self.one(i) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} images")
        return self.one(int(index) % len(self))

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (self.one(i) for i in range(len(self)))  # Sequence's own would end where reading an image fails


class Encoded(Lazy):
    """Images read from files or from encoded bytes, one at a time."""

    def __init__(self, sources: Sequence[Path | bytes]) -> None:
        self.sources = sources

    def __len__(self) -> int:
        return len(self.sources)

    def one(self, index: int) -> NDArray[np.uint8]:
        """Return an image as (H, W, 3) uint8."""
        return read_image(self.sources[index])


class Picked(Lazy):
    """Some images of a sequence, by their numbers."""

    def __init__(self, images: Images, rows: Sequence[int] | NDArray[np.int64]) -> None:
        self.images, self.rows = images, rows

    def __len__(self) -> int:
        return len(self.rows)

    def one(self, index: int) -> NDArray[Any]:
        """Return the image that the number at `index` names."""
        return self.images[int(self.rows[index])]


def picked(images: Images, rows: Sequence[int] | NDArray[np.int64]) -> Lazy:
    """Return some images of a sequence, unread; of encoded images, encoded ones."""
    return Encoded([images.sources[i] for i in rows]) if isinstance(images, Encoded) else Picked(images, rows)


class Pixels(Lazy):
    """Images that are rows of an array (N, H, W) or (N, H, W, 3) of uint8, or some of its rows; grey becomes RGB."""

    def __init__(self, array: NDArray[np.uint8], rows: NDArray[np.int64] | None = None) -> None:
        self.array, self.rows = array, rows

    def __len__(self) -> int:
        return len(self.array if self.rows is None else self.rows)

    def one(self, index: int) -> NDArray[np.uint8]:
        """Return an image as (H, W, 3) uint8."""
        import numpy as np

        image = self.array[index if self.rows is None else self.rows[index]]
        return np.array(image) if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)


class Masks(Lazy):
    """Masks (H, W) bool read from files; None stands for an image without anomalous pixels, of the given (H, W)."""

    def __init__(self, files: Sequence[Path | None], sizes: Sequence[tuple[int, int]]) -> None:
        self.files, self.sizes = files, sizes

    def __len__(self) -> int:
        return len(self.files)

    def one(self, index: int) -> NDArray[np.bool_]:
        """Return a mask as (H, W) bool, true where the file is neither black nor transparent."""
        import numpy as np

        file = self.files[index]
        if file is None:
            return np.zeros(self.sizes[index], dtype=bool)
        with _opened(file) as image:  # small numbers of 16 bits would vanish in the 8 of RGB
            pixels = np.asarray(image if image.mode.startswith("I") else _rgb(image, "black"))
        mask: NDArray[np.bool_] = (pixels if pixels.ndim == 2 else pixels.max(axis=2)) > 0
        return mask


def inspect(
    sources: Iterable[Path | bytes], names: Sequence[str]
) -> tuple[list[tuple[str, int, int] | None], list[str]]:
    """Decode every image in full, once, on all processors; what was found is kept in the cache.

    An image is known again by its bytes, a file by its path, size and time of change.

    Args:
        sources: files or encoded bytes.
        names: how to call them, as many.

    Returns:
        for each image its SHA-256, height and width, or None where it is unreadable; and one line per unreadable one.

    Raises:
        UserError: more than 5 % (and more than one) are unreadable.
    """

    seen = _looked_at(list(sources))
    skipped = [f"{name}: {s}" for name, s in zip(names, seen, strict=True) if isinstance(s, str)]
    if len(skipped) > max(1, UNREADABLE * len(seen)):
        raise UserError(
            f"{len(skipped)} of {len(seen)} images cannot be read, more than {UNREADABLE:.0%}; the first: {skipped[0]}"
        )
    return [None if isinstance(s, str) else s for s in seen], skipped


def _looked_at(sources: list[Path | bytes]) -> list[Seen | str]:
    """Return what `_look` says of every image, from the cache or now."""
    path = cache_dir() / "inspected" / f"{digest(*map(_identity, sources))}.json"
    with contextlib.suppress(OSError, ValueError, TypeError):
        kept = json.loads(path.read_text(encoding="utf-8"))
        if len(kept) == len(sources):
            return [one if isinstance(one, str) else (str(one[0]), int(one[1]), int(one[2])) for one in kept]
    found = []
    with (
        large_ones(),
        counted(True, len(sources), "looking at the images") as report,
        ThreadPoolExecutor(os.cpu_count()) as pool,  # Pillow lets go of the interpreter's lock while it decodes
    ):
        for one in pool.map(_look, sources):
            found.append(one)
            report(len(found))
    with temporary(path) as (file, part), explained(path.parent):
        file.write(json.dumps(found).encode())
        sync(file)
        os.replace(part, path)
    return found


def _look(source: Path | bytes) -> Seen | str:
    """Return an image's SHA-256, height and width, or why it is unreadable."""
    try:
        data = source if isinstance(source, bytes) else source.read_bytes()
        width, height = _decoded(data).size
    except Exception as error:  # Pillow's decoders raise whatever the parser of their format does
        reason = "not an image" if type(error).__name__ == "UnidentifiedImageError" else str(error)
        return f"{type(error).__name__}: {reason}"
    return hashlib.sha256(data).hexdigest(), height, width


def _identity(source: Path | bytes) -> str:
    """Return what an image is known by."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    try:
        status = source.stat()
    except OSError:
        return f"{source} is missing"
    return f"{source.absolute()} {status.st_size} {status.st_mtime_ns}"
