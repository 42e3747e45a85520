"""System mode: a worker serves one user, status hides other users, and a user cannot unload another's model."""

import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.builds import build
from tests.support.crowd import crowd, sub_uids
from tests.support.daemon import Daemon, wait_for
from tests.support.generation import PROMPT, generate, images
from tests.support.seams import Seams, before
from tests.support.system import MODEL, SYSTEM, system_daemon
from tests.support.users import ALICE, BOB, GROUP, as_user, uid
from weave.client import Client, WeaveError
from weave.protocol.client_messages import Loading, Progress, Queued

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be other users")

LONG: dict[str, Any] = {"model": "shapes", "steps": 100, "images": 8}


@contextmanager
def system(*, isolate_users: bool, seams: Seams = (), device: str = "") -> Iterator[Daemon]:
    folder = Path(tempfile.mkdtemp(prefix="weave-test-"))
    more = {"command": readable(build(seams))} if seams else {}
    table = f'[system]\nisolate_users = {str(isolate_users).lower()}\nsocket_mode = "0666"'
    daemon = system_daemon(folder, device + SYSTEM.replace("[system]", table) + MODEL, **more).wait_until_serving()
    try:
        yield daemon
    finally:
        assert daemon.stop() == 0


def readable(command: tuple[str, ...]) -> tuple[str, ...]:
    """A build's folder is private, but other users run it."""
    Path(command[0]).parents[2].chmod(0o755)
    return command


@pytest.fixture(scope="module")
def isolated(users: None) -> Iterator[Daemon]:
    with system(isolate_users=True) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def shared(users: None) -> Iterator[Daemon]:
    with system(isolate_users=False) as daemon:
        yield daemon


def by(name: str, daemon: Daemon, action: Callable[[Client], Any]) -> Any:
    """The result of `action`, run as that user."""

    def connected() -> Any:
        with Client(daemon.socket, timeout=100) as client:
            return action(client)

    return as_user(name, connected)


def an_image(client: Client) -> int:
    return len(images(generate(client)))


def events_of_an_image(client: Client) -> list[str]:
    return [type(answer.event).__name__ for answer in generate(client)]


def unload(client: Client) -> list[Any]:
    try:
        client.unload()
    except WeaveError as error:
        return [error.code.value, error.error.field, error.error.value, str(error)]
    return ["done"]


def told_of_the_worker(client: Client) -> list[Any]:
    report = client.status()
    return [report.worker, report.model, report.device, report.memory_used is None, client.list_models().loaded]


def workers(daemon: Daemon, users: list[str]) -> list[int]:
    """Which worker generated the image of each of these users, one after the other."""
    with daemon.client() as root:
        root.unload()
    found = []
    for name in users:
        assert by(name, daemon, an_image) == 1
        found.append(daemon.pid_of("worker"))
    return [sorted(set(found), key=found.index).index(worker) for worker in found]


def test_each_users_jobs_run_in_their_own_worker(isolated: Daemon) -> None:
    ended = len(isolated.events("worker_ended"))
    assert workers(isolated, [ALICE, ALICE, BOB, ALICE]) == [0, 0, 1, 2]
    causes = [line["cause"] for line in isolated.events("worker_ended")[ended:]]
    assert causes[-2:] == ["another user is served"] * 2


def test_without_isolation_one_worker_serves_all(shared: Daemon) -> None:
    assert workers(shared, [ALICE, BOB, ALICE]) == [0, 0, 0]


def test_uids_that_share_one_turn_do_not_share_a_worker(isolated: Daemon) -> None:
    """Two UIDs without a name."""
    for sub_uid in sub_uids(2):
        with crowd(isolated.socket, [sub_uid], group=GROUP) as one:
            assert one.connect({"op": "load_model", "model": "shapes"}) == {"queued": 1}
            wait_for(lambda: [e for e in isolated.events("model_loaded") if e["peer"]["uid"] == sub_uid])  # noqa: B023
    assert isolated.events("worker_ended")[-1]["cause"] == "another user is served"


def test_two_users_work_at_once_in_a_worker_each(users: None) -> None:
    """On two devices; neither sees the other's worker, and each may unload its own."""

    def told_of_devices(client: Client) -> list[list[Any]]:
        return sorted([device.state, device.model or ""] for device in client.status().devices)

    two = '[device]\ndevices = ["cpu", "cpu"]\nthreads = 1\n'
    with system(isolate_users=True, device=two) as daemon, daemon.client() as root:
        running = root.generate(PROMPT, **LONG)
        wait_for(lambda: isinstance(next(running).event, Progress))
        assert by(BOB, daemon, an_image) == 1
        assert told_of_devices(root) == [["idle", "shapes"], ["running", "shapes"]]
        assert by(BOB, daemon, told_of_devices) == [["idle", "shapes"], ["running", ""]]
        assert by(ALICE, daemon, told_of_devices) == [["none", ""], ["running", ""]]
        assert list(daemon.processes().values()).count("worker") == 2
        assert by(BOB, daemon, unload) == ["done"]
        assert told_of_devices(root) == [["none", ""], ["running", "shapes"]]
        assert by(BOB, daemon, unload)[0] == "invalid_request"
        root.cancel(job=root.status().jobs[0].job)
        with pytest.raises(WeaveError):
            list(running)


