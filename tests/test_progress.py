"""Where a pass tells how far it is; what bars look like is tested with those who show them."""

import contextlib
import multiprocessing
import threading

import pytest

from workingpapers.progress import counted, watched


def test_things_that_go_on_side_by_side_are_not_watched(monkeypatch):
    assert watched()
    found = []
    thread = threading.Thread(target=lambda: found.append(watched()))
    thread.start()
    thread.join()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found.append(pool.apply(watched))
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        found.append(watched())
    assert found == [False, False, True, False]


@pytest.mark.parametrize("terminal", [False, True])
def test_a_bar_shows_on_a_terminal_alone_and_is_gone_after_a_failure(terminal, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR" if terminal else "NO_COLOR", "1")  # rich takes the first for a terminal
    monkeypatch.setattr("workingpapers.progress.PATIENCE", -1.0)
    with contextlib.suppress(KeyboardInterrupt), counted(True, 7, "counting", "sheep") as report:
        report(3)
        raise KeyboardInterrupt
    out, err = capsys.readouterr()
    assert out == ""
    assert ("counting" in err and "3/7" in err and "sheep/s" in err) == terminal
    assert terminal or not err
