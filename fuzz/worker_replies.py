"""The target `worker_replies`: a compromised worker talks to the broker's real WorkerLink."""

import array
import asyncio
import os
import socket
from contextlib import suppress
from functools import cache
from typing import Any, cast

import msgspec

from fuzz.control import as_msgpack
from fuzz.fds import forged, no_descriptor_left, sealed
from fuzz.reading import Reader
from weave.broker.schedule import worker_link
from weave.broker.schedule.worker_link import WorkerError, WorkerLink
from weave.protocol.channel import ChannelClosed, ChannelViolation, check_sealed_memfd, close_all, socket_pair
from weave.protocol.client_messages import EncoderTokens, Tokens
from weave.protocol.parameters import Parameters
from weave.protocol.worker_messages import (
    Failed,
    Finished,
    Loaded,
    Made,
    Memory,
    Planned,
    Previewed,
    Progressed,
    Restarted,
    Run,
)

JOB = 5
SIDE = 8
PIXELS = SIDE * SIDE * 3
_MEMORY = Memory(1, 2)
_REASONS = ("cancelled", "out_of_memory", "refused", "internal", "scheduler")
_MAX_TOKENS = 2**20
# So few that they fit into the socket's buffer: sending never blocks.
_MAX_MESSAGES = 40


def worker_replies(data: bytes) -> None:
    """WorkerLink accepts the replies or raises one of three errors, yields no more updates than the job has, and leaves
    no descriptor open."""
    loop = _loop()
    with no_descriptor_left():
        loop.run_until_complete(_converse(Reader(data)))


@cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


async def _converse(reader: Reader) -> None:
    run, loads = _run(reader), bool(reader.byte() & 1)
    ours, theirs = socket_pair()
    link = WorkerLink(1, "m", ours.detach())
    try:
        _Script(reader, run, theirs, loading=loads).send()
        # The worker still reads, but sends nothing more.
        theirs.shutdown(socket.SHUT_WR)
        await _listen(link, run, loads=loads)
    finally:
        link.close()
        theirs.close()


async def _listen(link: WorkerLink, run: Run, *, loads: bool) -> None:
    """Do what the broker does, and check everything that it relies on."""
    parameters, every = run.parameters, run.parameters.preview_every
    previews = parameters.steps // every if every else 0
    updates: list[worker_link.Update] = []
    with suppress(ChannelViolation, ChannelClosed, WorkerError):
        if loads:
            await link.load()
            await link.loaded()
            assert link.device is not None and link.dtype is not None and link.memory is not None
            assert max(len(link.device), len(link.dtype)) <= 64
        finished = None
        async for update, memfd in link.run(run):
            assert finished is None
            if isinstance(update, Finished):
                finished = update
            else:
                updates.append(update)
                _check_update(update, memfd, run)
        assert sum(isinstance(update, Made) for update in updates) == parameters.images
        assert finished is not None and link.memory == finished.memory
        _check_tokens(finished.tokens)
    restarts = sum(isinstance(update, Restarted) for update in updates)
    each = parameters.steps + previews + 1
    assert restarts <= 1 and len(updates) <= (parameters.images + restarts) * each


def _check_tokens(tokens: Tokens) -> None:
    for encoders in (tokens.prompt, tokens.negative_prompt):
        assert len(encoders) <= 8
        assert all(0 <= min(one.used, one.cut) <= max(one.used, one.cut) <= _MAX_TOKENS for one in encoders)
        assert len(msgspec.json.encode(encoders)) < 1000


def _check_update(update: worker_link.Update, memfd: int | None, run: Run) -> None:
    try:
        assert update.job == JOB and (memfd is None) == isinstance(update, Progressed | Restarted)
        if isinstance(update, Restarted):
            return
        assert 0 <= update.image < run.parameters.images
        if memfd is not None and not isinstance(update, Progressed):
            check_sealed_memfd(memfd, update.size)
            assert len(os.pread(memfd, update.size + 1, 0)) == update.size > 0
    except ChannelViolation as error:
        raise AssertionError("an invalid memfd was accepted") from error
    finally:
        close_all([] if memfd is None else [memfd])


