"""Routes of people: signing in and out, and everything under /me. What they do with papers is in `deeds`."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any, Literal

from anyio import to_thread
from fastapi import APIRouter, Depends, Form, HTTPException, Query, Request
from fastapi.responses import Response
from sqlalchemy import select

from workingpapers.errors import UserError
from workingpapers.site import marks, people
from workingpapers.site.database import writing
from workingpapers.site.mail.message import clean_address
from workingpapers.site.papers import by_ids
from workingpapers.site.schema import subscriptions
from workingpapers.site.trending import day_of
from workingpapers.site.web import deeds
from workingpapers.site.web.render import page
from workingpapers.site.web.security import safe_path, slow_down
from workingpapers.site.web.session import SignedIn, drop_cookie, go_on, recognise, session_secret, set_cookie

router = APIRouter(include_in_schema=False, dependencies=[Depends(recognise)])
router.include_router(deeds.router)

SIZE = 20
_LONGEST_TOKEN, _LONGEST_PATH = 4096, 500
_NOT_KEPT = {"Cache-Control": "no-store"}

PageNumber = Annotated[int, Query(alias="page", ge=1, le=1000)]
Address = Annotated[str, Form(max_length=300)]
Token = Annotated[str, Form(max_length=_LONGEST_TOKEN)]


@router.get("/sign-in")
def ask_for_link(
    request: Request, go_to: Annotated[str, Query(alias="next", max_length=_LONGEST_PATH)] = "/me"
) -> Response:
    """Answer with the form that asks for a link."""
    if request.state.user:
        return go_on(go_to)
    return page(request, "account/sign_in.html", go_to=safe_path(go_to, "/me"))


@router.post("/sign-in")
def send_link(
    request: Request, email: Address, go_to: Annotated[str, Form(alias="next", max_length=_LONGEST_PATH)] = "/me"
) -> Response:
    """Send a link, and answer the same for every address."""
    state = request.app.state
    address = clean_address(email)
    slow_down(request, "links")
    with writing(state.engine) as connection:
        people.send_link(connection, state.settings, address, safe_path(go_to, "/me"), time.time())
    return page(request, "account/sent.html", email=address, minutes=int(people.LINK_AGE // 60))


@router.get("/sign-in/confirm")
def show_link(request: Request, token: Annotated[str, Query(max_length=_LONGEST_TOKEN)] = "") -> Response:
    """Answer with a button. Mail programs open links to look at them, so opening one signs nobody in."""
    email, _ = people.read_link(request.app.state.settings, token, time.time())
    return page(request, "account/confirm.html", headers=_NOT_KEPT, email=email, token=token)


@router.post("/sign-in/confirm")
def use_link(request: Request, token: Token) -> Response:
    """Sign in, and go on to where the link was asked for."""
    state = request.app.state
    with writing(state.engine) as connection:
        done = people.sign_in(connection, state.settings, token, time.time())
    answer = go_on(done.go_on)
    set_cookie(answer, state.settings, done.secret)
    return answer


@router.post("/sign-out")
def sign_out(request: Request, everywhere: Annotated[bool, Form()] = False) -> Response:
    """End this session, or all of the person's."""
    state = request.app.state
    with writing(state.engine) as connection:
        people.sign_out(connection, session_secret(request))
        if everywhere and request.state.user:
            people.sign_out_everywhere(connection, request.state.user)
    answer = go_on("/")
    drop_cookie(answer, state.settings)
    return answer


@router.get("/me")
def overview(request: Request, user: SignedIn) -> Response:
    """Answer with what a person has here."""
    state = request.app.state
    with state.engine.connect() as connection:
        unread, to_read = marks.kept(connection, user.id, False, 1, size=5)
        values: dict[str, Any] = {
            "unread": by_ids(connection, unread),
            "to_read": to_read,
            "tags": marks.tags_of(connection, user.id),
            "searches": marks.searches_of(connection, user.id),
            "picked": by_ids(connection, people.picked_on(connection, day_of(time.time()).isoformat())),
        }
    return page(request, "account/me.html", curator=people.is_curator(state.settings, user), **values)


@router.get("/me/library")
def library(
    request: Request,
    user: SignedIn,
    show: Literal["all", "read", "unread"] = "all",
    number: PageNumber = 1,
) -> Response:
    """Answer with a page of the library."""
    with request.app.state.engine.connect() as connection:
        ids, total = marks.kept(connection, user.id, {"read": True, "unread": False}.get(show), number, SIZE)
        found, own = by_ids(connection, ids), marks.marks_on(connection, user.id, ids)
    values: dict[str, Any] = {
        "papers": found,
        "marks": own,
        "total": total,
        "page": number,
        "more": total > number * SIZE,
    }
    return page(request, "account/library.html", show=show, **values)


@router.get("/me/tags")
def tags(request: Request, user: SignedIn) -> Response:
    """Answer with a person's tags."""
    with request.app.state.engine.connect() as connection:
        return page(request, "account/tags.html", tags=marks.tags_of(connection, user.id))


