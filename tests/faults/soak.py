"""make soak: random clients, cancels, kills and reloads for a given time, and nothing may be left behind. python -m
tests.faults.soak [--seconds N] [--seed N] Every image must be the one that its seed gives. At the end no process, memfd
or descriptor may be left, and the memory of the lasting processes may not have grown. Otherwise the exit status is 1,
with the reason."""

import argparse
import asyncio
import json
import os
import random
import resource
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.support.builds import visible
from tests.support.daemon import Daemon, descriptors_of, wait_for
from tests.support.generation import PROMPT, generate, images
from tests.support.processes import all_ended, reset_signals, temporary_folders
from tests.support.stages import held, wait_for_client, wait_until_alone
from tests.support.system import MODEL
from tests.support.uploads import SIZE, WITH_IMAGE
from tests.support.wire import generate_1, send_2
from weave.client import AsyncClient, NotRunning, Pixels, ProtocolError, WeaveError
from weave.protocol.client_messages import Progress, Queued
from weave.protocol.frames import Kind, pack_frame
from weave.protocol.inputs import InputImage

LIMITS = """
[limits]
connections_per_uid = 40
queue_per_uid = 30
burst_per_uid = 200
requests_per_second = 200.0
frame_seconds = 0.5
outgoing_images = 50
incoming_images = 8
upload_seconds = 1.0
idle_unload_seconds = 1.0
"""
CLIENTS = 6
SEEDS = 4
# Of the whole daemon's memory: the allocator's variation, not a leak.
GROWTH_ALLOWED = 1.25
LASTING = ("supervisor", "broker", "gpu_worker")


