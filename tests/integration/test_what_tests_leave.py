"""What a test starts ends with it, even if the test fails or pytest is killed."""

import os
import subprocess
import sys
from pathlib import Path

from tests.support.daemon import wait_for
from tests.support.processes import start

ROOT = Path(__file__).resolve().parents[2]
# Each test notes its processes and folders and never stops anything.
CARELESS = """
import os, subprocess, tempfile
from pathlib import Path

import pytest

from tests.support.builds import daemon_of
from tests.support.daemon import Daemon
from tests.support.generation import generate

NOTES = Path({notes!r})


def note(*words):
    with NOTES.open("a") as file:
        file.write(" ".join(map(str, words)) + "\\n")


def note_daemon(daemon):
    with daemon.client() as client:
        generate(client)
    note("processes", daemon.process.pid, *daemon.processes())
    note("folder", daemon.folder)
    return daemon


@pytest.fixture(scope="module")
def kept():
    daemon = note_daemon(Daemon().wait_until_serving())
    yield daemon
    raise RuntimeError("before it is stopped")


def test_fails(kept):
    note_daemon(daemon_of(()))
    sleeping = subprocess.Popen(["sh", "-c", "sleep 600 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
    note("processes", sleeping.pid, sleeping.stdout.readline().strip())
    if (forked := os.fork()) == 0:
        os.execvp("sleep", ["sleep", "600"])
    note("processes", forked)
    assert False


def test_another_still_has_what_is_kept(kept):
    assert kept.processes() and kept.process.poll() is None
    note("kept")
    {then}
"""


class Run:
    """pytest on CARELESS, in its own process."""

    def __init__(self, folder: Path, then: str) -> None:
        self._notes = folder / "notes"
        test = folder / "test_careless.py"
        test.write_text(CARELESS.format(notes=str(self._notes), then=then))
        options = ["-p", "tests.conftest", "-p", "no:cacheprovider", f"--basetemp={folder / 'base'}"]
        command = [sys.executable, "-m", "pytest", *options, f"--rootdir={folder}", "-c", os.devnull, str(test)]
        self.process = start(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def noted(self, what: str) -> list[str]:
        lines = self._notes.read_text().splitlines() if self._notes.exists() else []
        return [word for line in lines if line.split()[0] == what for word in line.split()[1:]]

    def has_kept(self) -> bool:
        return self._notes.exists() and "kept" in self._notes.read_text().splitlines()

    def left(self) -> list[str]:
        return [pid for pid in self.noted("processes") if os.path.exists(f"/proc/{pid}")]


def test_a_test_that_fails_leaves_no_process_and_no_folder(tmp_path: Path) -> None:
    run = Run(tmp_path, "")
    said, _ = run.process.communicate(timeout=200)
    assert run.has_kept() and "1 failed, 1 passed, 1 error" in said, said
    # Two daemons of four processes, a shell and its child, a fork.
    assert len(set(run.noted("processes"))) == 11 and len(run.noted("folder")) == 2
    wait_for(lambda: not run.left(), seconds=10)  # init reaps the grandchildren
    assert not any(os.path.exists(folder) for folder in run.noted("folder"))


def test_where_the_tests_are_killed_their_daemons_end(tmp_path: Path) -> None:
    run = Run(tmp_path, "import time; time.sleep(600)")
    wait_for(run.has_kept, seconds=200)
    kept = run.noted("processes")[:4]
    assert set(kept) <= set(run.left())
    run.process.kill()
    run.process.communicate()
    wait_for(lambda: not set(kept) & set(run.left()), seconds=10)
