"""The images that a client sends with its requests: each is written, unread, to a memfd, which is then sealed."""

import asyncio
from collections.abc import Callable
from functools import partial

from weave.broker.admission.inputs import Inputs
from weave.broker.schedule.job import Reply
from weave.protocol.channel import MemfdWriter
from weave.protocol.errors import ErrorCode, RequestError
from weave.protocol.frames import Header, Write, no_image_expected
from weave.protocol.inputs import InputImage

# How many refused requests of one connection are remembered, since their images may still arrive.
_MAX_REFUSED = 64


class _Upload:
    """A request whose images have not all arrived."""

    def __init__(
        self, reply: Reply, images: tuple[InputImage, ...], inputs: Inputs, then: Callable[[Inputs], None]
    ) -> None:
        self.reply = reply
        self.images = images
        self.inputs = inputs
        self.then = then
        self.writer: MemfdWriter | None = None
        self.timer: asyncio.TimerHandle | None = None

    def close(self) -> None:
        """Discard what has arrived."""
        self.stop()
        self.inputs.close()

    def stop(self) -> None:
        """Stop waiting for images."""
        if self.timer is not None:
            self.timer.cancel()
        if self.writer is not None:
            self.writer.close()
        self.timer = self.writer = None


class Uploads:
    """The uploads of one connection, by request number. Image frames of a refused request are discarded until a new
    request has its number: the client may have sent them before it got the error."""

    def __init__(self, end: Callable[[Reply], None], refuse: Callable[[Reply, RequestError], None]) -> None:
        """`end` is called when a request is no longer in flight. `refuse` sends its last event."""
        self._end = end
        self._refuse = refuse
        self._uploads: dict[int, _Upload] = {}
        self._refused: dict[int, None] = {}  # a set in the order of insertion

    def begin(
        self,
        reply: Reply,
        images: tuple[InputImage, ...],
        inputs: Inputs,
        then: Callable[[Inputs], None],
        *,
        seconds: float,
    ) -> None:
        """Expect the images of a request. When all have arrived, `then` takes ownership of `inputs`, unless it raises
        RequestError. The request fails if that takes more than `seconds`."""
        assert reply.request is not None
        upload = self._uploads[reply.request] = _Upload(reply, images, inputs, then)
        text = f"the images have not arrived within {seconds:g} s"
        error = RequestError(ErrorCode.TIMED_OUT, text, field="upload_seconds", maximum=seconds)
        upload.timer = asyncio.get_running_loop().call_later(seconds, self._fail, upload, error)

    def discard(self, request: int) -> None:
        """Discard the images of a refused request, unless another request with its number expects some."""
        if request in self._uploads:
            return
        self._refused[request] = None
        if len(self._refused) > _MAX_REFUSED:
            del self._refused[next(iter(self._refused))]

    def forget(self, request: int) -> None:
        """A new request has this number: stop discarding images for the old one."""
        self._refused.pop(request, None)

    def cancel(self, request: int) -> bool:
        """End the request if its images are still arriving. Returns whether they were."""
        upload = self._uploads.get(request)
        if upload is None:
            return False
        self._fail(upload, RequestError(ErrorCode.CANCELLED, "cancelled"))
        return True

    def fail_all(self, error: RequestError) -> None:
        """End all requests whose images are still arriving."""
        for upload in list(self._uploads.values()):
            self._fail(upload, error)

    def open(self, header: Header) -> Write:
        """Returns what takes the payload of an image frame, piece by piece. Raises FrameError if none is expected."""
        if header.request in self._refused:
            return _discard
        upload = self._uploads.get(header.request)
        if upload is None:
            return no_image_expected(header)
        number = len(upload.inputs.memfds)
        expected = upload.images[number].size
        if header.length != expected:
            text = f"image {number + 1} has {header.length} bytes; its announced size is {expected}"
            code, value = ErrorCode.INVALID_REQUEST, header.length
            self._fail(
                upload, RequestError(code, text, field="length", value=value, minimum=expected, maximum=expected)
            )
            return _discard
        try:
            upload.writer = MemfdWriter("weave-input")
        except OSError as error:
            self._fail(upload, _no_room(error))
            return _discard
        return partial(self._write, upload)

    def complete(self, header: Header) -> None:
        """The payload has arrived. After the last one the request continues."""
        upload = self._uploads.get(header.request)
        if upload is None or upload.writer is None:  # it has failed
            return
        upload.inputs.add(upload.writer.seal())
        if len(upload.inputs.memfds) < len(upload.images):
            upload.writer = None
            return
        upload.stop()
        del self._uploads[header.request]
        self._end(upload.reply)
        try:
            upload.then(upload.inputs)
        except RequestError as error:
            upload.close()
            self._refuse(upload.reply, error)

    def close(self) -> None:
        """The client has disconnected."""
        for upload in self._uploads.values():
            upload.close()
        self._uploads.clear()

    def _write(self, upload: _Upload, piece: memoryview) -> None:
        if upload.writer is None:  # it has failed
            return
        try:
            upload.writer.write(piece)
        except OSError as error:
            self._fail(upload, _no_room(error))

    def _fail(self, upload: _Upload, error: RequestError) -> None:
        """Refuse the request, and discard the rest of its images."""
        assert upload.reply.request is not None
        upload.close()
        del self._uploads[upload.reply.request]
        self.discard(upload.reply.request)
        self._end(upload.reply)
        self._refuse(upload.reply, error)


def _discard(_: memoryview) -> None:
    pass


def _no_room(error: OSError) -> RequestError:
    """The system has no memory or no descriptors left."""
    return RequestError(ErrorCode.QUEUE_FULL, f"no room for the images: {error.strerror}")
