"""Whether a device works. One that does not gets no job while another one does."""

import asyncio

from weave import log
from weave.broker.admission.principal import Principal
from weave.protocol.text import LONGEST_TITLE

_FIRST_BACKOFF_SECONDS = 10.0
_LONGEST_BACKOFF_SECONDS = 600.0
# A device is out after this many workers in a row have exited in the middle of a job.
_MOST_LOST = 3


class Health:
    """`problem` says why the device is out; None while it works. It is tried again at `retry_at`, in the loop's time;
    the pause doubles each time that it still fails."""

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
        """Take the device out."""
        log.write("broker", "device_out", device=self._device, cause=problem, retry_after=self._backoff)
        self.problem = problem[:LONGEST_TITLE]  # for status
        self.retry_at = asyncio.get_running_loop().time() + self._backoff
        self._backoff = min(2 * self._backoff, _LONGEST_BACKOFF_SECONDS)
        self._lost = []

    def start(self) -> None:
        """A worker has started on it: it is in again. Only a job that ends well shortens the pause again."""
        if self.problem is not None:
            log.write("broker", "device_back", device=self._device)
        self.problem = None

    def lose(self, principal: Principal, *, alone: bool) -> None:
        """A worker has exited during this principal's job. Unless it is `alone`, one principal's jobs do not suffice to
        take a device out: they may have been made for that."""
        self._lost.append(principal)
        if len(self._lost) >= _MOST_LOST and (alone or len(set(self._lost)) > 1):
            self.fail(f"{len(self._lost)} workers in a row exited on it during a job")

    def succeed(self) -> None:
        """A job has ended as it should."""
        self.start()
        self._lost, self._backoff = [], _FIRST_BACKOFF_SECONDS
