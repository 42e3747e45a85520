"""A worker sees only its own card: by CUDA's variable, and by Landlock. Plain files stand in for the cards' devices."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.builds import daemon_of
from tests.support.cards import UUID, make_card
from tests.support.daemon import Daemon, wait_for
from tests.support.seams import Seams, before, constant, replaced
from tests.support.system import MODEL
from weave.client import Client

TWO_CARDS = '[device]\ndevices = ["cuda:0", "cuda:1"]\nthreads = 1\n'
# What the worker can do under Landlock. Not after lock_down(): a worker that only tries its device is killed then.
LOOK = """
    files = {}
    for path in sorted(worker_files.NVIDIA):
        try:
            os.close(os.open(path, os.O_RDONLY))
            files[path.name] = "opened"
        except OSError as error:
            files[path.name] = error.strerror
    log.write("worker", "looked", files=files, visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
        order=os.environ.get("CUDA_DEVICE_ORDER"), processors=sorted(os.sched_getaffinity(0)))
"""


@pytest.fixture(scope="module")
def root() -> Path:
    """In a folder that the worker may not read."""
    folder = Path(tempfile.mkdtemp(prefix="weave-test-"))
    processors = sorted(os.sched_getaffinity(0))
    make_card(folder, "0000:0a:00.0", 1, str(processors[-1]), UUID.format(1))
    make_card(folder, "0000:3b:00.0", 0, str(processors[0]), "GPU-????????-????-????-????-????????????")
    (folder / "dev/nvidiactl").touch()
    return folder


def seams(root: Path) -> Seams:
    fake = f"Path({str(root)!r})"
    return (
        replaced("sandbox/nvidia.py", "cards", f"return original({fake})"),
        replaced("sandbox/nvidia.py", "near_processors", f"return original(card, {fake})"),
        constant("sandbox/worker_files.py", "NVIDIA", f"nvidia({fake} / 'dev')"),
        constant("sandbox/worker_files.py", "DEVICES", "(*NVIDIA, Path('/dev/null'))"),
        replaced("gpu_worker/device.py", "choose_device", "return torch.device('cpu')"),
        before("gpu_worker/worker.py", "lock_down", LOOK),
    )


def looked(daemon: Daemon) -> dict[str, Any]:
    """By the card's number. Each device is tried when the daemon starts."""
    lines = wait_for(lambda: len(found := daemon.events("looked")) == 2 and found)
    return {str(line["visible"]): line for line in lines}


@pytest.fixture(scope="module")
def two(root: Path) -> Iterator[Daemon]:
    daemon = daemon_of(seams(root), TWO_CARDS + MODEL)
    yield daemon
    assert daemon.stop() == 0


def test_a_worker_opens_only_its_own_card(two: Daemon) -> None:
    first, second = looked(two)[UUID.format(1)], looked(two)["0"]
    refused = "Permission denied"
    assert first["files"] == {"nvidia0": refused, "nvidia1": "opened", "nvidiactl": "opened"}
    assert second["files"] == {"nvidia0": "opened", "nvidia1": refused, "nvidiactl": "opened"}
    assert {first["order"], second["order"]} == {"PCI_BUS_ID"}


def test_a_worker_runs_on_the_processors_near_its_card(two: Daemon) -> None:
    processors = sorted(os.sched_getaffinity(0))
    found = looked(two)
    assert found[UUID.format(1)]["processors"] == [processors[-1]] and found["0"]["processors"] == [processors[0]]


def test_without_the_rule_a_worker_opens_every_card(root: Path) -> None:
    rule = replaced("sandbox/worker_files.py", "rules", "return original(pid, *models)")
    daemon = daemon_of((*seams(root), rule), TWO_CARDS + MODEL)
    try:
        for line in looked(daemon).values():
            assert set(line["files"].values()) == {"opened"}
    finally:
        assert daemon.stop() == 0


def test_status_names_the_devices_of_the_config(two: Daemon) -> None:
    with two.client() as client:
        assert names(client) == ["cuda:0", "cuda:1"]


def names(client: Client) -> list[str]:
    return [device.device for device in client.status().devices]
