"""A job: a generate or load_model request from when it is accepted until its last event is sent."""

import asyncio
from typing import TYPE_CHECKING, Literal

from weave.protocol.bounds import Parameters
from weave.protocol.client_messages import Error, Event, Generate, ModelOffer
from weave.protocol.errors import ErrorCode, RequestError

if TYPE_CHECKING:
    from weave.broker.connection import Connection


class Job:
    """`parameters` and `generate` are None for load_model. `position` is the last one that the client was told."""

    def __init__(
        self,
        number: int,
        connection: "Connection",
        request: int,
        model: ModelOffer,
        generate: Generate | None = None,
        parameters: Parameters | None = None,
    ) -> None:
        self.number = number
        self.connection = connection
        self.request = request
        self.model = model
        self.generate = generate
        self.parameters = parameters
        self.state: Literal["queued", "loading", "running", "over"] = "queued"
        self.position = -1
        self.overtaken = 0
        self.queued_at = asyncio.get_running_loop().time()
        self.cancelled = asyncio.Event()
        self.expiry: asyncio.TimerHandle | None = None

    @property
    def uid(self) -> int:
        """Whose job it is."""
        return self.connection.peer.uid

    def tell(self, event: Event) -> None:
        """Send an event; a client that is gone is told nothing."""
        self.connection.send(self.request, event)

    def finish(self, event: Event) -> None:
        """Send the last event; the request number is free again."""
        if self.state != "over":
            self.state = "over"
            if self.expiry is not None:
                self.expiry.cancel()
            self.connection.jobs.pop(self.request, None)
            self.tell(event)

    def fail(self, code: ErrorCode, message: str) -> None:
        """Finish with an error."""
        self.finish(Error.from_exception(RequestError(code, message)))
