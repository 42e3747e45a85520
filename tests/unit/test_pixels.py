"""What the Python client makes of images, arrays and files before it sends them."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from weave.client import Control, InputImage, InvalidRequest, Pixels
from weave.client.images import generate_message
from weave.client.pixels import pixels_of
from weave.protocol.inputs import inputs_of

COLOURS = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
GREY = COLOURS[:, :, 0]


def sent(value: Any, field: str = "image") -> np.ndarray:
    """The pixels that go to the daemon: height x width x channels."""
    upload = pixels_of(field, value)
    size = upload.size
    pixels = np.frombuffer(b"".join(upload.pieces()), np.uint8)
    return pixels.reshape(size.height, size.width, size.channels)


def file_of(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixel(mode: str, *value: int, **options: Any) -> Image.Image:
    image = Image.new(mode, (1, 1), value if len(value) > 1 else value[0])
    image.info |= options
    return image


def palette(**options: Any) -> Image.Image:
    image = Image.new("P", (1, 1), 0)
    image.putpalette([10, 20, 30] * 256)
    image.info |= options
    return image


SAME: dict[str, Any] = {
    "a PIL image": Image.fromarray(COLOURS),
    "an array": COLOURS,
    "a tensor": torch.from_numpy(COLOURS.copy()),
    "Pixels": Pixels(InputImage(width=5, height=4), COLOURS.tobytes()),
    "a file's bytes": file_of(Image.fromarray(COLOURS)),
    "an open file": io.BytesIO(file_of(Image.fromarray(COLOURS))),
    "an array that is not contiguous": np.repeat(COLOURS, 2, axis=1)[:, ::2],
    "another order in memory": np.asfortranarray(COLOURS),
}


@pytest.mark.parametrize("name", SAME)
def test_every_kind_of_image_gives_the_same_pixels(name: str) -> None:
    assert np.array_equal(sent(SAME[name]), COLOURS)


def test_a_file_is_named_by_a_string_or_a_path(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(file_of(Image.fromarray(COLOURS)))
    assert np.array_equal(sent(path), COLOURS) and np.array_equal(sent(str(path)), COLOURS)
    with pytest.raises(FileNotFoundError):
        pixels_of("image", tmp_path / "none")


GREYS = {"L": GREY, "height x width x 1": GREY[:, :, None], "bool": GREY > 20, "PIL": Image.fromarray(GREY)}


@pytest.mark.parametrize("name", GREYS)
def test_grey_images_have_one_channel(name: str) -> None:
    expected = np.where(GREY > 20, 255, 0) if name == "bool" else GREY
    assert np.array_equal(sent(GREYS[name])[:, :, 0], expected)


# The image; its one pixel as an image, and as a mask.
CONVERTED: dict[str, tuple[Image.Image, tuple[int, ...], int]] = {
    "transparent is white, or black in a mask": (pixel("RGBA", 10, 20, 30, 0), (255, 255, 255), 0),
    "half transparent": (pixel("RGBA", 0, 0, 0, 128), (127, 127, 127), 0),
    "grey and transparent": (pixel("LA", 40, 0), (255,), 0),
    "a palette": (palette(), (10, 20, 30), 18),
    "a transparent palette": (palette(transparency=0), (255, 255, 255), 0),
    "a colour that is transparent": (pixel("RGB", 1, 2, 3, transparency=(1, 2, 3)), (255, 255, 255), 0),
    "CMYK": (pixel("CMYK", 255, 0, 0, 0), (0, 255, 255), 179),
    "YCbCr": (pixel("YCbCr", 100, 128, 128), (100, 100, 100), 100),
    "black and white": (pixel("1", 1), (255,), 255),
    "16 bits": (pixel("I;16", 257 * 128), (128,), 128),
    "32 bits with values of 16": (pixel("I", 65535), (255,), 255),
}


@pytest.mark.parametrize("name", CONVERTED)
def test_each_mode_becomes_8_bits_as_it_looks(name: str) -> None:
    image, colours, grey = CONVERTED[name]
    assert tuple(sent(image)[0, 0]) == colours and tuple(sent(image, "mask")[0, 0]) == (grey,)


def test_16_bits_in_a_file_are_scaled_not_cut() -> None:
    values = np.array([[0, 255, 257 * 100, 65535]], np.uint16)
    for options in ({}, {"transparency": 65535}):
        assert sent(file_of(Image.fromarray(values), **options)).ravel().tolist() == [0, 1, 100, 255]


def test_photos_are_upright_and_animations_give_one_frame() -> None:
    image, exif = Image.fromarray(COLOURS), Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    assert np.array_equal(sent(file_of(image, exif=exif)), np.rot90(COLOURS, -1))
    frames = [Image.new("L", (2, 2), shade) for shade in (50, 200)]
    assert set(sent(file_of(frames[0], "GIF", save_all=True, append_images=frames[1:])).ravel()) == {50}


def test_a_mask_is_always_grey() -> None:
    white = np.full((2, 2, 3), 255, np.uint8)
    for mask in (white, Image.fromarray(white), np.full((2, 2, 4), 255, np.uint8)):
        assert sent(mask, "mask").shape == (2, 2, 1)


def test_a_large_image_is_sent_in_pieces() -> None:
    array = np.arange(3000 * 2000 * 3, dtype=np.uint32).astype(np.uint8).reshape(2000, 3000, 3)
    for value in (array, Image.fromarray(array), Pixels(InputImage(width=3000, height=2000), array.tobytes())):
        pieces = list(pixels_of("image", value).pieces())
        assert max(map(len, pieces)) <= 2**20 and b"".join(pieces) == array.tobytes()


def huge_png(width: int, height: int) -> bytes:
    """A small file that says it is huge."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = b""
    for name, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")):
        chunks += len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")
    return b"\x89PNG\r\n\x1a\n" + chunks


