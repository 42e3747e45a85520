"""The files that a model's folder may hold, and the headers of its weights: checked before any library reads them.

Format: github.com/huggingface/safetensors, "Format".
"""

import hashlib
import json
import os
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

_READ = {".safetensors", ".json", ".txt", ".model"}
_IGNORED = {".md", ".png", ".jpg", ".jpeg", ".webp", ".gitattributes", ".gitignore", "license", "readme"}
_MAX_HEADER_BYTES = 100_000_000
_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}


class ModelFilesRefused(Exception):
    """A model's files were not loaded. The message names the file, relative to the model, and the reason."""


def check_model_files(path: Path) -> None:
    """Refuse a folder that holds anything a loader could read except safetensors, JSON and text.

    The list is of allowed suffixes, because pickles have many. Raises ModelFilesRefused.
    """
    if path.is_file():
        if path.suffix != ".safetensors":
            raise ModelFilesRefused(f"{path.name}: a model in one file must be .safetensors")
        check_safetensors_header(path)
        return
    if not path.is_dir():
        raise ModelFilesRefused(f"{path.name}: no such model folder")
    weights = [file for file in sorted(path.rglob("*")) if _check_entry(path, file) and file.suffix == ".safetensors"]
    if not weights:
        raise ModelFilesRefused(f"{path.name}: holds no .safetensors file")
    for file in weights:
        check_safetensors_header(file)


def check_sha256(path: Path, pins: Mapping[str, str]) -> None:
    """`pins` maps a path within the model to the digest that the file must have, in hex. Raises ModelFilesRefused."""
    base = path if path.is_dir() else path.parent
    for name, expected in pins.items():
        try:
            with open(base / name, "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ModelFilesRefused(f"{name}: pinned by sha256, but {error.strerror}") from None
        if found != expected:
            raise ModelFilesRefused(f"{name}: sha256 is {found}, expected {expected}")


def check_safetensors_header(path: Path) -> None:
    """The header must describe every byte of the file exactly once. Raises ModelFilesRefused."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
                raise ModelFilesRefused(f"{path.name}: header of {length} bytes in a file of {size}")
            header = json.loads(file.read(length), object_pairs_hook=_without_duplicates)
        if not isinstance(header, dict):
            raise ValueError("not an object")
        header.pop("__metadata__", None)
        spans = sorted(_span(name, tensor) for name, tensor in header.items())
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ModelFilesRefused(f"{path.name}: bad safetensors header: {error}") from None
    end = 0
    for begin, following in spans:
        if begin != end:
            raise ModelFilesRefused(f"{path.name}: tensors overlap or leave a hole at byte {end}")
        end = following
    if end != size - 8 - length:
        raise ModelFilesRefused(f"{path.name}: {size - 8 - length} bytes of data, the header describes {end}")


def _check_entry(model: Path, entry: Path) -> bool:
    """Whether `entry` is a file that a loader may read. Raises ModelFilesRefused."""
    name = entry.relative_to(model)
    if entry.is_symlink() and not entry.resolve().is_relative_to(model.resolve()):
        raise ModelFilesRefused(f"{name}: links to outside the model's folder; put the file itself there")
    if entry.is_dir():
        return False
    if not entry.is_file():
        raise ModelFilesRefused(f"{name}: not a regular file")
    suffix = entry.suffix.lower() or entry.name.lower()
    if suffix in _IGNORED:
        return False
    if suffix not in _READ:
        raise ModelFilesRefused(f"{name}: only safetensors, JSON and text are loaded; remove it or convert it")
    return True


def _span(name: str, tensor: dict[str, Any]) -> tuple[int, int]:
    shape, (begin, end) = tensor["shape"], tensor["data_offsets"]
    if not isinstance(shape, list):
        raise ValueError(f"{name}: {shape!r} is not a shape")
    for number in (*shape, begin, end):
        if type(number) is not int or number < 0:
            raise ValueError(f"{name}: {number!r} is not a size")
    if (end - begin) * 8 != prod(shape) * _BITS[tensor["dtype"]]:
        raise ValueError(f"{name}: {end - begin} bytes do not hold {shape} of {tensor['dtype']}")
    return begin, end


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("duplicate name")
    return table
