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

# Of 255.
ROUNDING = 3
# Its name in the log.
LOGGED_AS = {"worker": "gpu_worker"}
PROCESSES = ("supervisor", "broker", "worker")
# By what is in its command line.
ROLES = {"/usr/bin/weave-compute": "supervisor", "weave.broker": "broker", "weave.gpu_worker": "worker"}
# What each process is there for, and so may do under its profile or domain as well.
# What CUDA does at its start reaches nobody else: on Debian the other two may do it as well.
CUDA = {"name a thread as CUDA does", "listen as CUDA does"}
ALLOWED = {
    "supervisor": {"read the config"} | CUDA,
    "broker": CUDA,
    "worker": {"read a model", "open a GPU"} | CUDA,
}


def is_the_picture(found: dict[str, Any], daemon: Daemon) -> bool:
    """Whether it equals the image that the daemon generates outside the machine, up to rounding differences of another
    processor."""
    assert found["picture"] is not None, found
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(found["picture"]))))
    with daemon.client() as client:
        (same,) = images(list(client.generate(PROMPT, **PARAMETERS)))
    return float(np.abs(picture.astype(int) - pixels(same)).max()) <= ROUNDING


def gained(found: dict[str, Any], process: str) -> set[str]:
    """The attacks of that process that were not refused. Raises AssertionError where it made none."""
    attacks = [line for line in found["attacks"] if line["process"] == LOGGED_AS.get(process, process)]
    assert len(attacks) >= 10, found["log"]
    return {line["name"] for line in attacks if line["result"] == "gained"}


def was_started_once(found: dict[str, Any]) -> bool:
    """And is in order: whether a command that succeeded has had the service that ran start anew."""
    assert found["status"] == 0 and found["serves"]["status"] == 0 and "ActiveState=active" in found["state"], found
    return bool(found["starts"] == 1)


def status_of(found: dict[str, Any]) -> dict[str, Any]:
    return dict(json.loads(found["output"]))
