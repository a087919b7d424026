"""Fixtures that several floors share."""

import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest
import sqlalchemy

# One thread in each process: tests run side by side, and threads that outnumber the cores cost more than they bring.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Started in the background by a shell, the tests would be deaf to Ctrl-C, which some of them send to themselves.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def postgres():
    """Address of a PostgreSQL server of our own."""
    pytest.importorskip("psycopg")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    pg_ctl = shutil.which("pg_ctl") or (found and str(found[-1]))
    if not pg_ctl:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    folder = tempfile.mkdtemp(prefix="workingpapers-postgres-", dir="/tmp")
    become = []
    if os.geteuid() == 0:  # the server refuses to run as root
        become = ["runuser", "-u", "postgres", "--"]
        shutil.chown(folder, "postgres")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    control = [*become, pg_ctl, "-D", f"{folder}/data"]
    log = ["-l", f"{folder}/log"]
    subprocess.run([*control, "initdb", "-o", "-A trust -U tester"], check=True, capture_output=True, cwd="/")
    subprocess.run([*control, *log, "-o", options, "-w", "start"], check=True, stdout=subprocess.DEVNULL, cwd="/")
    yield f"postgresql+psycopg://tester:secret@127.0.0.1:{port}"
    subprocess.run([*control, "-m", "immediate", "stop"], check=True, capture_output=True, cwd="/")
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def postgres_database(postgres):
    """Make a new database there at each call and return its URL."""
    numbers = itertools.count()
    engine = sqlalchemy.create_engine(f"{postgres}/postgres", isolation_level="AUTOCOMMIT")

    def make() -> str:
        name = f"test{next(numbers)}"
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text(f"CREATE DATABASE {name}"))
        return f"{postgres}/{name}"

    yield make
    engine.dispose()
