"""A job: a generate or load_model request from when it is accepted until its last event is sent."""

import asyncio
from itertools import count
from typing import Literal

from weave.broker.principal import Principal
from weave.broker.reply import Reply
from weave.protocol.bounds import Parameters
from weave.protocol.channel import close_all
from weave.protocol.client_messages import Error, Event, Generate, ModelOffer, Tokens
from weave.protocol.errors import ErrorCode, RequestError


class Job:
    """`number` is the daemon's own, for the worker and the log; `user_number` is what the client knows it by.
    `parameters` and `generate` are None for load_model. `position` is the last one that the client was told;
    `begun`: a worker has sent something of it; `tokens`: what it used of the prompts."""

    def __init__(
        self,
        number: int,
        reply: Reply,
        model: ModelOffer,
        generate: Generate | None = None,
        parameters: Parameters | None = None,
        *,
        user_number: int | None = None,
    ) -> None:
        self.number = number
        self.user_number = number if user_number is None else user_number
        self.reply = reply
        self.connection = reply.connection
        self.model = model
        self.generate = generate
        self.parameters = parameters
        self.state: Literal["queued", "loading", "running", "over"] = "queued"
        self.position = -1
        self.begun = False
        self.tokens: Tokens | None = None
        self.overtaken = 0
        self.queued_at = asyncio.get_running_loop().time()
        self.cancelled = asyncio.Event()
        self.timers: list[asyncio.TimerHandle] = []

    @property
    def uid(self) -> int:
        """Whose job it is: who may see and cancel it."""
        return self.connection.peer.uid

    @property
    def principal(self) -> Principal:
        """Whose turn and whose limits it counts for."""
        return self.connection.principal

    def tell(self, event: Event, memfd: int | None = None) -> None:
        """Send an event, unless the job is over; `memfd`, with an image, is not the caller's any more."""
        if self.state != "over":
            self.reply.send(event, memfd)
        elif memfd is not None:
            close_all([memfd])

    def finish(self, event: Event) -> None:
        """Send the last event; the request number is free again."""
        self.tell(event)
        self.state = "over"
        self.connection.jobs.discard(self)
        for timer in self.timers:
            timer.cancel()

    def fail(self, code: ErrorCode, message: str) -> None:
        """Finish with an error."""
        self.finish(Error.from_exception(RequestError(code, message)))


class UserNumbers:
    """What users call their jobs: from 1 for each UID, so that nobody learns from them how many others there are."""

    def __init__(self) -> None:
        self._numbers: dict[int, count[int]] = {}

    def next(self, uid: int) -> int:
        """For a new job of this UID."""
        return next(self._numbers.setdefault(uid, count(1)))

    def forget_all_but(self, uids: set[int]) -> None:
        """Those who have neither a connection nor a job begin at 1 again."""
        for uid in self._numbers.keys() - uids:
            del self._numbers[uid]
