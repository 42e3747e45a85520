"""The header of a GGUF file: which tensors it has, and where. It is checked as strictly as that of a safetensors file.

Nothing else of the file is used. Its metadata (names, templates, tokenizers) is skipped, but for the alignment of the
data. Format: github.com/ggml-org/ggml, "GGUF".
"""

import os
from math import prod
from pathlib import Path
from typing import BinaryIO, NamedTuple

from weave.models.configs import shown
from weave.models.files import Header, ModelFilesRefused, Tensor, check_safetensors_header

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_TENSORS = 100_000
_MAX_VALUES = 10_000
_MAX_NAME_BYTES = 128
# Names and strings in the metadata; a tokenizer has a few hundred thousand.
_MAX_TEXTS = 2_000_000
_MAX_DIMENSIONS = 4
_MAX_SIDE = 1 << 40
# Everything before the data: tokenizers take most of it.
_MAX_HEADER_BYTES = 100_000_000
_ALIGNMENT = "general.alignment"
_DEFAULT_ALIGNMENT, _MAX_ALIGNMENT = 32, 1 << 16
# In the metadata: the bytes of a value by its type. Strings and arrays give their own length.
_VALUE_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_UINT32, _TEXT, _LIST = 4, 8, 9


class Block(NamedTuple):
    """How a type stores values: a block of `numbers` values of a row takes `bytes` bytes."""

    numbers: int
    bytes: int


