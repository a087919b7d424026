"""Routes of what people do with papers: vote, tag, keep, pick, submit. Each answers with the page it was done on."""

from __future__ import annotations

import time
from typing import Annotated, Literal

from fastapi import APIRouter, Form, HTTPException, Request
from fastapi.responses import Response

from workingpapers.errors import UserError
from workingpapers.site import marks, people, submissions
from workingpapers.site.database import writing
from workingpapers.site.papers import by_slug
from workingpapers.site.web.render import or_missing, page
from workingpapers.site.web.session import SignedIn, came_from, go_on

router = APIRouter()


@router.post("/papers/{slug}/vote")
def vote(request: Request, user: SignedIn, slug: str, undo: Annotated[bool, Form()] = False) -> Response:
    """Vote for a paper, or take the vote back."""
    with writing(request.app.state.engine) as connection:
        with or_missing():
            paper = by_slug(connection, slug)
        if undo:
            marks.withdraw_vote(connection, user.id, paper.id)
        else:
            marks.vote(connection, user.id, paper.id, time.time())
    return go_on(came_from(request, f"/papers/{paper.slug}"))


@router.post("/papers/{slug}/tags")
def tag(
    request: Request,
    user: SignedIn,
    slug: str,
    name: Annotated[str, Form(alias="tag", max_length=200)],
    do: Annotated[Literal["add", "remove"], Form()] = "add",
) -> Response:
    """Put a tag on a paper or take it off."""
    with writing(request.app.state.engine) as connection:
        with or_missing():
            paper = by_slug(connection, slug)
        if do == "add":
            marks.add_tag(connection, user.id, paper.id, name)
        else:
            marks.remove_tag(connection, user.id, paper.id, name)
    return go_on(came_from(request, f"/papers/{paper.slug}"))


@router.post("/papers/{slug}/library")
def keep(
    request: Request, user: SignedIn, slug: str, state: Annotated[Literal["unread", "read", "drop"], Form()] = "unread"
) -> Response:
    """Put a paper into the library, mark it as read or unread, or take it out."""
    with writing(request.app.state.engine) as connection:
        with or_missing():
            paper = by_slug(connection, slug)
        if state == "drop":
            marks.drop(connection, user.id, paper.id)
        else:
            marks.keep(connection, user.id, paper.id, time.time(), read=state == "read")
    return go_on(came_from(request, f"/papers/{paper.slug}"))


@router.post("/papers/{slug}/pick")
def pick(
    request: Request, user: SignedIn, slug: str, do: Annotated[Literal["pick", "drop"], Form()] = "pick"
) -> Response:
    """Put a paper among today's picks or take it out; for curators."""
    state = request.app.state
    if not people.is_curator(state.settings, user):
        raise HTTPException(403, "Only curators pick papers; who they are is set by whoever runs this page.")
    with writing(state.engine) as connection:
        with or_missing():
            paper = by_slug(connection, slug)
        people.pick(connection, state.settings, user, paper.id, time.time(), picked=do == "pick")
    return go_on(came_from(request, f"/papers/{paper.slug}"))


@router.get("/submit")
def submission_form(request: Request, user: SignedIn) -> Response:
    """Answer with the form that takes an arXiv identifier."""
    with request.app.state.engine.connect() as connection:
        return page(request, "account/submit.html", waiting=submissions.of_user(connection, user.id))


@router.post("/submit")
def submit(request: Request, user: SignedIn, arxiv: Annotated[str, Form(max_length=300)]) -> Response:
    """Go to the paper if it is here, or have it fetched by the next sync."""
    with writing(request.app.state.engine) as connection:
        slug = submissions.submit(connection, user.id, arxiv, time.time())
    return go_on(f"/papers/{slug}" if slug else "/submit")


def row_number(number: int) -> int:
    """Return a row's number as a database can hold it.

    Raises:
        UserError: no row has it.
    """
    if not 0 < number < 2**31:
        raise UserError(f"There is no number {number}.")
    return number
