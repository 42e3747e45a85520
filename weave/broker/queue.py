"""Whose job is next: fair shares of the GPU's time, and fewer changes of worker without anyone starving."""

import heapq
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import count

from weave.broker.job import Job
from weave.broker.principal import Principal
from weave.broker.turns import Turns
from weave.protocol.client_messages import Queued

# For the sake of the worker that there is, a job is overtaken at most this often, and by nobody who has used more than
# this many seconds of GPU beyond its own principal.
MAX_OVERTAKEN = 4
MAX_AHEAD_SECONDS = 60.0

# Of the newest job in the running mean of how long jobs take.
_WEIGHT = 0.25


class JobQueue:
    """One line for each principal. Next is whoever has used the least of the GPU; within a line the order is kept."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        # A dict keeps its order: of those that have used the same, the one whose turn was longest ago comes first.
        self._lines: dict[Principal, deque[Job]] = {}
        self._turns = Turns(clock)
        self._clock = clock
        self._running: Principal | None = None
        self._taken_at = 0.0
        self._typical_seconds = 1.0

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def waiting(self, principal: Principal) -> int:
        """How many jobs of this principal wait."""
        return len(self._lines.get(principal, ()))

    def add(self, job: Job) -> None:
        """Put it last in its principal's line, and tell its position."""
        self._advance()
        self._lines.setdefault(job.principal, deque()).append(job)
        self.tell_positions()

    def remove(self, job: Job) -> bool:
        """Whether it was there."""
        line = self._lines.get(job.principal, deque())
        if job not in line:
            return False
        line.remove(job)
        if not line:
            del self._lines[job.principal]
        self._advance()
        self.tell_positions()
        return True

    def take(self, fits: Callable[[Job], bool]) -> Job:
        """The next job; its principal pays from now on. `fits` tells whether the worker that there is can do a job.
        Raises IndexError where there is none."""
        self._advance()
        heads = sorted((line[0] for line in self._lines.values()), key=self._used)
        # Whoever was overtaken often enough comes first, even if the line in front of it has a new head since.
        chosen = next((job for job in heads if job.overtaken >= MAX_OVERTAKEN), heads[0])
        if chosen.overtaken < MAX_OVERTAKEN and not fits(chosen):
            latest = self._used(chosen) + MAX_AHEAD_SECONDS
            chosen = next((job for job in heads if fits(job) and self._used(job) <= latest), chosen)
        for job in heads[: heads.index(chosen)]:
            job.overtaken += 1
        line = self._lines.pop(chosen.principal)
        line.popleft()
        if line:
            self._lines[chosen.principal] = line
        self._running, self._taken_at = chosen.principal, self._clock()
        self.bill(chosen.principal)
        self.tell_positions()
        return chosen

    def bill(self, payer: Principal) -> None:
        """Whose time it is from now on, until the job that was taken is over()."""
        self._turns.bill(payer)

    def over(self) -> None:
        """The job that was taken is over, and its time is billed."""
        self._turns.bill(None)
        self._running = None
        self._typical_seconds += _WEIGHT * (self._clock() - self._taken_at - self._typical_seconds)
        self._advance()
        self.tell_positions()

    def tell_positions(self) -> None:
        """Tell every client whose job's position has changed."""
        for position, job in enumerate(self.in_order()):
            if job.position != position:
                job.position = position
                job.tell(Queued(job=job.user_number, position=position))

    def in_order(self) -> Iterator[Job]:
        """All jobs as they would start if each took as long as jobs have taken of late, and none changed places for
        the sake of the worker that there is."""
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
        """What it will have used when the running job is over."""
        used = self._turns.used(principal)
        if principal != self._running:
            return used
        return used + max(0.0, self._taken_at + self._typical_seconds - self._clock())

    def _advance(self) -> None:
        running = [self._running] if self._running is not None else []
        self._turns.advance([*self._lines, *running])
