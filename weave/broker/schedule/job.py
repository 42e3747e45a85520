"""A job: a generate or load_model request, from its acceptance to its last event."""

import asyncio
from collections.abc import Callable
from itertools import count
from typing import Literal, NamedTuple, Protocol, TypeAlias

from weave.broker.admission.inputs import Inputs
from weave.broker.admission.principal import Principal, Requester
from weave.broker.schedule.snapshot import JobState
from weave.protocol.channel import close_all
from weave.protocol.client_messages import Error, Event, ModelOffer
from weave.protocol.errors import ErrorCode, RequestError
from weave.protocol.tasks import Task


class Reply(Protocol):
    """Where a job's events go."""

    @property
    def request(self) -> int | None:
        """The client's number for the request; None in version 1."""

    def send(self, event: Event, memfd: int | None = None) -> None:
        """`memfd` holds the bytes of an image or preview. Takes ownership of it."""


class JobNumber(NamedTuple):
    """`daemon` is unique, and used for the worker and the log; `user` is the number that the client sees."""

    daemon: int
    user: int


class _Job:
    """What all jobs have in common: the requester, the reply, the model and the state.

    `position` is the last one sent to the client; `bypassed` counts the jobs that started before this one although it
    was next (queue.py); `timers` are cancelled when the job is over.
    """

    def __init__(self, number: JobNumber, requester: Requester, reply: Reply, model: ModelOffer) -> None:
        self.number = number.daemon
        self.user_number = number.user
        self.requester = requester
        self.reply = reply
        self.model = model
        self.state: JobState | Literal["over"] = "queued"
        self.position = -1
        self.bypassed = 0
        self.queued_at = asyncio.get_running_loop().time()
        self.cancelled = asyncio.Event()
        self.timers: list[asyncio.TimerHandle] = []
        self._on_finish: list[Callable[[], None]] = []

    @property
    def uid(self) -> int:
        """The user who may see and cancel the job."""
        return self.requester.uid

    @property
    def principal(self) -> Principal:
        """Whose turns and limits the job counts towards."""
        return self.requester.principal

    def on_finish(self, callback: Callable[[], None]) -> None:
        """Call `callback` as soon as the last event has been sent."""
        self._on_finish.append(callback)

    def send(self, event: Event, memfd: int | None = None) -> None:
        """Send an event, unless the job is over. Takes ownership of `memfd`."""
        if self.state != "over":
            self.reply.send(event, memfd)
        elif memfd is not None:
            close_all([memfd])

    def finish(self, event: Event) -> None:
        """Send the last event; the request number may be used again."""
        self.send(event)
        self.state = "over"
        for timer in self.timers:
            timer.cancel()
        while self._on_finish:
            self._on_finish.pop()()

    def fail(self, code: ErrorCode, message: str) -> None:
        """Finish with an error."""
        self.finish(Error.from_exception(RequestError(code, message)))


class LoadJob(_Job):
    """Done when a worker has loaded the model."""


class GenerateJob(_Job):
    """Done when a worker with the model has run the task. Its images stay open until then."""

    def __init__(
        self,
        number: JobNumber,
        requester: Requester,
        reply: Reply,
        model: ModelOffer,
        task: Task,
        inputs: Inputs | None = None,
    ) -> None:
        """Takes ownership of `inputs`."""
        super().__init__(number, requester, reply, model)
        self.task = task
        self._inputs = inputs
        if inputs is not None:
            self.on_finish(inputs.close)

    @property
    def memfds(self) -> tuple[int, ...]:
        """The sealed images of the job; none once it is over."""
        return self._inputs.memfds if self._inputs is not None else ()


Job: TypeAlias = LoadJob | GenerateJob


class JobNumbers:
    """`per_user`: numbers count from 1 for each UID, so that they do not reveal how many jobs others have."""

    def __init__(self, *, per_user: bool) -> None:
        self._per_user = per_user
        self._daemon = count(1)
        self._users: dict[int, count[int]] = {}

    def next(self, uid: int) -> JobNumber:
        """The number of a new job of this UID."""
        number = next(self._daemon)
        return JobNumber(number, next(self._users.setdefault(uid, count(1))) if self._per_user else number)

    def forget_all_but(self, uids: set[int]) -> None:
        """The numbers of all other UIDs start at 1 again."""
        for uid in self._users.keys() - uids:
            del self._users[uid]