# By ggml's names. The first three are not quantised.
BLOCKS = {
    "F32": Block(1, 4),
    "F16": Block(1, 2),
    "BF16": Block(1, 2),
    "Q4_0": Block(32, 18),
    "Q4_1": Block(32, 20),
    "Q5_0": Block(32, 22),
    "Q5_1": Block(32, 24),
    "Q8_0": Block(32, 34),
    "Q4_K": Block(256, 144),
    "Q5_K": Block(256, 176),
    "Q6_K": Block(256, 210),
}
_TYPES = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K"}
_TYPES |= {30: "BF16"}
# Other types, named in the error message.
_OTHER_TYPES = {9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S"}
_OTHER_TYPES |= {20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64"}
_OTHER_TYPES |= {28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4"}
UNPACKED = ("F32", "F16", "BF16")


class Placed(NamedTuple):
    """A tensor, and the offset and the length of its data in the file."""

    tensor: Tensor
    begin: int
    size: int


def is_gguf(path: Path) -> bool:
    """By the name's suffix. Without one, as in the Hub's cache, by the first bytes, which no safetensors file has: they
    would be too large a length. Raises OSError."""
    if path.suffix:
        return path.suffix == ".gguf"
    with open(path, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def check_header(path: Path, name: str | None = None) -> Header:
    """As check_safetensors_header(), for both formats. Raises ModelFilesRefused, OSError."""
    return check_gguf_header(path, name) if is_gguf(path) else check_safetensors_header(path, name)


def check_gguf_header(path: Path, name: str | None = None) -> Header:
    """The file's tensors, if the header describes all data exactly once. `name` is what messages call the file.

    Raises ModelFilesRefused.
    """
    return {key: placed.tensor for key, placed in read_gguf_header(path, name).items()}


def read_gguf_header(path: Path, name: str | None = None) -> dict[str, Placed]:
    """As check_gguf_header(), with the offsets of the data. Raises ModelFilesRefused."""
    name = name or path.name
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            return _read(_Reader(file, size), size)
    except OSError as error:
        raise ModelFilesRefused(f"{name}: {error.strerror}") from None
    except ValueError as error:
        raise ModelFilesRefused(f"{name}: bad GGUF header: {error}") from None


class _Reader:
    """Reads numbers and strings. None may go beyond the file's end or the header's bound. Raises ValueError."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._most = min(size, _MAX_HEADER_BYTES)
        self._texts = 0
        self.at = 0

    def take(self, length: int) -> bytes:
        if length > self._most - self.at:
            raise ValueError(f"it goes on beyond byte {self._most}; the download is incomplete, or a length is wrong")
        self.at += length
        return self._file.read(length)

    def number(self, length: int) -> int:
        return int.from_bytes(self.take(length), "little")

    def count(self, what: str, most: int) -> int:
        found = self.number(8)
        if found > most:
            raise ValueError(f"{found} {what}, expected at most {most}")
        return found

    def text(self) -> bytes:
        self._texts += 1
        if self._texts > _MAX_TEXTS:
            raise ValueError(f"its metadata has more than {_MAX_TEXTS} texts")
        return self.take(self.number(8))


def _read(reader: _Reader, size: int) -> dict[str, Placed]:
    magic = reader.take(len(MAGIC))
    if magic != MAGIC:
        raise ValueError(f"it begins with {shown(magic)}, expected {shown(MAGIC)}")
    version = reader.number(4)
    if version not in _VERSIONS:
        raise ValueError(f"version {version}, expected one of {', '.join(map(str, _VERSIONS))}")
    tensors = reader.count("tensors", _MAX_TENSORS)
    alignment = _alignment(reader, reader.count("values of metadata", _MAX_VALUES))
    found: dict[str, tuple[Tensor, int, int]] = {}
    for _ in range(tensors):
        key, tensor, offset = _tensor(reader)
        if key in found:
            raise ValueError(f"{shown(key)} is there twice")
        found[key] = (tensor, offset, _bytes_of(key, tensor))
    data = _aligned(reader.at, alignment)
    _check_cover(found, size - data, alignment)
    return {key: Placed(tensor, data + offset, length) for key, (tensor, offset, length) in found.items()}


def _alignment(reader: _Reader, values: int) -> int:
    """Skips the metadata."""
    found = _DEFAULT_ALIGNMENT
    keys = set()
    for _ in range(values):
        key, kind = reader.text(), reader.number(4)
        if key in keys:
            raise ValueError(f"metadata {shown(key)} is there twice")
        keys.add(key)
        if key != _ALIGNMENT.encode():
            _skip(reader, kind)
            continue
        found = reader.number(4) if kind == _UINT32 else 0
        if not 8 <= found <= _MAX_ALIGNMENT or found & (found - 1):
            raise ValueError(f"{_ALIGNMENT} is not a power of two from 8 to {_MAX_ALIGNMENT}")
    return found


def _skip(reader: _Reader, kind: int) -> None:
    if kind in _VALUE_BYTES:
        reader.take(_VALUE_BYTES[kind])
    elif kind == _TEXT:
        reader.text()
    elif kind == _LIST:
        inner, length = reader.number(4), reader.number(8)
        if inner in _VALUE_BYTES:
            reader.take(length * _VALUE_BYTES[inner])
        elif inner == _TEXT:
            for _ in range(length):  # each takes 8 bytes at least: take() ends a wrong length
                reader.text()
        else:
            raise ValueError(f"metadata has a list of values of type {inner}")
    else:
        raise ValueError(f"metadata has a value of type {kind}")


def _tensor(reader: _Reader) -> tuple[str, Tensor, int]:
    """Name, type with shape, and the offset from the start of the data."""
    length = reader.count("bytes in a tensor's name", _MAX_NAME_BYTES)
    try:
        name = reader.take(length).decode()
    except UnicodeDecodeError:
        raise ValueError("a tensor's name is not UTF-8") from None
    dimensions = reader.number(4)
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise ValueError(f"{shown(name)} has {dimensions} dimensions, expected 1 to {_MAX_DIMENSIONS}")
    sides = [reader.number(8) for _ in range(dimensions)]
    kind, offset = reader.number(4), reader.number(8)
    if not all(0 < side <= _MAX_SIDE for side in sides):
        raise ValueError(f"{shown(name)} is of shape {shown(sides[::-1])}")
    if kind not in _TYPES:
        found = _OTHER_TYPES.get(kind, f"number {kind}")
        raise ValueError(f"{shown(name)} is of type {found}, expected one of {', '.join(BLOCKS)}")
    return name, Tensor(_TYPES[kind], tuple(reversed(sides))), offset  # the first dimension is that of a row


def _bytes_of(name: str, tensor: Tensor) -> int:
    block = BLOCKS[tensor.dtype]
    if tensor.shape[-1] % block.numbers:
        detail = f"rows of {tensor.shape[-1]} numbers, which are not blocks of {block.numbers}"
        raise ValueError(f"{shown(name)} of type {tensor.dtype} has {detail}")
    return prod(tensor.shape) // block.numbers * block.bytes


def _check_cover(found: dict[str, tuple[Tensor, int, int]], size: int, alignment: int) -> None:
    """Each tensor begins where the one before it ends, rounded up to the alignment."""
    end = 0
    for begin, length in sorted((offset, length) for _, offset, length in found.values()):
        if begin != _aligned(end, alignment):
            raise ValueError(f"tensors overlap, are not aligned or leave a hole at byte {end} of the data")
        end = begin + length
    if size not in (end, _aligned(end, alignment)):
        incomplete = "; the download is incomplete" if size < end else ""
        raise ValueError(f"{max(size, 0)} bytes of data, the header describes {end}{incomplete}")


def _aligned(at: int, alignment: int) -> int:
    return -(-at // alignment) * alignment
