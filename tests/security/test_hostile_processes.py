"""The real daemon with a worker or broker that is compromised below its lock_down()."""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.security.hostile import broker as hostile_broker_attacks
from tests.security.hostile import worker as hostile_worker
from tests.support.builds import DUMPABLE, build
from tests.support.daemon import Daemon, descriptors_of, wait_for
from tests.support.generation import generate, images
from tests.support.seams import Seams, after, before, constant, replaced
from tests.support.system import MODEL
from weave.client import WeaveError
from weave.protocol.errors import ErrorCode

HOSTILE = Path(hostile_worker.__file__).parent
ARMED_WORKER: Seams = (
    after(
        "gpu_worker/worker.py",
        "close_descriptors_except",
        "from weave import armed\nfrom weave.gpu_worker import hostile\narmed.take_order()",
    ),
    # The attack takes the place of one job; a job that it makes itself is an honest one.
    replaced(
        "gpu_worker/generation.py",
        "generate",
        """
        from weave import armed
        from weave.gpu_worker import hostile
        attack, armed.attack = armed.attack, None
        return original(generation) if attack is None else hostile.run(attack, generation)
        """,
    ),
)
# After an attack the zygote stays: a new one would import torch again. test_zygote_replaced.py has the real thing.
SAME_ZYGOTE = replaced(
    "supervisor/children/zygote.py",
    "ZygoteProcess.replace",
    'log.write("supervisor", "zygote_replaced", worker=worker)',
)
WORKER: Seams = (*ARMED_WORKER, SAME_ZYGOTE)
BROKER: Seams = (
    before(
        "broker/__main__.py", "main", "from weave import armed\nfrom weave.broker import hostile\narmed.take_order()"
    ),
    replaced(
        "broker/server.py",
        "Server.run",
        """
        from weave import armed
        from weave.broker import hostile
        if armed.attack is None:
            await original(self)
        else:
            await hostile.run(armed.attack, self._supervisor, self._config)
        """,
    ),
    # Every attack ends a broker: do not wait longer after each.
    constant("supervisor/children/restart.py", "_LONGEST_BACKOFF_SECONDS", "0.1"),
)


class Hostile:
    """A daemon whose next worker or broker makes the attack that a test orders."""

    def __init__(
        self, seams: Seams, modules: dict[str, Path | str], config: str, options: tuple[str, ...] = ()
    ) -> None:
        folder = Path(tempfile.mkdtemp(prefix="weave-test-"))
        self._order = folder / "weave" / "attack"
        armed = (HOSTILE / "armed.py").read_text().replace("/order/", str(self._order))
        command = build((*seams, *DUMPABLE), modules | {"armed.py": armed})
        self.daemon = Daemon(config, folder=folder, command=command, options=options).wait_until_serving()
        with self.daemon.client() as client:
            self.expected = images(generate(client, format="raw"))[0].data

    def arm(self, attack: str) -> None:
        self._order.write_text(attack)

    @property
    def has_begun(self) -> bool:
        return not self._order.exists()

    def generates_right(self) -> bool:
        with self.daemon.client() as client:
            return images(generate(client, format="raw"))[0].data == self.expected


@pytest.fixture(scope="module")
def hostile() -> Iterator[Hostile]:
    found = Hostile(WORKER, {"gpu_worker/hostile.py": HOSTILE / "worker.py"}, "[limits]\njob_seconds = 20\n" + MODEL)
    yield found
    assert found.daemon.stop() == 0


@pytest.fixture(scope="module")
def hostile_broker() -> Iterator[Hostile]:
    found = Hostile(BROKER, {"broker/hostile.py": HOSTILE / "broker.py"}, MODEL)
    yield found
    assert found.daemon.stop() == 0


def attack_as_broker(hostile: Hostile, name: str) -> list[dict[str, Any]]:
    """The log of the attack. The honest broker is killed to make room for the hostile one."""
    daemon = hostile.daemon
    supervisor, zygote = daemon.process.pid, daemon.pid_of("gpu_worker")
    before, served = len(daemon.all_events()), len(daemon.events("serving"))
    hostile.arm(name)
    os.kill(daemon.pid_of("broker"), signal.SIGKILL)
    wait_for(lambda: hostile.has_begun and len(daemon.events("serving")) == served + 2)
    assert hostile.generates_right()
    assert (daemon.process.pid, daemon.pid_of("gpu_worker")) == (supervisor, zygote)
    return daemon.all_events()[before:]


