"""gpu-kit/run on another machine: a rehearsal, without a GPU."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import pytest

from gpu_kit.environment import choose, extract
from tests.kit.bare import TORCH, Bare, debian_with_torch
from tests.packages.tree import ROOT, USERS
from tests.support.processes import start

KIT = ROOT / "gpu-kit"
# What useradd leaves behind of removed users.
GONE = USERS | {f"etc/{name}{backup}" for name in ("subuid", "subgid") for backup in ("", "-")}
NO_ROUTE = """
import errno, socket
for family, address in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
    with socket.socket(family, socket.SOCK_DGRAM) as sending:
        try:
            sending.connect((address, 53))
        except OSError as error:
            print(errno.errorcode[error.errno])
"""


@pytest.fixture(scope="module")
def kit() -> Path:
    assert (KIT / "run").exists(), "`make gpu-kit` first"
    return KIT


@pytest.fixture
def bare(kit: Path, tmp_path: Path) -> Iterator[Bare]:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a tree")
    yield Bare(debian_with_torch(), tmp_path / "bare", kit)
    shutil.rmtree(tmp_path / "bare")


def planned(folder: Path) -> list[str]:
    command = [sys.executable, "-m", "pytest", "tests/gpu", "--collect-only", f"--report-folder={folder}"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [line for line in listed.splitlines() if line.startswith("tests/gpu/")]


def judged(report: Path) -> dict[str, Any]:
    """The report of a rehearsal: every test is in it, none failed, and each that was skipped says why."""
    said: dict[str, Any] = json.loads((report / "report.json").read_text())
    assert said["rehearsal"]
    assert "REHEARSED WITHOUT ONE" in (report / "report.txt").read_text()
    outcomes = {f"{step['letter']} {step['name']}": (step["outcome"], step["reason"]) for step in said["steps"]}
    assert {name: told for name, told in outcomes.items() if told[0] not in ("passed", "skipped")} == {}
    skipped = {name: reason for name, (outcome, reason) in outcomes.items() if outcome == "skipped"}
    assert all("card" in reason for reason in skipped.values()), skipped
    return said


def test_every_step_runs_on_a_bare_machine_and_writes_only_there(bare: Bare, tmp_path: Path) -> None:
    """torch is not on PATH."""
    four, six = bare.run("python3", "-B", "-c", NO_ROUTE).stdout.split()
    assert four == "ENETUNREACH"
    assert six in ("ENETUNREACH", "EADDRNOTAVAIL")
    for lacking in ("cc", "gcc", "ld"):
        assert bare.run("sh", "-c", f"command -v {lacking}").returncode != 0
    alone = [str(TORCH / "bin/python"), "-B", "-c", "import ctypes; ctypes.CDLL('libseccomp.so.2')"]
    assert "cannot open shared object file" in bare.run(*alone).stderr
    before = bare.changed()

    done = bare.run("/mnt/gpu-kit/run", "--seconds=3000")  # the machine may be busy

    assert done.returncode == 0
    assert f"of {TORCH}/bin/python" in done.stdout
    assert "no GPU on this machine: a rehearsal" in done.stdout
    said = judged(bare.path("/root/gpu-report"))
    assert len(said["steps"]) == len(planned(tmp_path)) > 0
    assert said["machine"]["versions"]["torch"].startswith("2.11.0")
    assert said["machine"]["versions"]["transformers"] == "5.17.0"  # its own, not the kit's
    report = {"root/gpu-report/report.json", "root/gpu-report/report.txt"}
    assert bare.changed() - before - GONE == report


@pytest.mark.parametrize("version", [(3, 11), (3, 12), (3, 13)])
def test_for_each_python_each_library_is_there_once(kit: Path, version: tuple[int, int], tmp_path: Path) -> None:
    extract(kit, tmp_path)
    for folder, has_builds in (("first", "msgspec"), ("last", "regex")):
        wheels = tmp_path / "wheels" / folder
        everything = {wheel.name.split("-")[0] for wheel in wheels.iterdir()}
        chosen = choose(wheels, tmp_path / folder, version)
        assert sorted(name.split()[0] for name in chosen) == sorted(everything)
        built = [file.name for file in (tmp_path / folder / has_builds).rglob("*.so")]
        assert built and all(f"cpython-3{version[1]}-" in name for name in built)


def test_here_in_an_empty_folder_the_named_torch_runs(kit: Path, tmp_path: Path) -> None:
    variables = {"PATH": "/usr/bin:/bin", "TORCH_PYTHON": sys.executable}
    done = run(kit, tmp_path, variables, "-k", "machine or generates_an_image", "--without-gpu")
    assert done.returncode == 0
    assert f"of {sys.executable}" in done.stdout
    assert "searching" not in done.stdout
    judged(tmp_path / "gpu-report")
    assert [file.name for file in tmp_path.iterdir()] == ["gpu-report"]


def test_here_without_torch_on_the_path_one_is_found(kit: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "empty"], check=True)
    variables = {"PATH": f"{tmp_path / 'empty/bin'}:/usr/bin:/bin"}
    done = run(kit, tmp_path, variables, "-k", "machine", "--report-folder", "elsewhere/report")
    assert done.returncode == 0
    assert "searching" in done.stdout
    judged(tmp_path / "elsewhere/report")


def test_the_status_is_that_of_the_tests(kit: Path, tmp_path: Path) -> None:
    done = run(
        kit, tmp_path, {"PATH": os.environ["PATH"], "TORCH_PYTHON": sys.executable}, "-k", "nothing_has_this_name"
    )
    assert done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED


@pytest.mark.parametrize(
    ("named", "said"),
    [("/nonexistent/python", "/nonexistent/python: does not run"), ("/usr/bin/python3", "python3: has no torch")],
)
def test_a_named_python_without_torch_is_not_replaced(kit: Path, tmp_path: Path, named: str, said: str) -> None:
    done = run(kit, tmp_path, {"PATH": os.environ["PATH"], "TORCH_PYTHON": named})
    assert done.returncode == 2
    assert said in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_not_used(kit: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    variables = {"PATH": os.environ["PATH"], "TORCH_PYTHON": sys.executable}
    done = run(kit, tmp_path, variables, "--work", str(tmp_path))
    assert done.returncode == 2
    assert "exists, and the kit would remove it" in done.stderr
    assert (tmp_path / "precious").read_text() == "kept"


def test_stopped_at_any_time_it_leaves_nothing(kit: Path, tmp_path: Path) -> None:
    variables = {"PATH": "/usr/bin:/bin", "TORCH_PYTHON": sys.executable}
    for reached in ("torch 2", "from the kit:", "ready after", "test session starts"):
        with tempfile.TemporaryDirectory(prefix="k-", dir="/tmp") as temporary:
            started = start(
                [kit / "run", "-k", "machine"],
                cwd=tmp_path,
                env=variables | {"TMPDIR": temporary},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            with started, cast(IO[str], started.stdout) as said:
                assert any(reached in line for line in said)
                started.send_signal(signal.SIGTERM)
                said.read()
            assert started.returncode == 2
            assert os.listdir(temporary) == []


def run(kit: Path, folder: Path, variables: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    """With only these variables, in that folder. Its work folder is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="k-", dir="/tmp") as temporary:  # a short name, for the sockets in it
        done = subprocess.run(
            [kit / "run", *arguments],
            cwd=folder,
            env=variables | {"TMPDIR": temporary},
            check=False,
            capture_output=True,
            text=True,
        )
        print(done.stdout, done.stderr)
        assert os.listdir(temporary) == []
    return done