@router.get("/me/tags/{tag}")
def tagged(request: Request, user: SignedIn, tag: str, number: PageNumber = 1) -> Response:
    """Answer with a page of the papers with a tag."""
    name = marks.clean_tag(tag)
    with request.app.state.engine.connect() as connection:
        ids, total = marks.tagged(connection, user.id, name, number, SIZE)
        found, own = by_ids(connection, ids), marks.marks_on(connection, user.id, ids)
    if not total:
        raise HTTPException(404, f"None of your papers has the tag {name!r}.")
    values: dict[str, Any] = {
        "papers": found,
        "marks": own,
        "total": total,
        "page": number,
        "more": total > number * SIZE,
    }
    return page(request, "account/tagged.html", tag=name, **values)


@router.get("/me/searches")
def searches(request: Request, user: SignedIn) -> Response:
    """Answer with a person's saved searches."""
    active = (subscriptions.c.email == user.email) & (subscriptions.c.state == "active")
    with request.app.state.engine.connect() as connection:
        found = marks.searches_of(connection, user.id)
        has_digest = connection.execute(select(subscriptions.c.id).where(active)).one_or_none() is not None
    return page(request, "account/searches.html", searches=found, has_digest=has_digest)


@router.post("/me/searches")
def save_search(
    request: Request,
    user: SignedIn,
    query: Annotated[str, Form(max_length=500)],
    alert: Annotated[bool, Form()] = False,
) -> Response:
    """Keep a search, or turn its alert on or off."""
    with writing(request.app.state.engine) as connection:
        marks.save_search(connection, user.id, query, time.time(), alert=alert)
    return go_on("/me/searches")


@router.post("/me/searches/{number}/delete")
def forget_search(request: Request, user: SignedIn, number: int) -> Response:
    """Delete a saved search."""
    with writing(request.app.state.engine) as connection:
        marks.forget_search(connection, user.id, deeds.row_number(number))
    return go_on("/me/searches")


@router.get("/me/recommended")
async def recommended(request: Request, user: SignedIn, tag: Annotated[str, Query(max_length=80)] = "") -> Response:
    """Answer with what a person's votes and tags recommend."""
    return await to_thread.run_sync(_recommended, request, user, tag, limiter=request.app.state.recommending)


def _recommended(request: Request, user: people.User, tag: str) -> Response:
    state = request.app.state
    name = marks.clean_tag(tag) if tag else None
    with state.engine.connect() as connection:
        own = marks.tags_of(connection, user.id)
    most_used = sorted(own, key=own.__getitem__, reverse=True)[:SIZE]
    found = state.recommender.recommend(user.id, name)
    return page(request, "account/recommended.html", found=found, tag=name, tags=most_used)


@router.get("/me/data")
def data(request: Request, user: SignedIn) -> Response:
    """Answer with how to take all own data along, or have it deleted."""
    return page(request, "account/data.html", email=user.email)


@router.get("/me/data/export")
def export(request: Request, user: SignedIn) -> Response:
    """Answer with all own data as JSON, to be saved."""
    with request.app.state.engine.connect() as connection:
        text = json.dumps(people.export(connection, user), indent=1, ensure_ascii=False)
    named = {"Content-Disposition": 'attachment; filename="working-papers.json"'}
    return Response(text, media_type="application/json", headers=_NOT_KEPT | named)


@router.post("/me/data/delete")
def delete_account(request: Request, user: SignedIn, email: Address) -> Response:
    """Delete the account, if its address was typed to confirm it."""
    if email.strip().lower() != user.email:
        raise UserError(f"To delete everything, type the address of this account, {user.email}. Nothing was deleted.")
    state = request.app.state
    with writing(state.engine) as connection:
        people.delete_account(connection, user)
    request.state.user = None
    answer = page(request, "account/gone.html", headers=_NOT_KEPT, email=user.email)
    drop_cookie(answer, state.settings)
    return answer


@router.get("/me/tokens")
def tokens(request: Request, user: SignedIn) -> Response:
    """Answer with a person's API tokens."""
    with request.app.state.engine.connect() as connection:
        return page(request, "account/tokens.html", tokens=people.api_tokens_of(connection, user), made=None)


@router.post("/me/tokens")
def make_token(request: Request, user: SignedIn, name: Annotated[str, Form(max_length=200)]) -> Response:
    """Make an API token, and show it this once."""
    with writing(request.app.state.engine) as connection:
        made = people.make_api_token(connection, user, name, time.time())
        found = people.api_tokens_of(connection, user)
    return page(request, "account/tokens.html", headers=_NOT_KEPT, tokens=found, made=made)


@router.post("/me/tokens/{number}/delete")
def take_back_token(request: Request, user: SignedIn, number: int) -> Response:
    """Make an API token worthless."""
    with writing(request.app.state.engine) as connection:
        people.take_back_api_token(connection, user, deeds.row_number(number))
    return go_on("/me/tokens")
