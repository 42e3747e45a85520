"""The real daemon with a worker, or a broker, that was taken over below its lock_down()."""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.security.hostile import broker as hostile_broker_attacks
from tests.security.hostile import worker as hostile_worker
from tests.support.builds import DUMPABLE, Changes, build
from tests.support.daemon import Daemon, descriptors_of, wait_for
from tests.support.pictures import draw, images
from tests.support.system import MODEL
from weave.client import WeaveError
from weave.protocol.errors import ErrorCode

HOSTILE = Path(hostile_worker.__file__).parent
WORKER: Changes = {
    "gpu_worker/worker.py": [
        (
            "        harden(parent=parent)\n",
            "        harden(parent=parent)\n"
            "        from weave import armed\n"
            "        from weave.gpu_worker import hostile, serve as serving\n"
            "        if (attack := armed.attack(PLACE)) is not None:\n"
            "            serving.generate = lambda job: hostile.run(attack, job)\n",
        ),
        ("def run_worker(", "PLACE = '/marker/'\n\n\ndef run_worker("),
    ],
    # Each attack would have torch imported again: test_zygote_replaced.py has the real thing.
    "supervisor/zygote.py": [
        ('"zygote_replaced", worker=worker)\n        self.kill()\n', '"zygote_replaced", worker=worker)\n')
    ],
}

BROKER: Changes = {
    "broker/__main__.py": [
        (
            "    raise SystemExit(asyncio.run(",
            "    global attack\n    attack = armed.attack(PLACE)\n    raise SystemExit(asyncio.run(",
        ),
        (
            "        server = Server(",
            "        if attack is not None:\n"
            "            await hostile.run(attack, supervisor, config)\n"
            "            return 0\n"
            "        server = Server(",
        ),
        (
            "def main()",
            "from weave import armed\nfrom weave.broker import hostile\n\nPLACE = '/marker/'\n\n\ndef main()",
        ),
    ],
    # Every attack ends a broker: no need to wait longer for each.
    "supervisor/supervisor.py": [
        ("_LONGEST_BACKOFF_SECONDS = 5.0", "_LONGEST_BACKOFF_SECONDS = 0.1"),
    ],
}


class Hostile:
    """A daemon whose next worker or broker attacks as it is told."""

    def __init__(
        self, changes: Changes, modules: dict[str, Path | str], config: str, options: tuple[str, ...] = ()
    ) -> None:
        folder = Path(tempfile.mkdtemp(prefix="weave-test-"))
        self._armed = folder / "weave" / "attack"
        told = {
            name: [(old, new.replace("/marker/", str(self._armed))) for old, new in lines]
            for name, lines in (changes | DUMPABLE).items()
        }
        command = build(told, modules | {"armed.py": HOSTILE / "armed.py"})
        self.daemon = Daemon(config, folder=folder, command=command, options=options).wait_until_serving()
        with self.daemon.client() as client:
            self.expected = images(draw(client, format="raw"))[0].data

    def arm(self, attack: str) -> None:
        self._armed.write_text(attack)

    @property
    def has_begun(self) -> bool:
        return not self._armed.exists()

    def draws_right(self) -> bool:
        with self.daemon.client() as client:
            return images(draw(client, format="raw"))[0].data == self.expected


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
    """What the log says of it. The honest broker is killed to make room for one that attacks."""
    daemon = hostile.daemon
    supervisor, zygote = daemon.process.pid, daemon.pid_of("gpu_worker")
    before, served = len(daemon.all_events()), len(daemon.events("serving"))
    hostile.arm(name)
    os.kill(daemon.pid_of("broker"), signal.SIGKILL)
    wait_for(lambda: hostile.has_begun and len(daemon.events("serving")) == served + 2)
    assert hostile.draws_right()
    assert (daemon.process.pid, daemon.pid_of("gpu_worker")) == (supervisor, zygote)
    return daemon.all_events()[before:]


