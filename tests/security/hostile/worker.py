"""A compromised worker, in the middle of a job of the real broker."""

import array
import contextlib
import ctypes
import fcntl
import os
import socket
from collections.abc import Callable
from typing import Any

from weave.gpu_worker.generation import Generation, generate
from weave.protocol.channel import sealed_memfd
from weave.protocol.client_messages import Tokens
from weave.protocol.worker_messages import (
    MAX_DETAIL,
    Failed,
    Finished,
    Loaded,
    Made,
    Memory,
    Previewed,
    Progressed,
)

MEMORY = Memory(1, 2)


def raw(job: Generation, data: bytes, descriptors: tuple[int, ...] = ()) -> None:
    """Without the checks of the sending side."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    job.channel._sock.sendmsg([data], rights, socket.MSG_NOSIGNAL)


def size_of(job: Generation) -> int:
    return job.run.parameters.width * job.run.parameters.height * 3


def send_image(job: Generation, memfd: int) -> None:
    job.channel.send(Made(job=job.run.job, image=0, size=size_of(job)), (memfd,))


def unsealed(job: Generation) -> int:
    memfd = os.memfd_create("weave-image", os.MFD_ALLOW_SEALING)
    os.ftruncate(memfd, size_of(job))
    return memfd


def sealed_but_for_writing(job: Generation) -> int:
    memfd = unsealed(job)
    fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return memfd


def flood(job: Generation) -> None:
    while True:
        job.channel.send(Progressed(job=job.run.job, image=0, step=1, steps=2))


def another_message(job: Generation) -> None:
    job.channel.send(job.run)


# Each breaks the protocol, which the broker must see.
FORGERIES: dict[str, Callable[[Generation], Any]] = {
    "another job's end": lambda job: job.channel.send(Finished(job=job.run.job + 1, memory=MEMORY)),
    "the end before an image": lambda job: job.channel.send(Finished(job=job.run.job, memory=MEMORY)),
    "a step out of turn": lambda job: job.channel.send(Progressed(job=job.run.job, image=0, step=2, steps=2)),
    "a negative step": lambda job: job.channel.send(Progressed(job=job.run.job, image=0, step=-1, steps=2)),
    "an unrequested preview": lambda job: job.channel.send(
        Previewed(job=job.run.job, image=0, step=0, width=8, height=8, size=1), (sealed_memfd("x", b"x"),)
    ),
    "loaded again": lambda job: job.channel.send(Loaded(device="cpu", dtype="float32", memory=MEMORY)),
    "a device name too long": lambda job: job.channel.send(Loaded(device="x" * 65, dtype="", memory=MEMORY)),
    "a detail too long": lambda job: job.channel.send(
        Failed(job=job.run.job, reason="internal", detail="x" * (MAX_DETAIL + 1))
    ),
    # About as much as the kernel lets through in one message.
    "a giant message": lambda job: job.channel.send(Loaded(device="x" * 200_000, dtype="", memory=MEMORY)),
    "not msgpack": lambda job: raw(job, b"\xc1"),
    "deep nesting": lambda job: raw(job, b"\x91" * 100_000),
    "the other side's message": another_message,
    "an image without a memfd": lambda job: job.channel.send(Made(job=job.run.job, image=0, size=1)),
    "an unsealed memfd": lambda job: send_image(job, unsealed(job)),
    "a memfd that can be written to": lambda job: send_image(job, sealed_but_for_writing(job)),
    "a short memfd": lambda job: send_image(job, sealed_memfd("weave-image", bytes(size_of(job) - 1))),
    "a descriptor other than a memfd": lambda job: send_image(job, os.dup(1)),
    "two descriptors": lambda job: job.channel.send(
        Made(job=job.run.job, image=0, size=1), (sealed_memfd("x", b"x"), sealed_memfd("x", b"x"))
    ),
    "a hundred descriptors": lambda job: raw(job, b"\x80", (sealed_memfd("x", b"x"),) * 100),
    "a flood": flood,
}

# Each is a call that the worker may not make; the supervisor must see it.
CALLS: dict[str, Callable[[Generation], Any]] = {
    "socket": lambda _: socket.socket(socket.AF_UNIX),
    "execve": lambda _: os.execv("/bin/true", ["true"]),
    "clone": lambda _: os.fork(),
    "kill": lambda _: os.kill(1, 0),
    "unlinkat": lambda _: os.rmdir("/tmp/x", dir_fd=0),
}


def read_passwd(_: Generation) -> None:
    """If the call is allowed but the file is not, the worker lives on and gets EACCES."""
    try:
        os.open("/etc/passwd", os.O_RDONLY)
        told = "read it"
    except OSError as error:
        told = f"errno {error.errno}"
    raise RuntimeError(f"/etc/passwd: {told}")


CALLS_OF_A_NEW_DRIVER = 3000
# One of NVIDIA's type, which is on the list for a GPU, and one of an unlisted type.
LISTED_IOCTL, UNLISTED_IOCTL = 0xC020462A, 0x40045A17


def behave_like_a_new_driver(job: Generation) -> None:
    """Not an attack: it makes more calls than the list allows, very often, and then generates."""
    for _ in range(CALLS_OF_A_NEW_DRIVER):
        os.getpgid(0)
    for request in (LISTED_IOCTL, UNLISTED_IOCTL):
        with contextlib.suppress(OSError):
            fcntl.ioctl(0, request)
    generate(job)


ATTACKS: dict[str, Callable[[Generation], Any]] = {
    **FORGERIES,
    **CALLS,
    "open /etc/passwd": read_passwd,
    # The effect of an exploit that guessed a wrong address.
    "a fault": lambda _: ctypes.string_at(8),
    "a new driver": behave_like_a_new_driver,
}


def run(name: str, job: Generation) -> Tokens:
    """Attack in place of the job. An attack that is not noticed ends as if it were a job."""
    ATTACKS[name](job)
    return Tokens()
