"""The client for asyncio: concurrent requests over one connection."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterator, Sequence
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any

from weave.client.codec import (
    MAX_DESCRIPTORS,
    READ_BYTES,
    Answer,
    Decoder,
    Inbox,
    InvalidRequest,
    Last,
    NotRunning,
    OutgoingImage,
    ProtocolError,
    WeaveError,
    default_socket_path,
    request_frames,
)
from weave.client.images import check_features, generate_message, has_images
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
    """Used as `async with AsyncClient() as client`. Raises NotRunning; requests raise InvalidRequest, WeaveError and
    ProtocolError. For deadlines use asyncio.timeout."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or default_socket_path()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.setblocking(False)
        self._decoder = Decoder()
        self._inbox = Inbox()
        self._status: StatusReport | None = None
        self._arrived: dict[int, asyncio.Event] = {}
        self._numbers = count(1)
        self._sending = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended: Exception | None = None

    async def __aenter__(self) -> "AsyncClient":
        try:
            await self._connect()
        except OSError as error:
            self._socket.close()
            raise NotRunning(f"{self._path}: {error.strerror or error}") from None
        except BaseException:
            self._socket.close()
            raise
        self._start(self._read())
        return self

    async def _connect(self) -> None:
        """With a full backlog connect(2) fails with EAGAIN, and there is no event to wait for (unix(7)). asyncio's
        sock_connect would then treat the socket as connected."""
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
        self._end(NotRunning("the client is closed"))
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._socket.close()
        self._inbox.close()
        self._decoder.close()

    async def status(self) -> StatusReport:
        """The daemon's state."""
        return await self._expect(Status(), StatusReport)

    async def list_models(self) -> Models:
        """The models on offer."""
        return await self._expect(ListModels(), Models)

    async def load_model(self, model: str) -> Done:
        """Returns when the model is loaded."""
        return await self._expect(LoadModel(model=model), Done)

    async def unload(self) -> Done:
        """Returns when the worker has exited and all of its memory is free."""
        return await self._expect(Unload(), Done)

    async def cancel(self, *, job: int) -> Done:
        """Cancel a job of the same user, from any connection."""
        return await self._expect(Cancel(job=job), Done)

    async def generate(self, prompt: str, **parameters: Any) -> AsyncIterator[Answer]:
        """Generate images. `parameters` are the fields of Generate; images are what pixels_of() takes, and must not
        change until the first answer. The last answer is Done. Cancelling the task that iterates cancels the job and
        drops its further answers, even during the upload. So does leaving the iterator, once it is closed;
        contextlib.aclosing closes it immediately."""
        if has_images(parameters):  # decoding takes a while
            message, images = await asyncio.to_thread(generate_message, prompt, parameters)
            await self._check_features(message)
        else:
            message, images = generate_message(prompt, parameters)
        request = next(self._numbers)
        finished = False
        try:
            async with contextlib.aclosing(self._answers(request, message, images)) as answers:
                async for answer in answers:
                    finished = isinstance(answer.event, Done)
                    yield answer
        except (InvalidRequest, WeaveError):
            finished = True
            raise
        finally:
            if not finished and self._ended is None:
                # In its own task: the caller need not wait until the daemon reads it.
                self._start(self._write(request_frames(next(self._numbers), Cancel(request=request))))

    async def _check_features(self, message: Generate) -> None:
        """Ask the daemon once per connection, before the first image is sent."""
        if self._status is None:
            self._status = await self.status()
        check_features(message, self._status.features, self._status.version)

    async def _answers(
        self, request: int, message: ClientMessage, images: Sequence[OutgoingImage] = ()
    ) -> AsyncGenerator[Answer, None]:
        frames = request_frames(request, message, images)
        if self._ended is not None:
            raise self._ended
        arrived = self._arrived[request] = asyncio.Event()
        self._inbox.expect(request)
        try:
            self._start(self._write(frames, request))
            while True:
                arrived.clear()
                while (answer := self._inbox.take(request)) is not None:
                    if isinstance(answer.event, Error):
                        raise WeaveError(answer.event)
                    yield answer
                    if isinstance(answer.event, Done | StatusReport | Models):
                        return
                if self._ended is not None:
                    raise self._ended
                await arrived.wait()
        finally:
            del self._arrived[request]
            self._inbox.forget(request)

    async def _expect(self, message: ClientMessage, kind: type[Last]) -> Last:
        async with contextlib.aclosing(self._answers(next(self._numbers), message)) as answers:
            async for answer in answers:
                if isinstance(answer.event, kind):
                    return answer.event
        raise ProtocolError(f"no {kind.__name__} came")

    def _start(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _write(self, frames: Iterator[Iterator[bytes | memoryview]], request: int = 0) -> None:
        """Runs in its own task: a frame that has begun must be completed even if the caller is cancelled, or the daemon
        could not parse the frames after it. Between two frames other requests may send theirs. Images of a `request`
        that has ended in the meantime are not sent."""
        loop = asyncio.get_running_loop()
        try:
            for number, frame in enumerate(frames):
                async with self._sending:
                    if number and self._inbox.has_failed(request):
                        return
                    for piece in frame:
                        await loop.sock_sendall(self._socket, piece)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the daemon closed the connection; _read finds out why
        except Exception as error:  # also if an image has changed: its frame is incomplete
            self._end(error)

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
            self._decoder.close()
            self._end(error)

    def _deliver(self, answer: Answer) -> None:
        """An error with request number 0 concerns the connection, and so every request."""
        if answer.request == 0 and isinstance(answer.event, Error):
            self._end(WeaveError(answer.event))
            return
        self._inbox.put(answer)
        if (arrived := self._arrived.get(answer.request)) is not None:
            arrived.set()

    def _end(self, error: Exception) -> None:
        """Record the first error. Answers that have arrived can still be taken."""
        self._ended = self._ended or error
        for arrived in self._arrived.values():
            arrived.set()
