"""A worker whose requester has disconnected is killed when it arrives, since it would keep the GPU. A zygote that was
replaced ends with its last worker."""

import asyncio
import os
import subprocess

import pytest

from weave.config.schema import Config
from weave.protocol.control_messages import Forked, StartWorker
from weave.sandbox.account import Account
from weave.sandbox.attestation import Confinement
from weave.supervisor.children.worker import WorkerProcess
from weave.supervisor.children.zygote import ZygoteEnded, ZygoteProcess
from weave.supervisor.zygotes import Zygotes


@pytest.mark.parametrize("comes", ["before the cancel", "after it"])
def test_an_unwanted_worker_is_killed_but_not_its_successor(comes: str) -> None:
    zygote = ZygoteProcess.__new__(ZygoteProcess)  # without its process
    zygote._forked, zygote._exited, zygote._unwanted = {}, {}, []
    workers = [subprocess.Popen(["sleep", "60"]) for _ in range(2)]

    def take(worker: subprocess.Popen[bytes]) -> None:
        zygote._take_worker(Forked(worker=1, pid=worker.pid), os.pidfd_open(worker.pid))

    async def ask() -> "asyncio.Task[tuple[int, int, asyncio.Future[int]]]":
        zygote._forked[1] = asyncio.get_running_loop().create_future()
        asking = asyncio.create_task(zygote.forked(1))
        await asyncio.sleep(0)
        return asking

    async def play() -> None:
        descriptors = len(os.listdir("/proc/self/fd"))
        asking = await ask()
        if comes == "before the cancel":
            take(workers[0])
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        if comes == "after it":
            take(workers[0])
        assert workers[0].wait(60) == -9 and len(os.listdir("/proc/self/fd")) == descriptors
        again = await ask()
        take(workers[1])
        pid, pidfd, _ = await again
        os.close(pidfd)
        assert pid == workers[1].pid and workers[1].poll() is None

    try:
        asyncio.run(play())
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def test_a_retired_zygote_does_not_wait_for_a_worker_of_the_next() -> None:
    """It would never end: the next zygote forks that worker, and only that one is released when the worker ends."""
    zygote = ZygoteProcess.__new__(ZygoteProcess)  # without its process
    killed = []

    async def play() -> None:
        zygote.imported = asyncio.get_running_loop().create_future()
        zygote.imported.set_result(None)
        zygote.devices, zygote.models = ("cpu",), {"m": None}
        zygote._workers, zygote.retired, zygote._forked = {2}, asyncio.Event(), {}
        zygote.kill = lambda: killed.append(True)
        zygote.retire(3)
        worker = WorkerProcess(StartWorker(worker=1, model="m", device="cpu"), None)
        with pytest.raises(ZygoteEnded):
            await worker.start(zygote, Confinement("worker", Account.own(), False, None), seconds=5)
        assert not killed
        zygote.release(2)
        assert killed

    asyncio.run(play())


def test_a_zygote_that_has_ended_is_not_given_out() -> None:
    """A caller that waited for it may ask for the next one before the task that runs it has noticed."""

    async def play() -> None:
        zygotes = Zygotes(Config(), Confinement("worker", Account.own(), False, None))
        ended, following = ZygoteProcess.__new__(ZygoteProcess), ZygoteProcess.__new__(ZygoteProcess)
        ended.has_ended, following.has_ended = True, False
        zygotes._current = ended
        asked = asyncio.create_task(zygotes.current())
        await asyncio.sleep(0)
        zygotes._current = None
        zygotes._is_there.clear()
        await asyncio.sleep(0)
        assert not asked.done()
        zygotes._current = following
        zygotes._is_there.set()
        assert await asked is following

    asyncio.run(play())
