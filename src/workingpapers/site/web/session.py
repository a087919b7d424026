"""Who asks: the cookie of a session, and the dependencies by which routes know the person."""

from __future__ import annotations

import time
from typing import Annotated
from urllib.parse import quote, urlsplit

from fastapi import Depends, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse, Response

from workingpapers.site import people
from workingpapers.site.people import User
from workingpapers.site.settings import Settings
from workingpapers.site.web.security import safe_path


def cookie_name(settings: Settings) -> str:
    """Return the cookie's name; over https it is one that no other host of the domain can set."""
    return "__Host-session" if settings.secure else "session"


async def recognise(request: Request) -> None:
    """Put the person who is signed in, or None, into `request.state.user`. A request without a cookie costs nothing."""
    secret = session_secret(request)
    request.state.user = await run_in_threadpool(_look_up, request, secret) if secret else None


def _look_up(request: Request, secret: str) -> User | None:
    with request.app.state.engine.connect() as connection:
        return people.user_of_session(connection, secret, time.time())


def _signed_in(request: Request, _: Annotated[None, Depends(recognise)]) -> User:
    """Return the person, or send the browser to sign in and then back."""
    user: User | None = request.state.user
    if user is None:
        back = here(request) if request.method == "GET" else came_from(request, "/")
        raise HTTPException(303, "Sign in first.", {"Location": f"/sign-in?next={quote(back, safe='')}"})
    return user


SignedIn = Annotated[User, Depends(_signed_in)]


def session_secret(request: Request) -> str:
    """Return what the session's cookie holds, "" without one."""
    return request.cookies.get(cookie_name(request.app.state.settings), "")


def set_cookie(response: Response, settings: Settings, secret: str) -> None:
    """Have the browser keep a session; no script can read it, and no other site's form brings it along."""
    name, age = cookie_name(settings), int(people.SESSION_AGE)
    response.set_cookie(name, secret, age, path="/", secure=settings.secure, httponly=True, samesite="lax")


def drop_cookie(response: Response, settings: Settings) -> None:
    """Have the browser forget a session."""
    response.delete_cookie(cookie_name(settings), path="/", secure=settings.secure, httponly=True, samesite="lax")


def here(request: Request) -> str:
    """Return the path and query that were asked for."""
    return safe_path(f"{request.url.path}{'?' * bool(request.url.query)}{request.url.query}")


def came_from(request: Request, default: str) -> str:
    """Return the page of ours on which a form was sent, by its Referer; the default if it was none of ours."""
    try:
        place = urlsplit(request.headers.get("referer", ""))
    except ValueError:
        return default
    own = (request.headers.get("host"), urlsplit(request.app.state.settings.address).netloc)
    if not place.netloc or place.netloc not in own:
        return default
    return safe_path(f"{place.path}{'?' * bool(place.query)}{place.query}", default)


def go_on(path: str) -> RedirectResponse:
    """Answer a form with the page to look at next; `path` is one of ours, made safe."""
    return RedirectResponse(safe_path(path), 303)
