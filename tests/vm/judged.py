"""The checks that both machines' answers share."""

import base64
import io
import json
from typing import Any

import numpy as np
from PIL import Image

from tests.support.daemon import Daemon
from tests.support.generation import images, pixels
from tests.vm.guest import PARAMETERS, PROMPT

# The largest difference of a pixel's value, of 255.
ROUNDING = 3
# Its name in the log.
LOGGED_AS = {"worker": "gpu_worker"}
PROCESSES = ("supervisor", "broker", "worker")
# By what is in its command line.
ROLES = {"/usr/bin/weave-compute": "supervisor", "weave.broker": "broker", "weave.gpu_worker": "worker"}
# The purpose of each process, which its profile or domain allows too.
# What CUDA does at its start affects no other process: on Debian the other two may do it as well.
CUDA = {"name a thread as CUDA does", "listen as CUDA does"}
ALLOWED = {
    "supervisor": {"read the config"} | CUDA,
    "broker": CUDA,
    "worker": {"read a model", "open a GPU"} | CUDA,
}


def is_the_image(found: dict[str, Any], daemon: Daemon) -> bool:
    """Whether it equals the image that the daemon generates outside the machine, up to rounding differences of another
    processor."""
    assert found["image"] is not None, found
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(found["image"]))))
    with daemon.client() as client:
        (same,) = images(list(client.generate(PROMPT, **PARAMETERS)))
    return float(np.abs(image.astype(int) - pixels(same)).max()) <= ROUNDING


def gained(found: dict[str, Any], process: str) -> set[str]:
    """The attacks of that process that were not refused. Raises AssertionError where it made none."""
    attacks = [line for line in found["attacks"] if line["process"] == LOGGED_AS.get(process, process)]
    assert len(attacks) >= 10, found["log"]
    return {line["name"] for line in attacks if line["result"] == "gained"}


def was_started_once(found: dict[str, Any]) -> bool:
    """Whether the command succeeded and restarted the running service once."""
    assert found["status"] == 0 and found["serves"]["status"] == 0 and "ActiveState=active" in found["state"], found
    return bool(found["starts"] == 1)


def status_of(found: dict[str, Any]) -> dict[str, Any]:
    return dict(json.loads(found["output"]))