class Soak:
    """One run. `found` counts the outcomes of requests, `wrong` describes each failure."""

    def __init__(self, daemon: Daemon, seed: int, expected: list[bytes], expected_from_image: list[bytes]) -> None:
        self.daemon = daemon
        self.random = random.Random(seed)
        self.expected = expected
        self.expected_from_image = expected_from_image
        self.found: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.memory: list[dict[str, int]] = []

    async def run(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        await asyncio.gather(*(self._client(end) for _ in range(CLIENTS)), self._harm(end), self._watch(end))

    async def _client(self, end: float) -> None:
        habits = (
            self._generate,
            self._generate,
            self._upload,
            self._upload_badly,
            self._cancel,
            self._vanish,
            self._babble,
            self._deaf,
            self._unload,
        )
        while time.monotonic() < end:
            habit = self.random.choice(habits)
            try:
                await asyncio.wait_for(habit(), 100)
                self.found[habit.__name__.lstrip("_")] += 1
            except WeaveError as error:
                self.found[error.code] += 1
            except (NotRunning, ProtocolError, ConnectionError):
                self.found["disconnected"] += 1
            except TimeoutError:
                self.wrong.append(f"{habit.__name__} got no answer in 100 s")
            await asyncio.sleep(self.random.random() / 10)

    async def _generate(self) -> None:
        seed = self.random.randrange(SEEDS)
        async with AsyncClient(self.daemon.socket) as client:
            wanted = {"steps": 4, "seed": seed, "deliver": self.random.choice(("inline", "fd"))}
            answers = [answer async for answer in client.generate(PROMPT, model="shapes", **wanted)]
        (image,) = images(answers)
        data = image.data
        if image.memfd is not None:
            data = os.pread(image.memfd, 2**20, 0)
            os.close(image.memfd)
        if data != self.expected[seed]:
            self.wrong.append(f"another image for seed {seed}")

    async def _upload(self) -> None:
        seed = self.random.randrange(SEEDS)
        async with AsyncClient(self.daemon.socket) as client:
            asked = client.generate(PROMPT, model="shapes", **from_image(seed))
            (image,) = images([answer async for answer in asked])
        if image.data != self.expected_from_image[seed]:  # with the digest of its input in its text
            self.wrong.append(f"another image for upload {seed}")

    async def _upload_badly(self) -> None:
        """Sends some of the announced bytes in pieces, perhaps a cancel, then nothing more, or too much."""
        with self.daemon.connect() as raw:
            raw.setblocking(False)
            loop = asyncio.get_running_loop()
            frames = [pack_frame(Kind.IMAGE, number, bytes(SIZE)) for number in (1, 2)]
            stream = b"".join(request_with_image(number) for number in (1, 2)) + b"".join(frames * 2)
            for at in range(0, self.random.randrange(len(stream)), 5000):
                await loop.sock_sendall(raw, stream[at : at + 5000])
                if self.random.random() < 0.2:
                    await asyncio.sleep(self.random.random() / 5)
            await asyncio.sleep(self.random.choice((0, 1.2)))

    async def _cancel(self) -> None:
        async with AsyncClient(self.daemon.socket) as client, AsyncClient(self.daemon.socket) as other:
            job = None
            async for answer in client.generate(PROMPT, model="shapes", steps=100, images=8):
                job = answer.event.job if isinstance(answer.event, Queued) else job
                if job is not None and (isinstance(answer.event, Progress) or self.random.random() < 0.3):
                    await other.cancel(job=job)

    async def _vanish(self) -> None:
        async with AsyncClient(self.daemon.socket) as client:
            async for answer in client.generate(PROMPT, model="shapes", steps=100, preview_every=1):
                if self.random.random() < 0.1 and isinstance(answer.event, Progress):
                    return

    async def _babble(self) -> None:
        """Half a frame, or bytes that are not a frame."""
        with self.daemon.connect() as raw:
            raw.sendall(self.random.choice((b"WEVE\0", b"GET / HTTP/1.1\r\n\r\n", generate_1(width=65))))
            await asyncio.sleep(self.random.random())

    async def _deaf(self) -> None:
        """Requests more than it reads."""
        with self.daemon.connect() as raw:
            for number in range(3):
                send_2(raw, {"op": "generate", "model": "shapes", "prompt": PROMPT, "steps": 1, "images": 8}, number)
            await asyncio.sleep(self.random.random())

    async def _unload(self) -> None:
        async with AsyncClient(self.daemon.socket) as client:
            await client.unload()

    async def _harm(self, end: float) -> None:
        while time.monotonic() < end - 5:
            await asyncio.sleep(self.random.uniform(1, 4))
            victim = self.random.choices(("worker", "broker", "gpu_worker", "reload"), (6, 2, 1, 3))[0]
            try:
                if victim == "reload":
                    self.daemon.process.send_signal(signal.SIGHUP)
                else:
                    os.kill(self.daemon.pid_of(victim), signal.SIGKILL)
                self.found[f"harm: {victim}"] += 1
            except (StopIteration, ProcessLookupError, FileNotFoundError):
                pass

    async def _watch(self, end: float) -> None:
        while time.monotonic() < end:
            await asyncio.sleep(1)
            self.memory.append(memory_of(self.daemon))


def from_image(seed: int) -> dict[str, Any]:
    """A request's parameters. Only the colour of the 128x128 image differs."""
    size = InputImage(width=128, height=128)
    return {"image": Pixels(size, bytes([40 * seed]) * size.size), "strength": 0.5, "steps": 4, "seed": seed}


def request_with_image(number: int) -> bytes:
    return pack_frame(Kind.CONTROL, number, json.dumps(WITH_IMAGE).encode())


def memory_of(daemon: Daemon) -> dict[str, int]:
    """Private resident bytes of each lasting process."""
    found = {}
    try:
        for pid, role in {**daemon.processes(), daemon.process.pid: "supervisor"}.items():
            lines = dict(line.split(":") for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
            found[role] = sum(int(lines[name].split()[0]) for name in ("Private_Clean", "Private_Dirty")) * 1024
    except (FileNotFoundError, ProcessLookupError):
        pass
    return found


def check(daemon: Daemon, soak: Soak, before: dict[str, int], memory: dict[str, int]) -> list[str]:
    """Processes, memfds and descriptors that are left after all clients have disconnected."""
    with wait_for_client(daemon) as client:
        if images(generate(client, seed=0))[0].data != soak.expected[0]:
            soak.wrong.append("another image afterwards")
        client.unload()
    wait_for(lambda: sorted(daemon.processes().values()) == ["broker", "gpu_worker"])
    try:
        wait_for(lambda: held(daemon) == before, seconds=10)
    except AssertionError:
        soak.wrong.append(f"descriptors: {before} before, {held(daemon)} after")
    for pid in (daemon.process.pid, *daemon.processes()):
        soak.wrong += [f"process {pid} holds {link}" for link in descriptors_of(pid) if "memfd:weave-i" in link]
    after = memory_of(daemon)
    for role in LASTING:
        if after[role] > memory[role] * GROWTH_ALLOWED + 2**21:
            soak.wrong.append(f"{role} has {after[role]:,} private bytes, {memory[role]:,} when it was warm")
    return soak.wrong


def run(seconds: float, seed: int) -> Soak:
    daemon = Daemon(LIMITS + MODEL, command=visible()).wait_until_serving()
    try:
        with daemon.client() as client:
            expected = [images(generate(client, seed=number))[0].data for number in range(SEEDS)]
            from_images = [images(generate(client, **from_image(number)))[0].data for number in range(SEEDS)]
            client.unload()
        soak = Soak(daemon, seed, expected, from_images)
        asyncio.run(soak.run(min(seconds / 4, 30)))
        with wait_for_client(daemon) as client:
            client.unload()
        wait_for(lambda: "worker" not in daemon.processes().values())
        wait_until_alone(daemon)
        before, memory = held(daemon), memory_of(daemon)
        asyncio.run(soak.run(seconds))
        check(daemon, soak, before, memory)
        soak.memory += [memory, memory_of(daemon)]
    finally:
        if daemon.stop() != 0:
            soak.wrong.append("the daemon did not stop in order")
    return soak


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=float, default=600)
    options.add_argument("--seed", type=int, default=1)
    chosen = options.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    reset_signals()
    with temporary_folders(), all_ended():
        soak = run(chosen.seconds, chosen.seed)
    table = Table("what", "how often")
    for name, number in soak.found.most_common():
        table.add_row(name, str(number))
    warm, after = soak.memory[-2:]
    for role in LASTING:
        table.add_row(f"{role}, private MiB, warm and afterwards", f"{warm[role] >> 20}, {after[role] >> 20}")
    Console().print(table)
    for wrong in soak.wrong:
        print(wrong, file=sys.stderr)
    return 1 if soak.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
