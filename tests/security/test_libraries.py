"""The places that a worker may read libraries from: those that Python imports installed packages from, and the shared
libraries of LD_LIBRARY_PATH; not their neighbours. Shown in the real, locked-down worker."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.builds import build
from tests.support.daemon import Daemon
from tests.support.generation import generate, images
from tests.support.seams import Seams, before, replaced
from tests.support.system import MODEL
from weave.client import WeaveError
from weave.sandbox import worker_files

# Once the worker is confined it loads a library, as CUDA does; below lock_down() it imports a package's module.
USES_THEM: Seams = (
    before("gpu_worker/device.py", "warm_up", "import ctypes\nctypes.CDLL('libodd.so.1')"),
    before("gpu_worker/serve.py", "_load", "import late\nlate.look_around()"),
)
# The module.
LATE = """
import os

def look_around():
    for closed in {closed}:
        try:
            os.close(os.open(closed, os.O_RDONLY))
        except PermissionError:
            continue
        raise RuntimeError(closed + " was opened")
"""
WITHOUT_RULE = {
    "packages": before(
        "sandbox/worker_files.py", "packages", "search = [entry for entry in search if '/odd/' not in entry]"
    ),
    "libraries": replaced("sandbox/worker_files.py", "libraries", "return ()"),
}


class Place:
    """An odd folder, outside every environment, with a package and a library; and a build with a .pth file that points
    to it."""

    def __init__(self, folder: Path, seams: Seams) -> None:
        self.command = build(seams)
        environment = Path(self.command[0]).parents[1]
        checkout = environment.with_name("src")
        packages, drivers = folder / "odd" / "site-packages", folder / "odd" / "drivers"
        packages.mkdir(parents=True)
        drivers.mkdir()
        shutil.copy(next(Path("/usr/lib").glob("*/libcap.so.2")), drivers / "libodd.so.1")
        beside = [folder / "odd" / "notes", drivers / "notes", checkout / "notes"]
        for file in beside:
            file.write_text("none of the worker's business")
        closed = [str(path) for path in (*beside, folder / "odd", drivers, checkout)]
        (packages / "late.py").write_text(LATE.format(closed=closed))
        (next(environment.glob("lib/*/site-packages")) / "odd.pth").write_text(f"{packages}\n")
        self.variables = {"LD_LIBRARY_PATH": f"relative:{drivers}::/nowhere"}

    def daemon(self) -> Daemon:
        return Daemon(MODEL, command=self.command, variables=self.variables).wait_until_serving()


@pytest.fixture
def expected(shared_daemon: Daemon) -> Iterator[bytes]:
    with shared_daemon.client() as client:
        yield images(generate(client, format="raw"))[0].data
        client.unload()


def test_libraries_in_odd_places_load_but_not_their_neighbours(tmp_path: Path, expected: bytes) -> None:
    daemon = Place(tmp_path, USES_THEM).daemon()
    try:
        with daemon.client() as client:
            assert images(generate(client, format="raw"))[0].data == expected
    finally:
        daemon.stop()


@pytest.mark.parametrize("rule, told", [("packages", "odd/site-packages/late.py'"), ("libraries", "libodd.so.1")])
def test_without_the_rule_such_libraries_cannot_be_read(tmp_path: Path, rule: str, told: str) -> None:
    daemon = Place(tmp_path, (*USES_THEM, WITHOUT_RULE[rule])).daemon()
    try:
        with daemon.client() as client, pytest.raises(WeaveError):
            generate(client)
        assert told in daemon.log()
    finally:
        daemon.stop()


def test_a_readable_checkout_would_be_noticed(tmp_path: Path) -> None:
    everything = "return tuple(Path(entry) for entry in search if entry.startswith('/') and os.path.isdir(entry))"
    seam = replaced("sandbox/worker_files.py", "packages", everything)
    daemon = Place(tmp_path, (*USES_THEM, seam)).daemon()
    try:
        with daemon.client() as client, pytest.raises(WeaveError):
            generate(client)
        assert "src/notes was opened" in daemon.log()
    finally:
        daemon.stop()


def test_only_shared_libraries_of_a_library_folder_are_allowed(tmp_path: Path) -> None:
    for name in ("libcuda.so.1", "libcuda.so", "libnvidia-ml.so.570.86.15", "id_rsa", "libx.so.conf", ".source"):
        (tmp_path / name).touch()
    (tmp_path / "folder.so").mkdir()
    found = worker_files.libraries(f":{tmp_path}:{tmp_path / 'folder.so'}:relative:{tmp_path / 'gone'}")
    assert [path.name for path in found] == ["libcuda.so", "libcuda.so.1", "libnvidia-ml.so.570.86.15"]


def test_only_installed_packages_of_the_import_path_are_allowed(tmp_path: Path) -> None:
    for name in ("site-packages", "dist-packages", "checkout"):
        (tmp_path / name).mkdir()
    (tmp_path / "file" / "site-packages").parent.mkdir()
    (tmp_path / "file" / "site-packages").touch()
    search = ["", "site-packages", "/", *map(str, sorted(tmp_path.glob("*"))), str(tmp_path / "file" / "site-packages")]
    assert worker_files.packages(search) == (tmp_path / "dist-packages", tmp_path / "site-packages")
