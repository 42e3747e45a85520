"""Workers forked from one zygote share its address layout. After an attack the next worker has a new one."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.security.test_hostile_processes import ARMED_WORKER, HOSTILE, SAME_ZYGOTE, Hostile
from tests.support.daemon import wait_for
from tests.support.generation import generate
from tests.support.seams import Seams, after
from tests.support.system import MODEL
from weave.client import WeaveError

pytestmark = pytest.mark.skipif(
    Path("/proc/sys/kernel/randomize_va_space").read_text() == "0\n", reason="this kernel randomizes no layout"
)
# The worker logs where libc lies in it.
LOG_LAYOUT = """
    from ctypes import CDLL, c_void_p, cast
    log.write("worker", "layout", address=cast(CDLL(None).getpid, c_void_p).value)
"""
REPLACED: Seams = (*ARMED_WORKER, after("gpu_worker/worker.py", "close_descriptors_except", LOG_LAYOUT))
NOT_REPLACED: Seams = (*REPLACED, SAME_ZYGOTE)


def start(seams: Seams) -> Hostile:
    return Hostile(seams, {"gpu_worker/hostile.py": HOSTILE / "worker.py"}, MODEL)


@pytest.fixture(scope="module")
def hostile() -> Iterator[Hostile]:
    found = start(REPLACED)
    yield found
    assert found.daemon.stop() == 0


def layout(hostile: Hostile) -> tuple[int, int]:
    """The zygote, and the address that the next worker logs."""
    with hostile.daemon.client() as client:
        client.unload()
        before = len(hostile.daemon.events("layout"))
        generate(client)
    address = wait_for(lambda: hostile.daemon.events("layout")[before:])[0]["address"]
    return hostile.daemon.pid_of("gpu_worker"), address


def attack(hostile: Hostile, name: str) -> None:
    with hostile.daemon.client() as client:
        client.unload()
        hostile.arm(name)
        with pytest.raises(WeaveError):
            generate(client)
        assert hostile.has_begun


@pytest.mark.parametrize("name", ["socket", "not msgpack", "a fault"])
def test_after_an_attack_the_next_worker_has_a_new_layout(hostile: Hostile, name: str) -> None:
    zygote, address = layout(hostile)
    replaced = len(hostile.daemon.events("zygote_replaced"))
    attack(hostile, name)
    next_zygote, next_address = layout(hostile)
    assert next_zygote != zygote and next_address != address
    assert len(hostile.daemon.events("zygote_replaced")) > replaced


def test_a_zygote_that_cannot_report_an_exit_status_is_replaced(hostile: Hostile) -> None:
    zygote, address = layout(hostile)
    before = len(hostile.daemon.events("zygote_replaced"))
    os.kill(zygote, signal.SIGSTOP)
    os.kill(hostile.daemon.pid_of("worker"), signal.SIGSEGV)
    wait_for(lambda: len(hostile.daemon.events("zygote_replaced")) > before)
    next_zygote, next_address = layout(hostile)
    assert next_zygote != zygote and next_address != address


def test_after_a_normal_exit_the_next_worker_keeps_the_layout(hostile: Hostile) -> None:
    before = layout(hostile)
    assert layout(hostile) == before  # after unload
    os.kill(hostile.daemon.pid_of("worker"), signal.SIGKILL)
    wait_for(lambda: "worker" not in hostile.daemon.processes().values())
    assert layout(hostile) == before


def test_without_replacement_the_attacked_layout_stays() -> None:
    hostile = start(NOT_REPLACED)
    try:
        before = layout(hostile)
        attack(hostile, "a fault")
        assert layout(hostile) == before
    finally:
        assert hostile.daemon.stop() == 0
