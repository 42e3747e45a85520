"""Real users and groups, created for the tests and removed after them, and code run as one of them."""

import fcntl
import json
import os
import pwd
import subprocess
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

# Different for each run, so that two runs can overlap.
_RUN = f"weave-test-{os.getpid()}"
GROUP = _RUN
BROKER, WORKER = f"{_RUN}-b", f"{_RUN}-w"
# Allowed by name; by primary group; by supplementary group; not at all.
ALICE, BOB, CAROL, EVE = f"{_RUN}-alice", f"{_RUN}-bob", f"{_RUN}-carol", f"{_RUN}-eve"


@pytest.fixture(scope="session")
def users() -> Iterator[None]:
    """Needs root."""
    if os.geteuid() != 0:
        pytest.skip("only root can make users")
    with one_at_a_time():
        make()
    yield
    with one_at_a_time():
        remove()


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """useradd does not wait for another one that has locked the user database."""
    lock = os.open("/etc", os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def make() -> None:
    run("groupadd", "--system", GROUP)
    for name in (BROKER, WORKER, ALICE, EVE):
        run("useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", "--user-group", name)
    run("useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", "--gid", GROUP, BOB)
    run("useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", "--groups", GROUP, CAROL)


def remove() -> None:
    for name in (BROKER, WORKER, ALICE, BOB, CAROL, EVE):
        run("userdel", name)
    run("groupdel", GROUP)


def as_user(name: str, action: Callable[[], Any]) -> Any:
    """The result of `action`, passed as JSON, in a process of that user. Raises RuntimeError with its traceback."""
    user = pwd.getpwnam(name)
    groups = os.getgrouplist(name, user.pw_gid)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups(groups)
            os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
            os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
            answer = {"value": action()}
        except BaseException:
            answer = {"error": traceback.format_exc()}
        os.write(writing, json.dumps(answer).encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        answer = json.loads(pipe.read())
    os.waitpid(pid, 0)
    if "error" in answer:
        raise RuntimeError(answer["error"])
    return answer["value"]


def uid(name: str) -> int:
    return pwd.getpwnam(name).pw_uid


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
