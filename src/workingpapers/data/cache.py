"""Arrays that are computed once and read from disk afterwards.

An entry is two files in `cache_dir()/kind`: `key.npy`, memory-mapped when read, and `key.json`, which says what the
array is and holds the CRC-32 of its bytes. Both are written under temporary names and renamed, the array last, so an
entry is either whole or absent and two processes that compute the same key do each other no harm. The array is written
with plain writes: a full disk is then an error, where a write to a memory map would kill the process.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from errno import ENOSPC
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from workingpapers.errors import UserError, UserRemark, first_line
from workingpapers.progress import Progress, counted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import DTypeLike, NDArray

VARIABLE = "WORKINGPAPERS_CACHE"


def cache_dir() -> Path:
    """Return the cache's folder: the environment variable `WORKINGPAPERS_CACHE`, else the user's cache folder.

    The folder need not exist.
    """
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named).expanduser().absolute()
    from platformdirs import user_cache_path

    return user_cache_path("workingpapers", appauthor=False)


def cached_array(
    key: str,
    kind: str,
    *,
    shape: tuple[int, ...],
    dtype: DTypeLike,
    compute: Callable[[], Iterable[NDArray[Any]]],
    about: Mapping[str, object] | None = None,
    progress: Progress = False,
    title: str = "",
) -> NDArray[Any]:
    """Return a read-only memory-mapped array from the cache, computed first if it is not there.

    An entry that is damaged (its description missing, another size, shape, type or checksum) is computed again, with a
    `UserRemark`.

    Args:
        key: what identifies the content: letters, digits and "._-".
        kind: folder within the cache, of the same characters.
        shape: of the whole array, at least one element.
        dtype: of the array; chunks must have it already, since a cast could overflow unseen.
        compute: returns the array in chunks (n, *shape[1:]) along the first axis; called only when needed.
        about: stored beside the array for people: what it was computed from.
        progress: as for `progress.counted`, told after each chunk how many images, the rows of the array, are done.
        title: what stands before the bar.

    Raises:
        UserError: the cache cannot be written to or is full.
        ValueError: chunks that do not add up to `shape` and `dtype`, or a key of other characters.
    """
    import numpy as np

    for name in (key, kind):
        if not re.fullmatch(r"[\w.-]*\w[\w.-]*", name, flags=re.ASCII):
            raise ValueError(f"cache key {name!r} may hold letters, digits and '._-' only")
    path = cache_dir() / kind / f"{key}.npy"
    if path.exists():
        try:
            return _open(path, shape, np.dtype(dtype), verify=True)
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = f"its description lacks {error}" if isinstance(error, KeyError) else first_line(error)
            remark = f"The cache entry {path} is damaged ({reason}); it is computed again."
            warnings.warn(remark, UserRemark, stacklevel=2)
    with counted(progress, shape[0], title) as report:
        _write(path, shape, np.dtype(dtype), compute(), dict(about or {}), report)
    return _open(path, shape, np.dtype(dtype), verify=False)


def _open(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], *, verify: bool) -> NDArray[Any]:
    """Map the array of an entry; ValueError, KeyError, TypeError or OSError say what is wrong with it."""
    import numpy as np

    note = json.loads(path.with_suffix(".json").read_text())
    if path.stat().st_size != note["bytes"]:
        raise ValueError(f"{path.stat().st_size} bytes instead of {note['bytes']}")
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(f"it holds {array.dtype} {array.shape} instead of {dtype} {shape}")
    if verify and _checksum(array) != note["crc32"]:
        raise ValueError("its checksum does not match")
    return array


def _checksum(array: NDArray[Any]) -> int:
    """Return the CRC-32 of an array's bytes, read in blocks of 16 MiB."""
    flat = array.reshape(-1)
    step = max(1, (1 << 24) // array.itemsize)
    crc = 0
    for start in range(0, flat.size, step):
        crc = zlib.crc32(flat[start : start + step].tobytes(), crc)
    return crc


def _write(
    path: Path,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    chunks: Iterable[NDArray[Any]],
    about: dict[str, object],
    report: Callable[[int], None],
) -> None:
    """Write an entry: array under a temporary name, then its description, then the array's own name."""
    import numpy as np

    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    room = int(np.prod(shape)) * dtype.itemsize
    rows, crc = 0, 0
    with temporary(path) as (file, part):
        with explained(path.parent):
            if shutil.disk_usage(path.parent).free < room:  # before the work, not after it
                raise OSError(ENOSPC, f"{room / 1e6:,.0f} MB are needed")
            np.lib.format.write_array_header_2_0(file, header)
        for chunk in chunks:
            if chunk.dtype != dtype or chunk.shape[1:] != shape[1:]:
                raise ValueError(f"{path.stem}: a chunk is {chunk.dtype} {chunk.shape}, expected {dtype} {shape}")
            data = np.ascontiguousarray(chunk).tobytes()
            rows, crc = rows + len(chunk), zlib.crc32(data, crc)
            with explained(path.parent):
                file.write(data)
            report(rows)
        if rows != shape[0]:
            raise ValueError(f"{path.stem}: the chunks hold {rows} rows, expected {shape[0]}")
        with explained(path.parent):
            size = sync(file)
            note = {"shape": shape, "dtype": str(dtype), "bytes": size, "crc32": crc, "about": about}
            with temporary(path.with_suffix(".json")) as (text, written):
                text.write(json.dumps(note, indent=1, default=str).encode())
                sync(text)
                os.replace(written, path.with_suffix(".json"))
            os.replace(part, path)


def sync(file: IO[bytes]) -> int:
    """Close a file after its bytes are on the disk; return how many they are."""
    file.flush()
    os.fsync(file.fileno())
    size = file.tell()
    file.close()
    return size


@contextmanager
def temporary(path: Path) -> Iterator[tuple[IO[bytes], Path]]:
    """Open a temporary file in the folder of `path`, made if needed; whatever was not renamed is removed at the end."""
    with explained(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file, Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turn an OSError of writing to the cache into one that tells the user what to do."""
    try:
        yield
    except OSError as error:
        state, remedy = ("full", "Free space, or set") if error.errno == ENOSPC else ("not writable", "Set")
        raise UserError(f"The cache {folder} is {state} ({error}). {remedy} {VARIABLE} to another folder.") from error
