"""A real SMTP server that tests can tell what to answer."""

import contextlib
import socket
from email import message_from_bytes
from email.policy import default

import pytest
from aiosmtpd.controller import Controller

from workingpapers.site.settings import Settings


class Handler:
    """Accepts mails, unless told to answer otherwise.

    Attributes:
        mails: (recipient, message) of what was accepted, in order.
        answers: answer by recipient, to RCPT; data: answers to the next DATAs, one after another.
        on: called with "rcpt", "data" (not accepted yet; may return an answer instead) and "accepted".
    """

    def __init__(self):
        self.mails, self.answers, self.data = [], {}, []
        self.senders, self.connections = [], 0
        self.on = lambda moment: None

    async def handle_EHLO(self, server, session, envelope, hostname, responses):
        self.connections += 1
        session.host_name = hostname
        return responses

    async def handle_RCPT(self, server, session, envelope, address, options):
        if address in self.answers:
            return self.answers[address]
        self.on("rcpt")
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        if self.data:
            return self.data.pop(0)
        if answer := self.on("data"):
            return answer
        self.senders.append(envelope.mail_from)
        message = message_from_bytes(envelope.original_content, policy=default)
        self.mails += [(address, message) for address in envelope.rcpt_tos]
        self.on("accepted")
        return "250 OK"


class Server:
    """An SMTP server on a free port."""

    def __init__(self, **options):
        self.handler = Handler()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._options = options
        self.start()

    def start(self):
        self._controller = Controller(
            self.handler, hostname="127.0.0.1", port=self.port, ready_timeout=20, **self._options
        )
        self._controller.start()

    def stop(self):
        with contextlib.suppress(AssertionError):
            self._controller.stop()

    @property
    def recipients(self):
        return [address for address, _ in self.handler.mails]

    def settings(self, user="", **changes):
        values = {"database": "sqlite://", "secret": "x" * 32, "smtp": f"smtp://{user}127.0.0.1:{self.port}"}
        return Settings(**values | {"sender": "Working Papers <papers@example.org>"} | changes)


@pytest.fixture
def start_server():
    """Start servers with options of aiosmtpd's SMTP."""
    started = []

    def start(**options):
        started.append(Server(**options))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def server(start_server):
    return start_server()
