"""Routes of subscriptions: asking, confirming, changing and ending. Links of mails only show; buttons change."""

from __future__ import annotations

import time
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Form, Query, Request
from fastapi.responses import RedirectResponse, Response

from workingpapers.errors import UserError
from workingpapers.papers.topics import load_topics
from workingpapers.site.database import writing
from workingpapers.site.mail import subscriptions
from workingpapers.site.mail.message import clean_address
from workingpapers.site.mail.subscriptions import (
    CONFIRM_PATH,
    FREQUENCIES,
    LONGEST_QUERY,
    MANAGE_PATH,
    MOST_QUERIES,
    MOST_TOPICS,
    STOP_PATH,
    Subscription,
    Wish,
    read_wish,
)
from workingpapers.site.web.render import page
from workingpapers.site.web.security import slow_down
from workingpapers.site.web.session import recognise

router = APIRouter(include_in_schema=False, dependencies=[Depends(recognise)])

_NOT_KEPT = {"Cache-Control": "no-store"}
_PRIVATE = _NOT_KEPT | {"Referrer-Policy": "no-referrer"}  # the address of the page has a token

Token = Annotated[str, Query(max_length=8192)]
TokenField = Annotated[str, Form(alias="token", max_length=8192)]
Frequency = Annotated[str, Form(max_length=20)]
Names = Annotated[list[str], Form(default_factory=list, max_length=100)]


@router.get("/subscribe")
def form(
    request: Request,
    topic: Annotated[list[str], Query(default_factory=list, max_length=MOST_TOPICS)],
    query: Annotated[list[str], Query(default_factory=list, max_length=MOST_QUERIES)],
) -> Response:
    """Answer with the form; links from topics and searches fill it in."""
    known = tuple(name for name in topic if name in load_topics())
    user = getattr(request.state, "user", None)
    return _form(request, Wish("weekly", known, tuple(query)), email=user.email if user else "")


@router.post("/subscribe")
def ask(
    request: Request,
    topics: Names,
    queries: Names,
    email: Annotated[str, Form(max_length=300)] = "",
    frequency: Frequency = "",
) -> Response:
    """Send a mail that asks to confirm, and answer the same for every address."""
    state = request.app.state
    try:
        wish = read_wish(frequency, topics, queries)
        clean_address(email)
    except UserError as error:
        typed = Wish(frequency, tuple(topics), tuple(queries))
        return _form(request, typed, email=email, problem=str(error), status=400)
    slow_down(request, "confirmations")
    with writing(state.engine) as connection:
        subscriptions.ask(connection, state.settings, email, wish, time.time())
    return RedirectResponse("/subscribe/sent", 303)


@router.get("/subscribe/sent")
def sent(request: Request) -> Response:
    """Answer with what to do next."""
    return page(request, "subscription/sent.html")


@router.get(CONFIRM_PATH)
def show_confirmation(request: Request, token: Token = "") -> Response:
    """Answer with a button: programs that look at the links of mails must not subscribe anybody."""
    email, wish = subscriptions.read_confirmation(request.app.state.settings, token, time.time())
    return page(request, "subscription/confirm.html", headers=_PRIVATE, email=email, wish=wish, token=token)


@router.post(CONFIRM_PATH)
def confirm(request: Request, token: TokenField = "") -> Response:
    """Make the subscription, and go on to its page."""
    state, now = request.app.state, time.time()
    with writing(state.engine) as connection:
        made = subscriptions.confirm(connection, state.settings, token, now)
    own = subscriptions.link_token(state.settings, made, now)
    return RedirectResponse(f"{MANAGE_PATH}?{urlencode({'token': own, 'done': 'confirmed'})}", 303)


@router.get(MANAGE_PATH)
def manage(request: Request, token: Token = "", done: Annotated[str, Query(max_length=20)] = "") -> Response:
    """Answer with a subscription and a form to change it."""
    found = _own(request, token)
    return _manage(request, found, token, found.wish, done=done)


@router.post(MANAGE_PATH)
def change(
    request: Request,
    topics: Names,
    queries: Names,
    token: TokenField = "",
    frequency: Frequency = "",
) -> Response:
    """Change a subscription; one that was ended goes on."""
    found = _own(request, token)
    try:
        wish = read_wish(frequency, topics, queries)
    except UserError as error:
        typed = Wish(frequency, tuple(topics), tuple(queries))
        return _manage(request, found, token, typed, problem=str(error), status=400)
    with writing(request.app.state.engine) as connection:
        subscriptions.change(connection, found, wish)
    return RedirectResponse(f"{MANAGE_PATH}?{urlencode({'token': token, 'done': 'changed'})}", 303)


@router.get(STOP_PATH)
def show_end(request: Request, token: Token = "") -> Response:
    """Answer with a button: programs that look at the links of mails must not end anything."""
    found = _own(request, token)
    return page(request, "subscription/end.html", headers=_PRIVATE, found=found, token=token, ended=False)


@router.post(STOP_PATH)
def end(request: Request, token: Token = "") -> Response:
    """End a subscription; a mail program's own button posts here too (RFC 8058), without cookies or origin."""
    found = _own(request, token)
    with writing(request.app.state.engine) as connection:
        subscriptions.end(connection, found)
    return page(request, "subscription/end.html", headers=_PRIVATE, found=found, token=token, ended=True)


def _own(request: Request, token: str) -> Subscription:
    state = request.app.state
    with state.engine.connect() as connection:
        return subscriptions.by_token(connection, state.settings, token, time.time())


def _form(request: Request, wish: Wish, email: str, problem: str = "", status: int = 200) -> Response:
    return page(request, "subscription/ask.html", status, email=email, problem=problem, **_choices(wish))


def _manage(
    request: Request, found: Subscription, token: str, wish: Wish, done: str = "", problem: str = "", status: int = 200
) -> Response:
    values = {"found": found, "token": token, "done": done, "problem": problem}
    return page(request, "subscription/manage.html", status, _PRIVATE, **values, **_choices(wish))


def _choices(wish: Wish) -> dict[str, Any]:
    """Return what the fields of a wish need."""
    tree = load_topics()
    limits = {"most_topics": MOST_TOPICS, "most_queries": MOST_QUERIES, "longest_query": LONGEST_QUERY}
    return {"wish": wish, "frequencies": FREQUENCIES, "tree": tree, **limits}
