"""Record mode finds everything that a driver needs in one run, and with the lines to add the driver works."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.security.hostile import new_driver
from tests.security.hostile.new_driver import CALLS, LATER, LIBRARY, ODD, VERSION
from tests.security.test_gpu_start import A_GPU
from tests.support.builds import build
from tests.support.daemon import Daemon
from tests.support.generation import generate, images
from tests.support.recorded import additions, to_add
from tests.support.seams import Seams, before
from tests.support.system import MODEL, reachable
from tests.support.users import ALICE, as_user, uid
from weave.client import WeaveError

IMPORT = "from weave.gpu_worker import new_driver\n"
WITH_A_NEW_DRIVER: Seams = (
    before("gpu_worker/worker.py", "warm_up", IMPORT + "new_driver.start()"),
    before("gpu_worker/serve.py", "_load", IMPORT + "new_driver.later()"),
    *A_GPU,
)


class Machine(NamedTuple):
    """A machine with a new driver, for one user; None is the current user."""

    folder: Path
    user: str | None

    def run(self, seams: Seams, *options: str) -> tuple[str, Daemon]:
        """The digest of the image that the build's daemon generates, or its error's code; the daemon has exited by
        then."""
        module = Path(new_driver.__file__).read_text().replace("/folder/", str(self.folder))
        command = build((*WITH_A_NEW_DRIVER, *seams), {"gpu_worker/new_driver.py": module})
        daemon = self.start(command, options)
        digest = self.act(lambda: digest_of(daemon))
        assert daemon.stop() == 0
        return digest, daemon

    def start(self, command: tuple[str, ...], options: tuple[str, ...]) -> Daemon:
        runtime = Path(tempfile.mkdtemp(prefix="weave-test-"))
        if self.user is None:
            return Daemon(MODEL, folder=runtime, command=command, options=options).wait_until_serving()
        os.chmod(Path(command[0]).parents[2], 0o755)
        os.chown(runtime, uid(self.user), -1)
        become = ("setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--init-groups")
        daemon = Daemon(MODEL, (*reachable(), *become), folder=runtime, command=command, options=options)
        return daemon.wait_until_serving()

    def act(self, action: Callable[[], Any]) -> Any:
        return action() if self.user is None else as_user(self.user, action)


def digest_of(daemon: Daemon) -> str:
    with daemon.client() as client:
        try:
            return hashlib.sha256(images(generate(client, format="raw"))[0].data).hexdigest()
        except WeaveError as error:
            return error.code.value


@pytest.fixture(scope="module", params=["ourselves", "an ordinary user"])
def machine(request: pytest.FixtureRequest) -> Machine:
    if request.param == "an ordinary user":
        request.getfixturevalue("users")
    folder = Path(tempfile.mkdtemp(prefix="weave-test-"))
    user = ALICE if request.param == "an ordinary user" else None
    for name in (VERSION, ODD, LATER, "written", "none.conf"):
        (folder / name).touch()
        os.chmod(folder / name, 0o666)
    (folder / LIBRARY).symlink_to(VERSION)
    (folder / "loop").symlink_to("loop")
    os.chmod(folder, 0o777)
    return Machine(folder, user)


@pytest.fixture(scope="module")
def recorded(machine: Machine) -> tuple[str, Daemon]:
    return machine.run((), "--record")


@pytest.fixture(scope="module")
def expected() -> Iterator[str]:
    """The digest on a machine with a known driver."""
    daemon = Daemon(MODEL).wait_until_serving()
    yield digest_of(daemon)
    daemon.stop()


def python(text: str) -> str:
    """A file's name as Python source."""
    return '"' + ascii(text)[1:-1].replace('"', '\\"') + '"'


def test_a_recorded_worker_with_a_new_driver_generates_its_image(recorded: tuple[str, Daemon], expected: str) -> None:
    digest, daemon = recorded
    assert digest == expected
    assert not daemon.events("sandbox_violation") and not daemon.events("broker_hung")


