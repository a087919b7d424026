"""What all routes of the API share: how they fail, and who asks."""

from __future__ import annotations

from typing import Annotated, Any, get_origin

from fastapi import Depends, HTTPException, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from workingpapers.errors import UserError, unknown_name
from workingpapers.site import people
from workingpapers.site.people import User
from workingpapers.site.web.api_models import Problem

_SAID = {
    400: "A value that cannot be used; the error names it and what is allowed.",
    404: "There is nothing of that name.",
    422: "A parameter that cannot be read.",
    429: "Too many requests; Retry-After says when to come back.",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": said} for status, said in _SAID.items()
}
REFUSED: dict[int | str, dict[str, Any]] = {
    401: {"model": Problem, "description": "No token, or one that is none."},
    403: {"model": Problem, "description": "A change that no token came with, from elsewhere than this page."},
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
            "This needs an API token: Authorization: Bearer TOKEN. Signed in, make one at /me/tokens.",
            {"WWW-Authenticate": "Bearer"},
        )
    response.headers["Cache-Control"] = "private, no-store"
    return user


Owner = Annotated[User, Depends(_owner)]
