"""One user with thousands of UIDs, and many users at the same time: the totals hold, and no user keeps others out."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from tests.integration.test_system_mode import knock
from tests.support.builds import build
from tests.support.crowd import crowd, sub_uids
from tests.support.daemon import Daemon, descriptors_of, wait_for
from tests.support.generation import PROMPT, generate, images
from tests.support.seams import replaced
from tests.support.system import MODEL, SYSTEM, system_daemon
from tests.support.users import ALICE, BOB, CAROL, EVE, GROUP, as_user, uid
from weave.broker.admission.audit import LINES
from weave.client import Client
from weave.protocol.client_messages import Progress

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be other users")
UIDS = 3000
OPEN = SYSTEM.replace("[system]", '[system]\nsocket_mode = "0666"')
STATUS = {"op": "status"}
GENERATE = {"op": "generate", "model": "shapes", "prompt": PROMPT, "steps": 10}


@contextmanager
def system(limits: str = "", **more: Any) -> Iterator[Daemon]:
    folder = Path(tempfile.mkdtemp(prefix="weave-test-"))
    daemon = system_daemon(folder, f"[limits]\n{limits}\n" + OPEN + MODEL, **more).wait_until_serving()
    try:
        yield daemon
    finally:
        assert daemon.stop() == 0


@pytest.fixture(scope="module")
def reloadable(users: None) -> Iterator[Daemon]:
    with system() as daemon:
        yield daemon


Reload: TypeAlias = Callable[[str], Daemon]


@pytest.fixture
def reload(reloadable: Daemon) -> Reload:
    """For tests of one daemon with different limits. Before each it has no connections, and all rates start again."""

    def with_limits(limits: str) -> Daemon:
        with reloadable.client() as client:
            wait_for(lambda: client.status().connections == 1)
        reloadable.reload(f"[limits]\n{limits}\n" + OPEN + MODEL)
        return reloadable

    return with_limits


def size_of_image(path: Path) -> Any:
    with Client(path, timeout=100) as client:
        return len(images(generate(client, steps=1))[0].data)


def test_three_thousand_uids_of_one_user_count_as_one(users: None) -> None:
    with system("burst_per_uid = 1000") as daemon:
        with daemon.client() as client:
            expected = len(images(generate(client, steps=1))[0].data)
        before = len(descriptors_of(daemon.pid_of("broker")))
        with crowd(daemon.socket, sub_uids(UIDS), group=GROUP) as many:
            answers = many.connect(GENERATE)
            # 64 connections and 32 jobs are what one user may have; the first job runs, and later ones may have too.
            assert answers.pop("connections_per_uid") == UIDS - 64
            assert answers.keys() <= {"queued", "queue_per_uid"} and answers["queued"] >= 33
            with daemon.client() as client:
                status = client.status()
                assert status.connections == 65 and status.queue_length <= 32
            # Allowed by name, by supplementary group, by primary group.
            for name in (ALICE, CAROL, BOB):
                assert as_user(name, lambda: size_of_image(daemon.socket)) == expected
        wait_for(lambda: len(descriptors_of(daemon.pid_of("broker"))) <= before)
        with daemon.client() as client:
            assert client.status().connections == 1


def test_if_each_uid_were_known_one_user_would_fill_the_totals(users: None) -> None:
    command = build((replaced("broker/admission/principal.py", "principal_of", "return Principal(uid)"),))
    os.chmod(Path(command[0]).parents[2], 0o755)  # the children run as other users
    limits = "connections = 64\nconnections_per_uid = 2"
    for more, served in (({}, 2), ({"command": command}, 64)):
        with system(limits, **more) as daemon, crowd(daemon.socket, sub_uids(70), group=GROUP) as many:
            assert many.connect(STATUS)["status"] == served


def test_the_last_quarter_of_connections_is_for_new_known_users(reload: Reload) -> None:
    daemon = reload("connections = 8\nconnections_per_uid = 8")
    with ExitStack() as stack:

        def connect(uids: list[int], each: int) -> dict[str, int]:
            new = stack.enter_context(crowd(daemon.socket, uids, group=GROUP))
            return new.connect(STATUS, each=each)

        assert connect(sub_uids(3), 3) == {"status": 6, "connections": 3}
        assert connect([uid(ALICE)], 2) == {"status": 1, "connections": 1}
        assert connect([uid(BOB)], 2) == {"status": 1, "connections": 1}
        # No connection is accepted beyond the total.
        assert connect([uid(CAROL)], 1) == {"connections": 1}
    refused = daemon.events("connection_refused")
    assert {line["reason"] for line in refused} == {
        "too many connections (connections is 8, of which 2 are kept for others)",
        "too many connections (connections is 8)",
    }


def test_one_known_user_cannot_keep_out_another(reload: Reload) -> None:
    daemon = reload("connections = 8\nconnections_per_uid = 8")
    with (
        crowd(daemon.socket, [uid(ALICE)], group=GROUP) as alice,
        crowd(daemon.socket, [uid(BOB)], group=GROUP) as bob,
    ):
        assert alice.connect(STATUS, each=8) == {"status": 6, "connections": 2}
        assert bob.connect(STATUS) == {"status": 1}
        assert as_user(CAROL, lambda: size_of_image(daemon.socket)) > 100


def test_the_last_quarter_of_the_queue_is_for_new_known_users(reload: Reload) -> None:
    daemon = reload("queue = 8\nqueue_per_uid = 8")
    with ExitStack() as stack:
        root = stack.enter_context(daemon.client())
        running = root.generate(PROMPT, model="shapes", steps=100, images=8)
        wait_for(lambda: isinstance(next(running).event, Progress))

        def queue(uids: list[int], each: int) -> dict[str, int]:
            return stack.enter_context(crowd(daemon.socket, uids, group=GROUP)).connect(GENERATE, each=each)

        assert queue(sub_uids(9), 1) == {"queued": 6, "queue": 3}
        assert queue([uid(ALICE)], 2) == {"queued": 1, "queue": 1}
        assert queue([uid(BOB)], 2) == {"queued": 1, "queue": 1}
        assert queue([uid(CAROL)], 1) == {"queue": 1}
        with daemon.client() as watcher:
            assert watcher.status().queue_length == 8


def test_unknown_uids_share_one_rate_known_ones_have_their_own(reload: Reload) -> None:
    daemon = reload("burst_per_uid = 5\nrequests_per_second = 0.01")
    with (
        crowd(daemon.socket, sub_uids(10), group=GROUP) as many,
        crowd(daemon.socket, [uid(ALICE)], group=GROUP) as alice,
    ):
        unload = {"op": "unload"}
        assert many.connect(unload) == {"done": 5, "rate_limited": 5}
        assert alice.connect(unload) == {"done": 1}


def test_a_strangers_refusal_is_logged_despite_a_flood_of_others(users: None) -> None:
    with system("connections_per_uid = 200") as daemon, crowd(daemon.socket, sub_uids(120), group=GROUP) as many:
        assert many.connect({"op": "exec"}) == {"op": 120}
        # From each of them, and of more than one kind.
        assert many.flood({"op": "exec"}, 25) == {"op": 3000}
        told = many.flood({"op": "generate", "model": "none", "prompt": "x"}, 25)
        assert told.keys() == {"model", "rate_limited"} and sum(told.values()) == 3000
        assert as_user(EVE, lambda: knock(daemon.socket)) == 0
        (refused,) = wait_for(lambda: daemon.events("connection_refused"))
        assert refused["peer"]["uid"] == uid(EVE)
    assert not daemon.events("log_flooded")
    lines = daemon.events("request_refused")
    counts = [line for line in daemon.events("suppressed") if line["of"] == "request_refused"]
    assert LINES <= len(lines) <= LINES * (len(counts) + 1)  # a count ends a window
    assert len(lines) + sum(count["lines"] for count in counts) == 120 + 6000
    assert sum(count["uids"] for count in counts) >= 120


def test_unnamed_strangers_are_counted_and_a_named_one_logged(users: None) -> None:
    with system() as daemon:
        with crowd(daemon.socket, sub_uids(UIDS), group=None) as strangers:
            assert strangers.connect(STATUS) == {"closed": UIDS}
            assert as_user(EVE, lambda: knock(daemon.socket)) == 0
        wait_for(lambda: [line for line in daemon.events("connection_refused") if line["peer"]["uid"] == uid(EVE)])
        wait_for(lambda: daemon.events("suppressed"))
    assert not daemon.events("log_flooded")
    lines, counts = daemon.events("connection_refused"), daemon.events("suppressed")
    assert LINES + 1 <= len(lines) <= LINES * (len(counts) + 1) + 1
    assert len(lines) + sum(count["lines"] for count in counts) == UIDS + 1
    assert {count["of"] for count in counts} == {"connection_refused"}
    # Each UID occurred once.
    assert sum(count["uids"] for count in counts) == UIDS + 1 - len(lines)


def test_the_client_with_most_unread_bytes_is_dropped(reload: Reload) -> None:
    daemon = reload("outgoing_bytes = 4194304\noutgoing_bytes_total = 1048576")
    with ExitStack() as stack:
        deaf = {}
        for name in (ALICE, BOB):
            deaf[name] = stack.enter_context(crowd(daemon.socket, [uid(name)], group=GROUP))
            assert deaf[name].connect(STATUS) == {"status": 1}
        deaf[BOB].send(STATUS, 300)
        deaf[ALICE].send(STATUS, 2000)
        (dropped,) = wait_for(lambda: daemon.events("client_dropped"))
        assert dropped["peer"]["uid"] == uid(ALICE)
        assert "all clients have more than 1048576 bytes together" in dropped["reason"]
        assert as_user(CAROL, lambda: size_of_image(daemon.socket)) > 100
        assert [line["peer"]["uid"] for line in daemon.events("client_dropped")] == [uid(ALICE)]
