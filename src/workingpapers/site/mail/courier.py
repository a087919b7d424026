"""The thread of the server that empties the outbox as mails come in."""

from __future__ import annotations

import logging
import threading

from sqlalchemy import Engine

from workingpapers.site.mail.outbox import drain
from workingpapers.site.mail.smtp import sender
from workingpapers.site.settings import Settings

# Seconds between two looks: who waits for a sign-in link hardly notices; a server that is down is left in peace.
_PAUSE, _LONG_PAUSE = 2.0, 60.0

_log = logging.getLogger(__name__)


class Courier(threading.Thread):
    """Sends what the outbox holds until it is told to stop.

    Args:
        engine: of the page's database.
        settings: name the mail server.

    Raises:
        UserError: the settings name no server that could be asked.
    """

    def __init__(self, engine: Engine, settings: Settings) -> None:
        super().__init__(name="courier", daemon=True)
        with sender(settings):  # settings that cannot work are noticed by who starts the server
            pass
        self._engine, self._settings = engine, settings
        self._stop_asked = threading.Event()

    def run(self) -> None:
        """Send, pause, and again."""
        while not self._stop_asked.is_set():
            pause = _LONG_PAUSE
            try:
                with sender(self._settings) as send:
                    if not drain(self._engine, send, stopped=self._stop_asked.is_set)["unreachable"]:
                        pause = _PAUSE
            except Exception:  # a database that is away comes back; mails must leave then
                _log.exception("the outbox could not be emptied")
            self._stop_asked.wait(pause)

    def stop(self, timeout: float = 10.0) -> None:
        """Finish the mail at hand and end; give up waiting for that after `timeout` seconds."""
        self._stop_asked.set()
        self.join(timeout)
