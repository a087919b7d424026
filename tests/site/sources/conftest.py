"""A server that replays what the services send, and a client that may reach it."""

import pytest
from replay import Time, serving

from workingpapers.site.sources.http import Client


@pytest.fixture
def server():
    with serving() as running:
        yield running


@pytest.fixture
def passing():
    return Time()


@pytest.fixture
def client(server, passing):
    return Client({"127.0.0.1": 3.0}, local=[server.address], clock=passing.clock, sleep=passing.sleep, timeout=5)
