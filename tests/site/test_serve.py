"""`papers serve` as a process: it starts with nothing, works offline, and stops without cutting anybody off."""

import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request

import pytest
from click.testing import CliRunner

from workingpapers.errors import UserError
from workingpapers.papers.catalogue import load_catalogue
from workingpapers.site.commands.serve import serve
from workingpapers.site.serve import run

PROGRAM = "from workingpapers.site.commands.serve import serve; serve()"


@pytest.fixture
def started(tmp_path):
    """A server on a fresh machine: no database, no store, no network but this one."""
    environment = os.environ | {
        "HOME": str(tmp_path),
        "XDG_DATA_HOME": str(tmp_path / "data"),
        "WORKINGPAPERS_CACHE": str(tmp_path / "cache"),
        "WORKINGPAPERS_STORE": "",
        "http_proxy": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
    }
    for name in ("WORKINGPAPERS_SITE", "WORKINGPAPERS_SECRET", "WORKINGPAPERS_ADDRESS"):
        environment.pop(name, None)
    command = [sys.executable, "-c", PROGRAM, "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path)
    line = process.stderr.readline()
    yield process, re.search(r"http://127\.0\.0\.1:\d+", line)[0], tmp_path
    process.kill()
    process.wait()
    process.stderr.close()


def get(address):
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address, timeout=30) as answer:
        return answer.read().decode()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["Ctrl-C", "kill"])
def test_a_fresh_machine_shows_the_catalogue_and_stops_when_told(started, how):
    process, address, folder = started
    assert f"{len(load_catalogue())} papers" in get(f"{address}/papers")
    assert "Tuning Pre-trained Model via Moment Probing" in get(f"{address}/search?q=moment+probing")
    assert "papers try probe" in get(f"{address}/leaderboards")
    assert (folder / "data/workingpapers/site.sqlite").exists()
    assert (folder / "data/workingpapers/site.secret").stat().st_mode & 0o077 == 0
    process.send_signal(signal.SIGINT if how == "Ctrl-C" else signal.SIGTERM)
    assert process.wait(20) == 0
    assert "Traceback" not in process.stderr.read()


@pytest.mark.slow
def test_killed_at_once_it_starts_again_with_everything(started):
    process, address, folder = started
    get(f"{address}/papers")
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    database = sqlite3.connect(folder / "data/workingpapers/site.sqlite")
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert database.execute("SELECT count(*) FROM papers").fetchone() == (len(load_catalogue()),)
    database.close()


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"127.0.0.1, port {port}: .*Choose another"):
            run("127.0.0.1", port, database=None, store=None, open_=False)


def test_a_host_that_is_not_ours_is_named():
    with pytest.raises(UserError, match=r"Cannot listen at 203\.0\.113\.1"):
        run("203.0.113.1", 0, database=None, store=None, open_=False)


def test_help_teaches_by_example():
    text = CliRunner().invoke(serve, ["--help"]).output
    assert "papers serve --open" in text
    assert CliRunner().invoke(serve, ["--port", "99999"]).exit_code == 2


def test_looking_at_the_help_loads_no_server():
    code = "import sys, workingpapers.site.commands.serve; print('fastapi' in sys.modules, 'uvicorn' in sys.modules)"
    begun = time.monotonic()
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "False False\n"
    assert time.monotonic() - begun < 10
