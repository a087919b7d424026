import threading
import time

import pytest
from demo import run

from workingpapers.errors import UserError
from workingpapers.runs.store import Store
from workingpapers.site.web import measured
from workingpapers.site.web.measured import Measured


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def kept(world, tmp_path):
    store = Store(str(tmp_path / "runs.sqlite"))
    store.save(run("knn", 0))
    return store


def eventually(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_new_run_is_noticed_beside_requests(kept):
    clock = Clock()
    here = Measured(kept, clock)
    before = here.now()
    assert [len(board.runs) for board in before.boards.values()] == [1]
    kept.save(run("mlp", 0))
    assert here.now() is before  # not looked for yet
    clock.now += 6
    here.now()
    eventually(lambda: [len(board.runs) for board in here.now().boards.values()] == [2])


def test_a_store_that_has_not_changed_is_not_read_again(kept, monkeypatch):
    clock = Clock()
    here = Measured(kept, clock)
    before = here.now()
    monkeypatch.setattr(kept, "runs", lambda: pytest.fail("read again"))
    clock.now += 60
    assert here.now() is before
    assert threading.active_count() < 50


def test_many_first_requests_read_once(kept, monkeypatch):
    reads = []
    runs = kept.runs
    monkeypatch.setattr(kept, "runs", lambda: reads.append(1) or runs())
    here = Measured(kept)
    threads = [threading.Thread(target=here.now) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reads) == 1


def test_a_store_that_fails_later_leaves_what_was_read(kept, monkeypatch, logged):
    clock = Clock()
    here = Measured(kept, clock)
    before = here.now()

    def fail():
        raise UserError("it is gone")

    monkeypatch.setattr(kept, "runs", fail)
    monkeypatch.setattr(here, "_seen", lambda: "changed")
    log = logged(measured)
    clock.now += 6
    assert here.now() is before
    eventually(lambda: "it is gone" in log.text)
    clock.now += 6
    assert here.now() is before


def test_plots_are_drawn_once_and_kept_while_the_runs_are_the_same(kept, monkeypatch):
    from workingpapers.runs import plot

    drawn = []
    monkeypatch.setattr(plot, "plots", lambda board: drawn.append(board) or ["plot"])
    here = Measured(kept)
    [name] = here.now().boards
    assert here.now().plots(name) == here.now().plots(name) == ["plot"]
    here._read()
    assert here.now().plots(name) == ["plot"]
    assert len(drawn) == 1
    kept.save(run("mlp", 0))
    here._read()
    here.now().plots(name)
    assert len(drawn) == 2


def test_plots_of_the_last_leaderboards_are_kept(kept, monkeypatch):
    from workingpapers.runs import plot

    monkeypatch.setattr(plot, "plots", lambda board: [])
    monkeypatch.setattr(measured, "_MOST_DRAWN", 2)
    for data in ("one", "two"):
        kept.save(run("knn", 0, data=data))
    here = Measured(kept).now()
    names = list(here.boards)
    for name in names:
        here.plots(name)
    assert [here.drawn(name) for name in names] == [None, [], []]


def test_a_server_is_asked_every_minute(kept):
    clock = Clock()
    here = Measured(kept, clock)
    kept.url = "postgresql://host/name"
    first = here._seen()
    clock.now += measured._ASK
    assert here._seen() != first
