"""Reads the images of a job: raw pixels in sealed memfds become PIL images."""

import hashlib
import os
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image

from weave.protocol.channel import ChannelViolation, check_sealed_memfd
from weave.protocol.inputs import InputImage, inputs_of
from weave.protocol.parameters import Parameters


class Inputs(NamedTuple):
    """The images by their use, in their original sizes. `digests` are the SHA-256 of all pixels, in the order of
    inputs_of()."""

    image: Image.Image | None = None
    mask: Image.Image | None = None
    controls: tuple[Image.Image, ...] = ()
    references: tuple[Image.Image, ...] = ()
    digests: tuple[str, ...] = ()


def read_inputs(parameters: Parameters, descriptors: Sequence[int]) -> Inputs:
    """The caller keeps `descriptors`, and has checked `parameters`. Raises ChannelViolation."""
    expected = inputs_of(parameters)
    images, digests = [], []
    if len(descriptors) != len(expected):
        raise ChannelViolation(f"{len(descriptors)} images instead of {len(expected)}")
    for announced, descriptor in zip(expected, descriptors, strict=True):
        check_sealed_memfd(descriptor, announced.size)
        data = os.pread(descriptor, announced.size, 0)
        images.append(_image(announced, data))
        digests.append(hashlib.sha256(data).hexdigest())
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
    image = Image.frombytes(mode, (announced.width, announced.height), data)
    return image if mode == "RGB" else image.convert("RGB")
