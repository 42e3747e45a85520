"""What the requests of one connection have in common."""

from weave.broker.admission.principal import Requester
from weave.broker.schedule.job import Job, Reply
from weave.protocol.errors import ErrorCode, RequestError


class Session:
    """Who makes the requests, and which of them wait for their last event."""

    def __init__(self, requester: Requester) -> None:
        self.requester = requester
        # None stands for an unload, which is no job.
        self._in_flight: dict[Reply, Job | None] = {}

    def begin(self, reply: Reply, job: Job | None) -> None:
        """Its last event is yet to come."""
        self._in_flight[reply] = job

    def end(self, reply: Reply) -> None:
        """Its last event was sent, or is about to be: its number is free again."""
        del self._in_flight[reply]

    def jobs(self) -> list[Job]:
        """Those in flight."""
        return [job for job in self._in_flight.values() if job is not None]

    def check_unused(self, request: int) -> None:
        """Raises RequestError where a request in flight has this number."""
        if any(reply.request == request for reply in self._in_flight):
            raise RequestError(
                ErrorCode.INVALID_REQUEST, f"request {request} is in flight already", field="request", value=request
            )
