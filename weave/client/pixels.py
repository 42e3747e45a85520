"""Converts images, arrays and files to pixels: the client decodes them, since the daemon takes raw pixels only."""

import hashlib
import io
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from weave.client.codec import InvalidRequest
from weave.protocol.inputs import MAX_INPUT_PIXELS, MAX_INPUT_SIDE, InputImage

_GREY, _COLOUR = "L", "RGB"
_PIECE = 1024 * 1024
# The colour behind transparent parts; white where none is listed. In a mask nobody has painted them: they are kept.
_BACKGROUNDS = {"mask": "black"}
_ORIENTATION = 0x0112  # in EXIF


class Pixels(NamedTuple):
    """An image's announced size, and its pixels: rows from the top, without padding."""

    size: InputImage
    data: bytes | bytearray | memoryview


class Upload:
    """An image on its way to the daemon: its announced size, and its pixels in pieces, without a copy of the whole. The
    image or array that it was made from must not change before it is sent."""

    def __init__(self, size: InputImage, pieces: Callable[[], Iterator[bytes | memoryview]]) -> None:
        self.size = size
        self.pieces = pieces

    def digest(self) -> str:
        """The SHA-256 of the pixels, as PNGs name their inputs."""
        found = hashlib.sha256()
        for piece in self.pieces():
            found.update(piece)
        return found.hexdigest()

    def converted(self, channels: int) -> "Upload":
        """The same image in grey (1) or RGB (3)."""
        if channels == self.size.channels:
            return self
        from PIL import Image

        mode = _GREY if self.size.channels == 1 else _COLOUR
        image = Image.frombytes(mode, (self.size.width, self.size.height), b"".join(self.pieces()))
        return _of_image("image", image.convert(_GREY if channels == 1 else _COLOUR))


def pixels_of(field: str, value: Any) -> Upload:  # noqa: PLR0911 - one for each type
    """`value` is a PIL image, an array, a file's path, a file's bytes, an open binary file, or Pixels. `field` is the
    parameter: errors name it, and a mask becomes grey.

    - An array has height x width, or height x width x 1, 3 or 4, of uint8, or of bool, where True is white. So do CPU
      tensors of torch.
    - A photo is rotated by its EXIF data. An animation gives its first frame, a PIL image the current one.
    - Transparent parts become white, those of a mask black.
    - 16 bits a channel become 8. Colour profiles are ignored.

    Raises InvalidRequest, OSError."""
    if isinstance(value, Upload):
        return value
    if isinstance(value, Pixels):
        return _of_pixels(field, value)
    from PIL import Image

    if isinstance(value, Image.Image):
        return _guarded(field, "the image", lambda: _of_image(field, value))
    if hasattr(value, "__array_interface__") or hasattr(value, "__array__"):
        return _of_array(field, value)
    if isinstance(value, bytes | bytearray | memoryview):
        return _of_file(field, "its bytes", io.BytesIO(value))
    if isinstance(value, str | os.PathLike):
        with open(value, "rb") as file:
            return _of_file(field, repr(os.fspath(value)), file)
    if hasattr(value, "read"):
        return _of_file(field, "its file", value)
    raise InvalidRequest(f"{field} is of type {type(value).__name__}; it must be an image, an array or a file")


