"""Files from the network: fetched once, resumed where they stopped, and checked before anybody reads them."""

from __future__ import annotations

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workingpapers import __version__
from workingpapers.data.cache import cache_dir, explained
from workingpapers.errors import UserError, UserRemark

if TYPE_CHECKING:
    from rich.progress import Progress

ATTEMPTS = 5  # in a row that bring no byte; waits of 1, 2, 4 and 8 s between them
BLOCK = 1 << 18
TIMEOUT = 30.0
PATIENCE = 2.0  # seconds before a progress bar appears


class _Cut(Exception):
    """The connection ended early, or the server is busy: worth another attempt."""


def downloaded(filename: str) -> Path:
    """Return where a download lies in the cache, whether it is there or not."""
    return cache_dir() / "downloads" / filename


def download(url: str, sha256: str, filename: str) -> Path:
    """Return the path of a file in the cache, downloaded first if it is not there.

    A download that was interrupted is resumed if the server still has the same file (its ETag or modification date
    decides). The file gets its name only when its checksum is right. A second process waits for the first.

    Args:
        url: http or https address.
        sha256: hex digest that the whole file must have.
        filename: name in the cache.

    Raises:
        UserError: no connection, an address that does not exist, a connection that breaks again and again, a wrong
            checksum, or a cache that cannot be written to.
    """
    path = downloaded(filename)
    with explained(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path):
        if path.exists():
            if _sha256(path) == sha256:
                return path
            warnings.warn(f"{path} has the wrong checksum; it is downloaded again.", UserRemark, stacklevel=2)
        part = path.with_name(f"{filename}.part")
        _fetch(url, part)
        found = _sha256(part)
        if found != sha256:
            _forget(part)
            raise UserError(
                f"{url} is not the file that was expected: its SHA-256 is {found} instead of {sha256}. It was deleted; "
                "either the network altered it or the file there has changed."
            )
        with explained(path.parent):
            os.replace(part, path)
        _forget(part)
    return path


def _fetch(url: str, part: Path) -> None:
    """Bring `part` to completion, trying again while there is hope."""
    failures = 0
    with _bar(part.stem) as progress:
        while True:
            before = part.stat().st_size if part.exists() else 0
            try:
                _attempt(url, part, progress)
                return
            except _Cut as error:
                failures = 1 if part.exists() and part.stat().st_size > before else failures + 1
                if failures >= ATTEMPTS:
                    raise UserError(
                        f"{url} could not be read ({error}), {ATTEMPTS} times in a row. What arrived is kept: the same "
                        "command goes on from there."
                    ) from error
                time.sleep(2 ** (failures - 1))


def _attempt(url: str, part: Path, progress: _Bar) -> None:
    """Request what is missing of `part` and append it; raise _Cut if that broke off."""
    stamp = part.with_name(f"{part.name}.etag")  # what the server called the version that `part` comes from
    version = stamp.read_text() if stamp.exists() else ""
    start = part.stat().st_size if part.exists() and version else 0
    headers = {"User-Agent": f"workingpapers/{__version__}", "Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": version}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing lies beyond what we have: the file is another one, or complete but unverified
            _forget(part)
            raise _Cut("the server refused to resume") from error
        if error.code in (408, 429) or error.code >= 500:
            raise _Cut(f"HTTP {error.code} {error.reason}") from error
        raise UserError(f"{url} cannot be downloaded: HTTP {error.code} {error.reason}.") from error
    except (TimeoutError, ConnectionResetError, http.client.HTTPException) as error:
        raise _Cut(repr(error)) from error
    except OSError as error:  # URLError: unknown host, refused connection, bad certificate
        if start:  # the network went away while we were downloading
            raise _Cut(str(error)) from error
        raise UserError(f"{url} cannot be reached ({error}). Is this machine offline, or behind a proxy?") from error
    with response:
        resumed = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        start = start if resumed else 0
        with explained(part.parent):
            stamp.write_text(_version(response))
        _append(response, part, start, progress)


def _append(response: http.client.HTTPResponse, part: Path, start: int, progress: _Bar) -> None:
    """Write the response's body to `part` from byte `start` on."""
    length = response.headers.get("Content-Length")
    total = start + int(length) if length else None
    with explained(part.parent):
        file = part.open("r+b" if start else "wb")
    with file:
        file.seek(start)
        while True:
            try:
                block = response.read(BLOCK)
            except (OSError, http.client.HTTPException) as error:
                raise _Cut(repr(error)) from error
            if not block:
                break
            with explained(part.parent):
                file.write(block)
                file.flush()
            start += len(block)
            progress.show(start, total)
        with explained(part.parent):
            os.fsync(file.fileno())
    if total is not None and start < total:
        raise _Cut(f"the connection closed after {start:,} of {total:,} bytes")


def _version(response: http.client.HTTPResponse) -> str:
    """Return what identifies the server's file in If-Range: a strong ETag or its date, or "" if there is neither."""
    tag = response.headers.get("ETag") or ""
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified") or ""


def _forget(part: Path) -> None:
    """Remove a partial file and the note beside it."""
    part.unlink(missing_ok=True)
    part.with_name(f"{part.name}.etag").unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other processes from downloading the same file meanwhile, where the system has file locks."""
    try:
        import fcntl
    except ImportError:  # Windows: two downloads at once cost time, and the checksum still guards the result
        yield
        return
    with explained(path.parent):
        file = path.with_name(f"{path.name}.lock").open("wb")
        fcntl.flock(file, fcntl.LOCK_EX)
    with file:
        yield


class _Bar:
    """A progress bar on stderr that appears once a download has taken a while."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.since = time.monotonic()
        self.progress: Progress | None = None
        self.task: Any = None

    def show(self, done: int, total: int | None) -> None:
        """Say how many bytes of how many are there."""
        if self.progress is None:
            if time.monotonic() - self.since < PATIENCE:
                return
            from rich import progress as bars
            from rich.console import Console

            columns = (bars.TextColumn("{task.description}"), bars.BarColumn(), bars.DownloadColumn())
            self.progress = bars.Progress(*columns, bars.TimeRemainingColumn(), console=Console(stderr=True))
            self.progress.start()
            self.task = self.progress.add_task(f"Downloading {self.title}", total=total)
        self.progress.update(self.task, completed=done, total=total)


@contextmanager
def _bar(title: str) -> Iterator[_Bar]:
    bar = _Bar(title)
    try:
        yield bar
    finally:
        if bar.progress is not None:
            bar.progress.stop()
