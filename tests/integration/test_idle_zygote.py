"""A zygote that no worker has needed for a while is ended, and the next job starts another."""

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support.daemon import DEMO_MODEL, Daemon, wait_for
from tests.support.generation import generate, images, pixels
from weave.client import Client
from weave.protocol.client_messages import Loading

MODEL = """
[models.{name}]
path = "{path}"
family = "sd1"
defaults = {{ steps = 2 }}
"""
LIMITS = """
[limits]
idle_unload_seconds = 0.2
idle_zygote_seconds = 0.2
"""


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    daemon = Daemon(LIMITS + MODEL.format(path=DEMO_MODEL, name="shapes")).wait_until_serving()
    try:
        yield daemon
    finally:
        daemon.stop()


def wait_until_idle(daemon: Daemon) -> None:
    wait_for(lambda: set(daemon.processes().values()) == {"broker"})


def image(client: Client, model: str = "shapes") -> np.ndarray:
    return pixels(images(generate(client, model=model, seed=3))[0])


def test_the_next_image_waits_for_the_imports_and_is_equal(daemon: Daemon) -> None:
    with daemon.client() as client:
        before = image(client)
        wait_until_idle(daemon)
        answers = list(client.generate("x", model="shapes", seed=3, format="raw"))
        assert any(isinstance(answer.event, Loading) for answer in answers)
        assert before.std() > 0 and np.array_equal(image(client), before)
    assert daemon.events("zygote_idle") and not daemon.events("zygote_ended")


def test_an_idle_daemon_holds_at_most_60_mb(daemon: Daemon) -> None:
    wait_until_idle(daemon)
    held = 0
    for pid in (daemon.process.pid, *daemon.processes()):
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except PermissionError:
            pytest.skip("needs root to read the memory of a process that is not dumpable")
        found = re.search(r"^Pss: +(\d+) kB$", rollup, re.MULTILINE)
        assert found
        held += int(found[1]) * 1024
    assert held < 60e6


def test_a_job_that_arrives_while_the_zygote_ends_is_not_lost(daemon: Daemon) -> None:
    with daemon.client() as client:
        for _ in range(2):
            assert image(client).std() > 0
            before = len(daemon.events("zygote_idle"))
            while len(daemon.events("zygote_idle")) == before:
                time.sleep(0.005)
        assert image(client).std() > 0
    assert not daemon.events("zygote_ended")


def test_a_config_that_is_read_meanwhile_is_for_the_next_zygote(daemon: Daemon) -> None:
    wait_until_idle(daemon)
    daemon.config.write_text("[limits]\nidle_zygote_seconds = -1\n")
    daemon.process.send_signal(signal.SIGHUP)
    (refused,) = wait_for(lambda: daemon.events("reload_refused"))
    assert "idle_zygote_seconds" in refused["detail"]
    daemon.reload(LIMITS + MODEL.format(path=DEMO_MODEL, name="shapes") + MODEL.format(path=DEMO_MODEL, name="others"))
    assert set(daemon.processes().values()) == {"broker"}
    with daemon.client() as client:
        assert np.array_equal(image(client, "others"), image(client))


def test_one_that_crashes_is_replaced_at_once(daemon: Daemon) -> None:
    with daemon.client() as client:
        image(client)
        zygote = daemon.pid_of("gpu_worker")
        os.kill(zygote, signal.SIGKILL)
        wait_for(lambda: daemon.pid_of("gpu_worker") != zygote)
    assert daemon.events("zygote_ended")
