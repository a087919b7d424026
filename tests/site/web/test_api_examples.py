"""The examples of the API's description, held against the page with the real catalogue."""

import datetime
from typing import Any

import pytest
from api_tokens import token_for
from fastapi.testclient import TestClient
from jsonschema import Draft202012Validator
from sqlalchemy import insert, select, update

from workingpapers.runs.store import Run, Store
from workingpapers.site import marks
from workingpapers.site.database import writing
from workingpapers.site.schema import papers, picks, users
from workingpapers.site.settings import Settings
from workingpapers.site.trending import Signal, record_all
from workingpapers.site.web.api_examples import HARDWARE, PAPER
from workingpapers.site.web.app import create_app

DAY = "2026-11-25"
ADDED = datetime.datetime(2026, 11, 25, 10, tzinfo=datetime.UTC).timestamp()
# The last search is deleted; and what is recommended is learnt from embeddings, of which there are none.
EMPTY = {("delete", "/api/v1/me/searches/{number}"), ("get", "/api/v1/me/recommended")}
NAMES = ("slug", "id", "name", "entry", "title", "tag")  # two things that have these in common are the same


def run(entry: str, seed: int, accuracy: float, better: float) -> Run:
    return Run(
        key=f"{entry} {seed}",
        task="probe",
        setting="representation",
        data="mnist-5k",
        data_fingerprint="fbe695bf",
        model="",
        model_fingerprint="",
        budget="quick",
        entry=entry,
        paper=PAPER if entry.startswith(PAPER) else None,
        seed=seed,
        status="ok",
        metrics={"accuracy": accuracy, "within-class-variance": 0.15, "transfer-accuracy": 50 + seed + better},
        measured={"fit_seconds": 30.0, "predict_seconds": 1.0, "peak_memory_mb": 800.0, "parameters": 107792.0},
        settings={"label": "label", "threads": 1, "budget": {"name": "quick", "train": 2500}},
        versions={"torch": "2.13.0"},
        hardware={"processor": HARDWARE, "cores": 2, "memory_gb": 16, "gpu": "", "system": "Linux"},
        finished="2026-11-25T21:15:41.721+00:00",
    )


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """The page with the catalogue, two entries of the leaderboard, and somebody's marks; asks with their token."""
    folder = tmp_path_factory.mktemp("examples")
    store = Store(str(folder / "runs.sqlite"))
    for seed, accuracy in enumerate((96.0, 97.0, 96.0, 97.0, 96.9)):
        store.save(run("softmax", seed, accuracy, 0.0))
        store.save(run("grassmann-k8", seed, 192.8 - accuracy, 5.0))
    settings = Settings(
        database=f"sqlite:///{folder}/site.sqlite",
        store=str(folder / "runs.sqlite"),
        secret="s" * 32,
        embeddings=False,
        address="https://papers.example.org",
    )
    app = create_app(settings)
    with TestClient(app):  # the catalogue comes with the start
        pass
    token = token_for(app.state.engine, "ada@example.org")
    with writing(app.state.engine) as connection:
        connection.execute(update(papers).values(added=ADDED))
        paper = connection.execute(select(papers.c.id).where(papers.c.slug == PAPER)).scalar_one()
        user = connection.execute(select(users.c.id)).scalar_one()
        record_all(connection, [Signal(paper, "vote", 3, DAY)])
        connection.execute(insert(picks).values(paper_id=paper, day=DAY, user_id=user))
        marks.keep(connection, user, paper, ADDED, read=True)
        marks.vote(connection, user, paper, ADDED)
        marks.add_tag(connection, user, paper, "probes")
        marks.save_search(connection, user, "linear probe year:2023..", ADDED, alert=True)
    yield TestClient(app, headers={"Authorization": f"Bearer {token}"})
    app.state.engine.dispose()


@pytest.fixture(scope="module")
def operations(client):
    """What the description says: method, path, and the rest of it."""
    paths = client.get("/api/v1/openapi.json").json()["paths"]
    return [(method, path, it) for path, methods in paths.items() for method, it in methods.items()]


def example_of(parameter: dict[str, Any]) -> Any:
    (example,) = parameter["schema"]["examples"]
    return example


def asked(client, method, path, operation, chosen):
    """Ask with the examples of what is in the path and of chosen other parameters."""
    parameters = {it["name"]: it for it in operation.get("parameters", ())}
    values = {name: example_of(it) for name, it in parameters.items() if it["in"] == "path" or name in chosen}
    query = {name: value for name, value in values.items() if parameters[name]["in"] == "query"}
    body = None
    if "requestBody" in operation:
        models = client.get("/api/v1/openapi.json").json()["components"]["schemas"]
        model = models[operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]]
        body = {name: it["examples"][0] for name, it in model["properties"].items()}
    return client.request(method, path.format(**values), params=query, json=body)


def test_each_example_of_a_parameter_finds_something(client, operations):
    tried = 0
    for method, path, operation in operations:
        names = [it["name"] for it in operation.get("parameters", ()) if it["in"] == "query"]
        for name in names:
            answer = asked(client, method, path, operation, [name])
            assert answer.status_code == 200, (path, name, answer.text)
            found = answer.json()
            assert (method, path) in EMPTY or (found if isinstance(found, list) else found.get("items", True)), name
            tried += 1
    assert tried > 30


def test_each_example_of_an_answer_is_one(client, operations):
    components = client.get("/api/v1/openapi.json").json()["components"]
    same: set[str] = set()
    for method, path, operation in operations:
        # Of a day, a week and a month one alone may be given.
        names = {it["name"] for it in operation.get("parameters", ())} - {"week", "month"}
        answer = asked(client, method, path, operation, names)
        assert answer.status_code == 200, (path, answer.text)
        content = operation["responses"]["200"]["content"]["application/json"]
        Draft202012Validator({**content["schema"], "components": components}).validate(content["example"])
        agree(content["example"], answer.json(), (method, path), same)
    # What was compared word for word, since the answer had it.
    assert {"Feature transfer", PAPER, "transfers-better", "grassmann-k8", "accuracy", "probes", "day"} <= same


def agree(shown: Any, found: Any, where: tuple[str, ...], same: set[str]) -> None:
    """Check that what an example shows has the fields of the answer, and of the same things the same texts."""
    if isinstance(shown, list) and shown and isinstance(shown[0], dict):
        assert found or where[:2] in EMPTY, where
        for it in shown:
            alike = [other for other in found if named(it) == named(other)] or found
            agree(it, alike[0] if alike else it, where, same)
    elif isinstance(shown, dict) and shown and isinstance(found, dict):
        assert shown.keys() <= found.keys(), where
        is_same = bool(named(shown)) and named(shown) == named(found)
        same.update(str(value) for value in named(shown).values() if is_same)
        for name, value in shown.items():
            if isinstance(value, dict | list):
                agree(value, found[name], (*where, name), same)
            elif is_same and isinstance(value, str):
                assert value == found[name] or (value[-1:] == "…" and found[name].startswith(value[:-1])), (where, name)


def named(it: dict[str, Any]) -> dict[str, Any]:
    return {name: it[name] for name in NAMES if name in it}


def test_each_failure_has_an_example(client, operations):
    for _, path, operation in operations:
        for status, said in operation["responses"].items():
            example = said["content"]["application/json"]["example"]
            assert status == "200" or list(example) == ["error"], path
