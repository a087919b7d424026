"""Styles, scripts and pictures under an address that changes with what they hold, so that browsers keep them for good.

Every file's address holds a digest of all of them: `/static/1f0c2e9a/site.css`. Modules import each other by relative
address, and a page never mixes files of two versions.
"""

from __future__ import annotations

import functools
import hashlib
import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from fastapi import APIRouter, HTTPException
from fastapi.responses import Response

from workingpapers.runs.present import TEMPLATES

_FOLDER = Path(__file__).parent / "static"
_SHARED = TEMPLATES / "style.css"  # the report's look is the page's
_FOR_GOOD = "public, max-age=31536000, immutable"

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class File:
    """A static file: its content, and what kind it is."""

    body: bytes
    kind: str


@functools.cache
def files() -> Mapping[str, File]:
    """Return every static file by name."""
    paths = {path.name: path for path in [_SHARED, *sorted(_FOLDER.iterdir())] if path.is_file()}
    found = {}
    for name, path in paths.items():
        body = path.read_bytes()
        kind = (
            "text/javascript" if name.endswith(".js") else mimetypes.guess_type(name)[0] or "application/octet-stream"
        )
        found[name] = File(body, kind)
    return MappingProxyType(found)


@functools.cache
def digest() -> str:
    """Return a digest of all static files."""
    state = hashlib.sha256()
    for name, file in sorted(files().items()):
        state.update(f"{name}\0{len(file.body)}\0".encode())
        state.update(file.body)
    return state.hexdigest()[:12]


def address(name: str) -> str:
    """Return where a static file is served.

    Raises:
        KeyError: there is no such file; templates name them, so this is a slip of ours.
    """
    return f"/static/{digest()}/{files()[name] and name}"


@router.get("/static/{version}/{name}")
def static(version: str, name: str) -> Response:
    """Answer with a file. An old version's address gets the present file, not to be kept."""
    file = files().get(name)
    if file is None:
        raise HTTPException(404, f"No file {name!r} here.")
    headers = {"Cache-Control": _FOR_GOOD if version == digest() else "no-cache"}
    return Response(file.body, media_type=file.kind, headers=headers)
