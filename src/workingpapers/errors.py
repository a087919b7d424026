"""Errors that a user can act on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
    """Something that the user gave cannot be used; the message names it and says what is allowed.

    The command line prints the message alone and exits with code 2 (`--debug` shows the traceback).
    """


def unknown_name(kind: str, name: str, known: Iterable[str], hint: str = "") -> UserError:
    """Return the error for a name that nothing is known by, with the nearest known names.

    Args:
        kind: what was looked up, in the singular: "task", "entry", "data set".
        name: what the user typed.
        known: every valid name.
        hint: a last sentence, for example the command that lists the valid names.
    """
    return UserError(f"Unknown {kind} {name!r}. {nearest(name, known)} {hint}".strip())


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a sentence with the valid names nearest to one that isn't, or with all of them if none is near."""
    import difflib

    names = sorted(known)
    alike = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
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
    except Exception as error:  # a module of the user's may fail in any way
        reason = str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
        raise UserError(f"The {kind} {path!r} cannot be imported: {reason}.") from error
    if not hasattr(module, name):
        raise unknown_name(f"object of module {module_name}", name, [n for n in vars(module) if not n.startswith("_")])
    return getattr(module, name)