def _run(reader: Reader) -> Run:
    """A small Run, with any combination of images, steps, previews and format."""
    images, steps, every = 1 + reader.byte() % 3, 1 + reader.byte() % 4, reader.byte() % 4
    parameters = Parameters(
        prompt="x",
        negative_prompt="",
        width=SIDE,
        height=SIDE,
        steps=steps,
        cfg_scale=1.0,
        seed=1,
        scheduler="ddim",
        images=images,
        format="raw" if reader.byte() & 1 else "png",
        preview_every=every,
    )
    return Run(job=JOB, parameters=parameters)


class _Script:
    """The worker's messages. It tracks what a correct worker would send, so that an input can deviate late."""

    def __init__(self, reader: Reader, run: Run, sock: socket.socket, *, loading: bool) -> None:
        self._reader = reader
        self._sock = sock
        self._loading, self._planned = loading, False
        self._images, self._steps = run.parameters.images, run.parameters.steps
        self._every = run.parameters.preview_every
        self._image = self._step = self._shown = 0

    def send(self) -> None:
        """The low bits of a byte choose the message, the others its descriptors."""
        for _ in range(_MAX_MESSAGES):
            if not self._reader.more:
                return
            choice = self._reader.byte()
            payload, size = self._payload(choice & 7)
            descriptors = self._descriptors(choice >> 3, size)
            try:
                self._send(payload, descriptors)
            finally:
                close_all(descriptors)

    def _send(self, payload: bytes, descriptors: list[int]) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        self._sock.sendmsg([payload], rights)

    def _payload(self, kind: int) -> tuple[bytes, int]:
        """A message, and the size of the memfd that should come with it."""
        if kind == 6:
            return self._reader.take(self._reader.byte()), 0
        if kind == 7:
            return as_msgpack(self._reader.take(self._reader.byte())), PIXELS
        message = self._honest() if kind == 0 else self._chosen(kind)
        return msgspec.msgpack.encode(message), getattr(message, "size", 0)

    def _descriptors(self, choice: int, size: int) -> list[int]:
        """Mostly the right ones."""
        kind, more = choice & 3, choice >> 2
        if kind == 3:
            return [forged(more, size) for _ in range(1 + more // 4)]
        honest = [sealed(size)] if size else []
        return honest + [sealed(size) for _ in range(kind)]

    def _honest(self) -> msgspec.Struct:
        """The next message of a correct worker."""
        if self._loading and not self._planned:
            self._planned = True
            return Planned(plan="card")
        if self._loading:
            self._loading = False
            return Loaded(device="cpu", dtype="float32", memory=_MEMORY)
        if self._image == self._images:
            return Finished(job=JOB, memory=_MEMORY)
        if self._every and self._step % self._every == 0 and self._shown != self._step:
            self._shown = self._step
            return Previewed(job=JOB, image=self._image, step=self._step, width=8, height=8, size=9)
        if self._step < self._steps:
            self._step += 1
            return Progressed(job=JOB, image=self._image, step=self._step, steps=self._steps)
        self._image, self._step, self._shown = self._image + 1, 0, 0
        return Made(job=JOB, image=self._image - 1, size=PIXELS)

    def _chosen(self, kind: int) -> msgspec.Struct:
        """A well-formed message with numbers from the input."""
        job, image, step = self._small(JOB), self._small(self._image), self._small(self._step)
        if kind == 1:
            return Progressed(job=job, image=image, step=step, steps=self._small(self._steps))
        if kind == 2:
            side, size = self._reader.short(), self._reader.short() - 1
            return Previewed(job=job, image=image, step=step, width=side, height=8, size=size)
        if kind == 3:
            return Made(job=job, image=image, size=self._small(PIXELS))
        if kind == 4:
            return Finished(job=job, memory=_MEMORY, tokens=self._tokens())
        reason = _REASONS[self._reader.byte() % len(_REASONS)]
        return Failed(job=job, reason=cast(Any, reason), detail="")

    def _tokens(self) -> Tokens:
        """Mostly invalid in one way or another."""
        used, cut = self._small(77), self._small(_MAX_TOKENS)
        encoder = f"text_encoder_{self._small(2)}"
        return Tokens(prompt=(EncoderTokens(encoder=encoder, used=used, cut=cut),) * self._small(8))

    def _small(self, near: int) -> int:
        """A number around `near`, most often itself."""
        return near + (self._reader.byte() + 128) % 256 - 128
