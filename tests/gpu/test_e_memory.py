"""e: all VRAM is returned however a worker ends; and jobs and loads that need more than is free."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.gpu import driver
from tests.gpu.product import Product, config
from tests.gpu.vram import Holder
from tests.support.daemon import DEMO_MODEL, Daemon, wait_for
from tests.support.generation import generate, images
from tests.support.stages import LONG, end_of, generates_right, reach
from tests.support.system import MODEL
from weave.client import WeaveError
from weave.protocol.client_messages import Progress
from weave.protocol.errors import ErrorCode

# The driver returns memory after the process has exited.
_MOST_SECONDS = 10
LARGE = 4096
WIDE = f"""
[models.shapes]
path = "{DEMO_MODEL}"
family = "sd1"
defaults = {{ width = 128, height = 128, steps = 20, cfg_scale = 2.0, scheduler = "ddim" }}
bounds = {{ width = {{ max = {LARGE} }}, height = {{ max = {LARGE} }}, pixels = {{ max = {LARGE * LARGE} }} }}
"""


class Vram:
    """VRAM in use, in MiB; always 0 without a card."""

    def __init__(self, device: str, figures: dict[str, Any]) -> None:
        self._has_card = device == "cuda"
        self._figures = figures
        self.before = self.used()
        figures["VRAM in MiB"] = {"before": self.before} if self._has_card else "not measured: no card"

    def used(self) -> int:
        return driver.used_mib() if self._has_card else 0

    def note(self, when: str) -> int:
        used = self.used()
        if self._has_card:
            self._figures["VRAM in MiB"][when] = used
        return used

    def comes_back(self) -> bool:
        seconds = driver.seconds_until(lambda: self.used() <= self.before, _MOST_SECONDS)
        self.note("after")
        self._figures["seconds until it was back"] = seconds
        return seconds is not None


@pytest.fixture(scope="module")
def daemon(product: Product, device: str) -> Iterator[Daemon]:
    daemon = Daemon(config(device, WIDE), command=product.command).wait_until_serving()
    yield daemon
    daemon.stop()


@pytest.fixture(scope="module")
def expected(daemon: Daemon) -> bytes:
    with daemon.client() as client:
        return images(generate(client))[0].data


@pytest.fixture
def vram(daemon: Daemon, expected: bytes, device: str, figures: dict[str, Any]) -> Vram:
    with daemon.client() as client:
        client.unload()
    return Vram(device, figures)


@pytest.mark.seconds(20)
def test_unload_returns_all_vram(daemon: Daemon, vram: Vram, device: str, expected: bytes) -> None:
    with daemon.client() as client:
        client.load_model("shapes")
        loaded = vram.note("with the model")
        assert images(generate(client))[0].data == expected
        vram.note("after an image")
        client.unload()
    assert vram.comes_back()
    assert device == "cpu" or loaded > vram.before


@pytest.mark.seconds(25)
def test_an_idle_worker_returns_all_vram(product: Product, device: str, figures: dict[str, Any]) -> None:
    limits = "[limits]\nidle_unload_seconds = 2\n"
    daemon = Daemon(config(device, MODEL, more=limits), command=product.command).wait_until_serving()
    vram = Vram(device, figures)
    try:
        with daemon.client() as client:
            generate(client)
            vram.note("with the model")
            wait_for(lambda: client.status().worker == "none")
        assert vram.comes_back()
    finally:
        daemon.stop()


@pytest.mark.seconds(30)
@pytest.mark.parametrize(
    "victim, told",
    [("worker", ErrorCode.WORKER_FAILED), ("broker", None), ("gpu_worker", ErrorCode.WORKER_FAILED)],
    ids=["worker", "broker", "zygote"],
)
def test_a_worker_killed_during_a_job_returns_all_vram(
    daemon: Daemon, vram: Vram, expected: bytes, victim: str, told: ErrorCode | None
) -> None:
    with daemon.client() as client:
        request = client.send(LONG)
        reach(client, request, Progress)
        vram.note("while it generates")
        os.kill(daemon.pid_of(victim), signal.SIGKILL)
        assert end_of(client, request) is told
    assert vram.comes_back()
    assert generates_right(daemon, expected)


@pytest.mark.seconds(40)
def test_a_job_larger_than_free_vram_fails_and_the_next_succeeds(
    card: None, daemon: Daemon, vram: Vram, expected: bytes, figures: dict[str, Any]
) -> None:
    """A job larger than the whole card would compute for minutes before it fails."""
    with daemon.client() as client:
        assert images(generate(client))[0].data == expected
        with Holder("hold", "cuda", leave_mib=300) as holder:
            figures["held by another process, MiB"] = holder.mib
            with pytest.raises(WeaveError) as refused:
                generate(client, width=LARGE, height=LARGE, steps=1)
            figures["error"] = f"{refused.value.code}: {refused.value}"
            assert refused.value.code is ErrorCode.OUT_OF_MEMORY
            assert images(generate(client))[0].data == expected
        client.unload()
    assert vram.comes_back()


@pytest.mark.seconds(50)
@pytest.mark.parametrize("leave_mib", [1024, 100])
def test_loading_fails_while_another_process_fills_the_vram(
    card: None, daemon: Daemon, vram: Vram, expected: bytes, figures: dict[str, Any], leave_mib: int
) -> None:
    with Holder("hold", "cuda", leave_mib) as holder, daemon.client() as client:
        figures["held by another process, MiB"] = holder.mib
        try:
            client.load_model("shapes")
            figures["error"] = "none: there was room"
        except WeaveError as error:
            figures["error"] = f"{error.code}: {error}"
            assert error.code in (ErrorCode.OUT_OF_MEMORY, ErrorCode.WORKER_FAILED)
        else:
            assert leave_mib > 100
    assert generates_right(daemon, expected)
    with daemon.client() as client:
        client.unload()
    assert vram.comes_back()