class Unreadable:
    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("it is on another device")


REFUSED: dict[str, tuple[Any, str]] = {
    "no image": (b"junk", "image: its bytes is not a PNG, JPEG, WebP, AVIF, GIF, BMP, TIFF or PPM image"),
    "nothing": (b"", "its bytes is not a PNG"),
    # For EPS Pillow starts Ghostscript; ICO is decoded before its size is known.
    "PostScript": (file_of(Image.fromarray(COLOURS), "EPS"), "its bytes is not a PNG"),
    "an icon": (file_of(Image.new("RGB", (16, 16)), "ICO"), "its bytes is not a PNG"),
    "half a file": (file_of(Image.effect_noise((99, 99), 50), "JPEG")[:900], "image: its bytes cannot be decoded"),
    "a bomb": (huge_png(60_000, 60_000), "image: its bytes cannot be decoded"),
    "a long side": (huge_png(16_385, 1), "image is 16385x1; each side must be from 1 to 16384"),
    "many pixels": (huge_png(16_384, 8192), "image is 16384x8192; .* all pixels at most 67108864"),
    "no pixels": (np.zeros((0, 5), np.uint8), "image is 5x0"),
    "a number": (5, "image is of type int"),
    "floats": (np.zeros((2, 2, 3)), r"array of float64 with the shape \(2, 2, 3\); it must be of uint8 or bool"),
    "channels first": (np.zeros((3, 8, 8), np.uint8), r"with the shape \(3, 8, 8\)"),
    "four dimensions": (np.zeros((1, 8, 8, 3), np.uint8), r"with the shape \(1, 8, 8, 3\)"),
    "objects": (np.array([[None]]), "array of object"),
    "on another device": (Unreadable(), "image: it is on another device"),
    "floating-point pixels": (Image.new("F", (1, 1)), "image has floating-point pixels"),
    "32 bits": (Image.new("I", (1, 1), 2**20), "image has pixels from 1048576 to 1048576"),
    "other pixels": (Pixels(InputImage(width=2, height=2), b"1"), "image has 1 bytes .*; its announced size is 12"),
    "a size below 0": (Pixels(InputImage(width=-2, height=-2), b"1" * 12), "image is -2x-2"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_image_is_refused_with_its_field(name: str) -> None:
    value, message = REFUSED[name]
    with pytest.raises(InvalidRequest, match=message):
        pixels_of("image", value)


LISTS: dict[str, tuple[dict[str, Any], str]] = {
    "one path for references": ({"references": "a.png"}, "references is one str; it must be a list"),
    "one image for references": ({"references": Image.new("L", (1, 1))}, "references is one Image; it must be a list"),
    "one control": ({"control": Control(id="canny", image=GREY)}, "control is one Control; it must be a list"),
    "a control of another type": ({"control": [("canny", GREY)]}, "control has an element of type tuple"),
}


@pytest.mark.parametrize("name", LISTS)
def test_a_bad_list_is_refused_with_its_field(name: str) -> None:
    parameters, message = LISTS[name]
    with pytest.raises(InvalidRequest, match=message):
        generate_message("x", parameters)


def test_images_are_sent_in_the_announced_order() -> None:
    def sized(width: int) -> np.ndarray:
        return np.zeros((1, width), np.uint8)

    control = [Control(id="a", image=sized(3)), Control(id="b", image=sized(4), scale=0.5)]
    parameters = {"references": [sized(5), sized(6)], "control": control, "mask": sized(2), "image": sized(1)}
    message, uploads = generate_message("x", parameters)
    assert [upload.size.width for upload in uploads] == [1, 2, 3, 4, 5, 6]
    assert tuple(upload.size for upload in uploads) == inputs_of(message)
    assert [requested.scale for requested in message.control] == [1.0, 0.5]
