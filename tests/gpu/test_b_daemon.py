"""b: the real daemon, its worker locked in on the card, with the demo model; and the same as a system daemon."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.gpu.product import Product, config
from tests.support.daemon import Daemon
from tests.support.generation import generate, images, pixels
from tests.support.shapes_checker import look
from tests.support.system import MODEL, SYSTEM, system_daemon
from tests.support.users import ALICE, BOB, as_user
from weave.client import Client
from weave.models.families import FAMILIES
from weave.models.schedulers import SCHEDULERS

PROMPTS = {
    "a red circle on a blue background": ("blue", ("red", "circle")),
    "a yellow star on a purple background": ("purple", ("yellow", "star")),
    "a green square on a white background": ("white", ("green", "square")),
}
CIRCLE = next(iter(PROMPTS))
STEPS = 20


@pytest.fixture(scope="module")
def daemon(product: Product, device: str) -> Iterator[Daemon]:
    """As users start it: `auto` finds the card."""
    found = "auto" if device == "cuda" else device
    daemon = Daemon(config(found), command=product.command).wait_until_serving()
    yield daemon
    daemon.stop()


@pytest.mark.seconds(120)  # where the lists lack something it records, builds and tries up to three times
def test_the_daemon_as_it_is_generates_with_each_model(product: Product, figures: dict[str, Any]) -> None:
    figures["lists"] = product.extended or "as they are"
    assert not product.failures and not product.extended


@pytest.mark.seconds(20)
def test_a_locked_down_worker_on_the_gpu_generates_the_prompt(
    daemon: Daemon, device: str, figures: dict[str, Any]
) -> None:
    with daemon.client() as client:
        first, again = (images(generate(client, CIRCLE, steps=STEPS, seed=7))[0] for _ in range(2))
        status = client.status()
    layers = status.sandbox["worker"]
    figures |= {"device": status.device, "dtype": status.dtype, "layers": layers, "memory": status.memory_used}
    assert status.device == ("cuda:0" if device == "cuda" else "cpu")
    assert status.dtype in (("bfloat16", "float16") if device == "cuda" else ("float32",))
    # The supervisor takes these from a worker that it has attested alone.
    assert {"seccomp", "no-new-privs"} < set(layers) and any(layer.startswith("landlock-") for layer in layers)
    assert first.data == again.data
    assert look(pixels(first)).shows(*PROMPTS[CIRCLE])
    assert not [line for line in daemon.all_events() if line["event"] in ("sandbox_violation", "gpu_not_used")]


@pytest.mark.seconds(5)
# With Karras's and exponential sigmas some of diffusers' classes fail for the model's cosine schedule.
@pytest.mark.parametrize("scheduler", [name for name in FAMILIES["sd1"].schedulers if SCHEDULERS[name].sigmas is None])
def test_with_each_scheduler_the_image_is_recognised(daemon: Daemon, scheduler: str) -> None:
    with daemon.client() as client:
        (image,) = images(generate(client, CIRCLE, steps=STEPS, seed=7, scheduler=scheduler))
    assert look(pixels(image)).shows(*PROMPTS[CIRCLE])


def _generated(daemon: Daemon) -> dict[str, np.ndarray[Any, Any]]:
    try:
        with daemon.wait_until_serving().client() as client:
            return {prompt: pixels(images(generate(client, prompt, steps=STEPS, seed=7))[0]) for prompt in PROMPTS}
    finally:
        daemon.stop()


@pytest.mark.seconds(40)
def test_in_float32_an_image_is_close_to_the_cpus(product: Product, device: str, figures: dict[str, Any]) -> None:
    daemons = [Daemon(config(where, dtype="float32"), command=product.command) for where in (device, "cpu")]
    ours, processors = map(_generated, daemons)
    differences = {prompt: np.abs(ours[prompt].astype(int) - processors[prompt]) for prompt in PROMPTS}
    for prompt, difference in differences.items():
        figures[prompt] = f"differs by at most {difference.max()}, on average by {difference.mean():.4f}, of 255"
    for prompt, seen in PROMPTS.items():
        assert look(ours[prompt]).shows(*seen) and look(processors[prompt]).shows(*seen)
        assert differences[prompt].mean() < 1


@pytest.mark.seconds(40)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be other users")
def test_in_system_mode_each_user_gets_its_own_worker(
    product: Product, device: str, users: None, figures: dict[str, Any]
) -> None:
    folder = Path(tempfile.mkdtemp(prefix="weave-test-"))
    for above in Path(product.command[0]).parents:
        if above.name.startswith("weave-build-"):
            above.chmod(0o755)  # other users run it
    table = '[system]\nisolate_users = true\nsocket_mode = "0666"'
    tables = config(device, SYSTEM.replace("[system]", table) + MODEL)
    daemon = system_daemon(folder, tables, command=product.command).wait_until_serving()

    def seen() -> list[Any]:
        with Client(daemon.socket, timeout=100) as client:
            image = pixels(images(generate(client, CIRCLE, steps=STEPS, seed=7))[0])
            return [look(image).shows(*PROMPTS[CIRCLE]), client.status().device]

    workers = []
    try:
        for name in (ALICE, BOB):
            found = as_user(name, seen)
            assert found == [True, "cuda:0" if device == "cuda" else "cpu"]
            workers.append(daemon.pid_of("worker"))
    finally:
        status = daemon.stop()
        figures["workers"] = len(set(workers))
        figures["why they ended"] = [line["cause"] for line in daemon.events("worker_ended")]
    assert len(set(workers)) == 2 and status == 0
