"""The client for plain code: one request at a time, each an iterator of answers."""

import contextlib
import socket
from collections.abc import Iterator
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


class Client:
    """A connection. Raises NotRunning; each request raises WeaveError, ProtocolError, and TimeoutError where
    `timeout`, in seconds without a byte from the daemon, is given."""

    def __init__(self, path: Path | None = None, *, timeout: float | None = None) -> None:
        path = path or default_socket_path()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout)
        self._decoder = Decoder()
        self._arrived: list[Answer] = []
        self._numbers = count(1)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise NotRunning(f"{path}: {error.strerror or error}") from None

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """The daemon cancels what this connection still waits for."""
        self._decoder.close()
        self._socket.close()

    def status(self) -> StatusReport:
        """What the daemon is doing."""
        return self._expect(Status(), StatusReport)

    def list_models(self) -> Models:
        """The models that can be asked for."""
        return self._expect(ListModels(), Models)

    def load_model(self, model: str) -> Done:
        """Returns when the model is loaded."""
        return self._expect(LoadModel(model=model), Done)

    def unload(self) -> Done:
        """Returns when the worker and all of its memory are gone."""
        return self._expect(Unload(), Done)

    def cancel(self, *, job: int) -> Done:
        """Cancel a job of the same user, of whatever connection."""
        return self._expect(Cancel(job=job), Done)

    def generate(self, prompt: str, **parameters: Any) -> Iterator[Answer]:
        """Draw; `parameters` are the fields of Generate. The last answer is Done. Leaving the iterator early
        (break, or an exception such as KeyboardInterrupt) cancels the job."""
        request = self.send(Generate(prompt=prompt, **parameters))
        finished = False
        try:
            for answer in self.answers(request):
                finished = isinstance(answer.event, Done)
                yield answer
        except WeaveError:
            finished = True
            raise
        finally:
            if not finished and self._socket.fileno() >= 0:
                self.send(Cancel(request=request))

    def send(self, message: ClientMessage) -> int:
        """Send a request; its number."""
        request = next(self._numbers)
        # Of a connection that the daemon has closed, why it did is still to be read, and then the end.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._socket.sendall(request_frame(request, message))
        return request

    def answers(self, request: int) -> Iterator[Answer]:
        """All answers to a request, up to its last. Raises WeaveError for the daemon's error."""
        while True:
            for answer in [answer for answer in self._arrived if answer.request in (request, 0)]:
                self._arrived.remove(answer)
                if isinstance(answer.event, Error):
                    raise WeaveError(answer.event)
                yield answer
                if isinstance(answer.event, Done | StatusReport | Models):
                    return
            self._receive()

    def _expect(self, message: ClientMessage, kind: type[Last]) -> Last:
        for answer in self.answers(self.send(message)):
            if isinstance(answer.event, kind):
                return answer.event
        raise ProtocolError(f"no {kind.__name__} came")

    def _receive(self) -> None:
        try:
            data, ancillary, _, _ = self._socket.recvmsg(
                READ_BYTES, socket.CMSG_SPACE(MAX_DESCRIPTORS * 4), socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:
            raise NotRunning("the daemon closed the connection") from None
        self._arrived += self._decoder.feed(data, received_descriptors(ancillary))
        if not data:
            raise NotRunning("the daemon closed the connection")
