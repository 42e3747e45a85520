"""The answers to one request, in the request's version of the protocol."""

from typing import Protocol

from msgspec import structs

from weave.protocol import version1
from weave.protocol.channel import close_all
from weave.protocol.client_messages import Done, Error, Event, Image, Preview, encode
from weave.protocol.frames import Kind, pack_frame, pack_header


class Sink(Protocol):
    """What a reply writes to: a connection."""

    def write(self, data: bytes, memfd: int | None = None, *, size: int = 0, inline: bool = False) -> None:
        """Queue `data` and the `size` bytes of `memfd`: inline as bytes, else as a descriptor. Takes ownership of
        `memfd`."""

    def may_deliver(self, size: int) -> bool:
        """Whether an image of `size` bytes may be sent as a descriptor. If so, it counts from now on."""

    def count_error(self, error: Error) -> None:
        """Count an error for the metrics."""


class Version2Reply:
    """Sends every event."""

    def __init__(self, sink: Sink, request: int) -> None:
        self.request = request
        self._sink = sink

    def send(self, event: Event, memfd: int | None = None) -> None:
        """`memfd` holds the bytes of an image or preview. Takes ownership of it."""
        if isinstance(event, Error):
            self._sink.count_error(event)
        if isinstance(event, Image) and event.deliver == "fd" and not self._sink.may_deliver(event.size):
            event = structs.replace(event, deliver="inline")
        frame = pack_frame(Kind.CONTROL, self.request, encode(event))
        if isinstance(event, Image) and event.deliver == "fd":
            self._sink.write(frame, memfd, size=event.size)
        elif isinstance(event, Image | Preview):
            header = pack_header(Kind.IMAGE, self.request, event.size)
            self._sink.write(frame + header, memfd, size=event.size, inline=True)
        else:
            self._sink.write(frame)


class Version1Reply:
    """Sends one image or one error: version 1 has no other messages."""

    request = None

    def __init__(self, sink: Sink, request_id: bytes) -> None:
        self._sink = sink
        self._request_id = request_id
        self._image: tuple[Image, int] | None = None

    def send(self, event: Event, memfd: int | None = None) -> None:
        """Takes ownership of `memfd` and keeps it until the job is done: the reply states the duration."""
        if isinstance(event, Image) and memfd is not None:
            self._image = (event, memfd)
        elif isinstance(event, Done) and self._image is not None:
            image, memfd = self._image
            milliseconds = round(event.timings.generating * 1000) if event.timings else 0
            head = version1.encode_response_head(self._request_id, milliseconds, image.width, image.height)
            self._sink.write(head, memfd, size=image.size, inline=True)
        elif isinstance(event, Error):
            self._sink.count_error(event)
            if self._image is not None:
                close_all([self._image[1]])
            code = version1.code_of(event.code, event.field)
            failure = version1.Failure(request_id=self._request_id, code=code, message=event.message)
            self._sink.write(version1.encode_failure(failure))
