"""The images of a job: raw pixels in sealed memfds become images of PIL."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image

from weave.protocol.channel import ChannelViolation, check_sealed_memfd, close_all, read_sealed_memfd
from weave.protocol.inputs import InputImage, inputs_of
from weave.protocol.parameters import Parameters


class Inputs(NamedTuple):
    """The images by their use, in their own sizes. `digests` are the SHA-256 of all pixels, in the order of
    inputs_of()."""

    image: Image.Image | None = None
    mask: Image.Image | None = None
    controls: tuple[Image.Image, ...] = ()
    references: tuple[Image.Image, ...] = ()
    digests: tuple[str, ...] = ()


def read_inputs(parameters: Parameters, descriptors: Sequence[int]) -> Inputs:
    """Takes ownership of `descriptors`. Raises ChannelViolation."""
    expected, waiting = inputs_of(parameters), list(descriptors)
    images, digests = [], []
    try:
        if len(waiting) != len(expected):
            raise ChannelViolation(f"{len(waiting)} images instead of {len(expected)}")
        for announced in expected:
            check_sealed_memfd(waiting[0], announced.size)
            data = read_sealed_memfd(waiting.pop(0))
            images.append(_image(announced, data))
            digests.append(hashlib.sha256(data).hexdigest())
    finally:
        close_all(waiting)
    rest = iter(images)
    return Inputs(
        image=next(rest) if parameters.image else None,
        mask=next(rest) if parameters.mask else None,
        controls=tuple(next(rest) for _ in parameters.control),
        references=tuple(next(rest) for _ in parameters.references),
        digests=tuple(digests),
    )


def _image(announced: InputImage, data: bytes) -> Image.Image:
    """Always RGB, as the pipelines expect; they convert masks to grey again."""
    mode = "RGB" if announced.channels == 3 else "L"
    return Image.frombytes(mode, (announced.width, announced.height), data).convert("RGB")
