"""Errors that a user can act on."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from pandas import DataFrame


class UserError(ValueError):
    """Something that the user gave cannot be used; the message names it and says what is allowed.

    The command line prints the message alone and exits with code 2 (`--debug` shows the traceback).
    """


class UserRemark(UserWarning):
    """Something that stops nothing and that the user should know.

    Warnings of this kind are told as plain remarks by the command line, and kept with the run that gave them.
    """


@contextmanager
def remarks() -> Iterator[list[str]]:
    """Collect the messages of `UserRemark` warnings, each once; other warnings are shown as ever."""
    found: list[str] = []
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def collect(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if not issubclass(category, UserRemark):
                shown(message, category, filename, lineno, file, line)
            elif str(message) not in found:
                found.append(str(message))

        warnings.simplefilter("always", UserRemark)
        warnings.showwarning = collect
        yield found


def unknown_name(kind: str, name: str, known: Iterable[str], hint: str = "", *, of: str = "") -> UserError:
    """Return the error for a name that nothing is known by, with the nearest known names.

    Args:
        kind: what was looked up, in the singular: "task", "entry", "data set".
        name: what the user typed.
        known: every valid name.
        hint: a last sentence, for example the command that lists the valid names.
        of: whose names they are, "task probe"; nothing where that is plain.
    """
    where = f" of {of}" if of else ""
    return UserError(f"Unknown {kind} {name!r}{where}. {nearest(name, known)} {hint}".strip())


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; the error's type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def unreadable(path: Path, error: Exception, kind: str = "") -> UserError:
    """Return the error for a file that a reader refuses, on one line.

    Args:
        path: of the file.
        error: the reader's own.
        kind: what it should have been, " as a table"; nothing where that is plain.
    """
    reason = _encoding(path, error) if isinstance(error, UnicodeDecodeError) else first_line(error)
    if path.is_file() and not path.stat().st_size:  # each reader has words of its own for that
        reason = "it is empty"
    return UserError(f"{path} cannot be read{kind}: {reason}")


def _encoding(path: Path, error: UnicodeDecodeError) -> str:
    """Return what a file holds that is not UTF-8, by its first bytes, and what to do about it."""
    with path.open("rb") as file:
        start = file.read(4)
    if start == b"PAR1":
        return "it is a Parquet file; its name must end with .parquet"
    if start[:2] == b"\x1f\x8b":
        return "it is compressed by gzip; the name of such a table must end with .csv.gz or .tsv.gz"
    kind, name = ("UTF-16", "utf-16") if start[:2] in (b"\xff\xfe", b"\xfe\xff") else ("Latin-1", "latin1")
    byte = error.object[error.start]
    return f"it is not UTF-8 (byte 0x{byte:02x}); convert it first, from {kind}: iconv -f {name} -t utf-8"


TABLES = (".csv", ".tsv", ".parquet")  # what a table's file may end in; those of text also in .csv.gz and .tsv.gz


def table_kind(path: Path) -> str:
    """Return which of `TABLES` a file is by its name; "" if none."""
    packed = path.suffix.lower() == ".gz"
    kind = (path.with_suffix("") if packed else path).suffix.lower()
    return kind if kind in TABLES and not (packed and kind == ".parquet") else ""


def check_separator(name: str | Path, columns: Sequence[str], separator: str) -> None:
    """Refuse a table of text that was read as one column because another character separates its columns.

    Raises:
        UserError: names the character.
    """
    found = (
        next((mark for mark in ";\t|," if mark != separator and mark in columns[0]), "") if len(columns) == 1 else ""
    )
    if found:
        kinds = "a .csv has commas, a .tsv has tabs"
        raise UserError(f"{name}: columns are separated by {found!r}, where {separator!r} is needed: {kinds}.")


def check_quotes(name: str | Path, table: DataFrame, before: int = 0) -> None:
    """Refuse values of a TSV over several lines and columns: a quote that nothing closes swallows whole rows.

    Args:
        name: of the file.
        table: its rows, or some of them.
        before: rows before these.

    Raises:
        UserError: names the first.
    """
    for column in table.columns[[kind.kind not in "biuf" for kind in table.dtypes]]:
        texts = table[column].astype(str).str
        torn = texts.contains("\t", regex=False) & texts.contains("\n", regex=False)
        if torn.any():
            row = int(torn.to_numpy().argmax())
            raise UserError(
                f"{name}: column {column!r} holds {str(table[column].iloc[row])[:40]!r} in row {before + row}, over "
                "several lines and columns: a quote opens it that nothing closes in time. Leave that quote out; if the "
                "value is meant so, write its tabs as spaces."
            )


def refuse_label(name: str, label: str) -> None:
    """Refuse a column of labels for data that have none: it would be passed over, and all runs be made once more.

    Raises:
        UserError: the label is not the default.
    """
    if label != "label":
        raise UserError(f"label is {label!r}, but {name} is no table: only tables have a column of labels to name.")


def user_path(name: str | Path) -> Path:
    """Return the path that a name stands for, whether anything is there or not; "~" is the user's own folder.

    Raises:
        UserError: the system cannot look there: a folder is locked, a name is too long, a user is unknown.
    """
    try:
        path = Path(name).expanduser()
        path.exists()
    except (OSError, RuntimeError) as error:
        raise UserError(f"{name} cannot be looked at: {getattr(error, 'strerror', '') or error}") from error
    return path


def existing_file(name: str | Path) -> Path:
    """Return the path of a file by its name; "~" is the user's own folder.

    Raises:
        UserError: there is none, or it is a folder.
    """
    path = user_path(name)
    if path.is_dir():
        raise UserError(f"{name} is a folder; a file is needed.")
    if not path.is_file():
        raise no_file(name)
    return path


def has_no_room(folder: Path) -> bool:
    """Tell whether less than 64 KiB are free, of which a write of SQLite takes 32; it calls that a disk I/O error."""
    import shutil

    try:
        found = shutil.disk_usage(folder)
        return found.total > 0 and found.free < 2**16  # file systems such as /proc have no size at all
    except OSError:
        return False


def no_file(name: str | Path, what: str = "file") -> UserError:
    """Return the error for a file that isn't there, with those in its folder whose names are like it."""
    alike = " or ".join(map(repr, similar_files(name)))
    return UserError(f"There is no {what} {name}.{f' Did you mean {alike}?' if alike else ''}")


