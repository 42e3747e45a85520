"""What both machines' answers are judged by."""

import base64
import io
import json
from typing import Any

import numpy as np
from PIL import Image

from tests.support.shapes_checker import look

PROCESSES = ("supervisor", "broker", "worker")
# What each process is there for, and so may do under its profile or domain as well.
ALLOWED = {
    "supervisor": {"read the config"},
    "broker": set(),
    "worker": {"read a model", "open a GPU"},
}


def shows_a_red_circle(found: dict[str, Any]) -> bool:
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(found["picture"]))))
    seen = look(picture)
    return (seen.shape, seen.colour, seen.background) == ("circle", "red", "blue")


def gained(found: dict[str, Any], process: str) -> set[str]:
    """The attacks of that process that were not refused. Raises AssertionError where it made none."""
    attacks = [line for line in found["attacks"] if line["process"] == process]
    assert len(attacks) > 10, found["log"]
    return {line["name"] for line in attacks if line["result"] == "gained"}


def status_of(found: dict[str, Any]) -> dict[str, Any]:
    return dict(json.loads(found["output"]))
