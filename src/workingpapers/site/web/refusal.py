"""What is wrong with a value, in a sentence: pydantic's reasons in words for who typed it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_ALLOWED = {
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number of fewer digits",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "list_type": "must be a list",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be {ge} or more",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be {le} or less",
    "literal_error": "must be {expected}",
    "string_too_long": "may have {max_length} characters at most",
    "string_too_short": "must have {min_length} or more characters",
    "too_long": "may be given {max_length} times at most",
    "extra_forbidden": "is not known here",
    "model_attributes_type": "must be a JSON object",
    "json_invalid": "is no JSON: {error}",
}
_LONGEST = 80  # characters of a value that are repeated


def wrong_value(error: Mapping[str, Any]) -> str:
    """Return a sentence that names the value, what is allowed, and what was given.

    Args:
        error: one of `RequestValidationError.errors()`.
    """
    where, *path = error["loc"]
    name = "the body" if error["type"] == "json_invalid" or (where == "body" and not path) else ".".join(map(str, path))
    if error["type"] == "missing":
        return f"{name} is missing."
    known = _ALLOWED.get(error["type"])
    allowed = known.format_map(error.get("ctx", {})) if known else f"cannot be used: {error['msg']}"
    given = error["input"]
    shown = repr(given[:_LONGEST]) if isinstance(given, str) else json.dumps(given, default=repr)[:_LONGEST]
    return f"{name} {allowed}; got {shown}."
