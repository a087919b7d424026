"""Reasons are sentences: they name the value, what is allowed, and what was given."""

from typing import Annotated, Literal

import pytest
from fastapi import Body, FastAPI, Form, Query
from fastapi.exceptions import RequestValidationError
from fastapi.testclient import TestClient
from pydantic import BaseModel, ConfigDict, Field

from workingpapers.site.web.refusal import wrong_value


class Kept(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    text: str = Field(min_length=2, max_length=4)
    alert: bool = False
    day: Annotated[str, Field(pattern="^[{]$")] = "{"


@pytest.fixture(scope="module")
def said():
    """Ask, and return the sentences."""
    app = FastAPI()
    errors = []

    @app.exception_handler(RequestValidationError)
    async def note(request, error):
        errors[:] = [wrong_value(it) for it in error.errors()]
        raise error

    @app.get("/")
    def read(
        page: Annotated[int, Query(ge=1, le=9)] = 1,
        share: Annotated[float, Query(gt=0, lt=1)] = 0.5,
        sort: Literal["date", "votes"] = "date",
        is_on: bool = False,
        has: Annotated[list[str], Query(max_length=2)] = [],  # noqa: B006
    ): ...

    @app.post("/form")
    def form(name: Annotated[str, Form()]): ...

    @app.put("/")
    def keep(kept: Annotated[Kept, Body()]): ...

    client = TestClient(app, raise_server_exceptions=False)

    def ask(method, path, **options):
        client.request(method, path, **options)
        return errors

    return ask


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("page=x", "page must be a whole number; got 'x'."),
        ("page=0", "page must be 1 or more; got '0'."),
        ("page=10", "page must be 9 or less; got '10'."),
        ("page=" + "9" * 5000, "page must be a whole number of fewer digits; got '" + "9" * 80 + "'."),
        ("share=0", "share must be more than 0.0; got '0'."),
        ("share=1", "share must be less than 1.0; got '1'."),
        ("sort=Date", "sort must be 'date' or 'votes'; got 'Date'."),
        ("is_on=maybe", "is_on must be true or false; got 'maybe'."),
        ("has=a&has=b&has=c", 'has may be given 2 times at most; got ["a", "b", "c"].'),
    ],
)
def test_parameters(said, query, sentence):
    assert said("GET", f"/?{query}") == [sentence]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ('{"text": 5}', "text must be text; got 5."),
        ('{"text": null}', "text must be text; got null."),
        ('{"text": "x"}', "text must have 2 or more characters; got 'x'."),
        ('{"text": "xxxxx"}', "text may have 4 characters at most; got 'xxxxx'."),
        ('{"text": "xx", "alert": 1}', "alert must be true or false; got 1."),
        ('{"text": "xx", "more": 1}', "more is not known here; got 1."),
        ('{"alert": true}', "text is missing."),
        ("[]", "the body must be a JSON object; got []."),
        ("", "the body is missing."),
    ],
)
def test_bodies(said, body, sentence):
    assert said("PUT", "/", content=body, headers={"Content-Type": "application/json"}) == [sentence]


def test_a_body_that_is_no_json_is_named_and_so_is_a_field_that_is_missing(said):
    [sentence] = said("PUT", "/", content="{", headers={"Content-Type": "application/json"})
    assert sentence.startswith("the body is no JSON: ")
    assert said("POST", "/form", data={}) == ["name is missing."]


def test_a_reason_without_words_of_ours_is_given_as_it_is(said):
    [sentence] = said("PUT", "/", json={"text": "xx", "day": "x"})
    assert sentence.startswith("day cannot be used: ")
    assert sentence.endswith("; got 'x'.")
