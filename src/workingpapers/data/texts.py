"""Texts by name: packaged with Python itself, a file of the user's, or a function.

    python-docs         a name of `TEXTS`, which needs no network
    novel.txt           any file of UTF-8 text
    mytexts:load        a function of a module, called without arguments: a str, or a list of them

Importing this module imports nothing heavy.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from workingpapers.data.types import Info
from workingpapers.errors import UserError, import_object, no_file, similar_files, unknown_name, unreadable, user_path

FORMS = "Other texts: a file of UTF-8 text, or package.module:function. `papers data` lists all names."
SEPARATOR = "\n\n"
BINARY = 8_000  # first bytes in which a file that is no text shows itself by a zero

TEXTS: dict[str, Info] = {
    info.name: info
    for info in (
        Info(
            name="python-docs",
            title="Text: chapters of Python's language reference, as its help() shows them",
            source="standard library, pydoc_data.topics; the text changes with Python's version",
            licence="PSF-2.0",
            size="about 80 documents, 0.5 M characters",
            here=lambda: True,
            load="workingpapers.data.texts:python_docs",
        ),
        Info(
            name="python-source",
            title="Text: source code of the standard library's modules",
            source="standard library, its top folder; the text changes with Python's version",
            licence="PSF-2.0",
            size="about 170 documents, 5 M characters",
            here=lambda: True,
            load="workingpapers.data.texts:python_source",
        ),
    )
}


@dataclass(frozen=True)
class Text:
    """Text to read.

    Attributes:
        name: as the user asked for it; shown in tables.
        fingerprint: hex digest of the documents.
        documents: at least one, none of them blank.
    """

    name: str
    fingerprint: str
    documents: tuple[str, ...]

    @property
    def whole(self) -> str:
        """The documents one after the other, with an empty line between them."""
        return SEPARATOR.join(self.documents)


def load_text(name: str) -> Text:
    """Return a text by name, path or function.

    Args:
        name: one of `TEXTS`, or any of the forms in this module's docstring.

    Raises:
        UserError: nothing is known by that name, or what is there is not text.
    """
    if name in TEXTS:
        return _text(name, import_object("text", TEXTS[name].load)())
    path = user_path(name)
    if path.is_file():
        return _text(name, [_read(path)])
    if path.is_dir():
        raise UserError(f"{name} is a folder; allowed: a file of UTF-8 text.")
    if path.suffix.lower() in (".txt", ".md", ".rst") or name.startswith((".", "/", "~")):
        raise no_file(name)
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name):
        return _text(name, _call(name))
    from workingpapers.data.datasets import DATASETS

    if name.partition(":")[0] in DATASETS:
        raise UserError(f"{name!r} holds no text. These do: {', '.join(TEXTS)}. {FORMS}")
    raise unknown_name("text", name, [*TEXTS, *similar_files(name)], FORMS)


def python_docs() -> list[str]:
    """Return the topics of Python's help(), in alphabetical order."""
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def python_source() -> list[str]:
    """Return the modules in the standard library's top folder, in alphabetical order."""
    import sysconfig

    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return [file.read_text(encoding="utf-8") for file in files]


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        if b"\0" in error.object[:BINARY] and error.object[:2] not in (b"\xff\xfe", b"\xfe\xff"):
            raise UserError(f"{path} is not text: it holds zero bytes.") from error
        raise unreadable(path, error) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    if "\0" in text[:BINARY]:
        raise UserError(f"{path} is not text: it holds zero bytes.")
    return text


def _call(name: str) -> list[str]:
    function = import_object("text", name)
    try:
        found = function()
    except (Exception, SystemExit) as error:  # a function of the user's may fail in any way
        raise UserError(f"{name} raised {type(error).__name__}: {error}") from error
    documents = [found] if isinstance(found, str) else found
    if not isinstance(documents, (list, tuple)) or not all(isinstance(d, str) for d in documents):
        raise UserError(f"{name} returned {type(found).__name__}; allowed: a str, or a list of them.")
    return list(documents)


def _text(name: str, documents: list[str]) -> Text:
    kept = tuple(d for d in documents if d.strip())
    if not kept:
        raise UserError(f"{name} holds no text.")
    digest = hashlib.sha256()
    for document in kept:
        data = document.encode("utf-8", "surrogatepass")
        digest.update(f"{len(data)}:".encode() + data)
    return Text(name, digest.hexdigest(), kept)
