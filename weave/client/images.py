"""The images of a request, from what a program has: the client decodes them, since the daemon takes raw pixels only."""

import io
import os
from typing import Any, NamedTuple

from msgspec import Struct, structs

from weave.client.codec import InvalidRequest
from weave.protocol.client_messages import Generate
from weave.protocol.inputs import InputImage, RequestedControl

_GREY, _COLOUR = "L", "RGB"


class Pixels(NamedTuple):
    """An image's announced size, and its pixels."""

    size: InputImage
    data: bytes


class Control(Struct, frozen=True, kw_only=True):
    """A ControlNet and the image that it sees, which is anything that pixels_of() takes. For the other fields see
    RequestedControl."""

    id: str
    image: Any
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0


def generate_message(prompt: str, parameters: dict[str, Any]) -> tuple[Generate, tuple[bytes, ...]]:
    """The request and the payloads of its image frames. `image`, `mask`, each of `references` and the image of each
    Control in `control` are what pixels_of() takes. Raises InvalidRequest, OSError."""
    values, payloads = dict(parameters), []

    def announced(field: str, value: Any) -> InputImage:
        pixels = pixels_of(field, value)
        payloads.append(pixels.data)
        return pixels.size

    # In the order of inputs_of().
    for field in ("image", "mask"):
        if values.get(field) is not None:
            values[field] = announced(field, values[field])
    if "control" in values:
        values["control"] = tuple(_control(control, announced) for control in values["control"])
    if "references" in values:
        values["references"] = tuple(announced("references", value) for value in values["references"])
    return Generate(prompt=prompt, **values), tuple(payloads)


def _control(control: Control, announced: Any) -> RequestedControl:
    return RequestedControl(**structs.asdict(control) | {"image": announced("control", control.image)})


def pixels_of(field: str, value: Any) -> Pixels:
    """`value` is a PIL image, an array of uint8 (height x width, with 1 or 3 channels if it has a third dimension), a
    file's path, a file's bytes, or Pixels. `field` is for errors. A photo is turned as its EXIF data say; transparency
    is dropped. Raises InvalidRequest, OSError."""
    if isinstance(value, Pixels):
        return value
    if hasattr(value, "__array_interface__") and not hasattr(value, "getbands"):
        return _of_array(field, value)
    from PIL import Image, ImageOps, UnidentifiedImageError

    if isinstance(value, Image.Image):
        return _of_image(value)
    if not isinstance(value, bytes | str | os.PathLike):
        raise InvalidRequest(f"{field} is of type {type(value).__name__}; it must be an image, an array or a file")
    try:
        with Image.open(io.BytesIO(value) if isinstance(value, bytes) else value) as image:
            return _of_image(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        shown = "its bytes" if isinstance(value, bytes) else os.fspath(value)
        raise InvalidRequest(f"{field}: {shown!r} is not an image in a format that Pillow reads") from None
    except (Image.DecompressionBombError, SyntaxError, ValueError) as error:
        raise InvalidRequest(f"{field}: {error}") from None


def _of_image(image: Any) -> Pixels:
    mode = _GREY if image.mode in ("1", "L", "LA") else _COLOUR
    pixels = image.convert(mode)
    channels: Any = len(mode)
    return Pixels(InputImage(width=pixels.width, height=pixels.height, channels=channels), pixels.tobytes())


def _of_array(field: str, value: Any) -> Pixels:
    interface = value.__array_interface__
    shape, kind = interface["shape"], interface["typestr"]
    channels: Any = shape[2] if len(shape) == 3 else 1
    if kind != "|u1" or len(shape) not in (2, 3) or channels not in (1, 3):
        text = f"{field} is an array of {kind} with the shape {tuple(shape)}"
        raise InvalidRequest(f"{text}; it must be of uint8, height x width, or height x width x 1 or 3")
    return Pixels(InputImage(width=shape[1], height=shape[0], channels=channels), value.tobytes())
