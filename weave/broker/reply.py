"""How one request is answered, in the version that it was asked in."""

from typing import TYPE_CHECKING, TypeAlias

from msgspec import structs

from weave.protocol import version1
from weave.protocol.channel import close_all
from weave.protocol.client_messages import Done, Error, Event, Image, Preview, encode
from weave.protocol.frames import Kind, pack_frame, pack_header

if TYPE_CHECKING:
    from weave.broker.connection import Connection


class Version2Reply:
    """Every event, as it comes."""

    def __init__(self, connection: "Connection", request: int) -> None:
        self.connection = connection
        self.request = request

    def send(self, event: Event, memfd: int | None = None) -> None:
        """An image's or preview's bytes come in `memfd`, which is not the caller's any more."""
        _count(self.connection, event)
        if isinstance(event, Image) and event.deliver == "fd" and not self.connection.may_deliver(event.size):
            event = structs.replace(event, deliver="inline")
        frame = pack_frame(Kind.CONTROL, self.request, encode(event))
        if isinstance(event, Image) and event.deliver == "fd":
            self.connection.write(frame, memfd, size=event.size)
        elif isinstance(event, Image | Preview):
            header = pack_header(Kind.IMAGE, self.request, event.size)
            self.connection.write(frame + header, memfd, size=event.size, inline=True)
        else:
            self.connection.write(frame)


class Version1Reply:
    """One picture or one error. Where a job stands is nothing that version 1 has words for."""

    request = None

    def __init__(self, connection: "Connection", request_id: bytes) -> None:
        self.connection = connection
        self._request_id = request_id
        self._image: tuple[Image, int] | None = None

    def send(self, event: Event, memfd: int | None = None) -> None:
        """The picture is held until the job is done, since its reply tells how long it took."""
        _count(self.connection, event)
        if isinstance(event, Image) and memfd is not None:
            self._image = (event, memfd)
        elif isinstance(event, Done) and self._image is not None:
            image, memfd = self._image
            milliseconds = round(event.timings.generating * 1000) if event.timings else 0
            head = version1.encode_response_head(self._request_id, milliseconds, image.width, image.height)
            self.connection.write(head, memfd, size=image.size, inline=True)
        elif isinstance(event, Error):
            if self._image is not None:
                close_all([self._image[1]])
            code = version1.code_of(event.code, event.field)
            failure = version1.Failure(request_id=self._request_id, code=code, message=event.message)
            self.connection.write(version1.encode_failure(failure))


def _count(connection: "Connection", event: Event) -> None:
    if isinstance(event, Error):
        errors = connection.metrics.errors
        errors[event.code] = errors.get(event.code, 0) + 1


Reply: TypeAlias = Version1Reply | Version2Reply
