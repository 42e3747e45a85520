"""Workers that are forked from one zygote have its address layout. One that was attacked leaves a new one behind."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.security.test_hostile_processes import HOSTILE, WORKER, Hostile
from tests.support.builds import Changes
from tests.support.daemon import wait_for
from tests.support.pictures import draw
from tests.support.system import MODEL
from weave.client import WeaveError

pytestmark = pytest.mark.skipif(
    Path("/proc/sys/kernel/randomize_va_space").read_text() == "0\n", reason="this kernel randomizes no layout"
)
# A worker that tells where libc lies in it.
TELLS: tuple[str, str] = (
    "        close_descriptors_except(jobs, control)\n",
    "        close_descriptors_except(jobs, control)\n"
    "        from ctypes import CDLL, c_void_p, cast\n"
    "        log.write('worker', 'layout', address=cast(CDLL(None).getpid, c_void_p).value)\n",
)
REPLACED: Changes = {"gpu_worker/worker.py": [*WORKER["gpu_worker/worker.py"], TELLS]}
NOT_REPLACED: Changes = REPLACED | {"supervisor/zygote.py": WORKER["supervisor/zygote.py"]}


def start(changes: Changes) -> Hostile:
    return Hostile(changes, {"gpu_worker/hostile.py": HOSTILE / "worker.py"}, MODEL)


@pytest.fixture(scope="module")
def hostile() -> Iterator[Hostile]:
    found = start(REPLACED)
    yield found
    assert found.daemon.stop() == 0


def layout(hostile: Hostile) -> tuple[int, int]:
    """The zygote, and the address that the next worker tells."""
    with hostile.daemon.client() as client:
        client.unload()
        before = len(hostile.daemon.events("layout"))
        draw(client)
    address = wait_for(lambda: hostile.daemon.events("layout")[before:])[0]["address"]
    return hostile.daemon.pid_of("gpu_worker"), address


def attack(hostile: Hostile, name: str) -> None:
    with hostile.daemon.client() as client:
        client.unload()
        hostile.arm(name)
        with pytest.raises(WeaveError):
            draw(client)
        assert hostile.has_begun


@pytest.mark.parametrize("name", ["socket", "not msgpack", "a fault"])
def test_after_an_attack_the_next_worker_has_another_address_layout(hostile: Hostile, name: str) -> None:
    zygote, address = layout(hostile)
    replaced = len(hostile.daemon.events("zygote_replaced"))
    attack(hostile, name)
    next_zygote, next_address = layout(hostile)
    assert next_zygote != zygote and next_address != address
    assert len(hostile.daemon.events("zygote_replaced")) > replaced


def test_a_zygote_that_cannot_tell_how_its_worker_ended_is_replaced(hostile: Hostile) -> None:
    zygote, address = layout(hostile)
    before = len(hostile.daemon.events("zygote_replaced"))
    os.kill(zygote, signal.SIGSTOP)
    os.kill(hostile.daemon.pid_of("worker"), signal.SIGSEGV)
    wait_for(lambda: len(hostile.daemon.events("zygote_replaced")) > before)
    next_zygote, next_address = layout(hostile)
    assert next_zygote != zygote and next_address != address


def test_after_any_other_end_it_has_the_same_and_need_not_wait_for_torch(hostile: Hostile) -> None:
    before = layout(hostile)
    assert layout(hostile) == before  # after unload
    os.kill(hostile.daemon.pid_of("worker"), signal.SIGKILL)
    wait_for(lambda: "worker" not in hostile.daemon.processes().values())
    assert layout(hostile) == before


def test_without_the_replacement_the_next_worker_has_the_layout_that_was_attacked() -> None:
    hostile = start(NOT_REPLACED)
    try:
        before = layout(hostile)
        attack(hostile, "a fault")
        assert layout(hostile) == before
    finally:
        assert hostile.daemon.stop() == 0
