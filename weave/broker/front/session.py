"""The requests of one connection that are in flight."""

from collections.abc import Callable

from weave.broker.admission.principal import Requester
from weave.broker.front.uploads import Uploads
from weave.broker.schedule.job import Job, Reply
from weave.protocol.errors import ErrorCode, RequestError


class Session:
    """The requester of a connection, and its requests that have not had their last event."""

    def __init__(self, requester: Requester, refuse: Callable[[Reply, RequestError], None]) -> None:
        """`refuse` ends a request with an error."""
        self.requester = requester
        self.uploads = Uploads(self.end, refuse)
        # None: an unload, or a generate whose images are still arriving.
        self._in_flight: dict[Reply, Job | None] = {}

    def begin(self, reply: Reply, job: Job | None) -> None:
        """The request is in flight from now on."""
        self._in_flight[reply] = job

    def end(self, reply: Reply) -> None:
        """Its last event was sent, or is about to be: its number may be used again."""
        del self._in_flight[reply]

    def jobs(self) -> list[Job]:
        """The jobs in flight."""
        return [job for job in self._in_flight.values() if job is not None]

    def check_unused(self, request: int) -> None:
        """Raises RequestError if a request in flight has this number."""
        if any(reply.request == request for reply in self._in_flight):
            raise RequestError(
                ErrorCode.INVALID_REQUEST, f"request {request} is already in flight", field="request", value=request
            )
