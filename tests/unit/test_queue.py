"""The order of turns: the queue alone, with jobs that never run."""

import asyncio
from collections.abc import Callable
from itertools import count
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from weave.broker.admission.principal import Principal, Requester
from weave.broker.schedule.job import Job, JobNumber, LoadJob
from weave.broker.schedule.queue import MAX_AHEAD_SECONDS, MAX_BYPASSED, JobQueue
from weave.config.schema import Limits
from weave.protocol.peer import Peer


class Told:
    """Stands in for a reply and records the client's events."""

    request = 1

    def __init__(self) -> None:
        self.events: list[Any] = []

    def send(self, event: Any, memfd: int | None = None) -> None:
        self.events.append(event)


def requester(uid: int) -> Requester:
    return Requester(Peer(1, uid, uid), Principal(uid))


class Model:
    def __init__(self, name: str) -> None:
        self.id = name


class Clock:
    """A clock that only a test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def of_model(loaded: str | None) -> Callable[[Job], bool]:
    return lambda job: job.model.id == loaded


def job(number: int, uid: int, model: str = "a") -> Job:
    async def make() -> Job:
        return LoadJob(JobNumber(number, number), requester(uid), Told(), cast(Any, Model(model)))

    return asyncio.run(make())


def test_uids_take_turns_however_many_jobs_one_has() -> None:
    queue = JobQueue(Clock())
    for number, uid in enumerate([1, 1, 1, 1, 2, 3, 2]):
        queue.add(job(number, uid))
    assert [queue.take(of_model("a")).uid for _ in range(7)] == [1, 2, 3, 1, 2, 1, 1]


def nothing_fits(_: Job) -> bool:
    return False


class Gpu:
    """Runs one job after the other; each takes as many seconds as `seconds` has for its UID."""

    def __init__(self, seconds: dict[int, float]) -> None:
        self.clock = Clock()
        self.queue = JobQueue(self.clock)
        self._seconds = seconds
        self._numbers = count()

    def ask(self, uid: int, jobs: int = 1, model: str = "a") -> Job:
        for _ in range(jobs):
            asked = job(next(self._numbers), uid, model)
            self.queue.add(asked)
        return asked

    def do(self, jobs: int = 1, fits: Callable[[Job], bool] = nothing_fits) -> list[int]:
        """The UIDs of the jobs."""
        done = []
        for _ in range(jobs):
            done.append(self.begin(fits))
            self.end(done[-1])
        return done

    def begin(self, fits: Callable[[Job], bool] = nothing_fits) -> int:
        self.running = self.queue.take(fits)
        return self.running.uid

    def end(self, uid: int) -> None:
        self.clock.now += self._seconds[uid]
        self.over()

    def over(self) -> None:
        self.queue.over(self.running)

    def bill(self, uid: int) -> None:
        self.queue.bill(self.running, Principal(uid))


def test_users_share_gpu_seconds_not_job_counts() -> None:
    gpu = Gpu({1: 10.0, 2: 2.0, 3: 1.0})
    for uid, jobs in ((1, 10), (2, 50), (3, 100)):
        gpu.ask(uid, jobs)
    done = gpu.do(80)
    assert [done.count(1) * 10, done.count(2) * 2, done.count(3)] == [50, 50, 50]


def test_a_newcomer_is_next_but_owed_nothing() -> None:
    gpu = Gpu({1: 100.0, 2: 50.0})
    gpu.ask(1, 10)
    gpu.do(5)
    gpu.begin()
    gpu.clock.now += 40
    gpu.ask(2, 20)
    gpu.clock.now += 60
    gpu.over()
    # 60 seconds of UID 1's sixth job were after UID 2 came, so it has 60 ahead of it, and no more.
    assert gpu.do(8) == [2, 2, 1, 2, 2, 1, 2, 2]


def test_a_debt_lasts_until_no_user_waits() -> None:
    gpu = Gpu({1: 30.0, 2: 10.0})
    gpu.ask(2, 6)
    gpu.ask(1)
    assert gpu.do(2) == [2, 1]
    gpu.ask(1)  # it left meanwhile; the others have used 10
    assert gpu.do(4) == [2, 2, 1, 2]
    assert gpu.do(2) == [2, 2]  # and no user is left
    gpu.ask(1)
    gpu.ask(2)
    assert gpu.do(2) == [1, 2]


def test_the_job_that_lost_the_worker_pays_for_the_next_start() -> None:
    gpu = Gpu({1: 1.0, 2: 1.0})
    gpu.ask(1, 3)
    gpu.ask(2, 9)
    assert gpu.do() == [1]
    gpu.begin()
    gpu.bill(1)
    gpu.clock.now += 6
    gpu.bill(2)
    gpu.end(2)
    assert gpu.do(9) == [2] * 6 + [1, 2, 1]


def test_a_user_of_two_devices_pays_for_both() -> None:
    gpu = Gpu({1: 5.0, 2: 5.0})
    gpu.ask(1, 3)
    both = [gpu.queue.take(nothing_fits) for _ in range(2)]
    gpu.ask(2, 9)
    gpu.clock.now += 10
    for running in both:
        gpu.queue.over(running)
    assert gpu.do(6) == [2, 2, 2, 2, 1, 2]


def test_the_current_worker_is_preferred_within_a_bound() -> None:
    for seconds, expected in ((10.0, [1, 1, 1, 1, 1, 2]), (MAX_AHEAD_SECONDS + 1, [1, 2, 1, 2])):
        gpu = Gpu({1: seconds, 2: seconds})
        gpu.ask(1, 9)
        gpu.ask(2, 9)
        assert gpu.do(len(expected), fits=lambda job: job.uid == 1) == expected


def test_four_users_long_jobs_do_not_time_out_a_fifths() -> None:
    limits = Limits()
    longest = limits.start_seconds + limits.load_seconds + limits.job_seconds
    others = range(1, 5)
    gpu = Gpu(dict.fromkeys(others, longest) | {9: 1.0})
    for uid in others:
        gpu.ask(uid, 20)
    gpu.do(5)
    running = gpu.begin()
    began = gpu.clock.now
    gpu.ask(9)
    gpu.end(running)
    while 9 not in gpu.do(fits=lambda job: job.uid == running):
        pass
    # In the worst case: the running job, and one of each other user.
    assert gpu.clock.now - began <= 5 * longest < limits.queued_seconds


def test_positions_follow_used_and_expected_seconds() -> None:
    gpu = Gpu({1: 8.0, 2: 8.0, 3: 8.0})
    gpu.ask(3, 30)
    gpu.do(30)  # a job takes eight seconds
    gpu.ask(1, 3)
    gpu.ask(2, 3)
    assert [found.uid for found in gpu.queue.in_order()] == [1, 2, 1, 2, 1, 2]
    assert gpu.begin() == 1
    # The one that runs will have used eight seconds when the next one starts.
    assert [found.uid for found in gpu.queue.in_order()] == [2, 1, 2, 1, 2]
    gpu.clock.now += 20  # it takes longer than it should
    gpu.ask(2)
    assert [found.uid for found in gpu.queue.in_order()] == [2, 2, 2, 1, 2, 1]
    gpu.end(1)
    assert gpu.do(6) == [2, 2, 2, 2, 1, 1]


def test_the_loaded_model_goes_first_within_a_bound() -> None:
    queue = JobQueue(Clock())
    queue.add(job(0, 1, "b"))
    for number in range(1, 20):
        queue.add(job(number, 2, "a"))
    assert [queue.take(of_model("a")).model.id for _ in range(MAX_BYPASSED + 1)] == ["a"] * MAX_BYPASSED + ["b"]


def test_a_busy_line_in_front_does_not_delay_others_forever() -> None:
    queue = JobQueue(Clock())
    front = [job(number, 1, "b") for number in range(20)]
    for waiting in front:
        queue.add(waiting)
    queue.add(job(50, 2, "b"))
    for number in range(100, 140):
        queue.add(job(number, 3, "a"))
    taken = []
    for number in range(20):
        taken.append(queue.take(of_model("a")).number)
        if taken[-1] == 50:
            break
        queue.remove(front[number])  # cancelled just before its turn
    assert 50 in taken[: MAX_BYPASSED + 2]


def test_a_position_is_sent_only_when_it_changes() -> None:
    queue = JobQueue(Clock())
    jobs = [job(number, 1) for number in range(3)]
    for waiting in jobs:
        queue.add(waiting)
    queue.remove(jobs[0])
    assert [event.position for event in cast(Told, jobs[2].reply).events] == [2, 1]


MODELS = ("a", "b", "c")
# What happens, in order: a job of some UID for some model arrives, or (None) the worker takes the next one.
happenings = st.lists(
    st.one_of(st.none(), st.tuples(st.integers(1, 5), st.sampled_from(MODELS))), min_size=1, max_size=120
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(happenings)
def test_a_uids_order_is_kept_and_its_next_job_waits_bounded(
    happened: list[tuple[int, str] | None],
) -> None:
    queue = JobQueue(Clock())
    lines: dict[int, list[int]] = {}
    waited: dict[int, int] = {}
    loaded = None
    arrivals = [entry for entry in happened if entry is not None]
    for number, entry in enumerate([*happened, *[None] * len(arrivals)]):
        if entry is not None:
            queue.add(job(number, *entry))
            lines.setdefault(entry[0], []).append(number)
        elif len(queue):
            taken = queue.take(of_model(loaded))
            loaded = taken.model.id
            assert lines[taken.uid].pop(0) == taken.number
            uids = sum(map(bool, lines.values())) + 1
            for line in filter(None, lines.values()):
                waited[line[0]] = waited.get(line[0], 0) + 1
                assert waited[line[0]] <= (MAX_BYPASSED + 1) * max(uids, len(lines))
    assert len(queue) == 0


def test_affinity_causes_fewer_model_changes_than_strict_turns() -> None:
    queue = JobQueue(Clock())
    for number in range(60):
        queue.add(job(number, 1 + number % 3, MODELS[number % 2]))
    loaded, changes = None, 0
    for _ in range(60):
        taken = queue.take(of_model(loaded))
        changes += taken.model.id != loaded
        loaded = taken.model.id
    assert changes < 60 / 2
