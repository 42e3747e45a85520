"""The client for asyncio: many requests at once over one connection."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any

from weave.client.codec import (
    MAX_DESCRIPTORS,
    READ_BYTES,
    Answer,
    Decoder,
    Last,
    NotRunning,
    ProtocolError,
    WeaveError,
    default_socket_path,
    request_frame,
)
from weave.protocol.channel import received_descriptors
from weave.protocol.client_messages import (
    Cancel,
    ClientMessage,
    Done,
    Error,
    Generate,
    ListModels,
    LoadModel,
    Models,
    Status,
    StatusReport,
    Unload,
)
from weave.protocol.waiting import readable

_RETRY_SECONDS = 0.01


class AsyncClient:
    """`async with AsyncClient() as client`. Raises NotRunning; requests raise WeaveError and ProtocolError."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or default_socket_path()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.setblocking(False)
        self._decoder = Decoder()
        self._waiting: dict[int, asyncio.Queue[Answer | Exception]] = {}
        self._numbers = count(1)
        self._sending = asyncio.Lock()
        self._reader: asyncio.Task[None] | None = None
        self._ended: Exception | None = None

    async def __aenter__(self) -> "AsyncClient":
        try:
            await self._connect()
        except OSError as error:
            self._socket.close()
            raise NotRunning(f"{self._path}: {error.strerror or error}") from None
        self._reader = asyncio.create_task(self._read())
        return self

    async def _connect(self) -> None:
        """A daemon with too many waiting to be accepted says EAGAIN, and there is nothing to wait on (unix(7)):
        asyncio's sock_connect would take the socket for connected."""
        while True:
            try:
                self._socket.connect(str(self._path))
            except BlockingIOError:
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                return

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._reader is not None
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        self._decoder.close()
        self._socket.close()

    async def status(self) -> StatusReport:
        """What the daemon is doing."""
        return await self._expect(Status(), StatusReport)

    async def list_models(self) -> Models:
        """The models that can be asked for."""
        return await self._expect(ListModels(), Models)

    async def load_model(self, model: str) -> Done:
        """Returns when the model is loaded."""
        return await self._expect(LoadModel(model=model), Done)

    async def unload(self) -> Done:
        """Returns when the worker and all of its memory are gone."""
        return await self._expect(Unload(), Done)

    async def cancel(self, *, job: int) -> Done:
        """Cancel a job of the same user, of whatever connection."""
        return await self._expect(Cancel(job=job), Done)

    async def generate(self, prompt: str, **parameters: Any) -> AsyncIterator[Answer]:
        """Draw; `parameters` are the fields of Generate. The last answer is Done. Cancelling the task that
        iterates cancels the job."""
        request = next(self._numbers)
        finished = False
        try:
            async for answer in self._answers(request, Generate(prompt=prompt, **parameters)):
                finished = isinstance(answer.event, Done)
                yield answer
        except WeaveError:
            finished = True
            raise
        finally:
            if not finished and self._reader is not None and not self._reader.done():
                await self._send(next(self._numbers), Cancel(request=request))

    async def _answers(self, request: int, message: ClientMessage) -> AsyncIterator[Answer]:
        arrived = self._waiting[request] = asyncio.Queue()
        try:
            if self._ended is not None:
                raise self._ended
            await self._send(request, message)
            while True:
                answer = await arrived.get()
                if isinstance(answer, Exception):
                    raise answer
                if isinstance(answer.event, Error):
                    raise WeaveError(answer.event)
                yield answer
                if isinstance(answer.event, Done | StatusReport | Models):
                    return
        finally:
            del self._waiting[request]

    async def _expect(self, message: ClientMessage, kind: type[Last]) -> Last:
        async for answer in self._answers(next(self._numbers), message):
            if isinstance(answer.event, kind):
                return answer.event
        raise ProtocolError(f"no {kind.__name__} came")

    async def _send(self, request: int, message: ClientMessage) -> None:
        # Of a connection that the daemon has closed the reader finds the end, and why.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            async with self._sending:
                await asyncio.get_running_loop().sock_sendall(self._socket, request_frame(request, message))

    async def _read(self) -> None:
        try:
            while True:
                await readable(self._socket.fileno())
                data, ancillary, _, _ = self._socket.recvmsg(
                    READ_BYTES, socket.CMSG_SPACE(MAX_DESCRIPTORS * 4), socket.MSG_CMSG_CLOEXEC
                )
                for answer in self._decoder.feed(data, received_descriptors(ancillary)):
                    self._deliver(answer)
                if not data:
                    raise NotRunning("the daemon closed the connection")
        except (ProtocolError, NotRunning, OSError) as error:
            self._ended = self._ended or error
            for arrived in self._waiting.values():
                arrived.put_nowait(self._ended)

    def _deliver(self, answer: Answer) -> None:
        """An error with number 0 concerns the connection, and so every request."""
        if answer.request == 0 and isinstance(answer.event, Error):
            self._ended = WeaveError(answer.event)
        for request, arrived in self._waiting.items():
            if answer.request in (request, 0):
                arrived.put_nowait(answer)
