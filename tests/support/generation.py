"""Generating images over the real socket."""

import io
from typing import Any

import numpy as np
from PIL import Image as PillowImage

from weave.client import Answer, Client
from weave.protocol.client_messages import Image

PROMPT = "a red circle on a blue background"


def generate(client: Client, prompt: str = PROMPT, **parameters: Any) -> list[Answer]:
    """All answers. By default the demo model and few steps."""
    return list(client.generate(prompt, **{"model": "shapes", "steps": 4, "seed": 1, **parameters}))


def images(answers: list[Answer]) -> list[Answer]:
    return [answer for answer in answers if isinstance(answer.event, Image)]


def pixels(answer: Answer) -> np.ndarray:
    """A finished PNG's pixels, uint8, height x width x 3."""
    return np.asarray(PillowImage.open(io.BytesIO(answer.data)))
