"""Which job is next: fair shares of device time, and fewer worker changes without starvation."""

import heapq
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import count

from weave.broker.admission.principal import Principal
from weave.broker.schedule.job import Job
from weave.broker.schedule.turns import Turns
from weave.protocol.client_messages import Queued

# A job that fits the device's worker may bypass the next one: at most this often, and only if its principal has used at
# most this many seconds of device time more than the bypassed job's.
MAX_BYPASSED = 4
MAX_AHEAD_SECONDS = 60.0

# The weight of the latest job in the moving average of job durations.
_WEIGHT = 0.25


class JobQueue:
    """One line for each principal. The line whose principal has used the least device time is next; a line is first in,
    first out. A job that was taken is running until over()."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        # Dicts are ordered: among principals with equal use, the one whose turn was longest ago comes first.
        self._lines: dict[Principal, deque[Job]] = {}
        self._turns = Turns(clock)
        self._clock = clock
        # When each running job was taken.
        self._running: dict[Job, float] = {}
        self._typical_seconds = 1.0

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def waiting(self, principal: Principal) -> int:
        """How many jobs of this principal are queued."""
        return len(self._lines.get(principal, ()))

    def add(self, job: Job) -> None:
        """Append it to its principal's line."""
        self._advance()
        self._lines.setdefault(job.principal, deque()).append(job)
        self._send_positions()

    def remove(self, job: Job) -> bool:
        """Whether the job was queued."""
        line = self._lines.get(job.principal, deque())
        if job not in line:
            return False
        line.remove(job)
        if not line:
            del self._lines[job.principal]
        self._advance()
        self._send_positions()
        return True

    def take(self, fits: Callable[[Job], bool]) -> Job:
        """The next job for a device; `fits` says which jobs its worker can run. The job's principal is billed from now
        on. Raises IndexError if the queue is empty."""
        self._advance()
        heads = sorted((line[0] for line in self._lines.values()), key=self._used)
        # A job that was bypassed often enough comes first, even if the line in front of it now has another head.
        chosen = next((job for job in heads if job.bypassed >= MAX_BYPASSED), heads[0])
        if chosen.bypassed < MAX_BYPASSED and not fits(chosen):
            latest = self._used(chosen) + MAX_AHEAD_SECONDS
            chosen = next((job for job in heads if fits(job) and self._used(job) <= latest), chosen)
        for job in heads[: heads.index(chosen)]:
            job.bypassed += 1
        line = self._lines.pop(chosen.principal)
        line.popleft()
        if line:
            self._lines[chosen.principal] = line
        self._running[chosen] = self._clock()
        self._turns.bill(chosen, chosen.principal)
        self._send_positions()
        return chosen

    def bill(self, job: Job, payer: Principal) -> None:
        """Bill this principal for the running `job` from now on."""
        self._turns.bill(job, payer)

    def over(self, job: Job) -> None:
        """A running job is over: its billing stops."""
        self._turns.stop(job)
        seconds = self._clock() - self._running.pop(job)
        self._typical_seconds += _WEIGHT * (seconds - self._typical_seconds)
        self._advance()
        self._send_positions()

    def put_back(self, job: Job) -> None:
        """Put a job that could not begin back at the head of its user's queue."""
        self._turns.stop(job)
        del self._running[job]
        job.state, job.position = "queued", -1
        self._lines.setdefault(job.principal, deque()).appendleft(job)
        self._advance()
        self._send_positions()

    def in_order(self) -> Iterator[Job]:
        """All queued jobs, in the order in which they would start if each took as long as recent jobs and none was
        bypassed."""
        ranks = count()
        turns = [(self._expected(principal), next(ranks), iter(line)) for principal, line in self._lines.items()]
        heapq.heapify(turns)
        while turns:
            used, _, line = heapq.heappop(turns)
            if (job := next(line, None)) is not None:
                yield job
                heapq.heappush(turns, (used + self._typical_seconds, next(ranks), line))

    def _used(self, job: Job) -> float:
        return self._turns.used(job.principal)

    def _expected(self, principal: Principal) -> float:
        """What the principal will have used when its running jobs are over."""
        latest = self._clock() - self._typical_seconds
        remaining = (max(0.0, taken - latest) for job, taken in self._running.items() if job.principal == principal)
        return self._turns.used(principal) + sum(remaining)

    def _advance(self) -> None:
        self._turns.advance([*self._lines, *(job.principal for job in self._running)])

    def _send_positions(self) -> None:
        """Tell each client whose job's position has changed."""
        for position, job in enumerate(self.in_order()):
            if job.position != position:
                job.position = position
                job.send(Queued(job=job.user_number, position=position))
