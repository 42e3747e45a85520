"""Attacks from inside the locked-down broker and worker, and the same attacks with one layer taken away."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.security.attacker import AT_AN_OFFSET, ATTACKS, BROKER_ONLY
from tests.security.file_attacks import READABLE_TASK_FILES, TASK_ATTACKS, WORKER_ONLY, WRITING


def attack(role: str, *options: str) -> dict[str, dict[str, Any]]:
    command = [sys.executable, "-m", "tests.security.attacker", role, *options]
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=500, check=False, cwd=Path(__file__).parents[2]
    )
    assert ended.returncode == 0, ended.stderr
    return {found["attack"]: found for found in map(json.loads, ended.stdout.splitlines())}


@pytest.fixture(scope="session")
def outcomes() -> dict[str, dict[str, dict[str, Any]]]:
    return {role: attack(role) for role in ("broker", "worker")}


@pytest.mark.parametrize("name", [*ATTACKS, *BROKER_ONLY])
def test_the_broker_gains_nothing_by(outcomes: dict[str, dict[str, dict[str, Any]]], name: str) -> None:
    check(outcomes["broker"][name])


@pytest.mark.parametrize("name", [*ATTACKS, *WORKER_ONLY])
def test_the_worker_gains_nothing_by(outcomes: dict[str, dict[str, dict[str, Any]]], name: str) -> None:
    check(outcomes["worker"][name])


def check(outcome: dict[str, Any]) -> None:
    assert "attestation" not in outcome, outcome
    # Another error would come from the call itself: it was made.
    refused = ("refused: EACCES", "refused: EPERM", "refused: ENOSYS")
    assert "violation" in outcome or outcome["result"] in refused, outcome


@pytest.mark.parametrize("name", AT_AN_OFFSET)
def test_the_broker_writes_at_offsets_of_memfds_only(outcomes: dict[str, dict[str, dict[str, Any]]], name: str) -> None:
    assert outcomes["broker"][name]["result"] == "refused: ESPIPE"


@pytest.mark.parametrize("role", ["broker", "worker"])
def test_no_unlisted_call_is_made(role: str) -> None:
    assert attack(role, "--sweep=calls")["sweep"] == {"attack": "sweep", "made": [], "unnoticed": []}


def test_the_sweep_finds_a_call_that_passes() -> None:
    swept = attack("broker", "--sweep=calls", "--as-if-not-on-the-list=getpid")["sweep"]
    assert swept["made"] == ["getpid"] and len(swept["unnoticed"]) == 1


@pytest.mark.parametrize("role", ["broker", "worker"])
def test_without_seccomp_a_socket_is_gained(role: str) -> None:
    assert attack(role, "--without=seccomp", "--only", "socket AF_INET")["socket AF_INET"]["result"].startswith(
        "gained"
    )


CHANGING = ("write a file", "write to the model", *WRITING)


@pytest.fixture(scope="module")
def without_landlock() -> dict[str, str]:
    """The results of a worker's attacks on files."""
    tried = attack("worker", "--without=landlock", "--only", "read /etc/passwd", *CHANGING)
    return {name: outcome["result"] for name, outcome in tried.items()}


def test_without_landlock_the_worker_reads_other_files(without_landlock: dict[str, str]) -> None:
    assert without_landlock["read /etc/passwd"].startswith("gained")


def test_without_landlock_seccomp_still_forbids_changing_files(without_landlock: dict[str, str]) -> None:
    assert {name: without_landlock[name] for name in CHANGING} == dict.fromkeys(CHANGING, "refused: EACCES")


def test_without_landlock_a_gpu_worker_creates_no_file() -> None:
    """Its devices are opened for reading and writing, so existing files can be written (docs/threat-model.md)."""
    tried = attack("worker-with-a-gpu", "--without=landlock", "--only", *WRITING)
    assert {name for name in WRITING if tried[name]["result"] != "refused: EACCES"} == {"overwrite and read", "resize"}


def test_a_gpu_worker_reaches_only_its_own_threads_files() -> None:
    """The price of naming CUDA's threads: docs/threat-model.md says so."""
    check_files_of_threads(attack("worker-with-a-gpu", "--only", *TASK_ATTACKS, *WRITING))


def check_files_of_threads(tried: dict[str, dict[str, Any]]) -> None:
    """Of a worker with a GPU: the outcomes of TASK_ATTACKS and WRITING."""
    gained = {name for name, found in tried.items() if found["result"].startswith("gained")}
    left = {f"read task/{name}" for name in READABLE_TASK_FILES} | {"write task/comm"}
    # For these the file's mode decides, or AppArmor or SELinux.
    others = {f"{do} task/{name}" for do in ("read", "write") for name in ("attr/current", "environ", "mem")}
    others |= {f"write task/{name}" for name in ("attr/exec", "oom_score_adj", "uid_map", "setgroups")}
    assert left <= gained <= left | others
    for name in ("list task", "list task/..", "list a thread", "read task/root/etc/passwd", "task of the parent"):
        assert tried[name]["result"] == "refused: EACCES", name


def test_a_worker_with_a_gpu_makes_no_unlisted_call() -> None:
    assert attack("worker-with-a-gpu", "--sweep=calls")["sweep"] == {"attack": "sweep", "made": [], "unnoticed": []}


def test_without_landlock_seccomp_keeps_files_from_the_broker() -> None:
    name = "read /etc/passwd"
    assert attack("broker", "--without=landlock", "--only", name)[name]["result"] == "refused: EACCES"


def test_without_seccomp_landlock_keeps_files_from_the_broker() -> None:
    name = "read /etc/passwd"
    assert attack("broker", "--without=seccomp", "--only", name)[name]["result"] == "refused: EACCES"


@pytest.mark.skipif("os.geteuid() != 0", reason="only root has capabilities to keep")
def test_attestation_refuses_a_process_with_capabilities() -> None:
    outcome = attack("worker", "--without=capabilities", "--only", "bpf")["bpf"]
    assert "CapPrm" in outcome["attestation"] or "CapBnd" in outcome["attestation"]


def test_the_attacks_run_without_pytest() -> None:
    """As in the machines of tests/vm, which have only the package."""
    without = "import sys; sys.modules['pytest'] = None; import tests.security.attacker"
    subprocess.run([sys.executable, "-c", without], check=True, timeout=100, cwd=Path(__file__).parents[2])
