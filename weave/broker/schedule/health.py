"""Whether a device works. A device that is out of service gets no job while another one works."""

import asyncio

from weave import log
from weave.broker.admission.principal import Principal
from weave.protocol.text import LONGEST_TITLE

_FIRST_BACKOFF_SECONDS = 10.0
_LONGEST_BACKOFF_SECONDS = 600.0
# A device is taken out of service after this many workers in a row have exited in the middle of a job.
_MOST_LOST = 3


class Health:
    """`problem` says why the device is out of service; None while it works. It is tried again at `retry_at`, in the
    event loop's time; the pause doubles after each failure."""

    def __init__(self, device: str) -> None:
        self.problem: str | None = None
        self.retry_at = 0.0
        self._device = device
        self._backoff = _FIRST_BACKOFF_SECONDS
        self._lost: list[Principal] = []

    def seconds_to_retry(self) -> float | None:
        """None while it works."""
        if self.problem is None:
            return None
        return max(0.0, self.retry_at - asyncio.get_running_loop().time())

    def fail(self, problem: str) -> None:
        """Take the device out of service."""
        log.write("broker", "device_out", device=self._device, cause=problem, retry_after=self._backoff)
        self.problem = problem[:LONGEST_TITLE]  # for status
        self.retry_at = asyncio.get_running_loop().time() + self._backoff
        self._backoff = min(2 * self._backoff, _LONGEST_BACKOFF_SECONDS)
        self._lost = []

    def start(self) -> None:
        """A worker has started on the device: it is in service again. Only a successful job resets the pause."""
        if self.problem is not None:
            log.write("broker", "device_back", device=self._device)
        self.problem = None

    def lose(self, principal: Principal, *, alone: bool) -> None:
        """A worker has exited during this principal's job. Unless the principal is `alone`, its jobs do not suffice to
        take the device out of service: they may be an attack."""
        self._lost.append(principal)
        if len(self._lost) >= _MOST_LOST and (alone or len(set(self._lost)) > 1):
            self.fail(f"{len(self._lost)} workers in a row exited on it during a job")

    def succeed(self) -> None:
        """A job was successful."""
        self.start()
        self._lost, self._backoff = [], _FIRST_BACKOFF_SECONDS