def attack(hostile: Hostile, name: str) -> tuple[WeaveError, list[dict[str, Any]]]:
    """The error that the job's client gets, and the log of the attack."""
    daemon = hostile.daemon
    before = len(daemon.log().splitlines())
    standing = {role: pid for pid, role in daemon.processes().items() if role != "worker"}
    with daemon.client() as client:
        client.unload()
        hostile.arm(name)
        with pytest.raises(WeaveError) as failed:
            generate(client, format="raw")
        assert hostile.has_begun
        client.unload()
    assert hostile.generates_right()
    # The other processes live on, and nothing of the attack is left in the broker.
    assert {role: pid for pid, role in daemon.processes().items() if role != "worker"} == standing
    assert not [link for link in descriptors_of(standing["broker"]) if "memfd" in link]
    events = daemon.all_events()[before:]
    return failed.value, events


@pytest.mark.parametrize("name", hostile_worker.FORGERIES)
def test_a_worker_that_breaks_the_protocol_is_replaced(hostile: Hostile, name: str) -> None:
    error, events = attack(hostile, name)
    assert error.code is ErrorCode.WORKER_FAILED
    assert [line for line in events if line["event"] == "worker_violation"]
    assert "the worker broke the protocol" in [line.get("cause") for line in events if line["event"] == "worker_ended"]


@pytest.mark.parametrize("name", hostile_worker.CALLS)
def test_a_worker_that_makes_a_forbidden_call_is_replaced(hostile: Hostile, name: str) -> None:
    error, events = attack(hostile, name)
    assert error.code is ErrorCode.WORKER_FAILED
    violations = [line for line in events if line["event"] == "sandbox_violation"]
    assert [(line["process"], line["of"], line["call"]) for line in violations] == [("supervisor", "worker", name)]


def test_a_worker_cannot_open_other_files_or_leak_their_path(hostile: Hostile) -> None:
    error, _ = attack(hostile, "open /etc/passwd")
    assert error.code is ErrorCode.INTERNAL and "passwd" not in str(error)
    assert wait_for(lambda: [e for e in hostile.daemon.events("job_failed") if "errno 13" in str(e["detail"])])


@pytest.mark.parametrize("name", hostile_broker_attacks.FORGERIES)
def test_a_broker_that_breaks_the_protocol_is_replaced(hostile_broker: Hostile, name: str) -> None:
    events = attack_as_broker(hostile_broker, f"forgery: {name}")
    # Descriptors do not even arrive where the kernel can refuse them.
    refused = "descriptor" in name and hostile_broker_attacks.REFUSED in [line.get("outcome") for line in events]
    assert refused or [line for line in events if line["event"] == "broker_violation"]
    # None of its text gets into a line written by the supervisor.
    said = [line for line in events if hostile_broker_attacks.FORGED_REASON in str(line)]
    assert [line for line in said if line["process"] == "supervisor"] == []


@pytest.mark.parametrize("name", hostile_broker_attacks.REQUESTS)
def test_allowed_requests_of_a_hostile_broker_are_harmless(hostile_broker: Hostile, name: str) -> None:
    events = attack_as_broker(hostile_broker, f"request: {name}")
    assert [line["outcome"] for line in events if line["event"] == "attacked"] == [
        hostile_broker_attacks.REQUESTS[name][1]
    ]


@pytest.mark.parametrize("name", hostile_broker_attacks.TO_WORKER)
def test_a_worker_checks_the_requests_of_a_hostile_broker(hostile_broker: Hostile, name: str) -> None:
    events = attack_as_broker(hostile_broker, f"worker: {name}")
    assert [line["outcome"] for line in events if line["event"] == "attacked"] == [
        hostile_broker_attacks.TO_WORKER[name][2]
    ]


def test_a_worker_takes_only_the_announced_images_sealed(hostile_broker: Hostile) -> None:
    events = attack_as_broker(hostile_broker, "images: ")
    (attacked,) = [line for line in events if line["event"] == "attacked"]
    assert attacked["outcome"] == {name: case[2] for name, case in hostile_broker_attacks.IMAGES.items()}


def test_a_worker_refuses_every_run_out_of_bounds(hostile_broker: Hostile) -> None:
    events = attack_as_broker(hostile_broker, "bad runs: ")
    (attacked,) = [line for line in events if line["event"] == "attacked"]
    assert attacked["outcome"] == dict.fromkeys(hostile_broker_attacks.BAD_RUNS, "bounds")


def test_a_silent_broker_is_killed(hostile_broker: Hostile) -> None:
    events = attack_as_broker(hostile_broker, "silence: ")
    assert [line for line in events if line["event"] == "broker_hung"]


def test_a_broker_has_only_the_supervisors_and_workers_channels(hostile_broker: Hostile) -> None:
    """So the zygote gets only what the supervisor makes of its requests."""
    assert hostile_broker.generates_right()
    broker = hostile_broker.daemon.pid_of("broker")

    # The listening socket, the two channels, and the event loop's own pair.
    wait_for(lambda: sum(link.startswith("socket:") for link in descriptors_of(broker)) == 5)
