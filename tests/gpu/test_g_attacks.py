"""g: attacks from inside a worker that is locked in on the card, and what the driver gives beyond the kernel's files.
Without a card, from the worker whose lists are those of a card."""

import json
import os
import subprocess
from typing import Any

import pytest

from tests.gpu import vram
from tests.gpu.product import Product
from tests.gpu.report import ROOT
from tests.security.attacker import ATTACKS
from tests.security.driver_attacks import DEVICES, DRIVER, NVML
from tests.security.file_attacks import TASK_ATTACKS, WORKER_ONLY, WRITING
from tests.security.test_attacks import check, check_files_of_threads
from tests.support.processes import start
from weave.sandbox import worker_files

Outcomes = dict[str, dict[str, Any]]
# Each attack starts CUDA once, which takes a second or more: so many at a time.
_SHARES = min(8, max(2, len(os.sched_getaffinity(0)) // 2))
# Not by -m, which would find this checkout's `weave` before a build's own.
_MAIN = f"import sys; sys.path.append({str(ROOT)!r}); from tests.security.attacker import main; main()"


def started(product: Product, role: str, *options: str) -> "subprocess.Popen[str]":
    command = (product.python, "-P", "-c", _MAIN, role, *options)
    return start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def outcomes_of(process: "subprocess.Popen[str]") -> Outcomes:
    told, errors = process.communicate()  # the test has a deadline
    assert process.returncode == 0, errors[-2000:]
    return {found["attack"]: found for found in map(json.loads, told.splitlines())}


@pytest.fixture(scope="module")
def role(device: str) -> str:
    return "worker-on-cuda" if device == "cuda" else "worker-with-a-gpu"


@pytest.fixture(scope="module")
def outcomes(product: Product, role: str, device: str) -> Outcomes:
    names = [*ATTACKS, *WORKER_ONLY, *(DRIVER if device == "cuda" else {})]
    shares = [started(product, role, "--only", *names[share::_SHARES]) for share in range(_SHARES)]
    found = {name: outcome for share in shares for name, outcome in outcomes_of(share).items()}
    assert found.keys() == set(names)
    return found


@pytest.mark.seconds(90)
def test_the_worker_gains_nothing(outcomes: Outcomes, role: str, figures: dict[str, Any]) -> None:
    figures["from inside"] = role
    figures["attacks"] = len(ATTACKS)
    gained = {}
    for name in ATTACKS:
        try:
            check(outcomes[name])
        except AssertionError:
            gained[name] = str(outcomes[name])
    figures["gained"] = gained
    assert not gained


@pytest.mark.seconds(5)
def test_the_worker_reaches_only_the_files_of_its_own_threads(outcomes: Outcomes, figures: dict[str, Any]) -> None:
    tried = {name: outcomes[name] for name in (*TASK_ATTACKS, *WRITING)}
    figures["gained"] = [name for name, found in tried.items() if found["result"].startswith("gained")]
    check_files_of_threads(tried)


@pytest.mark.seconds(20)
def test_a_gpu_worker_makes_no_unlisted_call(product: Product, role: str, figures: dict[str, Any]) -> None:
    swept = outcomes_of(started(product, role, "--sweep=calls"))["sweep"]
    figures |= {"made": swept["made"], "unnoticed": swept["unnoticed"]}
    assert swept == {"attack": "sweep", "made": [], "unnoticed": []}


@pytest.mark.seconds(5)
def test_the_worker_opens_only_listed_device_files(
    card: None, product: Product, outcomes: Outcomes, figures: dict[str, Any]
) -> None:
    figures |= {name: outcomes[name].get("violation", outcomes[name]["result"]) for name in DEVICES}
    listed = {f"open {path}" for path in worker_files.DEVICES} & DEVICES.keys()
    listed |= {name for name in DEVICES if f'"{name.removeprefix("open ")}"' in product.extended}
    assert {name for name in DEVICES if outcomes[name]["result"].startswith("gained")} == listed


@pytest.mark.seconds(5)
def test_what_the_driver_reports_to_the_worker(card: None, outcomes: Outcomes, figures: dict[str, Any]) -> None:
    """The driver's answers are not ours to refuse; but a process's name is in its files in /proc."""
    figures |= {name: str(outcomes[name].get("violation", outcomes[name]["result"]))[:200] for name in NVML}
    assert not outcomes["NVML: another process's name"]["result"].startswith("gained")


@pytest.mark.seconds(40)
def test_vram_that_a_killed_process_left_cannot_be_read(device: str, figures: dict[str, Any]) -> None:
    with vram.Holder("fill", device, leave_mib=700 if device == "cuda" else 0) as filled:
        figures["filled by a process that was then killed, MiB"] = filled.mib
    found = vram.look(device, leave_mib=3000 if device == "cuda" else 0)
    figures["looked at by the next, bytes"] = found["bytes"]
    figures |= {"words of the pattern": found["pattern"], "words that are not zero": found["not zero"]}
    assert found["control"] == found["pattern"] + 1  # what is there is found
    assert found["pattern"] == 0 and found["bytes"] > 0
