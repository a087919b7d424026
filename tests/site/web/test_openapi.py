"""The API against its own description: schemathesis makes requests from the schema and holds answers against it."""

import pytest
import schemathesis
from api_tokens import token_for
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode, checks

from workingpapers.site.web.api_docs import type_of

EXAMPLES = 12  # requests of each kind to each endpoint
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]
KEEP = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def schema(world):
    """The description, with the application behind it."""
    return schemathesis.openapi.from_asgi("/api/v1/openapi.json", world.app)


@pytest.fixture(scope="module")
def token(world):
    """An API token."""
    return token_for(world.app.state.engine, "x@example.org")


def operations(schema):
    return [found.ok() for found in schema.get_all_operations()]


def headers(token):
    """Each request comes from an address of its own, so that no limit of rate hides what is behind it."""
    number = next(_numbers)
    return {"Authorization": f"Bearer {token}", "X-Forwarded-For": f"10.77.{number // 250}.{number % 250 + 1}"}


_numbers = iter(range(60_000))


def test_every_parameter_and_answer_is_described(client):
    described = client.get("/api/v1/openapi.json").json()
    for path, operations_ in described["paths"].items():
        for operation in operations_.values():
            assert operation["description"], path
            for it in operation.get("parameters", []):
                assert it.get("description") or it["schema"].get("description"), (path, it["name"])
            assert all(answer["description"] for answer in operation["responses"].values()), path


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_answers_are_as_described_whatever_is_asked(schema, token, mode):
    """Requests that fit the schema and requests that don't, to every endpoint: no 5xx, no answer of another shape."""
    tried = 0
    for operation in operations(schema):
        if mode is GenerationMode.NEGATIVE and not (operation.query or operation.body):
            continue  # a path of texts cannot be wrong

        @KEEP
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case):
            nonlocal tried
            tried += 1
            case.call_and_validate(headers=headers(token), checks=CHECKS)

        ask()
    assert tried > 100


@pytest.mark.slow
def test_names_that_are_there_are_answered_as_described(schema, token, world):
    """Made-up names find nothing; so every path is asked with names that are there too."""
    board = next(iter(world.app.state.measured.now().boards))
    names = {"slug": "moment-probing", "tag": "a tag", "number": 1, "identifier": "2302.02330"}
    for operation in operations(schema):
        here = names | {"name": board if "leaderboards" in operation.path else "feature-transfer"}
        given_ = {"path_parameters": {it.name: here[it.name] for it in operation.path_parameters}}
        if operation.body:
            body = {"query": "sparse attention"} if operation.path.endswith("/searches") else {"read": True}
            given_ |= {"body": body, "media_type": "application/json"}
        case = operation.Case(**given_)
        answer = case.call_and_validate(headers=headers(token), checks=CHECKS)
        assert answer.status_code == 200
    paths = schema.raw_schema["paths"].values()
    assert len(operations(schema)) == sum(len(methods) for methods in paths) > 30


@pytest.mark.parametrize(
    ("schema_", "words"),
    [
        ({"$ref": "#/components/schemas/Paper"}, "Paper"),
        ({"type": "array", "items": {"type": "string"}}, "list of text"),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "whole number or null"),
        ({"enum": ["day", "week", "all"], "type": "string"}, "day, week or all"),
        ({"const": "user", "type": "string"}, "user"),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, "whole number by name"),
        ({"type": "integer", "minimum": 1, "maximum": 100}, "whole number, 1 to 100"),
        ({"type": "string", "format": "date"}, "date"),
        ({}, "anything"),
    ],
)
def test_types_are_said_in_words(schema_, words):
    assert type_of(schema_) == words
