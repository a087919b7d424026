"""The API for people: its OpenAPI description as a plain page, without scripts from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from workingpapers.site.web.render import page
from workingpapers.site.web.session import recognise

router = APIRouter(include_in_schema=False, dependencies=[Depends(recognise)])

Schema = Mapping[str, Any]
_METHODS = ("get", "put", "post", "patch", "delete")


@dataclass(frozen=True)
class Field:
    """A parameter, or a field of a model: name, type and remark in words."""

    name: str
    type: str
    about: str


@dataclass(frozen=True)
class Endpoint:
    """What one method of one path does.

    Attributes:
        method, path: as asked for.
        about: what it does.
        fields: its parameters.
        takes, gives: the names of the models of request and answer; takes is "" without a body.
        needs_token: whether it needs a token.
    """

    method: str
    path: str
    about: str
    fields: tuple[Field, ...]
    takes: str
    gives: str
    needs_token: bool


@router.get("/api")
def documentation(request: Request) -> Response:
    """Answer with every endpoint of the API and every model that they speak in."""
    schema = request.app.openapi()
    return page(
        request,
        "api.html",
        groups=endpoints(schema),
        models=models(schema),
        address=request.app.state.settings.address,
    )


def endpoints(schema: Schema) -> dict[str, list[Endpoint]]:
    """Return the endpoints of an OpenAPI description by tag."""
    found: dict[str, list[Endpoint]] = {}
    for path, operations in schema["paths"].items():
        for method in _METHODS:
            if method in operations:
                operation = operations[method]
                found.setdefault(operation["tags"][0], []).append(_endpoint(method, path, operation))
    return found


def models(schema: Schema) -> dict[str, tuple[str, list[Field]]]:
    """Return, by name, what each model is and its fields."""
    return {
        name: (
            model.get("description", ""),
            [Field(key, type_of(it), it.get("description", "")) for key, it in model.get("properties", {}).items()],
        )
        for name, model in schema["components"]["schemas"].items()
    }


def type_of(schema: Schema) -> str:
    """Return a JSON schema in words: "list of Paper", "text or null", "day, week, month or all"."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(type_of(part) for part in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(", ".join(map(str, schema["enum"])).rsplit(", ", 1))
    if "const" in schema:
        return str(schema["const"])
    if schema.get("type") == "array":
        return f"list of {type_of(schema['items'])}"
    if schema.get("type") == "object":
        return f"{type_of(schema['additionalProperties'])} by name" if "additionalProperties" in schema else "object"
    words = {"string": "text", "integer": "whole number", "boolean": "true or false"}
    kind = str(schema.get("format") or schema.get("type", "anything"))
    low, high = schema.get("minimum"), schema.get("maximum")
    return words.get(kind, kind) + (f", {low} to {high}" if low is not None and high is not None else "")


def _endpoint(method: str, path: str, operation: Schema) -> Endpoint:
    return Endpoint(
        method=method.upper(),
        path=path,
        about=operation.get("description", ""),
        fields=tuple(_parameter(it) for it in operation.get("parameters", ())),
        takes=type_of(_json(operation["requestBody"])) if "requestBody" in operation else "",
        gives=type_of(_json(operation["responses"]["200"])),
        needs_token=bool(operation.get("security")),
    )


def _parameter(it: Schema) -> Field:
    default, (example,) = it["schema"].get("default"), it["schema"]["examples"]
    about = [it.get("description") or it["schema"].get("description", "")]
    about += ["needed" if it.get("required") else f"{default} if not given" if default not in (None, "", []) else ""]
    if example != default:
        about.append(f"for example {', '.join(example) if isinstance(example, list) else example}")
    return Field(it["name"], type_of(it["schema"]), "; ".join(part for part in about if part))


def _json(content: Schema) -> Schema:
    found: Schema = content["content"]["application/json"]["schema"]
    return found
