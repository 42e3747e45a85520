"""Three real users send requests at the same time: turns are fair, limits are per user, and jobs are private."""

import asyncio
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import Daemon, wait_for
from tests.support.generation import PROMPT
from tests.support.system import MODEL, SYSTEM, system_daemon
from tests.support.users import ALICE, BOB, CAROL, as_user
from weave.client import AsyncClient, Client, WeaveError
from weave.protocol.client_messages import Done, Progress

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be other users")
SECOND_MODEL = MODEL.replace("[models.shapes]", "[models.other]")
LIMITS = "[limits]\nqueue_per_uid = 6\nconnections_per_uid = 4\nrequests_per_second = 100.0\n"


@pytest.fixture
def system(users: None) -> Iterator[Daemon]:
    folder = Path(tempfile.mkdtemp(prefix="weave-test-"))
    config = LIMITS + SYSTEM.replace("[system]", '[system]\nsocket_mode = "0666"') + MODEL + SECOND_MODEL
    daemon = system_daemon(folder, config).wait_until_serving()
    yield daemon
    daemon.stop()


def in_parallel(*actions: Any) -> list[Any]:
    """Each runs in a thread that waits for its own process."""
    results: list[Any] = [None] * len(actions)

    def run(number: int) -> None:
        results[number] = as_user(*actions[number])

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(actions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_three_users_take_turns_though_one_queued_first(system: Daemon) -> None:
    def six_pictures(model: str) -> list[float]:
        """The end of each of six queued jobs: one more than a user's worker may run in a row."""

        async def one(client: AsyncClient) -> float:
            async for answer in client.generate(PROMPT, model=model, steps=2):
                if isinstance(answer.event, Done):
                    return time.monotonic()
            raise AssertionError("not done")

        async def main() -> list[float]:
            async with AsyncClient(system.socket) as client:
                return list(await asyncio.gather(*(one(client) for _ in range(6))))

        return asyncio.run(main())

    with system.client() as holder:
        # A long job runs while all of them queue up.
        running = holder.generate(PROMPT, model="shapes", steps=100, images=8)
        wait_for(lambda: isinstance(next(running).event, Progress))
        users = threading.Thread(
            target=lambda: finished.extend(
                in_parallel(
                    (ALICE, lambda: six_pictures("shapes")),
                    (BOB, lambda: six_pictures("shapes")),
                    (CAROL, lambda: six_pictures("other")),
                )
            )
        )
        finished: list[list[float]] = []
        users.start()
        with system.client() as watcher:
            wait_for(lambda: watcher.status().queue_length == 18)
            assert watcher.status().jobs[0].state == "running" and len(watcher.status().jobs) == 1
            watcher.cancel(job=watcher.status().jobs[0].job)
        with pytest.raises(WeaveError):
            list(running)
        users.join()
    alice, bob, carol = (sorted(times) for times in finished)
    # No user's first image comes after another user's last, though each needs its own worker.
    assert max(alice[0], bob[0], carol[0]) < min(alice[5], bob[5], carol[5])


def test_after_a_long_job_another_users_short_jobs_run(users: None) -> None:
    """Turns follow the GPU seconds that each user has used. One worker serves all, so that nothing else counts."""

    def ends(count: int, **parameters: int) -> list[float]:
        async def one(client: AsyncClient) -> float:
            async for _ in client.generate(PROMPT, model="shapes", **parameters):
                pass
            return time.monotonic()

        async def main() -> list[float]:
            async with AsyncClient(daemon.socket) as client:
                return list(await asyncio.gather(*(one(client) for _ in range(count))))

        return sorted(asyncio.run(main()))

    table = '[system]\nsocket_mode = "0666"\nisolate_users = false'
    folder = Path(tempfile.mkdtemp(prefix="weave-test-"))
    daemon = system_daemon(folder, LIMITS + SYSTEM.replace("[system]", table) + MODEL).wait_until_serving()
    finished: list[list[float]] = []

    def ask() -> None:
        long, short = {"steps": 30, "images": 2}, {"steps": 1}
        finished.extend(in_parallel((ALICE, lambda: ends(3, **long)), (BOB, lambda: ends(4, **short))))

    try:
        with daemon.client() as holder, daemon.client() as watcher:
            running = holder.generate(PROMPT, model="shapes", steps=100, images=8)
            wait_for(lambda: isinstance(next(running).event, Progress))
            users_ask = threading.Thread(target=ask)
            users_ask.start()
            wait_for(lambda: watcher.status().queue_length == 7)
            watcher.cancel(job=watcher.status().jobs[0].job)
            with pytest.raises(WeaveError):
                list(running)
            users_ask.join()
    finally:
        assert daemon.stop() == 0
    alice, bob = finished
    assert bob[3] < alice[1]


def test_limits_are_each_users_own(system: Daemon) -> None:
    def too_many() -> list[str]:
        codes = []
        clients = [Client(system.socket, timeout=60) for _ in range(5)]
        for client in clients:
            try:
                client.status()
                codes.append("served")
            except WeaveError as error:
                codes.append(error.code.value)
        return codes

    assert in_parallel((ALICE, too_many), (BOB, too_many)) == [["served"] * 4 + ["rate_limited"]] * 2


def test_a_user_can_neither_see_nor_cancel_another_users_job(system: Daemon) -> None:
    with system.client() as root:
        running = root.generate(PROMPT, model="shapes", steps=100, images=8)
        wait_for(lambda: isinstance(next(running).event, Progress))
        job = root_job(system)

        def meddle() -> list[str]:
            with Client(system.socket, timeout=60) as client:
                seen = [str(job.job) for job in client.status().jobs]
                try:
                    client.cancel(job=job)
                except WeaveError as error:
                    return [*seen, error.code.value, error.error.message]
                return ["cancelled"]

        assert as_user(ALICE, meddle) == ["invalid_request", "no such job of yours"]
        assert root_job(system) == job


def root_job(system: Daemon) -> int:
    with system.client() as client:
        return client.status().jobs[0].job
