"""Attacks from inside the locked-down broker and worker, and the same attacks with one layer taken away."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.security.attacker import ATTACKS, BROKER_ONLY


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


@pytest.mark.parametrize("name", ATTACKS)
def test_the_worker_gains_nothing_by(outcomes: dict[str, dict[str, dict[str, Any]]], name: str) -> None:
    check(outcomes["worker"][name])


def check(outcome: dict[str, Any]) -> None:
    assert "attestation" not in outcome, outcome
    # Another error would be the call's own: it was made.
    refused = ("refused: EACCES", "refused: EPERM", "refused: ENOSYS")
    assert "violation" in outcome or outcome["result"] in refused, outcome


@pytest.mark.parametrize("role", ["broker", "worker"])
def test_no_call_that_is_not_on_the_list_is_made(role: str) -> None:
    assert attack(role, "--sweep")["sweep"] == {"attack": "sweep", "made": [], "unnoticed": []}


def test_a_call_that_was_let_through_would_be_seen() -> None:
    swept = attack("broker", "--sweep", "--as-if-not-on-the-list=getpid")["sweep"]
    assert swept["made"] == ["getpid"] and len(swept["unnoticed"]) == 1


@pytest.mark.parametrize("role", ["broker", "worker"])
def test_without_seccomp_a_socket_is_gained(role: str) -> None:
    assert attack(role, "--without=seccomp", "--only", "socket AF_INET")["socket AF_INET"]["result"].startswith(
        "gained"
    )


def test_without_landlock_the_worker_reads_a_foreign_file() -> None:
    name = "read /etc/passwd"
    assert attack("worker", "--without=landlock", "--only", name)[name]["result"].startswith("gained")


@pytest.mark.parametrize("name", ["write a file", "write to the model"])
def test_without_landlock_seccomp_alone_keeps_the_worker_from_making_and_extending_files(name: str) -> None:
    assert attack("worker", "--without=landlock", "--only", name)[name]["result"] == "refused: EACCES"


def test_without_landlock_seccomp_alone_keeps_files_from_the_broker() -> None:
    name = "read /etc/passwd"
    assert attack("broker", "--without=landlock", "--only", name)[name]["result"] == "refused: EACCES"


def test_without_seccomp_landlock_alone_keeps_files_from_the_broker() -> None:
    name = "read /etc/passwd"
    assert attack("broker", "--without=seccomp", "--only", name)[name]["result"] == "refused: EACCES"


@pytest.mark.skipif("os.geteuid() != 0", reason="only root has capabilities to keep")
def test_attestation_refuses_a_process_that_kept_its_capabilities() -> None:
    outcome = attack("worker", "--without=capabilities", "--only", "bpf")["bpf"]
    assert "CapPrm" in outcome["attestation"] or "CapBnd" in outcome["attestation"]
