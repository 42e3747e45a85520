"""What a GPU's driver needs of the sandbox, without a driver: the same calls, made in the real worker."""

import os
import tempfile
from pathlib import Path

import pytest

from tests.support.builds import build
from tests.support.daemon import Daemon
from tests.support.generation import generate, images
from tests.support.seams import before, constant
from tests.support.system import MODEL, system_daemon

REHEARSAL: dict[str, Path | str] = {"gpu_worker/rehearsal.py": Path(__file__).with_name("rehearsal.py")}
IMPORT = "from weave.gpu_worker import rehearsal\n"
REHEARSED = (
    before("gpu_worker/worker.py", "warm_up", IMPORT + 'rehearsal.run("start", rehearsal.START)'),
    before("gpu_worker/serve.py", "serve", IMPORT + 'rehearsal.run("later", rehearsal.LATER)'),
)
# /dev/null stands for the GPU.
A_GPU = (
    constant("sandbox/worker_files.py", "NVIDIA", '(Path("/dev/null"),)'),
    before("sandbox/worker_calls.py", "calls", "gpu = True"),
)


MAY = {"name_a_thread": "done", "listen_for_unified_memory": "done", "read_files": "done"}
REFUSED = "refused: Permission denied"


@pytest.fixture
def folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="weave-test-"))


def start(command: tuple[str, ...], folder: Path, *, system: bool) -> Daemon:
    if not system:
        return Daemon(MODEL, command=command, folder=folder)
    os.chmod(Path(command[0]).parents[2], 0o755)  # the build, which the children read
    return system_daemon(folder, command=command)


def rehearse(daemon: Daemon) -> dict[str, dict[str, str]]:
    """The result of each step, at the start and later."""
    daemon.wait_until_serving()
    try:
        with daemon.client() as client:
            assert images(generate(client))
    finally:
        assert daemon.stop() == 0
    told: dict[str, dict[str, str]] = {"start": {}, "later": {}}
    for line in daemon.events("rehearsed"):
        told[line["when"]][line["step"]] = line["result"]
    return told


@pytest.mark.parametrize("system", [False, True], ids=["user mode", "system mode"])
def test_a_gpu_worker_can_do_what_cuda_does_at_its_start(
    request: pytest.FixtureRequest, folder: Path, system: bool
) -> None:
    if system:
        request.getfixturevalue("users")
    daemon = start(build((*REHEARSED, *A_GPU), REHEARSAL), folder, system=system)
    told = rehearse(daemon)
    assert told["start"] == MAY | {"name_the_supervisor": REFUSED}
    assert told["later"] == {"name_a_thread": "done", "read_files": "done"}
    # torch's CPU build: the daemon generates on the CPU, and logs why.
    assert "CUDA" in daemon.events("gpu_not_used")[0]["reason"]


def test_without_a_gpu_nothing_in_proc_is_writable(folder: Path) -> None:
    daemon = start(build(REHEARSED, REHEARSAL), folder, system=False)
    told = rehearse(daemon)
    assert told["start"] == MAY | {"name_a_thread": REFUSED, "name_the_supervisor": REFUSED}
    assert not daemon.events("gpu_not_used")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has the kernel drop its caches")
def test_a_worker_can_read_its_files_after_drop_caches(shared_daemon: Daemon) -> None:
    with shared_daemon.client() as client:
        expected = images(generate(client))[0].data
        Path("/proc/sys/vm/drop_caches").write_text("2")
        assert images(generate(client))[0].data == expected
        assert client.status().memory_used
