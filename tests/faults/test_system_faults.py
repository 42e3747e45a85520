"""Faults around the daemon: a full disk, no descriptors, a socket or folder removed, a clock that jumps."""

import asyncio
import itertools
import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.builds import daemon_of, visible
from tests.support.daemon import Daemon, descriptors_of, wait_for
from tests.support.generation import PROMPT, generate, images
from tests.support.system import MODEL
from weave.client import AsyncClient, WeaveError
from weave.protocol.errors import ErrorCode

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount, or limit what another process may have")


@contextmanager
def started(config: str = MODEL, folder: Path | None = None) -> Iterator[Daemon]:
    daemon = Daemon(config, folder=folder, command=visible()).wait_until_serving()
    try:
        yield daemon
    finally:
        assert daemon.stop() == 0


@contextmanager
def few_descriptors(pid: int) -> Iterator[None]:
    """The process can open no more descriptors than it has."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    taken = set(map(int, os.listdir(f"/proc/{pid}/fd")))
    lowest_free = next(number for number in itertools.count() if number not in taken)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest_free, before[1]))
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


@root_only
def test_a_full_disk_loses_log_lines_and_nothing_else() -> None:
    folder = Path(tempfile.mkdtemp(prefix="weave-test-"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k,mode=0700", "weave-test", folder], check=True)
    try:
        config = f'[limits]\nburst_per_uid = 1000\n[audit]\nfile = "{folder}/audit.log"\n' + MODEL
        with started(config, folder) as daemon, daemon.client() as client:
            expected = images(generate(client))[0].data
            with suppress(OSError), open(folder / "filler", "wb", buffering=0) as filler:
                while True:
                    filler.write(bytes(4096))
            for _ in range(3):
                client.unload()
                assert images(generate(client))[0].data == expected
            # The rest of the last page fills up soon, then nothing more fits.
            size = (folder / "log").stat().st_size
            for _ in range(40):
                with pytest.raises(WeaveError):
                    generate(client, steps=0)
            assert (folder / "log").stat().st_size - size < 4096
            (folder / "filler").unlink()
            client.unload()
            wait_for(lambda: '"log_lost"' in daemon.log())  # after half a line whose end did not fit
            assert images(generate(client))[0].data == expected
            assert '"log_lost"' in (folder / "audit.log").read_text()
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@root_only
def test_a_broker_out_of_descriptors_serves_new_clients_later() -> None:
    with started() as daemon, daemon.client() as client:
        client.load_model("shapes")
        broker = daemon.pid_of("broker")
        with few_descriptors(broker):
            waiting = [daemon.client() for _ in range(5)]
            wait_for(lambda: daemon.events("accept_failed"))
            assert client.status().version
        for late in waiting:
            assert late.status().version
            late.close()
        assert images(generate(client))


@root_only
def test_a_zygote_out_of_descriptors_is_replaced() -> None:
    with started() as daemon, daemon.client() as client:
        expected = images(generate(client))[0].data
        client.unload()
        with few_descriptors(daemon.pid_of("gpu_worker")):
            assert images(generate(client))[0].data == expected
        assert daemon.events("zygote_ended")


@root_only
def test_a_supervisor_out_of_descriptors_loses_one_worker() -> None:
    with started() as daemon, daemon.client() as client:
        expected = images(generate(client))[0].data
        client.unload()
        with few_descriptors(daemon.process.pid), pytest.raises(WeaveError) as failed:
            generate(client)
        assert failed.value.code is ErrorCode.WORKER_FAILED
        assert images(generate(client))[0].data == expected


def test_a_removed_socket_is_bound_again_and_clients_stay() -> None:
    with started() as daemon, daemon.client() as client:
        daemon.socket.unlink()
        wait_for(lambda: daemon.events("socket_restored"))
        assert client.status().version
        with daemon.client() as other:
            assert images(generate(other))


def replace_by_a_file(daemon: Daemon) -> None:
    daemon.socket.rename(daemon.socket.with_name("moved"))
    daemon.socket.touch()


def remove_the_folder(daemon: Daemon) -> None:
    """Its Landlock rules name the removed folder, so the daemon cannot create another."""
    shutil.rmtree(daemon.socket.parent)


@pytest.mark.parametrize(
    "harm, told", [(replace_by_a_file, "is not a socket of ours; remove it"), (remove_the_folder, "install -d -o")]
)
def test_a_socket_path_that_cannot_be_restored_stops_the_daemon(harm: Callable[[Daemon], None], told: str) -> None:
    daemon = Daemon(MODEL).wait_until_serving()
    harm(daemon)
    assert daemon.process.wait(20) == 78
    assert told in daemon.log() and str(daemon.socket.parent) in daemon.log()
    daemon.socket.unlink(missing_ok=True)
    with started(folder=daemon.folder) as again, again.client() as client:
        assert images(generate(client))


# Each reading is off by the next of these, so that every run has jumps.
JUMPS = """
import itertools, time
real, jumps = time.time, itertools.cycle((0, 1e9, -1e6, 3600, -3600))
time.time = lambda: real() + next(jumps)
time.time_ns = lambda: int(time.time() * 1e9)
"""


def test_a_wall_clock_that_jumps_moves_no_deadline() -> None:
    limits = "[limits]\nidle_unload_seconds = 1.0\nburst_per_uid = 5\nrequests_per_second = 5.0\n"
    daemon = daemon_of((), limits + MODEL, everywhere=JUMPS)
    try:
        with daemon.client() as client:
            expected = images(generate(client))[0].data
            for _ in range(3):
                assert images(generate(client))[0].data == expected
            wait_for(lambda: client.status().worker == "none", seconds=20)
            assert images(generate(client))[0].data == expected
            assert not daemon.events("client_dropped") and not daemon.events("job_timed_out")
        told = [line["time"] for line in daemon.all_events()]
        assert len({time[:4] for time in told}) > 1 and told != sorted(told)  # it did jump, forwards and back
    finally:
        assert daemon.stop() == 0


def test_five_hundred_clients_are_served_within_the_limits() -> None:
    limits = "connections = 600\nconnections_per_uid = 600\nqueue = 600\nqueue_per_uid = 600\nburst_per_uid = 600"

    async def one(daemon: Daemon, number: int) -> bytes:
        """Only every fifth generates an image, which takes a while."""
        async with AsyncClient(daemon.socket) as client:
            assert (await client.status()).version
            if number % 5:
                return b""
            answers = [a async for a in client.generate(PROMPT, model="shapes", steps=1, seed=1)]
            return images(answers)[0].data

    async def all_at_once(daemon: Daemon) -> list[bytes]:
        return await asyncio.gather(*(one(daemon, number) for number in range(500)))

    with started(f"[limits]\n{limits}\n" + MODEL) as daemon:
        before = len(descriptors_of(daemon.pid_of("broker")))
        generated = asyncio.run(all_at_once(daemon))
        assert sum(map(bool, generated)) == 100 and len(set(generated) - {b""}) == 1
        # Only the worker's channel has been added.
        wait_for(lambda: len(descriptors_of(daemon.pid_of("broker"))) == before + 1)


def test_clients_beyond_the_connection_limit_get_an_error() -> None:
    async def one(daemon: Daemon, arrived: asyncio.Semaphore, all_arrived: asyncio.Event) -> str:
        async with AsyncClient(daemon.socket) as client:
            try:
                await client.status()
                return "served"
            except WeaveError as error:
                return error.code.value
            finally:
                arrived.release()
                await all_arrived.wait()

    async def all_at_once(daemon: Daemon) -> list[str]:
        arrived, all_arrived = asyncio.Semaphore(0), asyncio.Event()
        clients = [asyncio.create_task(one(daemon, arrived, all_arrived)) for _ in range(500)]
        for _ in clients:
            await arrived.acquire()
        all_arrived.set()
        return await asyncio.gather(*clients)

    with started() as daemon:
        told = asyncio.run(all_at_once(daemon))
        assert {code: told.count(code) for code in set(told)} == {"served": 64, "rate_limited": 436}
