"""What all routes of the API share: how they fail, and who asks."""

from __future__ import annotations

from typing import Annotated, Any, get_origin

from fastapi import Depends, HTTPException, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from workingpapers.errors import UserError, unknown_name
from workingpapers.site import people
from workingpapers.site.people import User
from workingpapers.site.web.api_models import Problem
from workingpapers.site.web.security import ELSEWHERE


def _problem(description: str, example: str) -> dict[str, Any]:
    shown = {"application/json": {"example": {"error": example}}}
    return {"model": Problem, "description": description, "content": shown}


NO_TOKEN = "This needs an API token: Authorization: Bearer TOKEN. Signed in, make one at /me/tokens."
ERRORS: dict[int | str, dict[str, Any]] = {
    400: _problem(
        "A value that cannot be used; the error names it and what is allowed.",
        "Unknown parameter 'pge'. Did you mean 'page'?",
    ),
    404: _problem("There is nothing of that name.", "No paper at 'grasman'. Did you mean 'grassmann'?"),
    422: _problem("A parameter that cannot be read.", "size must be 100 or less; got '101'."),
    429: _problem(
        "Too many requests; Retry-After says when to come back.",
        "Too many requests from your address. Try again in 1 second.",
    ),
}
REFUSED: dict[int | str, dict[str, Any]] = {
    401: _problem("No token, or one that is none.", NO_TOKEN),
    403: _problem("A change that no token came with, from elsewhere than this page.", ELSEWHERE),
}

_bearer = HTTPBearer(auto_error=False, description="An API token; signed in, make one at /me/tokens.")


async def refuse_unreadable(request: Request) -> None:
    """Refuse what no database keeps in a text: the character 0."""
    if "\0" in request.scope["path"] or b"%00" in request.scope["query_string"]:
        raise HTTPException(400, "There is a character 0 in the address, which is in no name and no text.")


async def refuse_unknown(request: Request) -> None:
    """Refuse parameters that a route does not have, and several values of one that takes one: neither would count."""
    takes = {it.alias: it.field_info.annotation for it in request.scope["route"].dependant.query_params}
    for name in request.query_params:
        if name not in takes:
            raise unknown_name("parameter", name, takes)
        if get_origin(takes[name]) is not list and len(request.query_params.getlist(name)) > 1:
            raise UserError(f"{name} may be given once.")


def _owner(
    request: Request, response: Response, given: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> User:
    """Return whose token it is, and keep the answer out of all caches."""
    with request.app.state.engine.connect() as connection:
        user = people.user_of_api_token(connection, given.credentials) if given else None
    if user is None:
        raise HTTPException(
            401,
            NO_TOKEN,
            {"WWW-Authenticate": "Bearer"},
        )
    response.headers["Cache-Control"] = "private, no-store"
    return user


Owner = Annotated[User, Depends(_owner)]