def test_everything_missing_from_the_lists_is_found(machine: Machine, recorded: tuple[str, Daemon]) -> None:
    lines = recorded[1].output().partition("To add:\n")[0].splitlines()
    assert {tuple(line.rsplit(None, 1)) for line in map(" ".join, map(str.split, lines))} == {
        ("not listed getpgid", str(CALLS)),
        ("not listed madvise 2=0xc", "1"),
        ("not listed mmap 3=0x2022", "1"),
        ("not listed prlimit64 0=0x0", "2"),
        ("not listed ioctl 0x40045a17 (type Z)", "1"),
        ("listed ioctl 0xc020462a (type F)", "1"),
        (f"not listed read {python(str(machine.folder / LIBRARY))}", "1"),
        (f"not listed read {python(str(machine.folder / ODD))}", "1"),
        (f"not listed read {python(str(machine.folder / LATER))}", "1"),
        ('not listed read "/proc/self/cgroup"', "1"),
        ('not listed write "/dev/zero"', "1"),
        # Findings that no list can have
        (f"not listed write {python(str(machine.folder / 'written'))}", "1"),
        ('not listed read "/proc/1/status"', "1"),
        ('not listed read "/"', "1"),
    }


def test_each_finding_is_printed_as_the_line_to_add(machine: Machine, recorded: tuple[str, Daemon]) -> None:
    _, daemon = recorded
    found = to_add(daemon.output())
    read = sorted(f"    Path({python(str(machine.folder / name))})," for name in (LIBRARY, ODD, LATER))
    assert found == {
        ("sandbox/worker_calls.py", "_GPU"): [
            '    Call("getpgid", "..."),',
            '    Call("ioctl", "...", (Condition(1, 0x40045a17),)),',
            '    Call("madvise", "...", (Condition(2, 0xc),)),',
            '    Call("mmap", "...", (Condition(3, 0x2022),)),',
            '    Call("prlimit64", "...", (Condition(0, 0x0),)),',
        ],
        ("sandbox/worker_files.py", "DEVICES"): ['    Path("/dev/zero"),'],
        ("sandbox/worker_files.py", "OWN"): ['    "cgroup",'],
        ("sandbox/worker_files.py", "READ"): read,
    }
    logged = [line["add"] for line in daemon.events("sandbox_recorded")]
    assert sorted(filter(None, logged)) == [
        [f"weave/{file}", place, line.strip()] for (file, place), lines in found.items() for line in lines
    ]


def test_the_new_driver_works_only_with_the_lines_to_add(
    machine: Machine, recorded: tuple[str, Daemon], expected: str
) -> None:
    refused, daemon = machine.run(())
    assert refused == "worker_failed"
    assert LIBRARY in str(daemon.events("device_failed")[0]["detail"])
    # With the files alone it starts, and its first unlisted call ends it.
    lists = additions(recorded[1].output())
    files = tuple(seam for seam in lists if seam.module == "sandbox/worker_files.py")
    refused, daemon = machine.run(files)
    assert (refused, daemon.events("sandbox_violation")[0]["call"]) == ("worker_failed", "getpgid")
    digest, daemon = machine.run(lists)
    assert digest == expected
    assert not any(map(daemon.events, ("sandbox_violation", "crashed", "device_failed")))


def test_a_recorded_worker_starts_no_program_and_changes_no_file(
    machine: Machine, recorded: tuple[str, Daemon]
) -> None:
    """What no list can allow is refused in record mode too: by Landlock, in the worker and the supervisor."""
    told = {line["what"]: line["result"] for line in recorded[1].events("attempted")}
    refused = "errno 13"
    assert {told[what] for what in ("a program", "a connection", "a new file", "a new folder", "write a file")} == {
        refused
    }
    assert told["a file to write"] == refused  # by the supervisor's answer: /dev/null is on the list
    assert told["another process"] == told["all of /"] == "done"
    assert not (machine.folder / "new").exists() and not (machine.folder / "new folder").exists()