# A compromised worker that logs every prompt it sees.
NOTE_PROMPT = """
    from weave import log
    seen = globals().setdefault("seen", [])
    seen.append(generation.run.parameters.prompt)
    log.write("worker", "seen", prompts=seen)
"""
CURIOUS = (before("gpu_worker/generation.py", "generate", NOTE_PROMPT),)


@pytest.mark.parametrize("isolate_users", [True, False])
def test_a_hostile_worker_sees_other_prompts_only_unisolated(users: None, isolate_users: bool) -> None:
    with system(isolate_users=isolate_users, seams=CURIOUS) as daemon:
        assert by(ALICE, daemon, lambda client: len(generate(client, "hers")))
        assert by(BOB, daemon, lambda client: len(generate(client, "his")))
        seen = wait_for(lambda: len(daemon.events("seen")) == 2 and daemon.events("seen"))
    assert [line["prompts"] for line in seen] == [["hers"], ["his"] if isolate_users else ["hers", "his"]]


def test_a_loaded_model_is_reloaded_for_the_next_user_unseen(isolated: Daemon) -> None:
    by(ALICE, isolated, lambda client: client.load_model("shapes").model)
    assert by(ALICE, isolated, told_of_the_worker) == ["idle", "shapes", "cpu", False, "shapes"]
    assert by(BOB, isolated, told_of_the_worker) == ["none", None, None, True, None]
    with isolated.client() as root:
        assert told_of_the_worker(root) == ["idle", "shapes", "cpu", False, None]
    assert "Loading" not in by(ALICE, isolated, events_of_an_image)
    assert by(BOB, isolated, events_of_an_image)[:2] == ["Queued", "Loading"]
    assert by(BOB, isolated, told_of_the_worker) == ["idle", "shapes", "cpu", False, "shapes"]
    assert by(ALICE, isolated, told_of_the_worker) == ["none", None, None, True, None]


def test_status_shows_a_user_its_own_jobs_and_root_all(isolated: Daemon) -> None:
    def numbers(client: Client) -> list[int]:
        found = []
        for _ in range(2):
            found += [answer.event.job for answer in generate(client) if isinstance(answer.event, Queued)]
        return found

    def told(client: Client) -> list[Any]:
        report = client.status()
        sums = report.metrics
        return [
            *(report.worker, report.connections, report.queue_length, len(report.jobs)),
            *(report.images_made, report.worker_restarts, sums.requests, sums.connections, sums.models_loaded),
        ]

    by(BOB, isolated, an_image)
    # Her job numbers begin at 1, although Bob and root have run jobs.
    assert sorted(set(by(ALICE, isolated, numbers))) == [1, 2]
    with isolated.client() as root:
        running = root.generate(PROMPT, **LONG)
        wait_for(lambda: isinstance(next(running).event, Progress))
        assert by(ALICE, isolated, told) == ["running", 1, 0, 0, 0, 0, 0, 0, 0]
        state, connections, _, jobs, made, _, requests, opened, loaded = told(root)
        assert (state, connections, jobs) == ("running", 1, 1)
        assert made >= 3 and requests >= 3 and opened >= 3 and loaded >= 2
        assert len(root.status().sandbox["worker"]) > 2
        assert by(ALICE, isolated, lambda client: client.status().sandbox["worker"]) == []


def test_another_users_worker_can_be_unloaded_only_when_idle(isolated: Daemon) -> None:
    with isolated.client() as root:
        running = root.generate(PROMPT, **LONG)
        wait_for(lambda: isinstance(next(running).event, Progress))
        worker = isolated.pid_of("worker")
        code, field, value, message = by(BOB, isolated, unload)
        assert (code, field, value) == ("invalid_request", "op", "unload") and "another user's job" in message
        assert isinstance(next(running).event, Progress) and isolated.pid_of("worker") == worker
        root.cancel(job=root.status().jobs[0].job)
        with pytest.raises(WeaveError):
            list(running)
        wait_for(lambda: root.status().worker == "idle")
        before = len(isolated.events("model_unloaded"))
        assert by(BOB, isolated, unload) == ["done"]
        assert root.status().worker == "none"
        (line,) = wait_for(lambda: isolated.events("model_unloaded")[before:])
        assert (line["peer"]["uid"], line["model"]) == (uid(BOB), "shapes")


def test_unload_after_a_job_keeps_the_model_for_waiting_users(shared: Daemon) -> None:
    told: list[list[str]] = []

    def generate_behind(client: Client) -> list[str]:
        wait_for(lambda: client.status().worker == "running")
        return events_of_an_image(client)

    bob = threading.Thread(target=lambda: told.append(by(BOB, shared, generate_behind)))

    def alice(client: Client) -> list[Any]:
        running = client.generate(PROMPT, **LONG)
        wait_for(lambda: isinstance(next(running).event, Progress))
        wait_for(lambda: client.status().queue_length == 1)
        refused = unload(client)
        client.cancel(job=client.status().jobs[0].job)
        return refused

    bob.start()
    refused = by(ALICE, shared, alice)
    bob.join()
    assert refused[0] == "invalid_request"
    assert Loading.__name__ not in told[0] and told[0][-1] == "Done"
