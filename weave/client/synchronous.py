"""The synchronous client: each request is an iterator of answers."""

import contextlib
import select
import socket
import time
from collections.abc import Generator, Iterator, Sequence
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
    Last,
    NotRunning,
    OutgoingImage,
    ProtocolError,
    WeaveError,
    default_socket_path,
    request_frames,
)
from weave.client.images import check_features, generate_message
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
from weave.protocol.peer import Peer

_RETRY_SECONDS = 0.01


class Client:
    """A connection. Raises NotRunning; each request raises InvalidRequest, WeaveError, ProtocolError, and TimeoutError
    after `timeout` seconds without a byte from the daemon."""

    def __init__(self, path: Path | None = None, *, timeout: float | None = None) -> None:
        self.path = path or default_socket_path()
        self._decoder = Decoder()
        self._arrived = Inbox()
        self._status: StatusReport | None = None
        self._failed: WeaveError | None = None
        self._numbers = count(1)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout)
        try:
            self._connect(timeout)
        except OSError as error:
            self._socket.close()
            raise NotRunning(f"{self.path}: {error.strerror or error}") from None

    def _connect(self, timeout: float | None) -> None:
        """With a timeout, connect(2) does not wait for room in a full backlog, but fails with EAGAIN (unix(7))."""
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            try:
                return self._socket.connect(str(self.path))
            except BlockingIOError:
                if end is not None and time.monotonic() > end:
                    raise TimeoutError(0, f"the listener did not accept a connection in {timeout:g} s") from None
                time.sleep(_RETRY_SECONDS)

    @property
    def timeout(self) -> float | None:
        """Seconds to wait for the daemon's next byte; None waits without a limit."""
        return self._socket.gettimeout()

    @timeout.setter
    def timeout(self, seconds: float | None) -> None:
        self._socket.settimeout(seconds)

    @property
    def listener(self) -> Peer:
        """The process that called listen(2), which may have passed the socket on, as systemd does."""
        return Peer.of(self._socket)

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection and all memfds not taken. The daemon cancels the connection's jobs."""
        self._socket.close()
        self._arrived.close()
        self._decoder.close()

    def status(self) -> StatusReport:
        """The daemon's state."""
        return self._expect(Status(), StatusReport)

    def list_models(self) -> Models:
        """The models on offer."""
        return self._expect(ListModels(), Models)

    def load_model(self, model: str) -> Done:
        """Returns when the model is loaded."""
        return self._expect(LoadModel(model=model), Done)

    def unload(self) -> Done:
        """Returns when the worker has exited and all of its memory is free."""
        return self._expect(Unload(), Done)

    def cancel(self, *, job: int) -> Done:
        """Cancel a job of the same user, from any connection."""
        return self._expect(Cancel(job=job), Done)

    def generate(self, prompt: str, **parameters: Any) -> Iterator[Answer]:
        """Generate images. `parameters` are the fields of Generate; images are what pixels_of() takes. The last
        answer is Done. Leaving the iterator early (break, or an exception such as KeyboardInterrupt) cancels the job
        and drops its further answers. An exception while the request or its images are sent closes the connection."""
        message, images = generate_message(prompt, parameters)
        if images:
            self._check_features(message)
        request = self.send(message, images)
        finished = False
        try:
            with contextlib.closing(self._answers(request)) as answers:
                for answer in answers:
                    finished = isinstance(answer.event, Done)
                    yield answer
        except WeaveError:
            finished = True
            raise
        finally:
            self._arrived.forget(request)
            if not finished and self._socket.fileno() >= 0:
                self._send(next(self._numbers), Cancel(request=request))

    def send(self, message: ClientMessage, images: Sequence[OutgoingImage] = ()) -> int:
        """Send a request, and the pixels of the images that it announces, and return its number. Its answers are kept
        for answers(), until forget()."""
        request = next(self._numbers)
        self._arrived.expect(request)
        try:
            self._send(request, message, images)
        except BaseException:
            self._arrived.forget(request)
            raise
        return request

    def _check_features(self, message: Generate) -> None:
        """Ask the daemon once per connection, before the first image is sent."""
        if self._status is None:
            self._status = self.status()
        check_features(message, self._status.features, self._status.version)

    def answers(self, request: int) -> Iterator[Answer]:
        """The answers to a request, up to its last; none if it is over. The iterator may be left early; a second call
        continues with the next answer. Raises WeaveError for the daemon's error."""
        return self._answers(request)

    def forget(self, request: int) -> None:
        """Drop all present and future answers to a request."""
        self._arrived.forget(request)

    def _answers(self, request: int) -> Generator[Answer, None, None]:
        while self._arrived.expects(request):
            while (answer := self._arrived.take(request)) is not None:
                if isinstance(answer.event, Error):
                    self._arrived.forget(request)
                    raise WeaveError(answer.event)
                if isinstance(answer.event, Done | StatusReport | Models):
                    self._arrived.forget(request)
                    yield answer
                    return
                yield answer
            if self._failed is not None:
                raise self._failed
            if self._arrived.expects(request):
                self._receive()

    def _expect(self, message: ClientMessage, kind: type[Last]) -> Last:
        request = self.send(message)
        try:
            for answer in self._answers(request):
                if isinstance(answer.event, kind):
                    return answer.event
        finally:
            self._arrived.forget(request)
        raise ProtocolError(f"no {kind.__name__} came")

    def _send(self, request: int, message: ClientMessage, images: Sequence[OutgoingImage] = ()) -> None:
        frames = request_frames(request, message, images)
        if self._socket.fileno() < 0:
            raise NotRunning("the client is closed")
        try:
            for number, frame in enumerate(frames):
                if number and self._arrived.has_failed(request):
                    break  # the daemon has refused the request; it needs no more of its images
                for piece in frame:
                    self._send_piece(memoryview(piece))
        except (BrokenPipeError, ConnectionResetError, NotRunning):
            pass  # the daemon closed the connection; reading finds out why
        except BaseException:
            self.close()  # part of a frame may be sent: the daemon could not parse the next one
            raise

    def _send_piece(self, piece: memoryview) -> None:
        """Also reads what arrives: a daemon whose answers nobody reads might stop reading."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | select.POLLOUT)
        while piece:
            timeout = self.timeout
            events = poll.poll(None if timeout is None else timeout * 1000)
            if not events:
                raise TimeoutError("timed out")
            ready = events[0][1]
            if ready & select.POLLIN:
                self._receive()
            if ready & ~select.POLLIN:  # also if the daemon has closed the connection
                with contextlib.suppress(BlockingIOError):
                    piece = piece[self._socket.send(piece, socket.MSG_DONTWAIT) :]

    def _receive(self) -> None:
        try:
            data, ancillary, _, _ = self._socket.recvmsg(
                READ_BYTES, socket.CMSG_SPACE(MAX_DESCRIPTORS * 4), socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:
            raise NotRunning("the daemon closed the connection") from None
        descriptors = received_descriptors(ancillary)
        try:
            for answer in self._decoder.feed(data, descriptors):
                self._deliver(answer)
        except ProtocolError:
            self.close()
            raise
        if not data:
            raise NotRunning("the daemon closed the connection")

    def _deliver(self, answer: Answer) -> None:
        """An error with request number 0 concerns the connection, and so every request."""
        if answer.request == 0 and isinstance(answer.event, Error):
            self._failed = WeaveError(answer.event)
        else:
            self._arrived.put(answer)
