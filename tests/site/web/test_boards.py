import html
import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import demo
import pytest

from workingpapers.runs import plot
from workingpapers.runs.store import Store
from workingpapers.site.web.app import THREADS
from workingpapers.site.web.measured import Measured


@pytest.fixture
def names(world):
    return {board.conditions.setting + board.conditions.data[:3]: name
            for name, board in world.app.state.measured.now().boards.items()}  # fmt: skip


def test_the_list_has_every_leaderboard_by_task(client, names):
    text = client.get("/leaderboards").text
    assert all(f'href="/leaderboards/{name}"' in text for name in names.values())
    assert "A demonstration" in text
    assert "Left out: what was run of demo-of-the-past" in text
    assert "Some Processor @ 2.4 GHz" in text


def test_the_list_is_filtered(client, names):
    text = client.get("/leaderboards", params={"data": "openmoji"}).text
    assert names["standardope"] in text
    assert names["standard./m"] not in text
    assert "<option selected>openmoji</option>" in text
    everything = {"task": "demo", "hardware": "Some Processor @ 2.4 GHz"}
    assert names["few-shotope"] in client.get("/leaderboards", params=everything).text


def test_a_leaderboard_shows_everything(client, names):
    text = client.get(f"/leaderboards/{names['standardope']}").text
    assert "moment-probing" in text
    assert 'href="/papers/moment-probing"' in text
    assert "papers try demo --seeds 6" in text
    assert "out of memory: The process was killed" in text
    assert text.count("<figure>") == 4
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "<script>alert" not in text
    assert f'data-source="/api/v1/leaderboards/{names["standardope"]}"' in text  # without every run and its curves
    assert names["standard./m"] in text  # the same question on other data


def test_other_conditions_are_told_apart_and_without_a_model_name_none(world, client, tmp_path, monkeypatch):
    run, store = demo.run("knn", 0), Store(str(tmp_path / "runs.sqlite"))
    features = replace(run, key="features", data="mine.npz", model_fingerprint="")
    for one in (run, features, replace(features, key="other", settings=run.settings | {"label": "kind"})):
        store.save(one)
    kept = Measured(store)
    monkeypatch.setattr(world.app.state.measured, "now", kept.now)
    name = next(name for name in kept.now().boards if "openmoji" in name)
    text = client.get(f"/leaderboards/{name}?nothing=kept").text
    assert ">mine.npz</a>" in text
    assert ">mine.npz, label kind</a>" in text
    assert "mine.npz · label kind · quick" in " ".join(client.get("/leaderboards?some=kept").text.split())
    listed = client.get("/api/v1/leaderboards?data=mine.npz").json()["items"]
    assert [one["model"] for one in listed] == ["", ""]


def test_a_papers_leaderboards_are_told_apart(world, client, tmp_path, monkeypatch):
    run, store = demo.run("moment-probing", 0), Store(str(tmp_path / "runs.sqlite"))
    for one in (run, replace(run, key="x", model="vit", model_fingerprint="x"), replace(run, key="y", budget="full")):
        store.save(one)
    monkeypatch.setattr(world.app.state.measured, "now", Measured(store).now)
    text = client.get("/papers/moment-probing?boards=kept").text
    for said in ("openmoji, quick budget", "openmoji, vit, quick budget", "openmoji, full budget"):
        assert f", on {said}</a>" in text


def test_every_column_has_its_unit_and_something_in_it(client, names):
    text = client.get(f"/leaderboards/{names['standardope']}").text
    heads = re.findall(r"<th scope=.col.[^>]*>(.*?)</th>", text)
    heads = [html.unescape(head).replace("\u00a0", " ") for head in heads]
    metrics = ["accuracy, %", "vs baseline, points", "verdict", "macro-f1, %", "calibration error"]
    assert heads == ["entry", *metrics, "seeds", "fit, s", "predict, s", "memory, MB", "parameters"]
    assert "differences within ±\u00a00.5 points" in text
    few = client.get(f"/leaderboards/{names['few-shotope']}").text
    for cells in zip(*(re.findall("<td.*?</td>", row, re.DOTALL) for row in few.split("<tr")[2:]), strict=True):
        assert any(re.sub("<.*?>", "", cell) for cell in cells)


def test_while_plots_are_drawn_others_are_answered(world, client, names, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()
    draw = plot.plots
    monkeypatch.setattr(plot, "plots", lambda board: begun.set() or (go_on.wait(30) and draw(board)))
    kept = Measured(world.app.state.store)
    monkeypatch.setattr(world.app.state.measured, "now", kept.now)
    with client, ThreadPoolExecutor(3 * THREADS) as pool:  # one loop for all, as behind a server
        slow, quick, *_ = names.values()
        kept.now()._plots[quick] = []
        pages = [pool.submit(client.get, f"/leaderboards/{slow}?{number}=kept") for number in range(2 * THREADS)]
        assert begun.wait(10)
        time.sleep(0.2)
        others = [pool.submit(client.get, f"{path}?on=time") for path in (f"/leaderboards/{quick}", "/topics")]
        try:
            assert [it.result(10).status_code for it in others] == [200, 200]
        finally:
            go_on.set()
        assert {it.result(10).text.count("<figure>") for it in pages} == {4}


def test_numbers_are_downloaded(client, names):
    name = names["standard./m"]
    found = client.get(f"/leaderboards/{name}.json").json()
    assert [row["entry"] for row in found["rows"]] == ["mlp", "logistic-regression", "knn"]
    table = client.get(f"/leaderboards/{name}.csv")
    assert table.headers["content-type"].startswith("text/csv")
    assert table.headers["content-disposition"] == f'attachment; filename="{name}.csv"'
    assert [line.split(",")[0] for line in table.text.splitlines()] == ["entry", "mlp", "logistic-regression", "knn"]


def test_numbers_are_narrowed_to_a_machine(client, names):
    name = names["standardope"]
    one = {"hardware": "Some Processor @ 2.4 GHz"}
    found = client.get(f"/leaderboards/{name}.json", params=one).json()
    assert found == json.loads(client.get(f"/leaderboards/{name}.json").text)
    answer = client.get(f"/leaderboards/{name}", params={"hardware": "Another"})
    assert answer.status_code == 400
    assert "Some Processor" in answer.text


def test_an_empty_store_says_how_to_fill_it(client, world, tmp_path, monkeypatch):
    monkeypatch.setattr(world.app.state.measured, "now", Measured(Store(str(tmp_path / "none.sqlite"))).now)
    assert "papers try probe" in client.get("/leaderboards?nothing=kept").text
