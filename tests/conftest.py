import socket
from collections.abc import Generator, Iterator
from typing import Any

import pytest

from tests.support.daemon import Daemon
from tests.support.processes import Started, all_ended, reset_signals, temporary_folders
from tests.support.users import users

__all__ = ["users"]


def pytest_configure() -> None:
    reset_signals()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, Any, Any]:
    """Every process that a test starts ends with it, even if the test fails."""
    with all_ended():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Generator[None, Any, Any]:
    """Every process that a fixture starts ends with it, even if its teardown fails or does not run."""
    started = Started()
    fixturedef.addfinalizer(started.end)  # before its own, so that it runs last
    with started:
        return (yield)


@pytest.fixture(scope="session", autouse=True)
def no_folder_is_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    tmp_path_factory.getbasetemp()  # pytest's own, which it keeps for a while
    with temporary_folders():
        yield


@pytest.fixture(scope="session")
def shared_daemon() -> Iterator[Daemon]:
    """For tests that leave the daemon as they found it."""
    daemon = Daemon().wait_until_serving()
    yield daemon
    daemon.stop()


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """For tests that change or damage the daemon."""
    daemon = Daemon().wait_until_serving()
    yield daemon
    daemon.stop()


@pytest.fixture
def raw(shared_daemon: Daemon) -> Iterator[socket.socket]:
    """A connection without a client on it: the test sends the bytes."""
    with shared_daemon.connect() as connection:
        yield connection
