"""The server: listens, says where, and stops without cutting anybody off."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import threading
import webbrowser

import click
import uvicorn

from workingpapers.errors import UserError
from workingpapers.site.connection import Connection
from workingpapers.site.mail.courier import Courier
from workingpapers.site.settings import load_settings
from workingpapers.site.web.app import create_app

_LAST_SECONDS = 10  # that requests under way get when the server stops
_MOST_AT_ONCE = 500  # connections; more are told to come back later
_IDLE = 15  # seconds that a connection may stay open unused
# Requests leave few cycles behind; looking for them at the interpreter's own pace stops everybody, again and again, for
# longer than a page takes.
_COLLECT = (20_000, 20, 50)


def run(host: str, port: int, *, database: str | None, store: str | None, open_: bool) -> None:
    """Serve the page until it is interrupted.

    Args:
        host: name or address to listen at.
        port: to listen at; 0 takes a free one.
        database: of the page; None takes the settings' own.
        store: of runs; None takes the settings' own.
        open_: whether to open a browser on it.

    Raises:
        UserError: the port is taken, or a setting, the database or the store cannot be used.
    """
    listener = _listen(host, port)
    host_shown = f"[{host}]" if ":" in host else "127.0.0.1" if host == "0.0.0.0" else host
    here = f"http://{host_shown}:{listener.getsockname()[1]}"
    address = None if os.environ.get("WORKINGPAPERS_ADDRESS") else here
    settings = load_settings(database=database, store=store, address=address)
    app = create_app(settings)
    courier = Courier(app.state.engine, settings)
    config = uvicorn.Config(
        app,
        http=Connection,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # the client's address is read in `security`, which knows how many proxies are ours
        limit_concurrency=_MOST_AT_ONCE,
        timeout_keep_alive=_IDLE,
        timeout_graceful_shutdown=_LAST_SECONDS,
    )
    gc.freeze()  # what is there by now stays for good: collections need not look at it again and again
    gc.set_threshold(*_COLLECT)
    click.echo(f"The page is at {here} (Ctrl-C stops it)", err=True)
    if open_:
        threading.Timer(0.5, webbrowser.open, [here]).start()
    courier.start()
    # The server handles both signals, and passes them on when it has stopped: then there is nothing left to interrupt.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])
    courier.stop()


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        UserError: the address is not ours or the port is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"Cannot listen at {host}, port {port}: {reason}. Choose another --host or --port.") from error