def attack(hostile: Hostile, name: str) -> tuple[WeaveError, list[dict[str, Any]]]:
    """What the client whose job it is is told, and what the log says of it."""
    daemon = hostile.daemon
    before = len(daemon.log().splitlines())
    standing = {role: pid for pid, role in daemon.processes().items() if role != "worker"}
    with daemon.client() as client:
        client.unload()
        hostile.arm(name)
        with pytest.raises(WeaveError) as failed:
            draw(client, format="raw")
        assert hostile.has_begun
        client.unload()
    assert hostile.draws_right()
    # The others have taken no harm, and nothing of the attack is left in the broker.
    assert {role: pid for pid, role in daemon.processes().items() if role != "worker"} == standing
    assert not [link for link in descriptors_of(standing["broker"]) if "memfd" in link]
    events = daemon.all_events()[before:]
    return failed.value, events


@pytest.mark.parametrize("name", hostile_worker.FORGERIES)
def test_a_worker_that_breaks_the_protocol_is_killed_audited_and_replaced(hostile: Hostile, name: str) -> None:
    error, events = attack(hostile, name)
    assert error.code is ErrorCode.WORKER_FAILED
    assert [line for line in events if line["event"] == "worker_violation"]
    assert "the worker broke the protocol" in [line.get("cause") for line in events if line["event"] == "worker_ended"]


@pytest.mark.parametrize("name", hostile_worker.CALLS)
def test_a_worker_that_makes_a_forbidden_call_is_killed_audited_and_replaced(hostile: Hostile, name: str) -> None:
    error, events = attack(hostile, name)
    assert error.code is ErrorCode.WORKER_FAILED
    violations = [line for line in events if line["event"] == "sandbox_violation"]
    assert [(line["process"], line["of"], line["call"]) for line in violations] == [("supervisor", "worker", name)]


def test_a_worker_that_opens_a_foreign_file_is_refused_and_the_path_told_to_nobody(hostile: Hostile) -> None:
    error, _ = attack(hostile, "open /etc/passwd")
    assert error.code is ErrorCode.INTERNAL and "passwd" not in str(error)
    assert wait_for(lambda: [e for e in hostile.daemon.events("job_failed") if "errno 13" in str(e["detail"])])


@pytest.mark.parametrize("name", hostile_broker_attacks.FORGERIES)
def test_a_broker_that_breaks_the_protocol_is_killed_audited_and_replaced(hostile_broker: Hostile, name: str) -> None:
    events = attack_as_broker(hostile_broker, f"forgery: {name}")
    # Descriptors do not even get through where the kernel can refuse them.
    refused = "descriptor" in name and hostile_broker_attacks.REFUSED in [line.get("outcome") for line in events]
    assert refused or [line for line in events if line["event"] == "broker_violation"]
    # Not a word of it gets into a line that the supervisor answers for.
    said = [line for line in events if hostile_broker_attacks.FORGED_REASON in str(line)]
    assert [line for line in said if line["process"] == "supervisor"] == []


@pytest.mark.parametrize("name", hostile_broker_attacks.REQUESTS)
def test_what_a_hostile_broker_may_ask_does_no_harm(hostile_broker: Hostile, name: str) -> None:
    events = attack_as_broker(hostile_broker, f"request: {name}")
    assert [line["outcome"] for line in events if line["event"] == "attacked"] == [
        hostile_broker_attacks.REQUESTS[name][1]
    ]


@pytest.mark.parametrize("name", hostile_broker_attacks.TO_WORKER)
def test_a_worker_checks_what_a_hostile_broker_asks(hostile_broker: Hostile, name: str) -> None:
    events = attack_as_broker(hostile_broker, f"worker: {name}")
    assert [line["outcome"] for line in events if line["event"] == "attacked"] == [
        hostile_broker_attacks.TO_WORKER[name][2]
    ]


def test_a_broker_that_says_nothing_is_killed(hostile_broker: Hostile) -> None:
    events = attack_as_broker(hostile_broker, "silence: ")
    assert [line for line in events if line["event"] == "broker_hung"]


def test_a_broker_has_no_channel_but_the_supervisors_and_the_workers(hostile_broker: Hostile) -> None:
    """So the zygote hears of it only what the supervisor makes of its requests."""
    assert hostile_broker.draws_right()
    broker = hostile_broker.daemon.pid_of("broker")

    # The listening socket, the two channels, and the event loop's own pair.
    wait_for(lambda: sum(link.startswith("socket:") for link in descriptors_of(broker)) == 5)
