"""Whose turn it is: the queue alone, with jobs that nobody runs."""

import asyncio
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from weave.broker.job import Job
from weave.broker.principal import Principal
from weave.broker.queue import MAX_OVERTAKEN, JobQueue
from weave.protocol.peer import Peer


class Told:
    """Stands for a reply and its connection: remembers what the client was told."""

    def __init__(self, uid: int) -> None:
        self.peer = Peer(1, uid, uid)
        self.principal = Principal(uid)
        self.connection = self
        self.events: list[Any] = []

    def send(self, event: Any, memfd: None) -> None:
        self.events.append(event)


class Model:
    def __init__(self, name: str) -> None:
        self.id = name


def job(number: int, uid: int, model: str = "a") -> Job:
    async def make() -> Job:
        return Job(number, cast(Any, Told(uid)), cast(Any, Model(model)))

    return asyncio.run(make())


def test_uids_take_turns_however_many_jobs_one_has() -> None:
    queue = JobQueue()
    for number, uid in enumerate([1, 1, 1, 1, 2, 3, 2]):
        queue.add(job(number, uid))
    assert [queue.take("a").uid for _ in range(7)] == [1, 2, 3, 1, 2, 1, 1]


def test_the_loaded_model_goes_first_but_nobody_is_overtaken_for_ever() -> None:
    queue = JobQueue()
    queue.add(job(0, 1, "b"))
    for number in range(1, 20):
        queue.add(job(number, 2, "a"))
    assert [queue.take("a").model.id for _ in range(MAX_OVERTAKEN + 1)] == ["a"] * MAX_OVERTAKEN + ["b"]


def test_a_line_in_front_that_always_has_a_new_head_does_not_let_others_be_overtaken_for_ever() -> None:
    queue = JobQueue()
    front = [job(number, 1, "b") for number in range(20)]
    for waiting in front:
        queue.add(waiting)
    queue.add(job(50, 2, "b"))
    for number in range(100, 140):
        queue.add(job(number, 3, "a"))
    taken = []
    for number in range(20):
        taken.append(queue.take("a").number)
        if taken[-1] == 50:
            break
        queue.remove(front[number])  # cancelled just before its turn
    assert 50 in taken[: MAX_OVERTAKEN + 2]


def test_a_client_is_told_its_position_only_when_it_changes() -> None:
    queue = JobQueue()
    jobs = [job(number, 1) for number in range(3)]
    for waiting in jobs:
        queue.add(waiting)
    queue.remove(jobs[0])
    assert [event.position for event in cast(Any, jobs[2].connection).events] == [2, 1]


MODELS = ("a", "b", "c")
# What happens, in order: a job of some UID for some model arrives, or (None) the worker takes the next one.
happenings = st.lists(
    st.one_of(st.none(), st.tuples(st.integers(1, 5), st.sampled_from(MODELS))), min_size=1, max_size=120
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(happenings)
def test_within_a_uid_the_order_is_kept_and_whoever_is_next_in_line_waits_a_bounded_number_of_turns(
    happened: list[tuple[int, str] | None],
) -> None:
    queue = JobQueue()
    lines: dict[int, list[int]] = {}
    waited: dict[int, int] = {}
    loaded = None
    arrivals = [entry for entry in happened if entry is not None]
    for number, entry in enumerate([*happened, *[None] * len(arrivals)]):
        if entry is not None:
            queue.add(job(number, *entry))
            lines.setdefault(entry[0], []).append(number)
        elif len(queue):
            taken = queue.take(loaded)
            loaded = taken.model.id
            assert lines[taken.uid].pop(0) == taken.number
            uids = sum(map(bool, lines.values())) + 1
            for line in filter(None, lines.values()):
                waited[line[0]] = waited.get(line[0], 0) + 1
                assert waited[line[0]] <= (MAX_OVERTAKEN + 1) * max(uids, len(lines))
    assert len(queue) == 0


def test_uids_with_different_models_cause_fewer_changes_than_strict_turns_would() -> None:
    queue = JobQueue()
    for number in range(60):
        queue.add(job(number, 1 + number % 3, MODELS[number % 2]))
    loaded, changes = None, 0
    for _ in range(60):
        taken = queue.take(loaded)
        changes += taken.model.id != loaded
        loaded = taken.model.id
    assert changes < 60 / 2
