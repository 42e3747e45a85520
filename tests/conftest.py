import socket
from collections.abc import Iterator

import pytest

from tests.support.daemon import Daemon
from tests.support.users import users

__all__ = ["users"]


@pytest.fixture(scope="session")
def shared_daemon() -> Iterator[Daemon]:
    """For tests that leave the daemon as they found it."""
    daemon = Daemon().wait_until_serving()
    yield daemon
    daemon.stop()


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """For tests that hurt it."""
    daemon = Daemon().wait_until_serving()
    yield daemon
    daemon.stop()


@pytest.fixture
def raw(shared_daemon: Daemon) -> Iterator[socket.socket]:
    """A connection that speaks whatever a test makes it."""
    with shared_daemon.connect() as connection:
        yield connection