def _formats() -> list[str]:
    """Common formats whose readers decode nothing before the size is known. Pillow reads more, such as EPS, for which
    it starts Ghostscript."""
    from PIL import Image

    Image.init()
    return [name for name in ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM") if name in Image.OPEN]


def _of_file(field: str, shown: str, file: Any) -> Upload:
    from PIL import Image, UnidentifiedImageError

    def decode() -> Upload:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own check follows
            image = Image.open(file, formats=_formats())
        return _of_image(field, image)

    try:
        return _guarded(field, shown, decode)
    except UnidentifiedImageError:
        raise InvalidRequest(f"{field}: {shown} is not a PNG, JPEG, WebP, AVIF, GIF, BMP, TIFF or PPM image") from None


def _guarded(field: str, shown: str, decode: Callable[[], Upload]) -> Upload:
    """Pillow's decoders raise many kinds of errors for a damaged file."""
    from PIL import UnidentifiedImageError

    try:
        return decode()
    except (InvalidRequest, UnidentifiedImageError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise InvalidRequest(f"{field}: {shown} cannot be decoded: {error or type(error).__name__}") from None


def _of_pixels(field: str, pixels: Pixels) -> Upload:
    _check_size(field, pixels.size.width, pixels.size.height)
    data = memoryview(pixels.data).cast("B")
    if len(data) != pixels.size.size:
        raise InvalidRequest(f"{field} has {len(data)} bytes of pixels; its announced size is {pixels.size.size}")
    return Upload(pixels.size, lambda: (data[at : at + _PIECE] for at in range(0, len(data), _PIECE)))


def _of_image(field: str, image: Any) -> Upload:
    """The size is checked before anything is decoded."""
    _check_size(field, image.width, image.height)
    image = _flat(field, _upright(image))
    channels: Any = len(image.mode) if image.mode == _COLOUR else 1
    width, height = image.size
    rows = max(_PIECE // (width * channels), 1)

    def pieces() -> Iterator[bytes]:
        for top in range(0, height, rows):
            yield image.crop((0, top, width, min(top + rows, height))).tobytes()

    return Upload(InputImage(width=width, height=height, channels=channels), pieces)


def _upright(image: Any) -> Any:
    from PIL import ImageOps

    return ImageOps.exif_transpose(image) if image.getexif().get(_ORIENTATION, 1) != 1 else image


def _flat(field: str, image: Any) -> Any:
    """Converted to grey or RGB, 8 bits a channel; a mask to grey."""
    from PIL import Image

    if image.mode.startswith("I"):
        image = _of_16_bits(field, image)
    elif image.mode == "F":
        raise InvalidRequest(f"{field} has floating-point pixels; it must have 8 or 16 bits a channel")
    grey = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, _BACKGROUNDS.get(field, "white"))
        image = Image.alpha_composite(background, image)
    image = image.convert(_GREY if grey or field == "mask" else _COLOUR)
    image.load()  # from here on the file may be closed
    return image


def _of_16_bits(field: str, image: Any) -> Any:
    """Pillow's own conversion to 8 bits would make all values from 255 white."""
    wide = image.convert("I")
    low, high = wide.getextrema()
    if low < 0 or high > 0xFFFF:
        raise InvalidRequest(f"{field} has pixels from {low} to {high}; they must be from 0 to 65535")
    scaled = wide.point(lambda value: value * (1 / 257) + 0.5).convert(_GREY)
    scaled.info.pop("transparency", None)  # a value of 16 bits
    return scaled


def _of_array(field: str, value: Any) -> Upload:
    import numpy

    try:
        array = numpy.asarray(value)
    except Exception as error:  # a tensor of another device, or one that requires a gradient
        raise InvalidRequest(f"{field}: {error}") from None
    shape = array.shape
    channels: Any = shape[2] if len(shape) == 3 else 1
    if array.dtype not in (numpy.uint8, numpy.bool_) or len(shape) not in (2, 3) or channels not in (1, 3, 4):
        text = f"{field} is an array of {array.dtype} with the shape {shape}"
        raise InvalidRequest(f"{text}; it must be of uint8 or bool, height x width, or height x width x 1, 3 or 4")
    height, width = shape[:2]
    _check_size(field, width, height)
    if array.dtype == numpy.bool_:
        array = array.astype(numpy.uint8) * 255
    if channels == 4 or (channels == 3 and field == "mask"):
        from PIL import Image

        return _of_image(field, Image.fromarray(array))
    rows = max(_PIECE // (width * channels), 1)

    def pieces() -> Iterator[bytes | memoryview]:
        for top in range(0, height, rows):
            yield numpy.ascontiguousarray(array[top : top + rows]).data.cast("B")

    return Upload(InputImage(width=width, height=height, channels=channels), pieces)


def _check_size(field: str, width: int, height: int) -> None:
    if not (0 < width <= MAX_INPUT_SIDE and 0 < height <= MAX_INPUT_SIDE and width * height <= MAX_INPUT_PIXELS):
        text = f"each side must be from 1 to {MAX_INPUT_SIDE}, and all pixels at most {MAX_INPUT_PIXELS}"
        raise InvalidRequest(f"{field} is {width}x{height}; {text}")