def similar_files(name: str | Path) -> list[str]:
    """Return up to two files or folders with a name like the last part of a path, written as the path is.

    Of "folder/file.py:function" it returns the name by which Python finds it, "folder.file:function".
    """
    import difflib

    if module := _as_module(str(name)):
        return [module]
    path = Path(name).expanduser()
    try:
        names = [file.name for file in path.parent.iterdir()]
    except OSError:  # its folder isn't there, or isn't ours to look at
        return []
    start = str(name)[: -len(path.name)] if path.name else str(name)
    return [start + alike for alike in difflib.get_close_matches(path.name, names, n=2, cutoff=0.6)]


def _as_module(name: str) -> str:
    """Return "folder.file:function" for "folder/file.py:function"; "" for any other name."""
    file, _, function = name.rpartition(":")
    return f"{file.removeprefix('./').removesuffix('.py').replace('/', '.')}:{function}" if file[-3:] == ".py" else ""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a sentence with the valid names nearest to one that isn't, or with all of them if none is near."""
    import difflib

    names = sorted(known)
    alike = difflib.get_close_matches(str(name).lower(), names, n=3, cutoff=0.5)
    if alike:
        return f"Did you mean {' or '.join(repr(n) for n in alike)}?"
    if len(names) <= 12:
        return f"Known: {', '.join(names) or 'none'}."
    return f"Known: {', '.join(names[:8])}, ... ({len(names)} in all)."


def import_object(kind: str, path: str) -> Any:
    """Return what "package.module:object" names, searching the working directory too.

    Raises:
        UserError: the path names no module, the module fails when imported, or it has no such object.
    """
    import importlib
    import os
    import sys

    module_name, _, name = path.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a module of the user's may fail in any way
        reason = str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}".rstrip(": ")
        meant = f" Did you mean {_as_module(path)!r}?" if _as_module(path) else ""
        raise UserError(f"The {kind} {path!r} cannot be imported: {reason.rstrip('.')}.{meant}") from error
    if not hasattr(module, name):
        public = [n for n in vars(module) if not n.startswith("_")]
        own = Path(module_name.split(".")[0] + ".py")
        hidden = own.is_file() and not own.resolve().samefile(getattr(module, "__file__", None) or os.devnull)
        hint = f"It is an installed module, which hides {own} of this folder: rename that." if hidden else ""
        raise unknown_name("object", name, public, hint, of=f"module {module_name}")
    return getattr(module, name)


def module_file(path: str) -> Path | None:
    """Return the file of the imported module that "package.module:object" names; None where it has none."""
    import sys

    file = getattr(sys.modules[path.partition(":")[0]], "__file__", None)
    return Path(file) if file and Path(file).is_file() else None
