"""The files of a model's folder that are opened, and the headers of its weights: checked before any library reads them.

Other files are left alone, pickles among them.

Format: github.com/huggingface/safetensors, "Format".
"""

import contextlib
import json
import os
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_MAX_HEADER_BYTES = 100_000_000
# For a tensor's dimensions and offsets: more than any file has, and small enough to add up.
_MAX_SIZE = 2**48
_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}


class Tensor(NamedTuple):
    """What a header says about a tensor; `dtype` is the name there."""

    dtype: str
    shape: tuple[int, ...]


# The tensors of a file by name.
Header: TypeAlias = Mapping[str, Tensor]


class ModelFilesRefused(Exception):
    """A model's files were not loaded. The message names the file, relative to the model, and the reason."""


def find_file(model: Path, name: str) -> Path:
    """The path of a file that exists in the folder `model`, and may be opened: `name` is relative to the folder.

    Links may lead to other files of the folder, and from a snapshot in the Hub's cache to its blobs: elsewhere a folder
    that someone else has made could have us read any file. Raises ModelFilesRefused.
    """
    path = model / name
    try:
        target = path.resolve(strict=True)
    except FileNotFoundError:
        if path.is_symlink():
            detail = "links to a file that does not exist; the download is incomplete"
            raise ModelFilesRefused(f"{name}: {detail}") from None
        raise ModelFilesRefused(f"{name}: No such file or directory{_other_reason(path)}") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: a circle of links
        raise ModelFilesRefused(f"{name}: {getattr(error, 'strerror', None) or error}") from None
    if not any(target.is_relative_to(folder) for folder in _readable(model)):
        raise ModelFilesRefused(f"{name}: links to outside the model's folder; put the file itself there")
    if not target.is_file():
        raise ModelFilesRefused(f"{name}: not a regular file")
    try:
        with open(path, "rb") as file:
            beginning = file.read(len(_LFS_POINTER))
    except OSError as error:
        raise ModelFilesRefused(f"{name}: {error.strerror}") from None
    if beginning == _LFS_POINTER:
        raise ModelFilesRefused(f"{name}: a git-lfs pointer, not the file that it stands for; run git lfs pull")
    return path


def linked_files(model: Path) -> tuple[Path, ...]:
    """The blobs that the links in a snapshot of the Hub's cache lead to; none for other folders."""
    blobs = _readable(model)[1:]
    links = [path for path in sorted(model.rglob("*")) if path.is_symlink()] if blobs else []
    targets = {Path(os.path.realpath(link)) for link in links}  # unlike resolve(), also of links in a circle
    return tuple(sorted(target for target in targets if target.parent in blobs and target.is_file()))


def _readable(model: Path) -> tuple[Path, ...]:
    """The folder, and for a snapshot in the Hub's cache (models--NAME/snapshots/REVISION) also models--NAME/blobs."""
    folder = model.resolve()
    is_snapshot = folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--")
    return (folder, folder.parent.parent / "blobs") if is_snapshot else (folder,)


def _other_reason(path: Path) -> str:
    """Why a file may be missing: what is there in its place."""
    pickles = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
    with contextlib.suppress(OSError):
        found = sorted(other.name for other in path.parent.iterdir() if other.suffix in pickles)
        if found and path.suffix == ".safetensors":
            return f"; {found[0]} is a pickle, which can run code and is never read"
    return ""


def check_safetensors_header(path: Path, name: str | None = None) -> dict[str, Tensor]:
    """The file's tensors, if the header describes every byte exactly once. `name` is what messages call the file.

    Raises ModelFilesRefused.
    """
    return read_safetensors_header(path, name)[0]


def read_safetensors_header(path: Path, name: str | None = None) -> tuple[dict[str, Tensor], Any]:
    """As check_safetensors_header(), with the metadata, which may be any JSON; None if it has none.

    Raises ModelFilesRefused.
    """
    name = name or path.name
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
                raise ModelFilesRefused(f"{name}: header of {length} bytes in a file of {size}")
            header = json.loads(file.read(length), object_pairs_hook=_without_duplicates)
        if not isinstance(header, dict):
            raise ValueError("not an object")
        metadata = header.pop("__metadata__", None)
        spans = sorted(_span(key, tensor) for key, tensor in header.items())
    except OSError as error:
        raise ModelFilesRefused(f"{name}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ModelFilesRefused(f"{name}: bad safetensors header: {error}") from None
    end = 0
    for begin, following in spans:
        if begin != end:
            raise ModelFilesRefused(f"{name}: tensors overlap or leave a hole at byte {end}")
        end = following
    if end != size - 8 - length:
        detail = f"{size - 8 - length} bytes of data, the header describes {end}"
        raise ModelFilesRefused(f"{name}: {detail}{'; the download is incomplete' if size - 8 - length < end else ''}")
    return {key: Tensor(tensor["dtype"], tuple(tensor["shape"])) for key, tensor in header.items()}, metadata


def _span(name: str, tensor: dict[str, Any]) -> tuple[int, int]:
    shape, (begin, end) = tensor["shape"], tensor["data_offsets"]
    if not isinstance(shape, list):
        raise ValueError(f"{name}: {shape!r} is not a shape")
    for number in (*shape, begin, end):
        if type(number) is not int or not 0 <= number < _MAX_SIZE:
            raise ValueError(f"{name}: {number!r} is not a size")
    if (end - begin) * 8 != prod(shape) * _BITS[tensor["dtype"]]:
        raise ValueError(f"{name}: {end - begin} bytes do not hold {shape} of {tensor['dtype']}")
    return begin, end


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("duplicate name")
    return table
