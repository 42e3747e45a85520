"""The images that a client sends with its requests: each is written, unread, to a memfd, which is then sealed."""

import asyncio
from collections.abc import Callable

from weave.broker.admission.limits import Admission, Incoming
from weave.broker.admission.principal import Principal
from weave.broker.schedule.job import Reply
from weave.protocol.channel import MemfdWriter, close_all
from weave.protocol.errors import ErrorCode, FrameError, RequestError
from weave.protocol.frames import Header
from weave.protocol.inputs import InputImage

Write = Callable[[memoryview], None]
# Requests of one connection that were refused, and whose images may still come.
_MAX_REFUSED = 64


class Inputs:
    """The sealed memfds of one request, counted for its principal until close()."""

    def __init__(self, admission: Admission, principal: Principal, images: tuple[InputImage, ...]) -> None:
        """Raises RequestError (queue_full) if there is no room for them."""
        self.memfds: tuple[int, ...] = ()
        self._admission = admission
        self._principal = principal
        self._counted = Incoming(bytes=sum(image.size for image in images), images=len(images))
        admission.reserve(principal, self._counted)

    def add(self, memfd: int) -> None:
        """Takes ownership of `memfd`."""
        self.memfds = (*self.memfds, memfd)

    def close(self) -> None:
        """Close the memfds; nothing counts any more."""
        memfds, self.memfds = self.memfds, ()
        close_all(list(memfds))
        self._admission.release(self._principal, self._counted)
        self._counted = Incoming()


class _Upload:
    """One request whose images have not all arrived. Without `inputs` they are discarded: the request was refused."""

    def __init__(
        self,
        images: tuple[InputImage, ...],
        reply: Reply,
        inputs: Inputs | None = None,
        then: Callable[[Inputs], None] | None = None,
    ) -> None:
        self.images = images
        self.reply = reply
        self.inputs = inputs
        self.then = then
        self.arrived = 0
        self.writer: MemfdWriter | None = None
        self.timer: asyncio.TimerHandle | None = None

    def close(self) -> None:
        """Discard what has arrived, and what is still to come."""
        if self.timer is not None:
            self.timer.cancel()
        if self.writer is not None:
            self.writer.close()
        if self.inputs is not None:
            self.inputs.close()
        self.timer = self.writer = self.inputs = None


class Uploads:
    """Those of one connection, by the client's number of the request."""

    def __init__(self, end: Callable[[Reply], None], refuse: Callable[[Reply, RequestError], None]) -> None:
        """`end`: the request is no longer in flight. `refuse` sends its last event."""
        self._end = end
        self._refuse = refuse
        self._uploads: dict[int, _Upload] = {}

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
        upload = self._uploads[reply.request] = _Upload(images, reply, inputs, then)
        text = f"the images have not arrived within {seconds:g} s"
        error = RequestError(ErrorCode.TIMED_OUT, text, field="upload_seconds", maximum=seconds)
        upload.timer = asyncio.get_running_loop().call_later(seconds, self._fail, upload, error)

    def discard(self, reply: Reply, images: tuple[InputImage, ...]) -> None:
        """The request was refused. Its images, which may be on their way, are not kept."""
        if reply.request is None or not images:
            return
        self._uploads[reply.request] = _Upload(images, reply)
        refused = [number for number, upload in self._uploads.items() if upload.inputs is None]
        for oldest in refused[:-_MAX_REFUSED]:
            del self._uploads[oldest]

    def forget(self, request: int) -> None:
        """Expect no more images for a refused request: a new one has its number."""
        self._uploads.pop(request, None)

    def cancel(self, request: int) -> bool:
        """End the request if its images are still arriving. Returns whether they were."""
        upload = self._uploads.get(request)
        if upload is None or upload.inputs is None:
            return False
        self._fail(upload, RequestError(ErrorCode.CANCELLED, "cancelled"))
        return True

    def open(self, header: Header) -> Write:
        """Where the payload of an image frame goes, piece by piece. Raises FrameError if none is expected."""
        upload = self._uploads.get(header.request)
        if upload is None:
            text = f"no image is expected for request {header.request}"
            raise FrameError(text, field="request", value=header.request, version=2, skip=header.length)
        expected = upload.images[upload.arrived]
        if upload.inputs is not None and header.length != expected.size:
            text = f"image {upload.arrived + 1} has {header.length} bytes; its announced size is {expected.size}"
            code, size = ErrorCode.INVALID_REQUEST, expected.size
            error = RequestError(code, text, field="length", value=header.length, minimum=size, maximum=size)
            self._fail(upload, error)
        return lambda piece: self._write(upload, piece)

    def complete(self, header: Header) -> None:
        """A payload has arrived. After the last one the request goes on."""
        upload = self._uploads.get(header.request)
        if upload is None:  # its number was given to another request meanwhile
            return
        upload.arrived += 1
        if upload.inputs is not None and upload.writer is not None:
            writer, upload.writer = upload.writer, None
            upload.inputs.add(writer.seal())
        if upload.arrived < len(upload.images):
            return
        del self._uploads[header.request]
        if upload.inputs is not None and upload.then is not None:
            inputs, upload.inputs = upload.inputs, None
            upload.close()
            self._end(upload.reply)
            try:
                upload.then(inputs)
            except RequestError as error:
                inputs.close()
                self._refuse(upload.reply, error)

    def close(self) -> None:
        """The client has disconnected."""
        for upload in self._uploads.values():
            upload.close()
        self._uploads.clear()

    def _write(self, upload: _Upload, piece: memoryview) -> None:
        if upload.inputs is None:
            return
        try:
            if upload.writer is None:
                upload.writer = MemfdWriter("weave-input")
            upload.writer.write(piece)
        except OSError as error:  # the system has no memory or descriptors left
            self._fail(upload, RequestError(ErrorCode.QUEUE_FULL, f"no room for the images: {error.strerror}"))

    def _fail(self, upload: _Upload, error: RequestError) -> None:
        """The rest of the images is discarded."""
        upload.close()
        self._end(upload.reply)
        self._refuse(upload.reply, error)
