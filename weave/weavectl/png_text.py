"""The texts of a PNG. The file is untrusted: no pixel is decoded, and everything has a bound."""

import io
import zlib
from collections.abc import Iterator
from typing import BinaryIO

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
# The size of one text, and of all.
MAX_TEXT_BYTES = 256 * 1024
MAX_TEXTS_BYTES = 1024 * 1024
_MAX_CHUNKS = 100_000


class UnreadablePng(Exception):
    """The message says what is wrong with the file."""


def texts_of(file: BinaryIO) -> dict[str, str]:
    """All texts by their names. Raises UnreadablePng, OSError."""
    if file.read(len(_SIGNATURE)) != _SIGNATURE:
        raise UnreadablePng("it is not a PNG")
    texts: dict[str, str] = {}
    left = MAX_TEXTS_BYTES
    for kind, data in _text_chunks(file):
        name, text = _text(kind, data)
        left -= len(text.encode())
        if left < 0:
            raise UnreadablePng(f"its texts have more than {MAX_TEXTS_BYTES} bytes")
        if name in texts:
            raise UnreadablePng(f"it has the text {name!r} twice")
        texts[name] = text
    return texts


def _text_chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Up to the end of the image. What follows it in the file is not read."""
    for _ in range(_MAX_CHUNKS):
        header = _exactly(file, 8)
        length, kind = int.from_bytes(header[:4], "big"), header[4:]
        if kind == b"IEND":
            return
        if kind not in _TEXTS:
            file.seek(length + 4, io.SEEK_CUR)
            continue
        if length > MAX_TEXT_BYTES:
            raise UnreadablePng(f"it has a text of {length} bytes, more than {MAX_TEXT_BYTES}")
        data = _exactly(file, length)
        if int.from_bytes(_exactly(file, 4), "big") != zlib.crc32(kind + data):
            raise UnreadablePng("a text is damaged: its checksum is wrong")
        yield kind, data
    raise UnreadablePng(f"it has more than {_MAX_CHUNKS} chunks")


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise UnreadablePng("it ends before the image does")
    return data


def _text(kind: bytes, data: bytes) -> tuple[str, str]:
    keyword, separator, rest = data.partition(b"\0")
    name = keyword.decode("latin-1")
    if not separator or not 1 <= len(keyword) <= 79 or not name.isprintable():
        raise UnreadablePng(f"it has a text with the name {name[:80]!r}")
    if kind == b"tEXt":
        return name, rest.decode("latin-1")
    if kind == b"zTXt":
        compressed, method, rest = True, rest[:1], rest[1:]
    else:
        compressed, method, parts = rest[:1] != b"\0", rest[1:2], rest[2:].split(b"\0", 2)
        if len(parts) < 3:
            raise UnreadablePng(f"its text {name!r} is incomplete")
        rest = parts[2]  # after its language, and the name in that language
    if compressed and method != b"\0":
        raise UnreadablePng(f"its text {name!r} has an unknown compression")
    if compressed:
        rest = _decompressed(name, rest)
    try:
        return name, rest.decode("latin-1" if kind == b"zTXt" else "utf-8")
    except UnicodeDecodeError:
        raise UnreadablePng(f"its text {name!r} is not UTF-8") from None


def _decompressed(name: str, data: bytes) -> bytes:
    try:
        decoder = zlib.decompressobj()
        text = decoder.decompress(data, MAX_TEXT_BYTES + 1)
    except zlib.error:
        raise UnreadablePng(f"its text {name!r} cannot be decompressed") from None
    if len(text) > MAX_TEXT_BYTES:
        raise UnreadablePng(f"its text {name!r} has more than {MAX_TEXT_BYTES} bytes")
    if not decoder.eof:
        raise UnreadablePng(f"its text {name!r} cannot be decompressed")
    return text
