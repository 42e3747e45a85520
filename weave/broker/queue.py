"""Whose job is next: fair turns among UIDs, and fewer changes of model without anyone starving."""

from collections import deque
from collections.abc import Iterator

from weave.broker.job import Job
from weave.broker.principal import Principal
from weave.protocol.client_messages import Queued

# A job for another model than the loaded one is overtaken at most this often.
MAX_OVERTAKEN = 4


class JobQueue:
    """One line for each UID; the UIDs take turns. Within a UID the order is kept."""

    def __init__(self) -> None:
        # A dict keeps its order: the UID whose turn it is comes first.
        self._lines: dict[int, deque[Job]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def waiting(self, principal: Principal) -> int:
        """How many jobs of this principal wait."""
        return sum(job.principal == principal for line in self._lines.values() for job in line)

    def add(self, job: Job) -> None:
        """Put it last in its UID's line, and tell its position."""
        self._lines.setdefault(job.uid, deque()).append(job)
        self.tell_positions()

    def remove(self, job: Job) -> bool:
        """Whether it was there."""
        line = self._lines.get(job.uid, deque())
        if job not in line:
            return False
        line.remove(job)
        if not line:
            del self._lines[job.uid]
        self.tell_positions()
        return True

    def take(self, loaded: str | None) -> Job:
        """The next job, given the model that is loaded. Raises IndexError where there is none."""
        heads = [line[0] for line in self._lines.values()]
        # Whoever was overtaken often enough comes first, even if the line in front of it has a new head since.
        chosen = next((job for job in heads if job.overtaken >= MAX_OVERTAKEN), heads[0])
        if chosen.model.id != loaded and chosen.overtaken < MAX_OVERTAKEN:
            chosen = next((job for job in heads if job.model.id == loaded), chosen)
        if chosen is not heads[0]:
            for job in heads[: heads.index(chosen)]:
                job.overtaken += 1
        line = self._lines.pop(chosen.uid)
        line.popleft()
        if line:
            self._lines[chosen.uid] = line
        self.tell_positions()
        return chosen

    def tell_positions(self) -> None:
        """Tell every client whose job's position has changed."""
        for position, job in enumerate(self.in_order()):
            if job.position != position:
                job.position = position
                job.tell(Queued(job=job.number, position=position))

    def in_order(self) -> Iterator[Job]:
        """All jobs as they would start if none of them changed places for the sake of the loaded model."""
        longest = max(map(len, self._lines.values()), default=0)
        for turn in range(longest):
            yield from (line[turn] for line in self._lines.values() if turn < len(line))
